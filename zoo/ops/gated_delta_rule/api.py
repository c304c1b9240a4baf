"""The public functions: checks, defaults, choice of implementation, and one decoding step."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.gated_delta_rule import reference, sequential, xla
from zoo.ops.gated_delta_rule.common import Marks, Options, Problem, accumulation_dtype
from zoo.ops.segments import segment_starts
from zoo.typing import Array, Bool, Float, Int


def _hopper() -> tuple[Any, Any, dict[str, Any]]:
    from zoo.ops import mosaic_gpu
    from zoo.ops.gated_delta_rule import hopper

    return mosaic_gpu, hopper, {"wgmma": True}


def _tpu() -> tuple[Any, Any, dict[str, Any]]:
    from zoo.ops import mosaic_tpu
    from zoo.ops.gated_delta_rule import tpu

    return mosaic_tpu, tpu, {}


# Their backends, the kernels, and what these need of a device. They are imported when called for, since Pallas' API
# comes and goes with versions of JAX.
_KERNELS: dict[str, Callable[[], tuple[Any, Any, dict[str, Any]]]] = {"mosaic_gpu": _hopper, "mosaic_tpu": _tpu}


def _kernels(form: str, problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """By the kernels of that name, or an error."""
    backend, kernels, needs = _KERNELS[form]()
    backend.require(_OP, kernels.unsupported(problem, options), **needs)
    return kernels.run(problem, marks, options)


def _kernels_if_possible(form: str, problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """By the kernels of that name, or XLA, with the reason in the log."""
    backend, kernels, needs = _KERNELS[form]()
    if backend.usable(_OP, kernels.unsupported(problem, options), **needs):
        return kernels.run(problem, marks, options)
    return xla.default(problem, marks, options)


_OP = "gated_delta_rule"
_TABLE = {
    "xla": xla.default,
    "xla_sequential": xla.by_token,
    "xla_chunked": xla.by_chunks,
    **{name: functools.partial(_kernels, name) for name in _KERNELS},
    **{f"{name}_or_xla": functools.partial(_kernels_if_possible, name) for name in _KERNELS},
    "reference": reference.run,
}
_KINDS = {jnp.floating: "floating point numbers", jnp.bool_: "booleans, True at real tokens", jnp.integer: "integers"}


def gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T HV V"],
    beta: Float[Array, "B T HV"],
    log_decay: Float[Array, "B T HV"] | None = None,
    *,
    scale: float | None = None,
    qk_l2norm: bool = False,
    mask: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B HV K V"] | None = None,
    return_state: bool = False,
    reverse: bool = False,
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "B T HV V"] | tuple[Float[Array, "B T HV V"], Float[Array, "B HV K V"]]:
    """A fast-weight memory that corrects what it holds under a key: per head, with a_t = exp(log_decay_t),

        u_t = beta_t (v_t - a_t S_{t-1}^T k_t)        S_t = a_t S_{t-1} + k_t u_t^T        y_t = scale * S_t^T q_t

    The recurrence of DeltaNet (no decay; Yang et al. 2024, arXiv:2406.06484) and of Gated DeltaNet (arXiv:2412.06464,
    equation 10). For keys of length 1, beta = 1 replaces what was stored under the key by v, beta = 2 reflects it.
    Time and memory are linear in T; no state is kept per token, for gradients either.

    Args:
      q, k: queries and keys; with fewer heads than `v`, value head h uses head h // (HV / H) (grouped values).
      v: values.
      beta: how much of the error is written, from 0 to 1, or to 2 (not checked). With keys much longer than 1 the
        recurrence itself grows without bound.
      log_decay: logarithms of the decays, at most 0 (not checked), or None for no decay. Any negative number is right,
        -inf too: a decay of 0 drops what was.
      scale: factor of the outputs, a Python number; None for 1 / sqrt(K).
      qk_l2norm: divide q and k by their length first, x / sqrt(x·x + 1e-6), in the precision of the state.
      mask: True at real tokens. The others do not touch the state and have zero outputs, whatever they hold. None where
        all are real.
      segment_ids: packed sequences: the state is dropped where a real token's id differs from that of the one before.
        `initial_state` belongs to the first segment, the returned state to the last.
      initial_state: what was read before; None for zeros.
      return_state: also return the state after the last token.
      reverse: process from T - 1 to 0; the state ends at position 0. The same as flipping all arrays and the output.
      implementation: "reference" (the recurrence, differentiated by JAX), "xla_chunked" (matrix products inside chunks,
        the state between them; for gradients too), "xla_sequential" (the recurrence; its gradients by chunks), or
        "xla", which is also None: chunked, except on a CPU where no gradient is taken and the states are small.
        "mosaic_gpu": all that is done by chunks, forward and back, by kernels for Hopper GPUs. It takes K = 64 or 128,
        V a multiple of 64 and no float64. Products are of numbers of 8 bits where q, k and v are bfloat16 (results
        right to about 4e-3), else of 16 (1e-5, gradients of log decays 3e-5). "mosaic_gpu_or_xla": the same where it
        can run, else "xla", and the log says why. Neither is chosen by None: they have not been timed yet.
        "mosaic_tpu", and "mosaic_tpu_or_xla": the whole of it by kernels for TPUs. They have been compiled for TPUs but
        not been run on one, so None does not choose them. K and V are 64, 128 or 256; q, k and v are bfloat16 (results
        right to about 5e-3, as interpreted on a CPU) or float32 (1e-6).
      chunk_size: tokens per chunk; None for what is best on the platform. It changes speed and memory, not the result.
        "mosaic_gpu" has chunks of 64, "mosaic_tpu" of 128.

    Returns:
      The output [B, T, HV, V] in the dtype of `v`; with `return_state` also the state [B, HV, K, V]. The state and all
      sums are float32, or float64 where an input is.

    Raises:
      ValueError: shapes that do not fit each other, an unknown implementation, or one that does not take these shapes.
      TypeError: `mask` is not boolean, `segment_ids` are not integers, another array is not floating point.
      RuntimeError: "mosaic_gpu" without a Hopper GPU, "mosaic_tpu" without a TPU.
    """
    _check(_OP, q, k, v, beta, log_decay, initial_state, mask=mask, segment_ids=segment_ids)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{_OP} takes chunk_size of at least 1; it is {chunk_size}.")
    run = select(implementation, _TABLE, op=_OP, default="xla")
    dtype = accumulation_dtype(q, k, v, beta, log_decay, initial_state)
    if initial_state is None:
        initial_state = jnp.zeros((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype)
    problem = Problem(q, k, v, beta, log_decay, initial_state.astype(dtype))
    starts = None if segment_ids is None else segment_starts(segment_ids, mask, reverse=reverse)
    y, state = run(problem, Marks(mask, starts), Options(_scale(scale, q), qk_l2norm, reverse, chunk_size))
    y = y.astype(v.dtype)
    return (y, state) if return_state else y


def gated_delta_rule_step(
    state: Float[Array, "B HV K V"],
    q: Float[Array, "B H K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B HV V"],
    beta: Float[Array, "B HV"],
    log_decay: Float[Array, "B HV"] | None = None,
    *,
    scale: float | None = None,
    qk_l2norm: bool = False,
    mask: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B HV V"], Float[Array, "B HV K V"]]:
    """One token of `gated_delta_rule`.

    Args:
      state: after the tokens before it; zeros before the first.
      q, k, v, beta, log_decay: of the token.
      scale: factor of the output; None for 1 / sqrt(K).
      qk_l2norm: as in `gated_delta_rule`.
      mask: False where an example has no token now: its state stays, its output is zero.

    Returns:
      The output [B, HV, V] in the dtype of `v` and the new state in float32 (float64).

    Raises:
      ValueError, TypeError: as `gated_delta_rule`.
    """
    _check("gated_delta_rule_step", q, k, v, beta, log_decay, state, mask=mask)
    now = Problem(q, k, v, beta, log_decay, state.astype(accumulation_dtype(q, k, v, beta, log_decay, state)))
    return sequential.token(now, Marks(mask, None), Options(_scale(scale, q), qk_l2norm))


def _scale(scale: float | None, q: Array) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _check(
    op: str,
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    log_decay: Array | None,
    state: Array | None,
    **marks: Array | None,
) -> None:
    """Raises unless everything fits together. Without an axis T the arrays are those of one token."""
    tokens = "B" if op.endswith("_step") else "B T"
    sizes: dict[str, int] = {}
    for name, x, letters in (("q", q, "H K"), ("k", k, "H K"), ("v", v, "HV V"), ("beta", beta, "HV")):
        _check_axes(op, name, x, f"{tokens} {letters}", sizes)
    if 0 in sizes.values():
        letter = next(letter for letter, size in sizes.items() if not size)
        raise ValueError(f"{op} takes arrays that are not empty; the axis {letter} is 0.")
    if sizes["HV"] % sizes["H"]:
        raise ValueError(
            f"{op}: the heads of v, HV = {sizes['HV']}, must be a multiple of those of q, H = {sizes['H']}."
        )
    if log_decay is not None:
        _check_axes(op, "log_decay", log_decay, f"{tokens} HV", sizes)
    if state is not None:
        _check_axes(op, "state" if tokens == "B" else "initial_state", state, "B HV K V", sizes)
    for name, x in marks.items():
        if x is not None:
            _check_axes(op, name, x, tokens, sizes, jnp.integer if name == "segment_ids" else jnp.bool_)


def _check_axes(op: str, name: str, x: Array, letters: str, sizes: dict[str, int], kind: Any = jnp.floating) -> None:
    """Raises unless `x` has these axes, with the sizes known so far, and the kind of dtype; adds to `sizes`."""
    axes = letters.split()
    takes = f"{op} takes {name} [{', '.join(axes)}]"
    if x.ndim != len(axes):
        raise ValueError(f"{takes}; its shape is {x.shape}, with {x.ndim} axes.")
    for axis, (letter, size) in enumerate(zip(axes, x.shape, strict=True)):
        due = sizes.setdefault(letter, size)
        if size != due:
            raise ValueError(f"{takes} with {letter} = {due}; axis {axis} ({letter}) of {name} is {size} ({x.shape}).")
    if not jnp.issubdtype(x.dtype, kind):
        raise TypeError(f"{takes} of {_KINDS[kind]}; its dtype is {x.dtype}.")
