"""Gated linear attention token by token: the fewest operations, and on a CPU the fastest way forward."""

import functools

import jax
import jax.numpy as jnp

from zoo.ops.gated_linear_attention.common import Marks, Options, Problem, decay_factors, matmul_precision, where_real
from zoo.typing import Array


def token(now: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """One token, arrays without the axis T: its output [B, H, V] in the dtype of v, and the state after it."""
    dot = functools.partial(jnp.einsum, precision=matmul_precision(now.q, now.k, now.v))
    q, k, v = (where_real(x.astype(now.state.dtype), marks.real) for x in now[:3])
    heads = (len(v), q.shape[1], v.shape[1] // q.shape[1])
    state = now.state.reshape(*heads, *now.state.shape[2:])
    factors = decay_factors(now.log_decay, marks, v, state.dtype)
    if factors is not None:
        state = factors.reshape(*heads, -1, 1) * state
    state = state + k[:, :, None, :, None] * v.reshape(*heads, 1, -1)
    y = dot("bgk,bgrkv->bgrv", q * options.scale, state)
    return y.reshape(v.shape).astype(now.v.dtype), state.reshape(now.state.shape)


def forward(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, H, V] in the dtype of v, and the state after the last token."""

    def step(state: Array, now: tuple[Problem, Marks]) -> tuple[Array, Array]:
        y, state = token(now[0]._replace(state=state), now[1], options)
        return state, y

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (problem._replace(state=None), marks))
    state, y = jax.lax.scan(step, problem.state, tokens, reverse=options.reverse)
    return jnp.moveaxis(y, 0, 1), state
