"""The peers in JAX: what one writes with the primitives of `jax.lax` and leaves to its autodiff, and our ops.

Each takes the arrays of `cases.make_inputs` by name and returns the output. The layouts are the faster ones of those
tried: states with the wide axis last, time first.
"""

import jax
import jax.numpy as jnp


def selective_scan_zoo(u, dt, A, B, C, D, z, dt_bias, *, implementation=None):
    from zoo.ops.selective_scan import selective_scan

    return selective_scan(u, dt, A, B, C, D, z, dt_bias, implementation=implementation)


def delta_rule_zoo(q, k, v, beta, *, implementation=None):
    from zoo.ops.gated_delta_rule import gated_delta_rule

    return gated_delta_rule(q, k, v, beta, implementation=implementation)


def linear_attention_zoo(q, k, v, log_decay, *, implementation=None):
    from zoo.ops.gated_linear_attention import gated_linear_attention

    return gated_linear_attention(q, k, v, log_decay, implementation=implementation)


def conv_zoo(x, w, b, *, implementation=None):
    from zoo.ops.causal_conv1d import causal_conv1d

    return causal_conv1d(x, w, b, implementation=implementation)


def _time_first(*arrays):
    return tuple(jnp.moveaxis(array, 1, 0) for array in arrays)


def _scan(step, state, *arrays):
    """`lax.scan` along T, the arrays' and the output's second axis."""
    return jnp.moveaxis(jax.lax.scan(step, state, _time_first(*arrays))[1], 0, 1)


def selective_scan_scan(u, dt, A, B, C, D, z, dt_bias):
    """One token a trip, the state [B, N, D]; exp(dt A) and dt B u are made inside the trip."""
    dt = jax.nn.softplus(dt + dt_bias)
    rates = A.T

    def step(state, token):
        dt, du, b, c = token
        state = jnp.exp(dt[:, None] * rates) * state + b[:, :, None] * du[:, None]
        return state, (state * c[:, :, None]).sum(1)

    start = jnp.zeros((u.shape[0], *rates.shape), u.dtype)
    y = _scan(step, start, dt, dt * u, B, C)
    return (y + D * u) * jax.nn.silu(z)


def selective_scan_associative(u, dt, A, B, C, D, z, dt_bias):
    """All states at once, [T, B, N, D], by the composition of affine maps."""
    dt = jax.nn.softplus(dt + dt_bias)
    dt_t, du_t, b_t, c_t = _time_first(dt, dt * u, B, C)

    def then(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    maps = jnp.exp(dt_t[:, :, None] * A.T), b_t[..., None] * du_t[:, :, None]
    _, states = jax.lax.associative_scan(then, maps)
    y = jnp.moveaxis((states * c_t[..., None]).sum(2), 0, 1)
    return (y + D * u) * jax.nn.silu(z)


def delta_rule_scan(q, k, v, beta):
    """One token a trip, the state [B, H, K, V]."""

    def step(state, token):
        q, k, v, beta = token
        error = beta[..., None] * (v - jnp.einsum("bhk,bhkv->bhv", k, state))
        state = state + k[..., None] * error[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    return _scan(step, _matrix_state(k, v), q * q.shape[-1] ** -0.5, k, v, beta)


def linear_attention_scan(q, k, v, log_decay):
    """One token a trip, the state [B, H, K, V]."""

    def step(state, token):
        q, k, v, decay = token
        state = decay[..., None, None] * state + k[..., None] * v[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    return _scan(step, _matrix_state(k, v), q * q.shape[-1] ** -0.5, k, v, jnp.exp(log_decay))


def _matrix_state(k, v):
    return jnp.zeros((k.shape[0], k.shape[2], k.shape[3], v.shape[3]), v.dtype)


def conv_lax(x, w, b):
    """A grouped convolution, one group per channel."""
    y = jax.lax.conv_general_dilated(
        x,
        w[:, None],
        window_strides=(1,),
        padding=((w.shape[0] - 1, 0),),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=w.shape[1],
    )
    return jax.nn.silu(y + b)


ZOO = {
    "selective_scan": selective_scan_zoo,
    "gated_delta_rule": delta_rule_zoo,
    "gated_linear_attention": linear_attention_zoo,
    "causal_conv1d": conv_zoo,
}
