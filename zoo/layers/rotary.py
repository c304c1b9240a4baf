"""Rotary positions: pairs of channels turned by an angle proportional to the position (Su et al. 2021, 2104.09864)."""

import math

import jax.numpy as jnp
import numpy as np

from zoo.typing import Array, DType, Float, Int

_BLOCK = 4096


def rotate(x: Float[Array, "... H K"], positions: Int[Array, "..."], angles: np.ndarray) -> Float[Array, "... H K"]:
    """`x` with channels 2 i and 2 i + 1 turned as a plane by `positions * angles[i]`, in the dtype of `x`.

    Products of a query and a key turned so depend on the difference of their positions only.

    Args:
      x: queries or keys.
      positions: from 0, below 2**24.
      angles: [K / 2], in radians per position, float64.

    Raises:
      ValueError: K is not twice the number of angles.
    """
    if x.shape[-1] != 2 * len(angles):
        raise ValueError(f"rotate takes x [..., H, K] with K = {2 * len(angles)}; its shape is {x.shape}.")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    phase = 2 * math.pi * _turns(positions, angles, dtype)[..., None, :]
    cos, sin = jnp.cos(phase), jnp.sin(phase)
    even, odd = x[..., ::2].astype(dtype), x[..., 1::2].astype(dtype)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _turns(positions: Array, angles: np.ndarray, dtype: DType) -> Array:
    """positions * angles / 2π [..., K / 2] less whole turns, right to float32's precision however far the position.

    The plain product has an absolute error that grows with the position. Here position and angle are cut into parts of
    12 bits, whose products are exact, so that whole turns can be dropped before anything is rounded.
    """
    turns = np.asarray(angles, np.float64) / (2 * math.pi)
    total = jnp.zeros((), dtype)
    for part, step in ((positions // _BLOCK, turns * _BLOCK % 1.0), (positions % _BLOCK, turns % 1.0)):
        coarse = np.round(step * _BLOCK) / _BLOCK
        count = part.astype(dtype)[..., None]
        exact = count * coarse.astype(dtype)
        total = total + (exact - jnp.floor(exact)) + count * (step - coarse).astype(dtype)
    return total - jnp.round(total)
