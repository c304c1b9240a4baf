"""From the operands of `selective_scan` to those of the kernels and back."""

import jax.numpy as jnp

from zoo.ops.selective_scan import fast_math
from zoo.ops.selective_scan.common import Operands, Options, other_dtype, whole_blocks
from zoo.ops.selective_scan.hopper import backward as backward_kernel
from zoo.ops.selective_scan.hopper import forward as forward_kernel
from zoo.ops.selective_scan.hopper import spans
from zoo.ops.selective_scan.hopper.block import CHANNELS, PER_WARP, STATES, TILE, Task
from zoo.typing import Array

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
# More states than this do not fit into the registers and the shared memory of the backward pass.
_MOST_STATES = 32


def unsupported(x: Operands) -> str | None:
    """Why the kernels do not take these operands, or None."""
    if x.starts is not None:
        return "it has no segment_ids"
    if x.A.shape[1] > _MOST_STATES:
        return f"it has at most {_MOST_STATES} states per channel, A has {x.A.shape[1]}"
    other = other_dtype(x, _DTYPES)
    return f"it computes in float32, and {other}" if other else None


def fitted(x: Operands) -> Operands:
    """Padded to whole tiles of tokens (by masked ones), blocks of channels and states; all of it without effect."""
    return whole_blocks(x, TILE, CHANNELS, STATES)


def forward(x: Operands, options: Options, keep: bool) -> tuple[Array, Array, Array | None]:
    """Output [B, T, E], last state [B, N, E] and, if `keep`, the states before each tile, as the kernels have them.

    `x` is `fitted`.
    """
    task = _task(x, options, keep)
    streamed, rate, skip, bias = _operands(x)
    first = _inside(x.initial_state)[None]
    if task.spans > 1:
        read = {name: streamed[name] for name in ("u", "dt", "b", "mask") if name in streamed}
        first = spans.chain(*spans.ends(task, read, rate, bias, gradient=False), first[0])
    y, last, bounds = forward_kernel.run(task, streamed, rate, skip, bias, first)
    return y.reshape(x.u.shape), _outside(last[-1]), bounds


def backward(x: Operands, bounds: Array, dout: Array, dstate: Array, options: Options) -> Operands:
    """The cotangents of the operands (None for the mask and the starts); `bounds` are those of `forward`."""
    task = _task(x, options, keep=False)
    streamed, rate, skip, bias = _operands(x)
    streamed |= {"dout": _by_warp(dout), "bounds": bounds}
    last = _inside(dstate)[None]
    if task.spans > 1:
        read = {name: streamed[name] for name in ("dt", "z", "c", "mask", "dout") if name in streamed}
        last = spans.chain(*spans.ends(task, read, rate, bias, gradient=True), last[0], last_first=True)
    out = backward_kernel.run(task, streamed, rate, skip, bias, last)

    def wide(name: str) -> Array:
        return out[name].reshape(x.u.shape)

    def narrow(name: str, like: Array) -> Array:
        total = out[name].sum(0)
        return (total if x.mask is None else jnp.where(x.mask[..., None], total, 0)).astype(like.dtype)

    def per_channel(name: str, like: Array | None) -> Array | None:
        return None if like is None else out[name].sum((0, 1)).reshape(like.shape).astype(like.dtype)

    return Operands(
        u=wide("u"),
        dt=wide("dt"),
        A=out["rate"].sum((0, 1)).reshape(x.A.shape).astype(x.A.dtype),
        B=narrow("b", x.B),
        C=narrow("c", x.C),
        D=per_channel("skip", x.D),
        z=None if x.z is None else wide("z"),
        dt_bias=per_channel("bias", x.dt_bias),
        initial_state=_outside(out["first"][0]),
        mask=None,
        starts=None,
    )


def _task(x: Operands, options: Options, keep: bool) -> Task:
    batch, length, width = x.u.shape
    return Task(
        batch=batch,
        length=length,
        width=width,
        states=x.A.shape[1],
        spans=spans.choose(batch, length, width),
        reverse=options.reverse,
        dt_softplus=options.dt_softplus,
        gate=x.z is not None,
        masked=x.mask is not None,
        keep=keep,
    )


def _operands(x: Operands) -> tuple[dict[str, Array], Array, Array, Array]:
    """What both kernels read: tiles by name, A log2(e), D and the bias."""
    streamed = {name: _by_warp(getattr(x, name)) for name in ("u", "dt", "z") if getattr(x, name) is not None}
    for name, array in (("b", x.B), ("c", x.C)):
        array = array.astype(jnp.float32)
        streamed[name] = array if x.mask is None else jnp.where(x.mask[..., None], array, 0)
    if x.mask is not None:
        streamed["mask"] = x.mask.astype(jnp.float32)
    width = x.u.shape[2]
    rate = (x.A.astype(jnp.float32) * fast_math.LOG2_E).reshape(width // PER_WARP, PER_WARP, -1)
    skip, bias = (
        _by_warp(jnp.zeros(width, jnp.float32) if array is None else array.astype(jnp.float32))
        for array in (x.D, x.dt_bias)
    )
    return streamed, rate, skip, bias


def _by_warp(x: Array) -> Array:
    """[..., E] to [..., E / 16, 16]."""
    return x.reshape(*x.shape[:-1], -1, PER_WARP)


def _inside(state: Array) -> Array:
    """[B, N, E] to [B, E / 16, 16, N]."""
    return jnp.moveaxis(_by_warp(state), 1, -1)


def _outside(state: Array) -> Array:
    """The inverse of `_inside`."""
    return jnp.moveaxis(state, -1, 1).reshape(state.shape[0], state.shape[-1], -1)
