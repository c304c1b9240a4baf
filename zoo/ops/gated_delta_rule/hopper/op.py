"""The gated delta rule on a Hopper GPU: from chunk to chunk by kernels, what is parallel over chunks by XLA.

Forward, XLA makes T and Q K^T ∘ D of all chunks, 64 x 64 numbers each, and one kernel the outputs. For the gradients
nothing but the inputs is kept: the states before the chunks are computed again, by a second kernel, a third goes back
through the chunks, and XLA makes the gradients of the inputs from theirs, a block of chunks at a time. The kernels, and
how they round, are in `kernels`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp

from zoo.ops import mosaic_gpu
from zoo.ops.gated_delta_rule import chunk as one
from zoo.ops.gated_delta_rule import chunked, xla
from zoo.ops.gated_delta_rule.chunked import Plan
from zoo.ops.gated_delta_rule.common import Marks, Options, Problem, inverse_norm, where
from zoo.ops.gated_delta_rule.hopper import kernels
from zoo.ops.gated_delta_rule.hopper.loop import CHUNK, VALUES
from zoo.typing import Array

_OP = "gated_delta_rule"
_WIDTHS = (64, 128)
# As many chunks as XLA works on at once.
_CHUNKS_PER_BLOCK = 16


def run(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, HV, V] in the dtype of v, and the state after the last token.

    Raises:
      ValueError: what the kernels do not take, see `unsupported`.
      RuntimeError: there is no Hopper GPU.
    """
    reason = unsupported(problem, options)
    if reason:
        raise ValueError(f"{_OP} has implementation='mosaic_gpu' only within limits: {reason}.")
    mosaic_gpu.require(_OP, wgmma=True)
    return by_kernels(problem, marks, options)


def run_or_xla(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """As `run`; where it would raise, by XLA, and the log says why."""
    if mosaic_gpu.usable(_OP, unsupported(problem, options), wgmma=True):
        return by_kernels(problem, marks, options)
    return xla.default(problem, marks, options)


def unsupported(problem: Problem, options: Options) -> str | None:
    """Why the kernels do not take the problem, or None."""
    key_width, value_width = problem.state.shape[2:]
    if key_width not in _WIDTHS:
        return f"K must be {' or '.join(map(str, _WIDTHS))}; it is {key_width}"
    if value_width % VALUES:
        return f"V must be a multiple of {VALUES}; it is {value_width}"
    if options.chunk_size not in (None, CHUNK):
        return f"chunk_size must be {CHUNK} or None; it is {options.chunk_size}"
    if problem.state.dtype != jnp.float32:
        return f"it computes in float32, not in {problem.state.dtype}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_kernels(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """As `run`, without the checks."""
    interpreting = mosaic_gpu.interpreting()
    return _batched(lambda problem, marks: _forward(problem, marks, options, interpreting))(problem, marks)


def _keep_inputs(problem: Problem, marks: Marks, options: Options):
    return by_kernels(problem, marks, options), (problem, marks)


def _gradients(options: Options, saved: tuple[Problem, Marks], given: tuple[Array, Array]):
    interpreting = mosaic_gpu.interpreting()
    found = _batched(lambda *arrays: _backward(*arrays, options, interpreting))(*saved, *given)
    return found, Marks(None, None)


by_kernels.defvjp(_keep_inputs, _gradients)


def _batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays [B, ...], which `jax.vmap` calls once, with an axis more in the axis B."""
    call = jax.custom_batching.custom_vmap(function)

    @call.def_vmap
    def _(size: int, batched: Any, *arrays: Any) -> tuple[Any, Any]:
        def fold(x: Array, has_axis: bool) -> Array:
            x = x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        found = _batched(function)(*jax.tree.map(fold, arrays, tuple(batched)))
        found = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), found)
        return found, jax.tree.map(lambda _: True, found)

    return call


# Traced once for all layers of a model, and again where kernels are interpreted.
@functools.partial(jax.jit, static_argnames=("options", "interpreting"))
def _forward(problem: Problem, marks: Marks, options: Options, interpreting: bool) -> tuple[Array, Array]:
    del interpreting
    plan = _plan(problem, options)
    problem, marks, length = chunked.padded(problem, marks, plan)
    chunks, v = _prepared(problem, marks, options, plan)
    y, state = kernels.forward(chunks, v, problem.state, options.scale)
    y = where(marks.real, _in_order(y, options)).astype(problem.v.dtype)
    return chunked.unpadded(y, length, plan), state


@functools.partial(jax.jit, static_argnames=("options", "interpreting"))
def _backward(
    problem: Problem, marks: Marks, dy: Array, dstate: Array, options: Options, interpreting: bool
) -> Problem:
    """Gradients of the problem, from those of the output and of the last state."""
    del interpreting
    plan = _plan(problem, options)
    problem, marks, length = chunked.padded(problem, marks, plan)
    pieces, dot = _pieces(problem), _dot(problem)
    chunks, v = _prepared(problem, marks, options, plan)
    befores, ns = kernels.states(chunks, v, problem.state)
    dy = _in_order(where(marks.real, chunked.pad(dy, plan).astype(jnp.float32)), options)
    dxs, dafters, dstate = kernels.backward(
        chunks, jnp.stack(kernels.split(dy, pieces)), dstate.astype(jnp.float32), options.scale
    )

    def block(i: Array, found: list[Array | None]) -> list[Array | None]:
        chunks, real, raw = chunked.load(problem, marks, options, plan, i, jnp.float32)
        parts = one.parts(chunks, dot, dot)
        before, n, dx, dafter = (_of_block(x, i, plan) for x in (befores, ns, dxs, dafters))
        own = plan.split(jax.lax.dynamic_slice_in_dim(dy, i * plan.width, plan.width, axis=1))
        gradients = one.gradients(chunks, parts, before, n, own, dx, dafter, dot)
        new = chunked.unload(gradients, real, raw, options, plan)
        return [chunked.lay(plan, x, into, i) for x, into in zip(new, found, strict=True)]

    found = [None if x is None else jnp.zeros_like(x) for x in problem[:-1]]
    found = jax.lax.fori_loop(0, plan.blocks, block, found)
    dq, dk, dv, dbeta, dlog = (None if x is None else chunked.unpadded(x, length, plan) for x in found)
    return Problem(dq, dk, dv, dbeta, dlog, dstate)  # pyright: ignore[reportArgumentType]


def _plan(problem: Problem, options: Options) -> Plan:
    """Whole chunks, in blocks of the same number of them."""
    chunks = math.ceil(problem.q.shape[1] / CHUNK)
    blocks = math.ceil(chunks / _CHUNKS_PER_BLOCK)
    chunks = math.ceil(chunks / blocks)
    return Plan(blocks, chunks, CHUNK, blocks * chunks * CHUNK, options.reverse)


def _pieces(problem: Problem) -> int:
    """Of the operands of products: one where all arrays are bfloat16."""
    return 1 if all(x.dtype == jnp.bfloat16 for x in problem[:3]) else 2


def _dot(problem: Problem) -> functools.partial:
    """The products of XLA: of rounded numbers where those of the kernels are, with sums in float32.

    The kernels have keys so rounded, so that of K K^T nothing is lost.
    """
    if _pieces(problem) == 1:
        return functools.partial(_rounded_product)
    return functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _rounded_product(equation: str, *arrays: Array) -> Array:
    narrow = (x.astype(jnp.bfloat16) for x in arrays)
    return jnp.einsum(equation, *narrow, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def _prepared(problem: Problem, marks: Marks, options: Options, plan: Plan) -> tuple[kernels.Chunks, Array]:
    """What the kernels read, and the values, [B, T, HV, V] in the order of processing."""
    pieces, dot = _pieces(problem), _dot(problem)

    def block(i: Array, found: tuple[Array, ...]) -> tuple[Array, ...]:
        chunks, _, _ = chunked.load(problem, marks, options, plan, i, jnp.float32)
        parts = one.parts(chunks, dot, dot)
        attention, inverse = kernels.split(parts.attention, pieces), kernels.split(parts.inverse, 2)
        new = (jnp.stack(attention), jnp.stack(inverse), _rows(chunks, parts.decay)[None])
        return tuple(_into_block(x, into, i, plan) for x, into in zip(new, found, strict=True))

    batch, _, heads, _ = problem.v.shape
    gated = problem.log_decay is not None or marks.starts is not None
    of_chunks = plan.blocks * plan.chunks, batch, heads
    attention, inverse = (jnp.zeros((n, *of_chunks, plan.size, plan.size), jnp.bfloat16) for n in (pieces, 2))
    rows = jnp.zeros((1, *of_chunks, 4 if gated else 1, plan.size), jnp.float32)
    attention, inverse, rows = jax.lax.fori_loop(0, plan.blocks, block, (attention, inverse, rows))
    q, k, v = (_in_order(where(marks.real, x), options) for x in problem[:3])
    q, k = (x.astype(jnp.float32) for x in (q, k))
    if options.l2norm:
        q, k = (x * inverse_norm(x) for x in (q, k))
    q, k = (jnp.stack(kernels.split(x, pieces)) for x in (q, k))
    v = v if pieces == 1 else v.astype(jnp.float32)
    return kernels.Chunks(q, k, attention, inverse, rows[0]), v


def _rows(chunks: one.Chunk, decay: one.Decay) -> Array:
    """`Chunks.rows` of a block."""
    rows = [chunks.beta]
    if chunks.log_decay is not None:
        rows += [decay.start, decay.end, jnp.broadcast_to(decay.whole, decay.start.shape)]
    return jnp.concatenate(rows, axis=-1).swapaxes(-1, -2)


def _in_order(x: Array, options: Options) -> Array:
    """[B, T, ...] from the order of time to that of processing, or back."""
    return x[:, ::-1] if options.reverse else x


def _into_block(x: Array, into: Array, block: Array, plan: Plan) -> Array:
    """Lays [P, chunks, ...] (without that axis where it is 1) into [P, n, ...]."""
    x = x[:, None] if plan.chunks == 1 else x
    return jax.lax.dynamic_update_slice_in_dim(into, x, block * plan.chunks, axis=1)


def _of_block(x: Array, block: Array, plan: Plan) -> Array:
    """The sum of pieces [P, n, ...] in a block, float32, as after `Plan.split`."""
    x = jax.lax.dynamic_slice_in_dim(x, block * plan.chunks, plan.chunks, axis=1).astype(jnp.float32).sum(0)
    return x[0] if plan.chunks == 1 else x
