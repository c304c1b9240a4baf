"""The selective scan as its equations, one token after the other; gradients by autodiff. Slow in training, obvious."""

import jax
import jax.numpy as jnp

from zoo.ops.selective_scan.common import Operands, Options
from zoo.typing import Array


def run(x: Operands, options: Options) -> tuple[Array, Array]:
    """The output [B, T, E] in the dtype of accumulation, and the last state [B, N, E]."""
    dtype, (batch, length, _) = x.dtype, x.u.shape
    real = jnp.ones((batch, length), bool) if x.mask is None else x.mask
    starts = jnp.zeros((batch, length), bool) if x.starts is None else x.starts

    def clean(array: Array) -> Array:
        return jnp.where(real[..., None], array.astype(dtype), 0)

    u, b, c, dt = clean(x.u), clean(x.B), clean(x.C), clean(x.dt)
    dt = dt if x.dt_bias is None else dt + x.dt_bias.astype(dtype)
    delta = clean(jax.nn.softplus(dt) if options.dt_softplus else dt)
    decay_rate = x.A.astype(dtype).T  # [N, E]

    def token(h: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        u, delta, b, c, start = now
        h = jnp.where(start[:, None, None], 0, h)
        h = jnp.exp(delta[:, None] * decay_rate) * h + (delta * u)[:, None] * b[..., None]
        return h, (h * c[..., None]).sum(1)

    time_major = tuple(jnp.moveaxis(array, 1, 0) for array in (u, delta, b, c, starts))
    state, y = jax.lax.scan(token, x.initial_state, time_major, reverse=options.reverse)
    y = jnp.moveaxis(y, 0, 1)
    y = y if x.D is None else y + x.D.astype(dtype) * u
    y = y if x.z is None else y * jax.nn.silu(clean(x.z))
    return clean(y), state
