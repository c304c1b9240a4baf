"""The recurrence over chunks on a Hopper GPU: the mathematics of `chunk`, the state in registers, products by wgmma.

One warpgroup works on the columns of one head's state that belong to 64 values, S [K, 64], from the first chunk to the
last or back. What needs no state is given: T, and A = scale Q K^T ∘ D. With the names of `chunk`, for 64 tokens::

    X = diag(beta) (V - E K S)      N = T X      Y = scale E Q S + A N      S' = exp(g_63) S + K^T (F N)

    dN = A^T dY + F K dS'           dX = T^T dN
    dS = exp(g_63) dS' + Q^T (scale E dY) - K^T (beta E dX)

An operand of a product is one bfloat16 array, or the sum of two (its pieces: the rounded numbers, and what rounding
left of them, rounded), whose three largest products are added up. Sums, decays and the state are float32.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.mosaic_gpu import (
    MATRIX,
    ROWS,
    SMEM,
    barrier,
    copy_in,
    launch,
    load,
    pl,
    plgpu,
    products,
    store,
    transposed,
)
from zoo.typing import Array

# Tokens per chunk, and values per warpgroup: the height of a wgmma tile, and what its registers have room for.
CHUNK = 64
VALUES = 64
# The rows of `Chunks.rows`.
_BETA, _START, _END, _WHOLE = range(4)
# The multiprocessors of an H100 or H200. A launch of more blocks than that has two at a time on each, of which one
# computes while the other waits for memory; else there is shared memory to load the next chunk's tiles ahead.
_MULTIPROCESSORS = 132


class Chunks(NamedTuple):
    """What all kernels read, in the order of processing: n chunks; P = 1 or 2 pieces of bfloat16.

    Attributes:
      q, k: [P, B, T, H, K], T = 64 n, K = 64 or 128; the queries without the scale.
      attention, inverse: A and T, [P, n, B, HV, 64, 64].
      rows: float32 [n, B, HV, R, 64]: beta, and where there are decays (R = 4) E, F, and exp(g_63) 64 times.
    """

    q: Array
    k: Array
    attention: Array
    inverse: Array
    rows: Array


def split(x: Array, pieces: int) -> list[Array]:
    """So many bfloat16 arrays whose sum is `x`: to 8 bits for one, to 16 for two."""
    found = []
    for _ in range(pieces):
        found.append(x.astype(jnp.bfloat16))
        x = x.astype(jnp.float32) - found[-1].astype(jnp.float32)
    return found


def forward(chunks: Chunks, v: Array, state: Array, scale: float) -> tuple[Array, Array]:
    """The outputs [B, T, HV, V] in the dtype of `v`, and the state after the last chunk.

    Args:
      chunks: see `Chunks`.
      v: [B, T, HV, V], V a multiple of 64.
      state: float32 [B, HV, K, V], before the first chunk.
      scale: of the queries.
    """
    plan = _Plan.of(chunks, v)
    inputs = [*_operands(plan, chunks), _Input(v[None], plan.values, (CHUNK, VALUES))]
    own = [plan.operand(plan.width), plan.operand(), plan.operand(), SMEM((CHUNK, VALUES), v.dtype)]
    body = functools.partial(_forward, plan, scale)
    y, last = _run("delta_rule", body, plan, inputs, state, own, [jax.ShapeDtypeStruct(v.shape, v.dtype)])
    return y, last


def states(chunks: Chunks, v: Array, state: Array) -> tuple[Array, Array]:
    """The state before each chunk [P, n, B, HV, K, V] and N of each [P, n, B, HV, 64, V]; arguments as of `forward`."""
    plan = _Plan.of(chunks, v)
    _, k, _, *others = _operands(plan, chunks)
    inputs = [k, *others, _Input(v[None], plan.values, (CHUNK, VALUES))]
    own = [plan.operand(plan.width), plan.operand(), plan.operand()]
    body = functools.partial(_states, plan)
    befores, ns, _ = _run("delta_rule_states", body, plan, inputs, state, own, [plan.out(plan.width), plan.out(CHUNK)])
    return befores, ns


def backward(chunks: Chunks, dy: Array, dstate: Array, scale: float) -> tuple[Array, Array, Array]:
    """The gradients of X and of the state after it of each chunk, and of the state before the first chunk.

    Args:
      chunks: see `Chunks`.
      dy: gradient of the outputs, in pieces, [P, B, T, HV, V].
      dstate: gradient of the state after the last chunk, float32 [B, HV, K, V].
      scale: of the queries.

    Returns:
      dX [P, n, B, HV, 64, V], dS' [P, n, B, HV, K, V], float32 [B, HV, K, V].
    """
    plan = _Plan.of(chunks, dy[0])
    inputs = [*_operands(plan, chunks), _Input(dy, plan.values, (CHUNK, VALUES))]
    own = [plan.operand(plan.width), *(plan.operand() for _ in range(3))]
    out = [plan.out(CHUNK), plan.out(plan.width)]
    body = functools.partial(_backward, plan, scale)
    dxs, dafters, dfirst = _run("delta_rule_backward", body, plan, inputs, dstate, own, out, to_first=True)
    return dxs, dafters, dfirst


# --- one chunk


def _forward(plan: "_Plan", scale: float, site: "_Site", tiles, own, out, state: Array) -> Array:
    q, k, attention, inverse, rows, v = tiles
    before, x, n, outputs = own
    _write(before, state)
    plgpu.commit_smem()
    ks, qs = _multiply((k, before), (q, before))
    _write(x, _errors(plan, rows, v, ks))
    plgpu.commit_smem()
    (written,) = _multiply((inverse, x))
    _write(n, written)
    to_end = _to_end(plan, rows, written, x, n)
    plgpu.commit_smem()
    inner, new = _multiply((attention, n), (_turned(k), to_end))
    y = scale * (qs * _row(rows, _START, qs) if plan.gated else qs) + inner
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the outputs of the chunk before
    store(outputs, y.astype(outputs.dtype))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(outputs, out[0].at[site.batch, site.tokens, site.head, site.values])
    return _decayed(plan, rows, state) + new


def _states(plan: "_Plan", site: "_Site", tiles, own, out, state: Array) -> Array:
    k, inverse, rows, v = tiles
    before, x, n = own
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # what the chunk before has given
    _write(before, state)
    plgpu.commit_smem()
    _give(before, out[0], site)
    (ks,) = _multiply((k, before))
    _write(x, _errors(plan, rows, v, ks))
    plgpu.commit_smem()
    (written,) = _multiply((inverse, x))
    _write(n, written)
    to_end = _to_end(plan, rows, written, x, n)
    plgpu.commit_smem()
    _give(n, out[1], site)
    (new,) = _multiply((_turned(k), to_end))
    return _decayed(plan, rows, state) + new


def _backward(plan: "_Plan", scale: float, site: "_Site", tiles, own, out, dstate: Array) -> Array:
    q, k, attention, inverse, rows, dy = tiles
    dafter, dn, dx, dx_start = own
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # what the chunk after has given
    _write(dafter, dstate)
    plgpu.commit_smem()
    _give(dafter, out[1], site)
    from_outputs, from_state = _multiply((_turned(attention), dy), (k, dafter))
    _write(dn, from_outputs + (from_state * _row(rows, _END, from_state) if plan.gated else from_state))
    plgpu.commit_smem()
    (found,) = _multiply((_turned(inverse), dn))
    _write(dx, found)
    dks, dqs = found * _row(rows, _BETA, found), dy
    if plan.gated:
        start = _row(rows, _START, found)
        dks = dks * start
        dqs = dn  # which is no longer needed
        _write(dqs, start * _read(dy))
    _write(dx_start, dks)
    plgpu.commit_smem()
    _give(dx, out[0], site)
    by_queries, by_keys = _multiply((_turned(q), dqs), (_turned(k), dx_start))
    return _decayed(plan, rows, dstate) + scale * by_queries - by_keys


def _errors(plan: "_Plan", rows: Any, v: Any, ks: Array) -> Array:
    """X."""
    ks = ks * _row(rows, _START, ks) if plan.gated else ks
    return _row(rows, _BETA, ks) * (load(v.at[0], MATRIX).astype(jnp.float32) - ks)


def _to_end(plan: "_Plan", rows: Any, written: Array, into: Any, n: Any) -> Any:
    """F N, written `into` shared memory; without decays that is `n`."""
    if not plan.gated:
        return n
    _write(into, written * _row(rows, _END, written))
    return into


def _decayed(plan: "_Plan", rows: Any, state: Array) -> Array:
    return state * rows[0, _WHOLE, 0] if plan.gated else state


def _row(rows: Any, which: int, like: Array) -> Array:
    """One number per token, for all columns."""
    return jax.lax.broadcast_in_dim(load(rows.at[0, which], ROWS), like.shape, (0,))


# --- arrays of pieces in shared memory


def _write(ref: Any, x: Array) -> None:
    for i, piece in enumerate(split(x, ref.shape[0])):
        store(ref.at[i], piece)


def _read(ref: Any) -> Array:
    first, *others = (load(ref.at[i], MATRIX).astype(jnp.float32) for i in range(ref.shape[0]))
    return sum(others, first)


def _give(ref: Any, out: Any, site: "_Site") -> None:
    """Starts the copy of a chunk's tile or state to the output of `_Plan.out`."""
    for i in range(ref.shape[0]):
        plgpu.copy_smem_to_gmem(ref.at[i], out.at[i, site.chunk, site.batch, site.head, :, site.values])


def _multiply(*pairs: tuple[Any, Any]) -> list[Array]:
    """a @ b, of each pair."""
    return products(*(_pairs_of_pieces(_pieces(a), _pieces(b)) for a, b in pairs))


def _turned(ref: Any) -> list[Any]:
    """The transpose, for `_multiply`."""
    return [transposed(piece) for piece in _pieces(ref)]


def _pieces(operand: Any) -> list[Any]:
    return operand if isinstance(operand, list) else [operand.at[i] for i in range(operand.shape[0])]


def _pairs_of_pieces(a: list[Any], b: list[Any]) -> list[tuple[Any, Any]]:
    """All but the products of what rounding left with what rounding left."""
    return [(a[i], b[j]) for i in range(len(a)) for j in range(len(b) - i)]


# --- the loop over chunks


class _Site(NamedTuple):
    """Where a block is now: indices and slices of the arrays in device memory."""

    batch: Array
    head: Array
    values: Any
    chunk: Array
    tokens: Any


class _Input(NamedTuple):
    """An array [pieces, ...] in device memory of which each chunk has a tile.

    Attributes:
      array: itself.
      part: takes a reference to it, a piece and a site; returns the tile there.
      tile: shape of the tile.
    """

    array: Array
    part: Callable[[Any, int, _Site], Any]
    tile: tuple[int, ...]


class _Plan(NamedTuple):
    """What is known of a launch before: `grid` is (B, HV, V / 64), `group` HV / H, `width` K."""

    pieces: int
    chunks: int
    width: int
    gated: bool
    group: int
    grid: tuple[int, int, int]

    @classmethod
    def of(cls, chunks: Chunks, v: Array) -> "_Plan":
        """For values [B, T, HV, V]."""
        pieces, batch, length, heads, width = chunks.k.shape
        grid = batch, v.shape[2], v.shape[3] // VALUES
        return cls(pieces, length // CHUNK, width, chunks.rows.shape[-2] > 1, v.shape[2] // heads, grid)

    @property
    def stages(self) -> int:
        """For how many chunks there are tiles in shared memory."""
        batch, heads, columns = self.grid
        return 2 if self.pieces == 1 and batch * heads * columns <= _MULTIPROCESSORS else 1

    def operand(self, rows: int = CHUNK) -> Any:
        """Shared memory for pieces [rows, 64]."""
        return SMEM((self.pieces, rows, VALUES), jnp.bfloat16)

    def out(self, rows: int) -> jax.ShapeDtypeStruct:
        """An array [rows, V] of each chunk, in pieces."""
        batch, heads, columns = self.grid
        return jax.ShapeDtypeStruct((self.pieces, self.chunks, batch, heads, rows, columns * VALUES), jnp.bfloat16)

    def keys(self, ref: Any, piece: int, site: _Site) -> Any:
        """The tile of an array [P, B, T, H, K]."""
        return ref.at[piece, site.batch, site.tokens, site.head // self.group]

    def values(self, ref: Any, piece: int, site: _Site) -> Any:
        """The tile of an array [P, B, T, HV, V]."""
        return ref.at[piece, site.batch, site.tokens, site.head, site.values]

    def own(self, ref: Any, piece: int, site: _Site) -> Any:
        """The tile of an array [P, n, B, HV, rows, columns]."""
        return ref.at[piece, site.chunk, site.batch, site.head]


def _operands(plan: _Plan, chunks: Chunks) -> list[_Input]:
    q, k, attention, inverse, rows = chunks
    return [
        *(_Input(x, plan.keys, (CHUNK, plan.width)) for x in (q, k)),
        *(_Input(x, plan.own, (CHUNK, CHUNK)) for x in (attention, inverse)),
        _Input(rows[None], plan.own, rows.shape[-2:]),
    ]


def _run(
    name: str,
    body: Callable[..., Array],
    plan: _Plan,
    inputs: Sequence[_Input],
    state: Array,
    own: Sequence[Any],
    out: Sequence[jax.ShapeDtypeStruct],
    *,
    to_first: bool = False,
) -> tuple[Array, ...]:
    """Launches a kernel that takes a state from chunk to chunk, from the last `to_first` or from the first to the last.

    Args:
      name: of the kernel.
      body: takes the site, the inputs' tiles, `own`, the outputs, and the state; returns the state for the next chunk.
      plan: of the launch.
      inputs: what each chunk has tiles of.
      state: float32 [B, HV, K, V], for the first chunk of the loop.
      own: shared memory of the body.
      out: outputs of the body.
      to_first: whether the last chunk comes first.

    Returns:
      The body's outputs and what it returned at the end.
    """
    count, stages = plan.chunks, plan.stages
    arrivals = sum(one.array.shape[0] for one in inputs)

    def kernel(*refs: Any) -> None:
        refs, arrived = refs[:-1], refs[-1]
        sources, (start,), outs, (end,), tiles, mine = _cut(refs, (len(inputs), 1, len(out), 1, len(inputs), len(own)))
        batch, head, column = (jax.lax.axis_index(axis) for axis in ("batch", "head", "column"))

        def site(step: Any) -> _Site:
            chunk = count - 1 - step if to_first else step
            return _Site(batch, head, pl.ds(column * VALUES, VALUES), chunk, pl.ds(chunk * CHUNK, CHUNK))

        def fetch(step: Any, slot: Any) -> None:
            for one, source, tile in zip(inputs, sources, tiles, strict=True):
                for piece in range(one.array.shape[0]):
                    copy_in(one.part(source, piece, site(step)), tile.at[slot, piece], arrived.at[slot])

        def chunk(step: Array, state: Array) -> Array:
            slot = jax.lax.rem(step, stages)
            plgpu.barrier_wait(arrived.at[slot])
            state = body(site(step), [tile.at[slot] for tile in tiles], mine, outs, state)
            # All products have been awaited, so the tiles have been read.
            pl.when(step + stages < count)(lambda: fetch(step + stages, slot))
            return state

        for step in range(min(stages, count)):
            fetch(step, step)
        first = load(start.at[batch, head, :, site(0).values], MATRIX)
        state = jax.lax.fori_loop(0, count, chunk, first)
        store(end.at[batch, head, :, site(0).values], state)
        plgpu.wait_smem_to_gmem(0)

    tiles = [SMEM((stages, one.array.shape[0], *one.tile), one.array.dtype) for one in inputs]
    return launch(
        kernel,
        out=[*out, jax.ShapeDtypeStruct(state.shape, state.dtype)],
        grid=plan.grid,
        grid_names=("batch", "head", "column"),
        scratch=[*tiles, *own, barrier(arrivals, stages)],
        name=name,
        semantics="warpgroup",
    )(*(one.array for one in inputs), state)


def _cut(refs: Sequence[Any], lengths: Sequence[int]) -> list[Sequence[Any]]:
    found, start = [], 0
    for length in lengths:
        found.append(refs[start : start + length])
        start += length
    return found
