"""Makes `linear_attention.npz`, `retnet.npz` and `gla.npz`: whole layers by their definitions, one token at a time.

    python tests/golden/make_linear_attention.py

Float64, without anything of `zoo`: what is summed is summed in a loop, so that these arrays and the package can only
agree if both are right. Each definition was written from the paper and read against the authors' code:

- linear attention: Katharopoulos et al. 2020, equations 8 to 12; idiap/fast-transformers, commit 2aa1368
  (`attention/causal_linear_attention.py`, `attention/attention_layer.py`).
- RetNet: Sun et al. 2023, section 2; microsoft/torchscale, commit 05a9628 (`component/multiscale_retention.py`, its
  parallel form, and `architecture/retnet.py` for angles, decays and their normalisation).
- GLA: Yang et al. 2023, equation 4 and section 4.4; fla-org/flash-linear-attention, commit 0c4ada1 (`layers/gla.py`).

Parameters are [out, in] under the authors' names. `in/mask` marks real tokens in `out/*_masked`, where the others are
zero. Gradients `grad/<name>` are those of sum(out/y * in/cotangent).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = Path(__file__).parent
B, T, D, H = 2, 11, 12, 2


def heads(x):
    """[T, H * width] -> [H, T, width]."""
    return x.reshape(len(x), H, -1).swapaxes(0, 1)


def merged(y):
    return y.swapaxes(0, 1).reshape(y.shape[1], -1)


def silu(x):
    return x / (1 + jnp.exp(-x))


def rms_norm(x, eps):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps)


# --- one example without padding, x [T, D], parameters p by name


def linear_attention(p, x, causal):
    q, k, v = (
        heads(x @ p[f"{name}_projection.weight"].T + p[f"{name}_projection.bias"]) for name in ("query", "key", "value")
    )
    q, k = (jax.nn.elu(y) + 1 for y in (q, k))
    outputs = []
    for i in range(len(x)):
        memory, total = 0, 0
        for j in range(i + 1 if causal else len(x)):
            memory = memory + k[:, j, :, None] * v[:, j, None, :]
            total = total + k[:, j]
        numerator = (q[:, i, :, None] * memory).sum(1)
        outputs.append(numerator / ((q[:, i] * total).sum(-1, keepdims=True) + 1e-6))
    y = merged(jnp.stack(outputs, 1))
    return y @ p["out_projection.weight"].T + p["out_projection.bias"]


def turned(x, angles):
    """Neighbouring channels as complex numbers, times exp(i position angle)."""
    complex_x = x[..., ::2] + 1j * x[..., 1::2]
    return complex_x * jnp.exp(1j * np.arange(x.shape[1])[:, None] * angles)


def retnet(p, x, causal):
    q, k, v = (heads(x @ p[f"{name}_proj.weight"].T) for name in "qkv")
    width = q.shape[-1]
    angles = 1 / 10000 ** np.linspace(0, 1, width // 2)
    q, k = turned(q, angles), turned(k * width**-0.5, angles)
    gamma = 1 - 2.0 ** (-5 - np.arange(H))
    outputs = []
    for n in range(len(x)):
        seen = range(n + 1 if causal else len(x))
        decays = jnp.stack([jnp.asarray(gamma ** abs(n - m)) for m in seen], 1)  # [H, seen]
        scores = jnp.stack([jnp.real(q[:, n] * jnp.conj(k[:, m])).sum(-1) for m in seen], 1)
        scores = scores * decays / jnp.sqrt(decays.sum(1, keepdims=True))
        scores = scores / jax.lax.stop_gradient(jnp.maximum(jnp.abs(scores.sum(1, keepdims=True)), 1))
        outputs.append(sum(scores[:, m, None] * v[:, m] for m in seen))
    y = merged(rms_norm(jnp.stack(outputs, 1), 1e-6))
    return (silu(x @ p["g_proj.weight"].T) * y) @ p["out_proj.weight"].T


def gla_outputs(q, k, v, decay):
    """[H, T, V] from the first token to the last."""
    memory, outputs = 0, []
    for t in range(q.shape[1]):
        memory = decay[:, t, :, None] * memory + k[:, t, :, None] * v[:, t, None, :]
        outputs.append((q[:, t, :, None] * memory).sum(1) * q.shape[-1] ** -0.5)
    return jnp.stack(outputs, 1)


def gla(p, x, causal):
    q, k, v = (heads(x @ p[f"{name}_proj.weight"].T) for name in "qkv")

    def decay(last):
        logits = x @ p["gk_proj.0.weight"].T @ p[f"{last}.weight"].T + p[f"{last}.bias"]
        return heads(jax.nn.sigmoid(logits) ** (1 / 16))

    y = gla_outputs(q, k, v, decay("gk_proj.1"))
    if not causal:
        reverse = [array[:, ::-1] for array in (q, k, v, decay("backward_gk_proj.1"))]
        y = (y + gla_outputs(*reverse)[:, ::-1]) / 2
    y = rms_norm(y, 1e-5) * p["g_norm.weight"]
    return (merged(y) * silu(x @ p["g_proj.weight"].T)) @ p["o_proj.weight"].T


# --- arrays


def parameters(shapes, rng):
    """Normal, of a size that makes every part matter; norms around 1."""
    found = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) == 2 else 0.3 * rng.standard_normal(shape)
        found[name] = (value + ("norm" in name)).astype(np.float32)
    return found


LAYERS = {
    "linear_attention": (
        linear_attention,
        {f"{name}_projection.{part}": (D, D) if part == "weight" else (D,)
         for name in ("query", "key", "value", "out") for part in ("weight", "bias")},
        {"num_heads": H, "source": "fast-transformers' AttentionLayer with linear attention, elu + 1, eps 1e-6"},
    ),
    "retnet": (
        retnet,
        {"q_proj.weight": (D, D), "k_proj.weight": (D, D), "v_proj.weight": (2 * D, D), "g_proj.weight": (2 * D, D),
         "out_proj.weight": (D, 2 * D)},
        {"num_heads": H, "source": "torchscale's MultiScaleRetention, parallel form, RMSNorm with eps 1e-6"},
    ),
    "gla": (
        gla,
        {"q_proj.weight": (D // 2, D), "k_proj.weight": (D // 2, D), "v_proj.weight": (D, D), "g_proj.weight": (D, D),
         "gk_proj.0.weight": (5, D), "gk_proj.1.weight": (D // 2, 5), "gk_proj.1.bias": (D // 2,),
         "backward_gk_proj.1.weight": (D // 2, 5), "backward_gk_proj.1.bias": (D // 2,),
         "g_norm.weight": (D // H,), "o_proj.weight": (D, D)},
        {"num_heads": H, "gate_rank": 5, "source": "flash-linear-attention's GatedLinearAttention, norm_eps 1e-5; "
         "bidirectional as ViG: the mean of two passes, the second with decays of its own"},
    ),
}  # fmt: skip


def make(name, layer, shapes, meta):
    """Writes the arrays of one layer; also for make_gated_deltanet.py."""
    rng = np.random.default_rng(0)
    params = parameters(shapes, rng)
    x = rng.standard_normal((B, T, D)).astype(np.float32)
    cotangent = rng.standard_normal((B, T, D)).astype(np.float32)
    mask = np.arange(T) < np.array([[T], [7]])
    arrays = {"meta": json.dumps(meta), "in/x": x, "in/cotangent": cotangent, "in/mask": mask}
    arrays |= {f"param/{key}": value for key, value in params.items()}
    exact = {key: jnp.asarray(value, jnp.float64) for key, value in params.items()}
    for direction in ("causal", "bidirectional"):

        def run(p, x, causal=direction == "causal"):
            return jnp.stack([layer(p, row, causal) for row in x])

        y, pull = jax.vjp(run, exact, jnp.asarray(x, jnp.float64))
        dparams, dx = pull(jnp.asarray(cotangent, jnp.float64))
        masked = np.zeros_like(y)
        for row, length in enumerate(mask.sum(1)):
            masked[row, :length] = layer(exact, jnp.asarray(x[row, :length], jnp.float64), direction == "causal")
        found = {"out/y": y, "out/y_masked": masked, "grad/x": dx}
        found |= {f"grad/{key}": value for key, value in dparams.items()}
        arrays |= {f"{direction}/{key}": np.asarray(value, np.float32) for key, value in found.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    with jax.enable_x64(True):
        for name, definition in LAYERS.items():
            make(name, *definition)
