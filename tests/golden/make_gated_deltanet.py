"""Makes `gated_deltanet.npz` and `deltanet.npz`: whole layers by their definitions, one token at a time.

    python tests/golden/make_gated_deltanet.py

As make_linear_attention.py, whose format and padding these arrays have. Written from the papers and read against the
authors' code in fla-org/flash-linear-attention, commit bc3b101:

- Gated DeltaNet: Yang, Kautz and Hatamizadeh 2024, equation 10; `layers/gated_deltanet.py`. With two heads of values to
  one of queries and keys.
- DeltaNet: Yang et al. 2024; `layers/delta_net.py`. With an output gate, and beta up to 2.

Bidirectional, which the authors have not: the mean of two passes, the second from the end with the parameters called
`backward_*` where there are such.
"""

import jax
import jax.numpy as jnp
from make_linear_attention import D, make, rms_norm, silu

H, HV, K, V, W = 2, 4, 3, 6, 4


def convolved(x, w):
    """SiLU of the causal convolution of x [T, C] with the taps w [C, 1, W], the newest token's last."""
    rows = []
    for t in range(len(x)):
        seen = [x[t - lag] * w[:, 0, W - 1 - lag] for lag in range(min(W, t + 1))]
        rows.append(silu(sum(seen)))
    return jnp.stack(rows)


def unit(x):
    return x / jnp.sqrt((x * x).sum() + 1e-6)


def one_head(q, k, v, beta, decay):
    """[T, V]: the recurrence with the memory as a matrix [V, K], as the papers write it."""
    memory, outputs = jnp.zeros((v.shape[1], k.shape[1])), []
    for t in range(len(q)):
        query, key = unit(q[t]), unit(k[t])
        memory = memory * decay[t] @ (jnp.eye(len(key)) - beta[t] * jnp.outer(key, key)) + beta[t] * jnp.outer(
            v[t], key
        )
        outputs.append(memory @ query / jnp.sqrt(len(key)))
    return jnp.stack(outputs)


def one_pass(p, x, prefix, heads, v_heads, beta_of, decay_of):
    """[T, v_heads * V] from the first token to the last."""
    own = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
    q, k, v = (convolved(x @ p[f"{name}_proj.weight"].T, own[f"{name}_conv1d.weight"]) for name in "qkv")
    q, k = (y.reshape(len(x), heads, -1) for y in (q, k))
    v = v.reshape(len(x), v_heads, -1)
    beta, decay = beta_of(own, x), decay_of(own, x)
    shared = v_heads // heads
    outputs = [one_head(q[:, h // shared], k[:, h // shared], v[:, h], beta[:, h], decay[:, h]) for h in range(v_heads)]
    return jnp.stack(outputs, 1)


def whole(p, x, causal, *sizes_and_gates):
    y = one_pass(p, x, "", *sizes_and_gates)
    if not causal:
        y = (y + one_pass(p, x[::-1], "backward_", *sizes_and_gates)[::-1]) / 2
    y = rms_norm(y, 1e-5) * p["o_norm.weight"] * silu(x @ p["g_proj.weight"].T).reshape(y.shape)
    return y.reshape(len(x), -1) @ p["o_proj.weight"].T


def gated_deltanet(p, x, causal):
    def beta(own, x):
        return 1 / (1 + jnp.exp(-x @ own["b_proj.weight"].T))

    def decay(own, x):
        time_step = jnp.log(1 + jnp.exp(x @ own["a_proj.weight"].T + own["dt_bias"]))
        return jnp.exp(-jnp.exp(own["A_log"]) * time_step)

    return whole(p, x, causal, H, HV, beta, decay)


def deltanet(p, x, causal):
    def beta(own, x):
        return 2 / (1 + jnp.exp(-x @ own["b_proj.weight"].T))

    return whole(p, x, causal, H, H, beta, lambda own, x: jnp.ones((len(x), H)))


def shapes(v_heads, gates):
    convolutions = {"q_conv1d.weight": (H * K, 1, W), "k_conv1d.weight": (H * K, 1, W)}
    own = convolutions | {"v_conv1d.weight": (v_heads * V, 1, W)} | gates
    return {
        "q_proj.weight": (H * K, D), "k_proj.weight": (H * K, D), "v_proj.weight": (v_heads * V, D),
        "g_proj.weight": (v_heads * V, D), "o_norm.weight": (V,), "o_proj.weight": (D, v_heads * V),
        **own, **{f"backward_{name}": shape for name, shape in own.items()},
    }  # fmt: skip


LAYERS = {
    "gated_deltanet": (
        gated_deltanet,
        shapes(HV, {"a_proj.weight": (HV, D), "b_proj.weight": (HV, D), "A_log": (HV,), "dt_bias": (HV,)}),
        {"num_heads": H, "num_v_heads": HV, "d_head": K, "expand_v": V / K,
         "source": "flash-linear-attention's GatedDeltaNet, norm_eps 1e-5, l2_eps 1e-6 inside the square root"},
    ),
    "deltanet": (
        deltanet,
        shapes(H, {"b_proj.weight": (H, D)}),
        {"num_heads": H, "expand_k": H * K / D, "expand_v": H * V / D, "use_gate": True, "allow_neg_eigval": True,
         "source": "flash-linear-attention's DeltaNet, norm_eps 1e-5, l2_eps 1e-6 inside the square root"},
    ),
}  # fmt: skip


if __name__ == "__main__":
    with jax.enable_x64(True):
        for name, definition in LAYERS.items():
            make(name, *definition)
