"""Gated linear attention token by token: the fewest operations, and on a CPU the fastest way forward."""

import functools

import jax
import jax.numpy as jnp

from zoo.ops.gated_linear_attention.common import Marks, Options, Problem, decay_factors, matmul_precision, where_real
from zoo.typing import Array


def token(now: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """One token, arrays without the axis T: its output [B, H, V] in the dtype of v, and the state after it."""
    state, dtype = now.state, now.state.dtype
    q, k, v = (where_real(x.astype(dtype), marks.real) for x in now[:3])
    q, k = (jnp.repeat(x, v.shape[1] // x.shape[1], axis=1) for x in (q, k))
    factors = decay_factors(now.log_decay, marks, v, dtype)
    if factors is not None:
        state = (factors if factors.ndim == 3 else factors[..., None])[..., None] * state
    state = state + k[..., None] * v[..., None, :]
    precision = matmul_precision(now.q, now.k, now.v)
    y = jnp.einsum("bhk,bhkv->bhv", q * options.scale, state, precision=precision)
    return y.astype(now.v.dtype), state


@functools.partial(jax.jit, static_argnames=("options",))  # traced once for all layers of a model
def forward(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, H, V] in the dtype of v, and the state after the last token."""
    length, tokens = problem.v.shape[1], (problem._replace(state=None), marks)

    # Each token is read where it stands and its output is written in place: no array is laid out anew with T first.
    def step(count: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        state, y = carry
        t = length - 1 - count if options.reverse else count
        read = functools.partial(jax.lax.dynamic_index_in_dim, index=t, axis=1, keepdims=False)
        now, marks = jax.tree.map(read, tokens)
        y_t, state = token(now._replace(state=state), marks, options)
        return state, jax.lax.dynamic_update_index_in_dim(y, y_t, t, axis=1)

    state, y = jax.lax.fori_loop(0, length, step, (problem.state, jnp.zeros_like(problem.v)))
    return y, state
