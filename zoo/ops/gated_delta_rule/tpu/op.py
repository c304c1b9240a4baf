"""The gated delta rule on a TPU, by three kernels: outputs, states before the chunks, and gradients.

XLA puts the tokens in order and adds up log decays; all else is in the kernels, from the lengths of queries and keys to
their gradients. For the gradients nothing but the inputs is kept. The states before the chunks are made again, with the
inverses of blocks, and read by the kernel that goes back: for every 128 tokens of a head K V numbers of the width of an
operand and 32 * 128 of float32, together about as much as q and k.

They have not been run on a TPU. What its compiler says, by `python -m benchmarks.kernels.tpu_compiler`, for v5e (B 8, T
4096, 16 heads of 128 and 128, bfloat16): by schedule, which leaves out waits for memory, 3.6 million cycles forward and
12.1 with all gradients, where XLA's form of the op has 19 and 50 million or more; that form by XLA's cost model, which
is rough, 95 and 256 million. These are estimates, to choose what to measure. Temporary memory for the gradients is 0.14
GB, not 3.0 GB.
"""

import functools

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_tpu
from zoo.ops.gated_delta_rule import chunk
from zoo.ops.gated_delta_rule.common import Marks, Options, Problem, ready_log_decay, where
from zoo.ops.gated_delta_rule.tpu import kernels
from zoo.ops.gated_delta_rule.tpu.chunk import CHUNK, DBETA, FROM_KEY, THROUGH, TO_QUERY
from zoo.ops.gated_delta_rule.tpu.kernels import Plan
from zoo.typing import Array

# Columns of a block are a multiple of this, or all there are.
_LANES = 128
_WIDTHS = (64, 128, 256)
# Heads that a step of the kernels works on, at most, and numbers in the states of these, so that all fits in VMEM.
_HEADS = 8
_NUMBERS = _HEADS * CHUNK * CHUNK


def unsupported(problem: Problem, options: Options) -> str | None:
    """Why the kernels do not take the problem, or None."""
    for name, width in zip("KV", problem.state.shape[2:], strict=True):
        if width not in _WIDTHS:
            return f"{name} must be {', '.join(map(str, _WIDTHS[:-1]))} or {_WIDTHS[-1]}; it is {width}"
    if options.chunk_size not in (None, CHUNK):
        return f"chunk_size must be {CHUNK} or None; it is {options.chunk_size}"
    if problem.state.dtype != jnp.float32:
        return f"it computes in float32, not in {problem.state.dtype}"
    if any(x.dtype == jnp.float16 for x in problem[:3]):
        return "q, k and v must be bfloat16 or float32, not float16"
    if _group(problem) is None:
        return (
            "some heads must make up a multiple of 128 columns of q and of v, and be a step's work; "
            f"there are H = {problem.q.shape[2]}, HV = {problem.v.shape[2]} of K = {problem.q.shape[3]}, "
            f"V = {problem.v.shape[3]}"
        )
    return None


def _group(problem: Problem) -> tuple[int, int] | None:
    """Value heads for a step, and the queries' heads of these, so that they are blocks of columns; None if none are."""
    (key_heads, key_width), (heads, value_width) = problem.q.shape[2:], problem.v.shape[2:]
    repeats = heads // key_heads
    numbers = _NUMBERS if _narrow(problem) else _NUMBERS // 2
    for values in range(max(1, min(heads, _HEADS, numbers // (key_width * value_width))), 0, -1):
        keys = max(1, values // repeats)
        if heads % values or (values % repeats and repeats % values):
            continue
        if values == heads or not (keys * key_width % _LANES or values * value_width % _LANES):
            return values, keys
    return None


def _narrow(problem: Problem) -> bool:
    """Whether products are of bfloat16."""
    return all(x.dtype == jnp.bfloat16 for x in problem[:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def run(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, HV, V] in the dtype of v, and the state after the last token; without checks."""
    return _forward(problem, marks, options, mosaic_tpu.interpreting())


def _keep_inputs(problem: Problem, marks: Marks, options: Options):
    return run(problem, marks, options), (problem, marks)


def _gradients(options: Options, saved: tuple[Problem, Marks], given: tuple[Array, Array]):
    return _backward(*saved, *given, options, mosaic_tpu.interpreting()), Marks(None, None)


run.defvjp(_keep_inputs, _gradients)


# Traced once for all layers of a model, and again where kernels are interpreted.
@functools.partial(jax.jit, static_argnames=("options", "interpreting"))
def _forward(problem: Problem, marks: Marks, options: Options, interpreting: bool) -> tuple[Array, Array]:
    del interpreting
    plan, arrays, rows = _prepared(problem, marks, options)
    y, state = kernels.forward(plan, arrays, rows, problem.state)
    return _tokens(y, problem.v, marks, options), state


@functools.partial(jax.jit, static_argnames=("options", "interpreting"))
def _backward(
    problem: Problem, marks: Marks, dy: Array, dstate: Array, options: Options, interpreting: bool
) -> Problem:
    """Gradients of the problem, from those of the output and of the last state."""
    del interpreting
    plan, arrays, rows = _prepared(problem, marks, options)
    befores, inverses = kernels.states(plan, arrays, rows, problem.state)
    dy = _flat(dy, marks, options)
    dq, dk, dv, drows, dfirst = kernels.backward(plan, arrays, rows, befores, inverses, dy, dstate.astype(jnp.float32))
    if plan.parts > 1:
        dq, dk = _summed(dq, plan), _summed(dk, plan)
    dq, dk, dv = (_tokens(x, like, marks, options) for x, like in ((dq, problem.q), (dk, problem.k), (dv, problem.v)))
    dbeta = _tokens(_columns(drows[:, :, :, DBETA]), problem.beta, marks, options)
    dlog = None
    if problem.log_decay is not None:
        crossing = chunk.sum_crossing(drows[:, :, :, TO_QUERY], drows[:, :, :, FROM_KEY]) + drows[:, :, :, THROUGH]
        dlog = _tokens(_columns(crossing), problem.log_decay, marks, options)
    return Problem(dq, dk, dv, dbeta, dlog, dfirst)


def _prepared(problem: Problem, marks: Marks, options: Options) -> tuple[Plan, list[Array], Array]:
    """The plan, and what the kernels read: q, k and v, and the rows."""
    group = _group(problem)
    assert group is not None
    log_decay = ready_log_decay(problem.log_decay, marks, problem.beta, jnp.float32)
    rows = [_chunks(_ordered(problem.beta.astype(jnp.float32), marks, options))]
    if log_decay is not None:
        rows += chunk.running_sums(_chunks(_ordered(log_decay, marks, options)))
    rows = jnp.stack(rows + [jnp.zeros_like(rows[0])] * (kernels.ROWS - len(rows)), axis=3)
    plan = Plan(
        batch=problem.q.shape[0],
        chunks=rows.shape[2],
        key_heads=problem.q.shape[2],
        heads=problem.v.shape[2],
        widths=(problem.q.shape[3], problem.v.shape[3]),
        group=group,
        narrow=_narrow(problem),
        gated=log_decay is not None,
        scale=options.scale,
        l2norm=options.l2norm,
    )
    return plan, [_flat(x, marks, options) for x in problem[:3]], rows


def _ordered(x: Array, marks: Marks, options: Options) -> Array:
    """[B, T, ...] -> [B, n C, ...], in the order of processing; zeros, which leave the state as it is, at padding."""
    x = where(marks.real, x)
    x = x[:, ::-1] if options.reverse else x
    more = -x.shape[1] % CHUNK
    return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x


def _flat(x: Array, marks: Marks, options: Options) -> Array:
    """[B, T, H, K] -> [B, n C, H K], `_ordered`."""
    return _ordered(x.reshape(*x.shape[:2], -1), marks, options)


def _tokens(x: Array, like: Array, marks: Marks, options: Options) -> Array:
    """The opposite of `_ordered` and of `_flat`, in the shape and dtype of `like`."""
    x = x[:, : like.shape[1]].reshape(like.shape)
    x = x[:, ::-1] if options.reverse else x
    return where(marks.real, x).astype(like.dtype)


def _chunks(x: Array) -> Array:
    """[B, n C, HV] -> [B, HV, n, C]."""
    return x.reshape(x.shape[0], -1, CHUNK, x.shape[2]).transpose(0, 3, 1, 2)


def _columns(x: Array) -> Array:
    """The opposite of `_chunks`."""
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def _summed(x: Array, plan: Plan) -> Array:
    """[B, T, H P K] -> [B, T, H K]."""
    x = x.reshape(*x.shape[:2], plan.key_heads, plan.parts, plan.widths[0]).sum(3)
    return x.reshape(*x.shape[:2], -1)
