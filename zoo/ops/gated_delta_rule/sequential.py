"""The gated delta rule token by token: the fewest operations."""

import functools

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.common import (
    Marks,
    Options,
    Problem,
    inverse_norm,
    matmul_precision,
    ready_log_decay,
    where,
)
from zoo.typing import Array


def token(now: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """One token, arrays without the axis T: its output [B, HV, V] in the dtype of v, and the state after it."""
    *arrays, log_decay, state = now
    dot = functools.partial(jnp.einsum, precision=matmul_precision(*now[:3]))
    q, k, v, beta = (where(marks.real, x.astype(state.dtype)) for x in arrays)
    if options.l2norm:
        q, k = (x * inverse_norm(x) for x in (q, k))
    heads = v.shape[1] // q.shape[1]
    if heads > 1:
        q, k = (jnp.repeat(x, heads, axis=1) for x in (q, k))
    log_decay = ready_log_decay(log_decay, marks, beta, state.dtype)
    if log_decay is not None:
        state = jnp.exp(log_decay)[..., None, None] * state
    n = beta[..., None] * (v - dot("bhk,bhkv->bhv", k, state))
    state = state + k[..., None] * n[..., None, :]
    return dot("bhk,bhkv->bhv", q * options.scale, state).astype(now.v.dtype), state


@functools.partial(jax.jit, static_argnames=("options",))  # traced once for all layers of a model
def forward(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, HV, V] in the dtype of v, and the state after the last token."""

    def step(state: Array, now: tuple[Problem, Marks]) -> tuple[Array, Array]:
        y, state = token(now[0]._replace(state=state), now[1], options)
        return state, y

    arrays = tuple(problem[:-1])
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (Problem(*arrays, None), marks))  # pyright: ignore
    state, y = jax.lax.scan(step, problem.state, tokens, reverse=options.reverse)
    return jnp.moveaxis(y, 0, 1), state
