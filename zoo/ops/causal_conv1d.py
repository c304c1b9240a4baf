"""Causal depthwise convolution along T with a short kernel, as in Mamba and DeltaNet; with state, padding, segments.

    y_t = act(b + Σ_{i=0..W-1} w_i x_{t-(W-1)+i})        w_{W-1} multiplies the current token, tokens before 0 are zero

Implementations: "xla" adds up W shifted products, and recomputes what precedes the activation in the backward pass;
"reference" gathers the W tokens that each output sees and contracts them with the kernel.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.segments import segment_runs
from zoo.typing import Array, Bool, DType, Float, Int

ConvActivation = Literal["silu"]


def causal_conv1d(
    x: Float[Array, "B T D"],
    w: Float[Array, "W D"],
    b: Float[Array, "D"] | None = None,
    *,
    activation: ConvActivation | None = "silu",
    mask: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B W1 D"] | None = None,
    return_state: bool = False,
    reverse: bool = False,
    implementation: str | None = None,
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], Float[Array, "B W1 D"]]:
    """One filter of W taps per channel over the current token and the W - 1 before it, then the activation.

    The state is the last W - 1 inputs, the newest last; zeros before the first token.

    Args:
      x: inputs.
      w: taps, the newest token's last (the order of PyTorch's and Flax's convolutions).
      b: bias, or None.
      activation: "silu", or None for none.
      mask: True at real tokens. The others count as zero inputs and have zero outputs, so neither their content nor, on
        the left or on the right, their number changes a real output. The state ends at the last real token; with none,
        it stays. None where all are real.
      segment_ids: packed sequences: no output sees a token across a change of id. `initial_state` belongs to the first
        segment, the returned state to the last.
      initial_state: the inputs that came before.
      return_state: also return the state after the last token.
      reverse: process from T - 1 to 0: outputs see the tokens after them, the state ends at position 0. The same as
        flipping x, mask, ids and the output.
      implementation: "xla", "reference", or None to choose.

    Returns:
      [B, T, D] in the dtype of `x` (sums are float32, or float64), and with `return_state` the state [B, W - 1, D] in
      float32 (float64).

    Raises:
      ValueError: shapes that do not fit each other, an unknown activation or implementation.
      TypeError: `mask` is not boolean, `segment_ids` are not integers, `x` is not floating point.
    """
    _check(x, w, b, mask, segment_ids, initial_state, activation)
    state = None if initial_state is None else initial_state.astype(_wide(x))
    runs = None if segment_ids is None else segment_runs(segment_ids, mask, reverse=reverse)
    run = select(implementation, _TABLE, op="causal_conv1d", default="xla")
    y = run(x, w, b, state, mask, runs, activation, reverse)
    if not return_state:
        return y
    if state is None:
        state = jnp.zeros((x.shape[0], w.shape[0] - 1, x.shape[2]), _wide(x))
    return y, _last_inputs(x, state, mask, runs, reverse)


def causal_conv1d_step(
    state: Float[Array, "B W1 D"],
    x: Float[Array, "B D"],
    w: Float[Array, "W D"],
    b: Float[Array, "D"] | None = None,
    *,
    activation: ConvActivation | None = "silu",
    mask: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B D"], Float[Array, "B W1 D"]]:
    """One token of `causal_conv1d`.

    Args:
      state: the W - 1 inputs before this one, the newest last.
      x: the token.
      w, b, activation: as in `causal_conv1d`.
      mask: False where an example has no token now: its state stays, its output is zero.

    Returns:
      The output [B, D] in the dtype of `x` and the new state in float32 (float64).

    Raises:
      ValueError, TypeError: as `causal_conv1d`.
    """
    if x.ndim != 2:
        raise ValueError(f"causal_conv1d_step takes x of two axes [B, D]; it has shape {x.shape}.")
    valid = None if mask is None else mask[:, None]
    _check(x[:, None], w, b, valid, None, state, activation)
    dtype = _wide(x)
    state = state.astype(dtype)
    window = jnp.concatenate([state, x.astype(dtype)[:, None]], axis=1)
    y = (window * w.astype(dtype)).sum(1)
    y = _activate(y if b is None else y + b.astype(dtype), activation).astype(x.dtype)
    new = window[:, 1:]
    if valid is not None:
        y, new = jnp.where(valid, y, 0), jnp.where(valid[..., None], new, state)
    return y, new


def _wide(x: Array) -> DType:
    return jnp.promote_types(x.dtype, jnp.float32)


def _activate(x: Array, activation: ConvActivation | None) -> Array:
    return jax.nn.silu(x) if activation == "silu" else x


def _check(x, w, b, mask, segment_ids, state, activation) -> None:
    if x.ndim != 3 or w.ndim != 2:
        raise ValueError(f"causal_conv1d takes x [B, T, D] and w [W, D]; they have shapes {x.shape} and {w.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"causal_conv1d takes floating point x; its dtype is {x.dtype}.")
    batch, length, width = x.shape
    size = w.shape[0]
    if length == 0 or size == 0:
        raise ValueError(f"causal_conv1d needs a token and a tap; axis 1 of x is {length}, axis 0 of w is {size}.")
    if w.shape[1] != width:
        raise ValueError(f"axis 1 (D) of w must be {width}, as axis 2 of x; it is {w.shape[1]}.")
    due = {
        "b": (b, (width,), "[D]"),
        "mask": (mask, (batch, length), "[B, T]"),
        "segment_ids": (segment_ids, (batch, length), "[B, T]"),
        "initial_state": (state, (batch, size - 1, width), "[B, W - 1, D]"),
    }
    for name, (array, shape, letters) in due.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"causal_conv1d takes {name} {letters} = {shape} here; its shape is {array.shape}.")
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"causal_conv1d takes mask [B, T] of booleans, True at real tokens; its dtype is {mask.dtype}.")
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise TypeError(f"causal_conv1d takes integer segment_ids; their dtype is {segment_ids.dtype}.")
    if activation not in ("silu", None):
        raise ValueError(f"causal_conv1d has no activation {activation!r}; it is 'silu' or None.")


def _real(x: Array, mask: Array | None) -> Array:
    return x if mask is None else jnp.where(mask[..., None], x, 0)


def _with_past(x: Array, state: Array, reverse: bool) -> Array:
    """[B, T + W - 1, D]: the state, then the inputs; in reverse the inputs, then the state, its newest row first."""
    return jnp.concatenate([x, state[:, ::-1]] if reverse else [state, x], axis=1)


def _runs_with_past(runs: Array, size: int, reverse: bool) -> Array:
    """The runs of the rows of `_with_past`: the state is of the first."""
    return jnp.pad(runs, ((0, 0), (0, size - 1) if reverse else (size - 1, 0)))


def _last_inputs(x: Array, state: Array, mask: Array | None, runs: Array | None, reverse: bool) -> Array:
    """The new state: the W - 1 inputs up to the last real token, as far as they are of its segment."""
    length, size = x.shape[1], state.shape[1] + 1
    if mask is None and runs is None:
        x = x[:, : size - 1] if reverse else x[:, max(0, length - size + 1) :]
        rows = _with_past(x.astype(state.dtype), state, reverse)
        return rows[:, : size - 1][:, ::-1] if reverse else rows[:, rows.shape[1] - size + 1 :]
    rows = _with_past(_real(x, mask).astype(state.dtype), state, reverse)
    order = jnp.arange(size - 1)
    real = jnp.ones(x.shape[:2], bool) if mask is None else mask
    if reverse:
        first = jnp.where(real.any(1), jnp.argmax(real, axis=1), length)[:, None]
    else:
        first = jnp.where(real.any(1), length - jnp.argmax(real[:, ::-1], axis=1), 0)[:, None]
    # In reverse the rows run from the newest input to the oldest, and the state the other way round.
    rows_of = first + (order[::-1] if reverse else order)
    new = jnp.take_along_axis(rows, rows_of[..., None], axis=1)
    if runs is None:
        return new
    past = jnp.take_along_axis(_runs_with_past(runs, size, reverse), rows_of, axis=1)
    last = runs[:, :1] if reverse else runs[:, -1:]
    return jnp.where((past == last)[..., None], new, 0)


def _reference(x, w, b, state, mask, runs, activation, reverse):
    """Every output's own window [B, T, W, D], contracted with the kernel."""
    size, length, dtype = w.shape[0], x.shape[1], _wide(x)
    state = jnp.zeros((x.shape[0], size - 1, x.shape[2]), dtype) if state is None else state
    index = jnp.arange(length)[:, None] + jnp.arange(size)
    windows = _with_past(_real(x, mask).astype(dtype), state, reverse)[:, index]
    if runs is not None:
        same = _runs_with_past(runs, size, reverse)[:, index] == runs[..., None]
        windows = jnp.where(same[..., None], windows, 0)
    taps = (w[::-1] if reverse else w).astype(dtype)
    y = jnp.einsum("btwd,wd->btd", windows, taps, precision=jax.lax.Precision.HIGHEST)
    y = y if b is None else y + b.astype(dtype)
    return _real(_activate(y, activation), mask).astype(x.dtype)


def _earlier(x: Array, state: Array | None, runs: Array | None, lag: int, reverse: bool) -> Array:
    """For each token, the input that was processed `lag` tokens before it; zero where that is of another segment."""
    if lag == 0:
        return x
    length = x.shape[1]
    if state is None:
        kept = x[:, lag:] if reverse else x[:, : max(0, length - lag)]
        missing = length - kept.shape[1]
        x = jnp.pad(kept, ((0, 0), (0, missing) if reverse else (missing, 0), (0, 0)))
    else:
        rows = _with_past(x, state[:, state.shape[1] - lag :], reverse)
        x = rows[:, lag:] if reverse else rows[:, :length]
    return x if runs is None else jnp.where(_same_run(runs, lag, reverse), x, 0)


def _same_run(runs: Array, lag: int, reverse: bool) -> Array:
    """Whether the token `lag` tokens earlier is of the same segment, [B, T, 1]; the state is of the first."""
    length = runs.shape[1]
    rows = _runs_with_past(runs, lag + 1, reverse)
    return ((rows[:, lag:] if reverse else rows[:, :length]) == runs)[..., None]


def _before_activation(x, w, b, state, runs, reverse):
    """The convolution of `x`, which is clean of padding and wide; no array but the result is written."""
    size = w.shape[0]
    terms = [_earlier(x, state, runs, lag, reverse) * w[size - 1 - lag].astype(x.dtype) for lag in range(size)]
    return functools.reduce(jnp.add, terms if b is None else [*terms, b.astype(x.dtype)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
@functools.partial(jax.jit, static_argnums=(6, 7))  # traced once for all layers of a model
def _xla(x, w, b, state, mask, runs, activation, reverse):
    y = _before_activation(_real(x, mask).astype(_wide(x)), w, b, state, runs, reverse)
    return _real(_activate(y, activation), mask).astype(x.dtype)


def _xla_forward(x, w, b, state, mask, runs, activation, reverse):
    return _xla(x, w, b, state, mask, runs, activation, reverse), (x, w, b, state, mask, runs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _xla_backward(activation, reverse, saved, dy):
    x, w, b, state, mask, runs = saved
    dtype, length, size = _wide(x), x.shape[1], w.shape[0]
    dy, inputs = _real(dy.astype(dtype), mask), _real(x, mask).astype(dtype)
    if activation == "silu":
        before = _before_activation(inputs, w, b, state, runs, reverse)
        gate = jax.nn.sigmoid(before)
        dy = dy * gate * (1 + before * (1 - gate))
    dx, dtaps = [], []
    dstate = None if state is None else jnp.zeros_like(state)
    for lag in range(size):
        dtaps.append((dy * _earlier(inputs, state, runs, lag, reverse)).sum((0, 1)))
        part = dy if runs is None or lag == 0 else jnp.where(_same_run(runs, lag, reverse), dy, 0)
        part = part * w[size - 1 - lag].astype(dtype)
        # To the inputs `lag` tokens earlier; what falls off belongs to the state.
        inside = max(0, length - lag)
        kept = part[:, :inside] if reverse else part[:, length - inside :]
        dx.append(jnp.pad(kept, ((0, 0), (length - inside, 0) if reverse else (0, length - inside), (0, 0))))
        if dstate is not None and lag:
            first = part[:, inside:][:, ::-1] if reverse else part[:, : length - inside]
            dstate = dstate.at[:, size - 1 - lag : size - 1 - lag + first.shape[1]].add(first)
    dw = jnp.stack(dtaps[::-1]).astype(w.dtype)
    db = None if b is None else dy.sum((0, 1)).astype(b.dtype)
    return _real(functools.reduce(jnp.add, dx), mask).astype(x.dtype), dw, db, dstate, None, None


_xla.defvjp(_xla_forward, _xla_backward)

_TABLE = {"xla": _xla, "reference": _reference}
