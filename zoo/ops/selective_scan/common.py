"""What the implementations of the selective scan share: operands, options, and what precedes and follows the scan."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.selective_scan import fast_math
from zoo.typing import Array, DType


class Operands(NamedTuple):
    """The arrays of `selective_scan`, with one group of B and C and in the dtypes that the caller gave.

    Attributes:
      u, dt: [B, T, E].
      A: [E, N].
      B, C: [B, T, N].
      D: [E], or None.
      z: [B, T, E], or None.
      dt_bias: [E], or None.
      initial_state: [B, N, E], in the dtype of accumulation.
      mask: bool [B, T], or None.
      starts: bool [B, T], where a new packed sequence begins; or None.
    """

    u: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None
    dt_bias: Array | None
    initial_state: Array
    mask: Array | None
    starts: Array | None

    @property
    def dtype(self) -> DType:
        """Of accumulation."""
        return self.initial_state.dtype


@dataclasses.dataclass(frozen=True)
class Options:
    """The choices of `selective_scan` that the implementations read; `chunk_size` divides T."""

    dt_softplus: bool = True
    reverse: bool = False
    chunk_size: int = 16


def whole_chunks(x: Operands, size: int) -> Operands:
    """Padded on the right to a multiple of `size` along T, by tokens that are masked."""
    batch, length = x.u.shape[:2]
    extra = -length % size
    if not extra:
        return x

    def pad(array: Array | None) -> Array | None:
        return None if array is None else jnp.pad(array, ((0, 0), (0, extra)) + ((0, 0),) * (array.ndim - 2))

    mask = jnp.ones((batch, length), bool) if x.mask is None else x.mask
    return x._replace(
        u=pad(x.u), dt=pad(x.dt), B=pad(x.B), C=pad(x.C), z=pad(x.z), mask=pad(mask), starts=pad(x.starts)
    )


def other_dtype(x: Operands, dtypes: Sequence[DType]) -> str | None:
    """Which of the operands that kernels read has none of these dtypes, in words, or None."""
    for name in ("u", "dt", "B", "C", "z", "initial_state"):
        array = getattr(x, name)
        if array is not None and array.dtype not in dtypes:
            return f"{name} is {array.dtype}"
    return None


def whole_blocks(x: Operands, tokens: int, channels: int, states: int) -> Operands:
    """Padded to multiples of these along T (by tokens that are masked), E and N, without effect on what was there."""
    x = whole_chunks(x, tokens)
    channels, states = -x.u.shape[2] % channels, -x.A.shape[1] % states

    def pad(array: Array | None, *by: int) -> Array | None:
        return array if array is None or not any(by) else jnp.pad(array, [(0, n) for n in by])

    return x._replace(
        **{name: pad(getattr(x, name), 0, 0, channels) for name in ("u", "dt", "z")},
        **{name: pad(getattr(x, name), channels) for name in ("D", "dt_bias")},
        **{name: pad(getattr(x, name), 0, 0, states) for name in ("B", "C")},
        A=pad(x.A, channels, states),
        initial_state=pad(x.initial_state, 0, states, channels),
    )


class Tokens(NamedTuple):
    """Some tokens' share of the operands, in the dtype of accumulation, and what the scan makes of them.

    Padding has delta = 0, which leaves the state as it is, and zeros everywhere else, whatever stood there.

    Attributes:
      u, raw, delta: inputs, time steps before and after softplus [..., E].
      du: delta * u.
      b, c: [..., N].
      z: [..., E], or None.
    """

    u: Array
    raw: Array
    delta: Array
    du: Array
    b: Array
    c: Array
    z: Array | None


def tokens(
    u: Array,
    dt: Array,
    b: Array,
    c: Array,
    z: Array | None,
    bias: Array | None,
    mask: Array | None,
    dtype: DType,
    dt_softplus: bool,
) -> Tokens:
    """`Tokens` of any leading axes; `mask` has these axes."""

    def clean(x: Array) -> Array:
        x = x.astype(dtype)
        return x if mask is None else jnp.where(mask[..., None], x, 0)

    u, raw, b, c = clean(u), clean(dt), clean(b), clean(c)
    raw = raw if bias is None else raw + bias.astype(dtype)
    delta = fast_math.softplus(raw) if dt_softplus else raw
    delta = delta if mask is None else jnp.where(mask[..., None], delta, 0)
    return Tokens(u, raw, delta, delta * u, b, c, None if z is None else clean(z))


def gated(y: Array, skip: Array | None, x: Tokens, mask: Array | None) -> Array:
    """The output of some tokens: (y + D u) silu(z), zero at padding."""
    y = y if skip is None else y + skip.astype(y.dtype) * x.u
    y = y if x.z is None else y * jax.nn.silu(x.z)
    return y if mask is None else jnp.where(mask[..., None], y, 0)


def gated_backward(
    dout: Array, y: Array | None, skip: Array | None, x: Tokens, mask: Array | None
) -> tuple[Array, Array | None]:
    """The cotangents of y + D u and of z, from that of the output; `y`, of the scan, is read only where there is z."""
    dout = dout if mask is None else jnp.where(mask[..., None], dout, 0)
    if x.z is None:
        return dout, None
    sigmoid = jax.nn.sigmoid(x.z)
    dy = dout * x.z * sigmoid
    if y is None:
        return dy, None
    y = y if skip is None else y + skip.astype(y.dtype) * x.u
    return dy, dout * y * sigmoid * (1 + x.z * (1 - sigmoid))


def draw_backward(ddelta: Array, x: Tokens, mask: Array | None, dt_softplus: bool) -> Array:
    """The cotangent of the time step before softplus, from that after it."""
    ddelta = ddelta * jax.nn.sigmoid(x.raw) if dt_softplus else ddelta
    return ddelta if mask is None else jnp.where(mask[..., None], ddelta, 0)
