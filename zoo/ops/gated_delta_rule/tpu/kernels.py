"""The kernels for a TPU: from chunk to chunk with the state in VMEM, all of a chunk inside.

A step of a grid [B, HV / G, T / C] takes the chunk of G heads; the steps of the last axis follow each other, and the
state stays in VMEM between them, as the block of an output. Arrays of tokens are [B, T, heads * K], so that a block of
heads is a block of columns.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.common import inverse_norm
from zoo.ops.gated_delta_rule.tpu import chunk as one
from zoo.ops.gated_delta_rule.tpu.chunk import CHUNK, Inputs, Products
from zoo.ops.mosaic_tpu import launch, pl
from zoo.typing import Array

_SEMANTICS = ("parallel", "parallel", "arbitrary")
# Rows that every chunk has one number per token in: a register's.
ROWS = 8


class Plan(NamedTuple):
    """What the kernels are made for.

    Attributes:
      batch, chunks: B, T / C.
      key_heads, heads: H, HV.
      widths: K, V.
      group: value heads that a step works on, G; and the queries' heads of these, at least one.
      narrow: whether products are of bfloat16.
      gated: whether there are decays.
      scale: of the queries.
      l2norm: whether queries and keys are brought to length 1.
    """

    batch: int
    chunks: int
    key_heads: int
    heads: int
    widths: tuple[int, int]
    group: tuple[int, int]
    narrow: bool
    gated: bool
    scale: float
    l2norm: bool

    @property
    def dtype(self) -> Any:
        """Of operands."""
        return jnp.bfloat16 if self.narrow else jnp.float32

    @property
    def repeats(self) -> int:
        """Value heads that share a query."""
        return self.heads // self.key_heads

    @property
    def parts(self) -> int:
        """Of the gradient of a query or key, from so many steps."""
        return max(1, self.repeats // self.group[0])

    def place(self, chunk: Any, to_first: bool) -> Any:
        """Which chunk the step works on."""
        return self.chunks - 1 - chunk if to_first else chunk


def forward(plan: Plan, inputs: Sequence[Array], rows: Array, state: Array) -> tuple[Array, Array]:
    """The outputs [B, T, HV V] in the dtype of `v`, and the state after the last chunk.

    Args:
      plan: of the kernels.
      inputs: q and k [B, T, H K], v [B, T, HV V].
      rows: float32 [B, HV, T / C, 8, C]: beta, and `zoo.ops.gated_delta_rule.chunk.running_sums` of log decays.
      state: float32 [B, HV, K, V], before the first chunk.
    """
    q, k, v = inputs
    arrays = [(q, _keys), (k, _keys), (v, _values), (rows, _rows), (state, _state)]
    return _run(plan, "delta_rule", _forward, arrays, [_values(plan, v.dtype), _state(plan)])


def states(plan: Plan, inputs: Sequence[Array], rows: Array, state: Array) -> tuple[Array, Array]:
    """The states before the chunks as operands, [B, HV, T / C, K, V], and `chunk.inverses`, [B, HV, T / C, 32, C].

    The arguments are those of `forward`.
    """
    _, k, v = inputs
    out = [_each(plan, *plan.widths, plan.dtype), _each(plan, one.BLOCK, CHUNK), _state(plan)]
    arrays = [(k, _keys), (v, _values), (rows, _rows), (state, _state)]
    return _run(plan, "delta_rule_states", _states, arrays, out)[:2]


def backward(
    plan: Plan, inputs: Sequence[Array], rows: Array, before: Array, inverse: Array, dy: Array, dstate: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """The gradients, from those of the outputs and of the last state.

    Args:
      plan: of the kernels.
      inputs: q, k and v, as of `forward`.
      rows: as of `forward`.
      before, inverse: what `states` returned.
      dy: gradient of the outputs, [B, T, HV V].
      dstate: gradient of the state after the last chunk, float32 [B, HV, K, V].

    Returns:
      dq, dk: [B, T, H K] in their dtypes, or float32 [B, T, H P K] to be summed over P = `Plan.parts`.
      dv: [B, T, HV V].
      drows: float32 [B, HV, T / C, 8, C]: of beta, and what that of log_decay is summed up from, see `Gradients`.
      dfirst: of the state before the first chunk, float32 [B, HV, K, V].
    """
    q, k, v = inputs
    parted = plan.parts > 1
    outs = [_keys(plan, jnp.float32 if parted else x.dtype, parted=parted) for x in (q, k)]
    outs += [_values(plan, v.dtype), _rows(plan), _state(plan)]
    arrays = [(q, _keys), (k, _keys), (v, _values), (rows, _rows)]
    arrays += [(x, functools.partial(_each, rows=x.shape[3], columns=x.shape[4])) for x in (before, inverse)]
    arrays += [(dy, _values), (dstate, _state)]
    return _run(plan, "delta_rule_backward", _backward, arrays, outs, to_first=True)


# --- blocks


class _Block(NamedTuple):
    """An array's shape and dtype, and which part of it belongs to a step."""

    shape: tuple[int, ...]
    dtype: Any
    block: tuple[int | None, ...]
    index: Callable[..., tuple[Any, ...]]


def _keys(plan: Plan, dtype: Any = None, parted: bool = False) -> _Block:
    columns = plan.group[1] * plan.widths[0]
    per_block = 1 if parted else plan.parts
    shape = (plan.batch, plan.chunks * CHUNK, plan.key_heads * plan.widths[0] * (plan.parts if parted else 1))
    return _Block(shape, dtype, (None, CHUNK, columns), lambda b, h, c: (b, c, jax.lax.div(h, per_block)))


def _values(plan: Plan, dtype: Any = None) -> _Block:
    shape = (plan.batch, plan.chunks * CHUNK, plan.heads * plan.widths[1])
    return _Block(shape, dtype, (None, CHUNK, plan.group[0] * plan.widths[1]), lambda b, h, c: (b, c, h))


def _each(plan: Plan, rows: int, columns: int, dtype: Any = jnp.float32) -> _Block:
    shape = (plan.batch, plan.heads, plan.chunks, rows, columns)
    return _Block(shape, dtype, (None, plan.group[0], None, rows, columns), lambda b, h, c: (b, h, c, 0, 0))


def _rows(plan: Plan) -> _Block:
    return _each(plan, ROWS, CHUNK)


def _state(plan: Plan) -> _Block:
    shape = (plan.batch, plan.heads, *plan.widths)
    return _Block(shape, jnp.float32, (None, plan.group[0], *plan.widths), lambda b, h, c: (b, h, 0, 0))


def _run(
    plan: Plan,
    name: str,
    body: Callable[..., None],
    inputs: Sequence[tuple[Array, Callable[..., _Block]]],
    out: Sequence[_Block],
    *,
    to_first: bool = False,
) -> Any:
    def spec(block: _Block) -> Any:
        return pl.BlockSpec(block.block, lambda b, h, c: block.index(b, h, plan.place(c, to_first)))

    return launch(
        functools.partial(body, plan),
        name=name,
        semantics=_SEMANTICS,
        grid=(plan.batch, plan.heads // plan.group[0], plan.chunks),
        in_specs=[spec(block(plan)) for _, block in inputs],
        out_specs=[spec(block) for block in out],
        out_shape=[jax.ShapeDtypeStruct(block.shape, block.dtype) for block in out],
    )(*(array for array, _ in inputs))


# --- bodies


def _forward(plan: Plan, q: Any, k: Any, v: Any, rows: Any, first: Any, y: Any, state: Any) -> None:
    _begin(first, state)
    dot, (chunk, _), before = Products(plan.narrow), _inputs(plan, q, k, v, rows), state[...]
    low = one.lower(chunk, dot)
    n = one.written(chunk, low, one.inverses(low, dot), before, dot)
    _store_heads(y, one.outputs(chunk, n, before, plan.scale, dot))
    state[...] = one.advance(chunk, n, before, dot)


def _states(plan: Plan, k: Any, v: Any, rows: Any, first: Any, befores: Any, inverses: Any, state: Any) -> None:
    _begin(first, state)
    dot, (chunk, _), before = Products(plan.narrow), _inputs(plan, None, k, v, rows), state[...]
    low = one.lower(chunk, dot)
    found = one.inverses(low, dot)
    befores[...], inverses[...] = before.astype(befores.dtype), found
    state[...] = one.advance(chunk, one.written(chunk, low, found, before, dot), before, dot)


def _backward(plan: Plan, q, k, v, rows, before, inverse, dy, dlast, dq, dk, dv, drows, dstate) -> None:
    _begin(dlast, dstate)
    chunk, norms = _inputs(plan, q, k, v, rows)
    dy = _load_heads(dy, plan.group[0], plan.widths[1])
    found = one.gradients(chunk, inverse[...], before[...], dy, dstate[...], plan.scale, Products(plan.narrow))
    dstate[...] = found.state
    for raw, norm, into, d in zip((q, k), norms, (dq, dk), (found.q, found.k), strict=True):
        d = _sum_shared(plan, d)
        _store_heads(into, d if norm is None else one.through_norm(_load_keys(plan, raw), norm, d))
    _store_heads(dv, found.v)
    _store_rows(drows, found)


def _begin(first: Any, state: Any) -> None:
    """The state before the first step of the grid's last axis."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        state[...] = first[...]


def _inputs(plan: Plan, q: Any | None, k: Any, v: Any, rows: Any) -> tuple[Inputs, tuple[Array | None, Array | None]]:
    """The chunk, and by what its queries and keys were multiplied to be of length 1, [heads, C, 1]."""
    columns = jnp.swapaxes(rows[...], 1, 2)
    queries, q_norm = (None, None) if q is None else _ready(plan, q)
    keys, k_norm = _ready(plan, k)
    values = _load_heads(v, plan.group[0], plan.widths[1]).astype(jnp.float32)
    beta, decay = columns[:, :, one.BETA : one.BETA + 1], one.decays(rows[...], columns, plan.gated)
    return Inputs(queries, keys, values, beta, decay), (q_norm, k_norm)


def _ready(plan: Plan, ref: Any) -> tuple[Array, Array | None]:
    """Queries or keys as operands, for each of the value heads; see `_inputs`."""
    x = _load_keys(plan, ref).astype(jnp.float32)
    norm = inverse_norm(x) if plan.l2norm else None
    return _share(plan, one.times(x, norm).astype(plan.dtype)), norm


def _share(plan: Plan, x: Array) -> Array:
    """Queries or keys for each of the value heads."""
    shared = plan.group[0] // plan.group[1]
    return x if shared == 1 else jnp.stack([x[i // shared] for i in range(plan.group[0])])


def _sum_shared(plan: Plan, x: Array) -> Array:
    """The gradient of what `_share` was given."""
    shared = plan.group[0] // plan.group[1]
    return x if shared == 1 else jnp.stack([x[i : i + shared].sum(0) for i in range(0, plan.group[0], shared)])


def _load_keys(plan: Plan, ref: Any) -> Array:
    return _load_heads(ref, plan.group[1], plan.widths[0])


def _load_heads(ref: Any, heads: int, width: int) -> Array:
    """[C, heads * width] as [heads, C, width]."""
    return jnp.stack([ref[:, i * width : (i + 1) * width] for i in range(heads)])


def _store_heads(ref: Any, x: Array) -> None:
    """The opposite of `_load_heads`."""
    width = x.shape[2]
    for i in range(x.shape[0]):
        ref[:, i * width : (i + 1) * width] = x[i].astype(ref.dtype)


def _store_rows(ref: Any, found: one.Gradients) -> None:
    """The sums per token, one token per column."""
    heads, size = found.columns[0].shape[:2]
    which = jax.lax.broadcasted_iota(jnp.int32, (1, 1, ROWS), 2)
    matrix = jnp.zeros((heads, size, ROWS), jnp.float32)
    for i, column in enumerate(found.columns):
        matrix = jnp.where(which == i, column, matrix)
    rows = jnp.swapaxes(matrix, 1, 2)
    if found.ends is not None and found.through is not None:
        which = jax.lax.broadcasted_iota(jnp.int32, (1, ROWS, 1), 1)
        rows = rows - jnp.where(which == one.TO_QUERY, found.ends, 0.0)
        rows = rows + jnp.where(which == one.THROUGH, found.through, 0.0)
    ref[...] = rows
