"""The gated delta rule as its recurrence, one token after the other. Slow to differentiate, and meant to be read."""

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.common import L2_EPS, Marks, Options, Problem, ready_log_decay, where
from zoo.typing import Array

_HIGHEST = jax.lax.Precision.HIGHEST


def run(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, HV, V] in the dtype of the state, and the state after the last token."""
    *arrays, log_decay, state = problem
    dtype = state.dtype
    q, k, v, beta = (where(marks.real, x.astype(dtype)) for x in arrays)
    if options.l2norm:
        q, k = (x / jnp.sqrt((x**2).sum(-1, keepdims=True) + L2_EPS) for x in (q, k))
    q, k = (jnp.repeat(x, v.shape[2] // x.shape[2], axis=2) for x in (q, k))
    log_decay = ready_log_decay(log_decay, marks, beta, dtype)
    decay = jnp.ones_like(beta) if log_decay is None else jnp.exp(log_decay)

    def token(state: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, beta, decay = now
        state = decay[..., None, None] * state
        error = v - jnp.einsum("bhk,bhkv->bhv", k, state, precision=_HIGHEST)
        state = state + k[..., None] * (beta[..., None] * error)[..., None, :]
        return state, options.scale * jnp.einsum("bhk,bhkv->bhv", q, state, precision=_HIGHEST)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, beta, decay))
    state, y = jax.lax.scan(token, state, tokens, reverse=options.reverse)
    return jnp.moveaxis(y, 0, 1), state
