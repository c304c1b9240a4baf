"""The gated delta rule on a Hopper GPU, by five kernels.

Forward, one makes what is between the tokens of a chunk, for all chunks, and one goes from chunk to chunk. For the
gradients nothing but the inputs is kept: the first is run again, a third goes over the chunks for their states, a
fourth back, and a fifth makes the gradients inside all chunks. XLA does what is done token by token: the L2 norm,
running sums of log decays, padding, and their gradients.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp

from zoo.ops import mosaic_gpu
from zoo.ops.gated_delta_rule import chunked
from zoo.ops.gated_delta_rule.chunk import running_sums, sum_crossing
from zoo.ops.gated_delta_rule.chunked import Plan
from zoo.ops.gated_delta_rule.common import Marks, Options, Problem, inverse_norm, ready_log_decay, where
from zoo.ops.gated_delta_rule.hopper import recurrence
from zoo.ops.gated_delta_rule.hopper.gradients import gradients
from zoo.ops.gated_delta_rule.hopper.inverse import pairs
from zoo.ops.gated_delta_rule.hopper.layout import CHUNK, VALUES, Tokens
from zoo.ops.gated_delta_rule.hopper.pieces import split
from zoo.typing import Array

_WIDTHS = (64, 128)


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
    batch, length = problem.q.shape[:2]
    if max(batch, math.ceil(length / CHUNK)) > mosaic_gpu.MOST_BLOCKS:
        return f"B and T / {CHUNK} must be at most {mosaic_gpu.MOST_BLOCKS}; B is {batch}, T is {length}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def run(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, HV, V] in the dtype of v, and the state after the last token; without checks."""
    interpreting = mosaic_gpu.interpreting()
    return _batched(lambda problem, marks: _forward(problem, marks, options, interpreting))(problem, marks)


def _keep_inputs(problem: Problem, marks: Marks, options: Options):
    return run(problem, marks, options), (problem, marks)


def _gradients(options: Options, saved: tuple[Problem, Marks], given: tuple[Array, Array]):
    interpreting = mosaic_gpu.interpreting()
    found = _batched(lambda *arrays: _backward(*arrays, options, interpreting))(*saved, *given)
    return found, Marks(None, None)


run.defvjp(_keep_inputs, _gradients)


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
    length, plan = problem.q.shape[1], _plan(problem, options)
    problem, marks = _ready(problem, marks, plan)
    tokens, v = _tokens(problem, options), _values(problem)
    y, state = recurrence.forward(tokens, pairs(tokens), v, problem.state, options.scale)
    y = _in_order(where(marks.real, y), plan).astype(problem.v.dtype)
    return chunked.unpadded(y, length, plan), state


@functools.partial(jax.jit, static_argnames=("options", "interpreting"))
def _backward(
    problem: Problem, marks: Marks, dy: Array, dstate: Array, options: Options, interpreting: bool
) -> Problem:
    """Gradients of the problem, from those of the output and of the last state."""
    del interpreting
    given, length, plan = problem, problem.q.shape[1], _plan(problem, options)
    problem, marks = _ready(problem, marks, plan)
    tokens, v = _tokens(problem, options), _values(problem)
    between = pairs(tokens)
    dy = where(marks.real, _in_order(chunked.pad(dy, plan), plan).astype(jnp.float32))
    dy = jnp.stack(split(options.scale * dy, tokens.pieces))
    befores, n = recurrence.states(tokens, between, v, problem.state)
    dx, dafters, dstate = recurrence.backward(tokens, between, dy, dstate.astype(jnp.float32))
    # Rounded at once where nothing is added to them any more.
    last = tokens.pieces == 1 and tokens.group == 1 and not options.l2norm
    inside = gradients(tokens, dy, n, dx, befores, dafters, problem.q.dtype if last else jnp.float32)

    dx = dx.astype(jnp.float32).sum(0)
    dv = dx * problem.beta.astype(jnp.float32)[..., None]
    dbeta = (dx * v.astype(jnp.float32)).sum(-1) + _joined(inside.beta.sum(3))
    dq, dk = (x.reshape(*x.shape[:2], problem.q.shape[2], -1, x.shape[-1]).sum(3) for x in (inside.q, inside.k))
    if options.l2norm:
        dq = chunked.through_norm(problem.q.astype(jnp.float32), dq)
        dk = chunked.through_norm(problem.k.astype(jnp.float32), dk)
    dlog = None
    if inside.paths is not None:
        to_query, from_key, through = (x.sum(3) for x in inside.paths)
        dlog = _joined(sum_crossing(to_query, from_key) + through.sum(3)[..., None])

    def given_back(x: Array | None, like: Array | None) -> Array | None:
        if x is None or like is None:
            return None
        return chunked.unpadded(_in_order(where(marks.real, x), plan), length, plan).astype(like.dtype)

    found = [given_back(x, like) for x, like in zip((dq, dk, dv, dbeta, dlog), given[:-1], strict=True)]
    return Problem(*found, dstate)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _plan(problem: Problem, options: Options) -> Plan:
    """Whole chunks, all at once."""
    chunks = math.ceil(problem.q.shape[1] / CHUNK)
    return Plan(1, chunks, CHUNK, chunks * CHUNK, options.reverse)


def _ready(problem: Problem, marks: Marks, plan: Plan) -> tuple[Problem, Marks]:
    """Padded to whole chunks, in the order of processing, zeros where tokens are not real; decays in float32."""
    problem, marks, _ = chunked.padded(problem, marks, plan)
    *arrays, log_decay = (None if x is None else _in_order(x, plan) for x in problem[:-1])
    marks = Marks(*(None if x is None else _in_order(x, plan) for x in marks))
    q, k, v, beta = (where(marks.real, x) for x in arrays)  # pyright: ignore[reportArgumentType]
    return Problem(q, k, v, beta, ready_log_decay(log_decay, marks, beta, jnp.float32), problem.state), marks


def _pieces(problem: Problem) -> int:
    """Of the operands of products: one where all arrays are bfloat16."""
    return 1 if all(x.dtype == jnp.bfloat16 for x in problem[:3]) else 2


def _tokens(problem: Problem, options: Options) -> Tokens:
    q, k = (x.astype(jnp.float32) for x in problem[:2])
    if options.l2norm:
        q, k = (x * inverse_norm(x) for x in (q, k))
    q, k = (jnp.stack(split(x, _pieces(problem))) for x in (q, k))
    rows = [_split(problem.beta.astype(jnp.float32))]
    if problem.log_decay is not None:
        coarse, fine = running_sums(_split(problem.log_decay))
        start = jnp.exp(coarse + fine)
        end = jnp.exp((coarse[..., -1:] - coarse) + (fine[..., -1:] - fine))
        rows += [start, end, jnp.broadcast_to(start[..., -1:], start.shape), coarse, fine]
    return Tokens(q, k, jnp.stack(rows, axis=-2))


def _values(problem: Problem) -> Array:
    """In the dtype in which the kernels read them."""
    return problem.v if _pieces(problem) == 1 else problem.v.astype(jnp.float32)


def _split(x: Array) -> Array:
    """[B, T, HV] -> [n, B, HV, 64]."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, CHUNK, x.shape[2]), (1, 3), (0, 2))


def _joined(x: Array) -> Array:
    """The opposite of `_split`."""
    x = jnp.moveaxis(x, (0, 2), (1, 3))
    return x.reshape(x.shape[0], -1, x.shape[3])


def _in_order(x: Array, plan: Plan) -> Array:
    """[B, T, ...] from the order of time to that of processing, or back."""
    return x[:, ::-1] if plan.reverse else x
