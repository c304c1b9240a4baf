"""Exponentials for the inner loop on a CPU, where XLA's own ones are most of the cost of a selective scan.

Both are for float32; other dtypes go to JAX's functions. Neither defines a derivative: callers write their own.
"""

import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zoo.typing import Array

LOG2_E = math.log2(math.e)
# (2^f - 1) / f on [-1/2, 1/2], minimax in relative error (1e-8). Since the 1 is added last, 2^x - 1 keeps its digits
# for small x: the state of a slow channel is a long product of such factors, in which any bias would add up.
_POWER = (
    0.6931471824645996,
    0.24022649228572845,
    0.05550357326865196,
    0.009618237614631653,
    0.0013390735257416964,
    0.00015403512225020677,
)
_ROUNDING = 1.5 * 2**23  # added to a small integer in float32, leaves it in the low bits
_BIAS = 127 << 23


def power_of_two(x: Array) -> Array:
    """2^x, to a rounding or two; zero below -126.5, infinite from 127.5 on; half the time of `jnp.exp`.

    x = i + f with i the nearest integer: 2^f by a polynomial, 2^i by writing the exponent's bits.
    """
    if x.dtype != jnp.float32:
        return jnp.exp2(x)
    x = jnp.clip(x, -127.0, 128.0)
    nearest = jax.lax.round(x, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    f = x - nearest
    q = jnp.float32(_POWER[-1])
    for coefficient in _POWER[-2::-1]:
        q = q * f + jnp.float32(coefficient)
    bits = jax.lax.bitcast_convert_type(nearest + jnp.float32(_ROUNDING), jnp.int32)
    scale = jax.lax.bitcast_convert_type((bits << 23) + jnp.int32(_BIAS), jnp.float32)
    return (1 + f * q) * scale


def softplus(x: Array, divide: Callable[[Array, Array], Array] = operator.truediv) -> Array:
    """log(1 + exp(x)), to a rounding or two; a third of the time of `jax.nn.softplus`.

    Args:
      x: float32, else it goes to JAX's function.
      divide: of the caller's, for divisors from 2 to 3.

    It is max(x, 0) + log1p(e) with e = exp(-|x|), and log1p(e) = 2 artanh(s) with s = e / (2 + e) <= 1/3, by its
    series: XLA turns (1 + e) - 1 back into e, which rules out the usual corrections of log(1 + e).
    """
    if x.dtype != jnp.float32:
        return jax.nn.softplus(x)
    e = jnp.exp(-jnp.abs(x))
    s = divide(e, 2 + e)
    square = s * s
    series = 1 / 13
    for odd in (11, 9, 7, 5, 3):
        series = series * square + 1 / odd
    return jnp.maximum(x, 0) + 2 * (s + s * square * series)
