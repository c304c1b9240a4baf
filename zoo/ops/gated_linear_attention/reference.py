"""Gated linear attention as its recurrence, one token after the other. Slow, and meant to be read."""

import jax
import jax.numpy as jnp

from zoo.ops.gated_linear_attention.common import Marks, Options, Problem, decay_factors, where_real
from zoo.typing import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def run(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, H, V] in the dtype of the state, and the state after the last token."""
    q, k, v, log_decay, state = problem
    dtype, heads = state.dtype, v.shape[2]
    q, k, v = (where_real(x.astype(dtype), marks.real) for x in (q, k, v))
    q, k = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (q, k))
    decay = decay_factors(log_decay, marks, v, dtype)
    if decay is None:
        decay = jnp.ones(v.shape[:3], dtype)
    decay = decay if decay.ndim == 4 else decay[..., None]

    def token(state: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, decay = now
        state = decay[..., None] * state + k[..., None] * v[..., None, :]
        return state, options.scale * jnp.einsum("bhk,bhkv->bhv", q, state, precision=_HIGHEST)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, decay))
    state, y = jax.lax.scan(token, state, tokens, reverse=options.reverse)
    return jnp.moveaxis(y, 0, 1), state
