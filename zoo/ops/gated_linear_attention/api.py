"""The public functions: checks, defaults, choice of implementation, and one decoding step."""

from typing import Any

import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.gated_linear_attention import reference, sequential, xla
from zoo.ops.gated_linear_attention.common import Marks, Options, Problem, accumulation_dtype
from zoo.ops.segments import segment_starts
from zoo.typing import Array, Bool, Float, Int

_TABLE = {
    "xla": xla.default,
    "xla_sequential": xla.by_token,
    "xla_chunked": xla.by_chunks,
    "reference": reference.run,
}
_KINDS = {jnp.floating: "floating point numbers", jnp.bool_: "booleans, True at real tokens", jnp.integer: "integers"}


def gated_linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "H"] | Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    scale: float | None = None,
    mask: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B H K V"] | None = None,
    return_state: bool = False,
    reverse: bool = False,
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Causal attention without softmax whose memory decays: per head, with a_t = exp(log_decay_t),

        S_t = a_t S_{t-1} + k_t v_t^T          y_t = scale * S_t^T q_t

    The recurrence of causal linear attention (no decay; arXiv:2006.16236), RetNet (one number per head;
    arXiv:2307.08621), Mamba-2 or SSD (one per token and head; q = C, k = B, v = dt x, log_decay = dt A, scale = 1;
    arXiv:2405.21060) and gated linear attention (one per token, head and key channel, which multiplies the row of S;
    arXiv:2312.06635). Time and memory are linear in T; no state is kept per token, for gradients either.

    Args:
      q, k: queries and keys of G groups; head h uses group h // (H / G), as grouped queries do in Mamba-2.
      v: values.
      log_decay: logarithms of the decays, at most 0 (not checked): [H], [B, T, H], [B, T, H, K], or None for no decay.
        Any negative number is right, -inf too: a decay of 0 drops what was.
      scale: factor of the outputs, a Python number; None for 1 / sqrt(K).
      mask: True at real tokens. The others do not touch the state and have zero outputs, whatever they hold. None where
        all are real.
      segment_ids: packed sequences: the state is dropped where a real token's id differs from that of the one before.
        `initial_state` belongs to the first segment, the returned state to the last.
      initial_state: what was read before; None for zeros.
      return_state: also return the state after the last token.
      reverse: process from T - 1 to 0; the state ends at position 0. The same as flipping all arrays and the output.
      implementation: "reference" (the recurrence, differentiated by JAX), "xla_chunked" (attention inside chunks, the
        state between them; for gradients too), "xla_sequential" (the recurrence; its gradients by chunks), or "xla",
        which is also None: sequential on a CPU where no gradient is taken, chunked otherwise.
      chunk_size: tokens per chunk, rounded up to a power of two; None for the platform's. It changes speed and memory,
        not the result.

    Returns:
      The output [B, T, H, V] in the dtype of `v`; with `return_state` also the state [B, H, K, V]. The state and all
      sums are float32, or float64 where an input is.

    Raises:
      ValueError: shapes that do not fit each other, or an unknown implementation.
      TypeError: `mask` is not boolean, `segment_ids` are not integers, another array is not floating point.
    """
    op = "gated_linear_attention"
    _check(op, q, k, v, log_decay, initial_state, mask=mask, segment_ids=segment_ids)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"{op} takes chunk_size of at least 1; it is {chunk_size}.")
    run = select(implementation, _TABLE, op=op, default="xla")
    dtype = accumulation_dtype(q, k, v, log_decay, initial_state)
    if initial_state is None:
        initial_state = jnp.zeros((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), dtype)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, v.shape[:3])
    problem = Problem(q, k, v, log_decay, initial_state.astype(dtype))
    starts = None if segment_ids is None else segment_starts(segment_ids, mask, reverse=reverse)
    options = Options(_scale(scale, q), reverse, chunk_size or 0)
    y, state = run(problem, Marks(mask, starts), options)
    y = y.astype(v.dtype)
    return (y, state) if return_state else y


def gated_linear_attention_step(
    state: Float[Array, "B H K V"],
    q: Float[Array, "B G K"],
    k: Float[Array, "B G K"],
    v: Float[Array, "B H V"],
    log_decay: Float[Array, "H"] | Float[Array, "B H"] | Float[Array, "B H K"] | None = None,
    *,
    scale: float | None = None,
    mask: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B H V"], Float[Array, "B H K V"]]:
    """One token of `gated_linear_attention`.

    Args:
      state: after the tokens before it; zeros before the first.
      q, k, v: of the token.
      log_decay: as in `gated_linear_attention`, without the axis T.
      scale: factor of the output; None for 1 / sqrt(K).
      mask: False where an example has no token now: its state stays, its output is zero.

    Returns:
      The output [B, H, V] in the dtype of `v` and the new state in float32 (float64).

    Raises:
      ValueError, TypeError: as `gated_linear_attention`.
    """
    _check("gated_linear_attention_step", q, k, v, log_decay, state, mask=mask)
    dtype = accumulation_dtype(q, k, v, log_decay, state)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, v.shape[:2])
    now = Problem(q, k, v, log_decay, state.astype(dtype))
    return sequential.token(now, Marks(mask, None), Options(_scale(scale, q)))


def _scale(scale: float | None, q: Array) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _check(
    op: str,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    state: Array | None,
    **marks: Array | None,
) -> None:
    """Raises unless everything fits together. Without an axis T the arrays are those of one token."""
    tokens = "B T" if op == "gated_linear_attention" else "B"
    sizes: dict[str, int] = {}
    for name, x, letters in (("q", q, "G K"), ("k", k, "G K"), ("v", v, "H V")):
        _check_axes(op, name, x, f"{tokens} {letters}", sizes)
    if 0 in sizes.values():
        letter = next(letter for letter, size in sizes.items() if not size)
        raise ValueError(f"{op} takes arrays that are not empty; the axis {letter} is 0.")
    if sizes["H"] % sizes["G"]:
        raise ValueError(f"{op}: the heads of v, H = {sizes['H']}, must be a multiple of those of q, G = {sizes['G']}.")
    if log_decay is not None:
        letters = {1: "H", len(tokens.split()) + 1: f"{tokens} H", len(tokens.split()) + 2: f"{tokens} H K"}
        if log_decay.ndim not in letters:
            takes = " or ".join(f"[{', '.join(axes.split())}]" for axes in letters.values())
            raise ValueError(f"{op} takes log_decay {takes}; its shape is {log_decay.shape}.")
        _check_axes(op, "log_decay", log_decay, letters[log_decay.ndim], sizes)
    if state is not None:
        _check_axes(op, "state" if tokens == "B" else "initial_state", state, "B H K V", sizes)
    for name, x in marks.items():
        if x is not None:
            kind = jnp.integer if name == "segment_ids" else jnp.bool_
            _check_axes(op, name, x, tokens, sizes, kind)


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
