"""From the operands of `selective_scan` to those of the kernels and back."""

import jax.numpy as jnp

from zoo.ops.selective_scan import fast_math
from zoo.ops.selective_scan.common import Operands, Options, other_dtype, whole_blocks
from zoo.ops.selective_scan.tpu import backward as backward_kernel
from zoo.ops.selective_scan.tpu import forward as forward_kernel
from zoo.ops.selective_scan.tpu.block import CHUNK, LANES, SUBLANES, Task
from zoo.typing import Array

_DTYPES = (jnp.float32, jnp.bfloat16)
# More states than this per channel, and more in all channels of an example, do not fit into VMEM.
_MOST_STATES, _MOST_STATES_IN_ALL = 64, 2**18


def unsupported(x: Operands) -> str | None:
    """Why the kernels do not take these operands, or None."""
    states, width = x.A.shape[1], x.A.shape[0]
    if states > _MOST_STATES:
        return f"it has at most {_MOST_STATES} states per channel, A has {states}"
    if (states + -states % SUBLANES) * (width + -width % LANES) > _MOST_STATES_IN_ALL:
        return f"it has at most {_MOST_STATES_IN_ALL} states per example, A has {states} for {width} channels"
    other = other_dtype(x, _DTYPES)
    return f"it takes float32 and bfloat16, and {other}" if other else None


def fitted(x: Operands) -> Operands:
    """Padded to whole chunks of tokens (by masked ones), lanes of channels and sublanes of states, without effect."""
    return whole_blocks(x, CHUNK, LANES, SUBLANES)


def forward(x: Operands, options: Options, keep: bool) -> tuple[Array, Array, Array | None]:
    """Output [B, T, E], last state [B, N, E] and, if `keep`, the states before each chunk [T / CHUNK, B, N, E].

    `x` is `fitted`.
    """
    return forward_kernel.run(_task(x, options, keep), _given(x) | {"first": x.initial_state})


def backward(x: Operands, bounds: Array, dout: Array, dstate: Array, options: Options) -> Operands:
    """The cotangents of the operands (None for the mask and the starts); `bounds` are those of `forward`."""
    task = _task(x, options, keep=False)
    out = backward_kernel.run(task, _given(x) | {"dout": dout, "bounds": bounds, "last": dstate})

    def narrow(name: str, like: Array) -> Array:
        total = jnp.swapaxes(out[name], 1, 2)
        return (total if x.mask is None else jnp.where(x.mask[..., None], total, 0)).astype(like.dtype)

    def per_channel(name: str, like: Array | None) -> Array | None:
        return None if like is None else out[name].sum((0, 1)).astype(like.dtype)

    return Operands(
        u=out["du"],
        dt=out["ddt"],
        A=out["drate"].sum(0).T.astype(x.A.dtype),
        B=narrow("db", x.B),
        C=narrow("dc", x.C),
        D=per_channel("dskip", x.D),
        z=None if x.z is None else out["dz"],
        dt_bias=per_channel("dbias", x.dt_bias),
        initial_state=out["w"],
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
        reverse=options.reverse,
        dt_softplus=options.dt_softplus,
        gate=x.z is not None,
        masked=x.mask is not None,
        packed=x.starts is not None,
        keep=keep,
    )


def _given(x: Operands) -> dict[str, Array]:
    """What both kernels read, by name."""
    given = {name: getattr(x, name) for name in ("u", "dt", "z") if getattr(x, name) is not None}
    for name, array in (("b", x.B), ("c", x.C)):
        array = array.astype(jnp.float32)
        given[name] = jnp.swapaxes(array if x.mask is None else jnp.where(x.mask[..., None], array, 0), 1, 2)
    for name, flags in (("mask", x.mask), ("follows", None if x.starts is None else ~x.starts)):
        if flags is not None:
            given[name] = flags.astype(jnp.float32)[:, None]
    given["rate"] = x.A.astype(jnp.float32).T * fast_math.LOG2_E
    for name, array in (("skip", x.D), ("bias", x.dt_bias)):
        given[name] = jnp.zeros((1, x.u.shape[2]), jnp.float32) if array is None else array.astype(jnp.float32)[None]
    return given
