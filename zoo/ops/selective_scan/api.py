"""The public functions: checks, groups, padding to whole chunks, choice of implementation, and one decoding step."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.segments import segment_starts
from zoo.ops.selective_scan import chunked, reference, sequential
from zoo.ops.selective_scan.common import Operands, Options, gated, tokens, whole_chunks
from zoo.typing import Array, Bool, Float, Int

DEFAULT_CHUNK_SIZE = 16


def selective_scan(
    u: Float[Array, "B T E"],
    dt: Float[Array, "B T E"],
    A: Float[Array, "E N"],
    B: Float[Array, "B T N"] | Float[Array, "B T G N"],
    C: Float[Array, "B T N"] | Float[Array, "B T G N"],
    D: Float[Array, "E"] | None = None,
    z: Float[Array, "B T E"] | None = None,
    dt_bias: Float[Array, "E"] | None = None,
    *,
    dt_softplus: bool = True,
    mask: Bool[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: Float[Array, "B N E"] | None = None,
    return_state: bool = False,
    reverse: bool = False,
    implementation: str | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "B T E"] | tuple[Float[Array, "B T E"], Float[Array, "B N E"]]:
    """Mamba's selective state space scan (Gu and Dao 2023, arXiv:2312.00752, algorithm 2), with D skip and gate.

    Per channel e, with N states that start at `initial_state`::

        delta_t = softplus(dt_t + dt_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t
        y_t = (Σ_n C_t h_t + D u_t) silu(z_t)

    so A is discretised exactly and B by Euler's rule, as in the authors' code. E is the width of the layer inside. The
    bias, the softplus, the decays and the state are float32 (float64 for float64 inputs) whatever the dtype of the
    inputs: near dt_bias = -7, adding in bfloat16 would cost a percent of delta. Any decay is safe, down to exp = 0.

    Training keeps the inputs and one state per chunk, N / chunk_size arrays of the size of `u` in float32; nothing of
    size T E N. A gradient of a gradient is not defined, except for "reference".

    Args:
      u: inputs of the states.
      dt: time steps before bias and softplus.
      A: decay rates, negative.
      B, C: what is written to and read from the states; with G groups, E / G neighbouring channels share one.
      D: direct path from u to y.
      z: gate; None for none.
      dt_bias: added to dt.
      dt_softplus: False takes dt + dt_bias as it is.
      mask: True at real tokens. The others leave the state as it is (delta = 0, after the softplus) and have zero
        outputs, whatever stands in them. None where all are real.
      segment_ids: packed sequences: the state is reset where the id changes. `initial_state` belongs to the first
        segment, the returned state to the last.
      initial_state: the state before the first token; None for zeros.
      return_state: also return the state after the last (real) token.
      reverse: process from T - 1 to 0; the returned state is that after position 0. The same as flipping the inputs and
        the output.
      implementation: "xla_sequential" (token by token; for CPUs), "xla_chunked" (all chunks side by side, more work in
        fewer and larger steps; for accelerators), "reference" (a plain `lax.scan`, with its autodiff), or "xla", which
        is also the default: whichever of the first two suits the platform that the program is compiled for.
        "mosaic_gpu" is one kernel forwards and one backwards for GPUs from Hopper on, with N up to 32 and float32,
        bfloat16 or float16 operands, and without `segment_ids`. It has been compiled for such GPUs and has been run in
        an interpreter, but has not been measured, so the default does not choose it. "mosaic_gpu_or_xla" is the same
        where it can run and "xla" elsewhere, which it says once, with the reason, in the log. "mosaic_tpu" and
        "mosaic_tpu_or_xla" are the same for TPUs, with N up to 64, N E up to 262,144 (v3 and v4 have room for less) and
        float32 or bfloat16 operands. It has been interpreted and compiled for TPUs, but not run on one, so the default
        does not choose it. It pads T to 128 tokens and E to 128 channels.
      chunk_size: tokens from one kept state to the next; changes speed and memory, not the result. None for 16.
        "mosaic_gpu" always keeps one per 32 tokens, "mosaic_tpu" one per 128.

    Returns:
      y [B, T, E] in the dtype of `u`, and with `return_state` the state [B, N, E] in float32 (float64).

    Raises:
      ValueError: shapes that do not fit each other, an unknown implementation, or a kernel for what it cannot take.
      TypeError: `mask` is not boolean, `segment_ids` are not integers, an input is not floating point.
      RuntimeError: "mosaic_gpu" without a GPU that can run it, "mosaic_tpu" without a TPU.
    """
    _check(u, dt, A, B, C, D, z, dt_bias, mask, segment_ids, initial_state, "T")
    run = select(implementation, _TABLE, op="selective_scan", default="xla")
    length = u.shape[1]
    size = DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size
    if size < 1:
        raise ValueError(f"selective_scan needs chunk_size >= 1; it is {chunk_size}.")
    size = min(size + size % 2, length + length % 2)
    starts = None if segment_ids is None else segment_starts(segment_ids, mask, reverse=reverse)
    operands = Operands(u, dt, A, B, C, D, z, dt_bias, _state(initial_state, u, dt, A), mask, starts)
    operands = whole_chunks(operands, size)
    options = Options(dt_softplus, reverse, size)
    y, state = _by_group(run, operands, options) if B.ndim == 4 else run(operands, options)
    y = y[:, :length].astype(u.dtype)
    return (y, state) if return_state else y


def selective_scan_step(
    state: Float[Array, "B N E"],
    u: Float[Array, "B E"],
    dt: Float[Array, "B E"],
    A: Float[Array, "E N"],
    B: Float[Array, "B N"] | Float[Array, "B G N"],
    C: Float[Array, "B N"] | Float[Array, "B G N"],
    D: Float[Array, "E"] | None = None,
    z: Float[Array, "B E"] | None = None,
    dt_bias: Float[Array, "E"] | None = None,
    *,
    dt_softplus: bool = True,
    mask: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B E"], Float[Array, "B N E"]]:
    """One token of `selective_scan`.

    Args:
      state: after the tokens before it.
      u, dt, A, B, C, D, z, dt_bias, dt_softplus: as in `selective_scan`, without the axis T.
      mask: False where an example has no token now: its state stays, its output is zero.

    Returns:
      y [B, E] in the dtype of `u`, and the new state in float32 (float64).

    Raises:
      ValueError, TypeError: as `selective_scan`.
    """
    if u.ndim != 2 or dt.ndim != 2 or B.ndim not in (2, 3) or C.ndim != B.ndim:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in (("u", u), ("dt", dt), ("B", B), ("C", C)))
        raise ValueError(f"selective_scan_step takes u, dt [B, E] and B, C [B, N] or [B, G, N]; they are {shapes}.")
    expanded = [None if x is None else x[:, None] for x in (u, dt, B, C, z, mask)]
    _check(expanded[0], expanded[1], A, expanded[2], expanded[3], D, expanded[4], dt_bias, expanded[5], None, state, "")
    h = _state(state, u, dt, A)
    if B.ndim == 3:  # one row per channel instead of one per group
        B, C = (jnp.repeat(x, u.shape[1] // x.shape[1], axis=1) for x in (B, C))
    now = tokens(u, dt, B, C, z, dt_bias, None if B.ndim == 3 else mask, h.dtype, dt_softplus)
    return _one_token(h, now, A, D, mask, u.dtype)


def _one_token(h, now, A, D, mask, dtype):
    delta = now.delta if mask is None else jnp.where(mask[:, None], now.delta, 0)
    du = now.du if mask is None else jnp.where(mask[:, None], now.du, 0)
    b, c = ((jnp.swapaxes(x, 1, 2) if x.ndim == 3 else x[..., None]) for x in (now.b, now.c))
    h = jnp.exp(delta[:, None] * A.astype(h.dtype).T) * h + du[:, None] * b
    return gated((h * c).sum(1), D, now, mask).astype(dtype), h


def _state(state: Array | None, u: Array, dt: Array, A: Array) -> Array:
    dtype = jnp.float64 if jnp.float64 in (u.dtype, dt.dtype, A.dtype) else jnp.float32
    if state is None:
        return jnp.zeros((u.shape[0], A.shape[1], A.shape[0]), dtype)
    return state.astype(jnp.promote_types(dtype, state.dtype) if state.dtype == jnp.float64 else dtype)


def _by_group(run: Callable[..., Any], x: Operands, options: Options) -> tuple[Array, Array]:
    """Each group of channels by itself, with its own B and C."""
    groups = x.B.shape[2]

    def divided(array: Array | None, axis: int) -> Any:
        shape = () if array is None else array.shape
        return None if array is None else array.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])

    split = x._replace(
        **{name: divided(getattr(x, name), 2) for name in ("u", "dt", "z", "initial_state")},
        **{name: divided(getattr(x, name), 0) for name in ("A", "D", "dt_bias")},
    )
    axes: Any = {name: 0 if name in ("A", "D", "dt_bias") else 2 for name in Operands._fields}
    axes = Operands(**axes | {"mask": None, "starts": None})
    y, state = jax.vmap(lambda x: run(x, options), in_axes=(axes,), out_axes=2)(split)
    return y.reshape(*y.shape[:2], -1), state.reshape(*state.shape[:2], -1)


def _forward(form: str, x: Operands, options: Options, keep: bool):
    if form in _KERNELS:
        return _KERNELS[form]()[1].forward(x, options, keep)
    forms = {"sequential": sequential.forward, "chunked": chunked.forward}
    run = {name: lambda x, f=f: f(x, options, keep) for name, f in forms.items()}
    if form == "any":
        return jax.lax.platform_dependent(x, cpu=run["sequential"], default=run["chunked"])
    return run[form](x)


def _backward(form: str, options: Options, saved, cotangents):
    x, bounds = saved
    if form in _KERNELS:
        return (_KERNELS[form]()[1].backward(x, bounds, *cotangents, options),)
    args = (x, bounds, *cotangents)
    forms = {"sequential": sequential.backward, "chunked": chunked.backward}
    run = {name: lambda *args, f=f: f(*args, options) for name, f in forms.items()}
    gradients = (
        jax.lax.platform_dependent(*args, cpu=run["sequential"], default=run["chunked"])
        if form == "any"
        else run[form](*args)
    )
    return (gradients,)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2))
def _scan(form: str, x: Operands, options: Options) -> tuple[Array, Array]:
    return _forward(form, x, options, False)[:2]


def _scan_forward(form, x, options):
    y, state, bounds = _forward(form, x, options, True)
    return (y, state), (x, bounds)


_scan.defvjp(_scan_forward, _backward)


def _hopper() -> tuple[Any, Any]:
    from zoo.ops import mosaic_gpu
    from zoo.ops.selective_scan import hopper

    return mosaic_gpu, hopper


def _tpu() -> tuple[Any, Any]:
    from zoo.ops import mosaic_tpu
    from zoo.ops.selective_scan import tpu

    return mosaic_tpu, tpu


# Their backends and the kernels. They are imported when called for, since Pallas' API comes and goes with versions of
# JAX.
_KERNELS: dict[str, Callable[[], tuple[Any, Any]]] = {"mosaic_gpu": _hopper, "mosaic_tpu": _tpu}


def _kernel(form: str, x: Operands, options: Options) -> tuple[Array, Array]:
    """The kernel of that name, or an error."""
    backend, kernels = _KERNELS[form]()
    backend.require("selective_scan", kernels.unsupported(x))
    return _by_kernel(form, x, options)


def _kernel_if_possible(form: str, x: Operands, options: Options) -> tuple[Array, Array]:
    """The kernel of that name, or XLA, with the reason in the log."""
    backend, kernels = _KERNELS[form]()
    if backend.usable("selective_scan", kernels.unsupported(x)):
        return _by_kernel(form, x, options)
    return _scan("any", x, options)


def _by_kernel(form: str, x: Operands, options: Options) -> tuple[Array, Array]:
    y, state = cast(Any, _scan(form, _KERNELS[form]()[1].fitted(x), options))
    return y[:, : x.u.shape[1], : x.u.shape[2]], state[:, : x.A.shape[1], : x.A.shape[0]]


_TABLE = {
    "xla": functools.partial(_scan, "any"),
    "xla_sequential": functools.partial(_scan, "sequential"),
    "xla_chunked": functools.partial(_scan, "chunked"),
    **{name: functools.partial(_kernel, name) for name in _KERNELS},
    **{f"{name}_or_xla": functools.partial(_kernel_if_possible, name) for name in _KERNELS},
    "reference": reference.run,
}


def _check(u, dt, A, B, C, D, z, dt_bias, mask, segment_ids, state, time: str) -> None:
    """`time` is "T", or "" where the caller has no such axis (the arrays here have it, of size 1)."""

    def letters(names: str) -> str:
        return "[" + ", ".join(letter for letter in names if letter != "T" or time) + "]"

    if u.ndim != 3 or A.ndim != 2 or B.ndim not in (3, 4):
        raise ValueError(
            f"selective_scan takes u {letters('BTE')}, A [E, N] and B {letters('BTN')} or {letters('BTGN')}; "
            f"their shapes are {u.shape}, {A.shape} and {B.shape}."
        )
    batch, length, width = u.shape
    if not length or not width:
        raise ValueError(f"selective_scan needs a token and a channel; u {letters('BTE')} has shape {u.shape}.")
    states = A.shape[1]
    due = {
        "dt": (dt, (batch, length, width), "BTE"),
        "A": (A, (width, states), "EN"),
        "D": (D, (width,), "E"),
        "z": (z, (batch, length, width), "BTE"),
        "dt_bias": (dt_bias, (width,), "E"),
        "initial_state": (state, (batch, states, width), "BNE"),
        "mask": (mask, (batch, length), "BT"),
        "segment_ids": (segment_ids, (batch, length), "BT"),
    }
    groups = B.shape[2] if B.ndim == 4 else 1
    for name, array in (("B", B), ("C", C)):
        shape = (batch, length, groups, states) if B.ndim == 4 else (batch, length, states)
        due[name] = (array, shape, "BTGN" if B.ndim == 4 else "BTN")
    for name, (array, shape, axes) in due.items():
        if array is not None and array.shape != shape:
            named = [(axis, letter) for axis, letter in enumerate(axes) if letter != "T" or time]
            wrong = [
                f"axis {place} ({letter}) is {array.shape[axis]} instead of {shape[axis]}"
                for place, (axis, letter) in enumerate(named)
                if array.ndim == len(shape) and array.shape[axis] != shape[axis]
            ]
            why = "; ".join(wrong) or f"it has {array.ndim} axes"
            raise ValueError(f"selective_scan takes {name} {letters(axes)} that fits u and A: {why}.")
    if not groups or width % groups:
        raise ValueError(f"selective_scan takes groups that divide E; G of B is {groups}, E is {width}.")
    for name, array in (("u", u), ("dt", dt), ("A", A), ("B", B), ("C", C), ("z", z)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"selective_scan takes floating point {name}; its dtype is {array.dtype}.")
    if mask is not None and mask.dtype != bool:
        raise TypeError(f"selective_scan takes mask of booleans, True at real tokens; its dtype is {mask.dtype}.")
    if segment_ids is not None and not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise TypeError(f"selective_scan takes integer segment_ids; their dtype is {segment_ids.dtype}.")
