"""The published language models of Mamba and Mamba-2."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo.encoder import EncoderConfig
from zoo.mixers.mamba2 import Mamba2
from zoo.models.causal_lm import CausalLM

MAMBA_CONFIG = {
    "mixer": "mamba",
    "vocab_size": 64,
    "d_model": 32,
    "num_layers": 2,
    "ffn": "none",
    "norm_kind": "rms",
    "norm_eps": 1e-5,
    "positions": "none",
    "max_len": 64,
    "causal": True,
}


def load_mamba(arrays, implementation=None):
    """Our model with the parameters of Hugging Face's MambaForCausalLM."""
    options = {"d_state": 8, "dt_rank": 4, "implementation": implementation}
    model = CausalLM(EncoderConfig(**MAMBA_CONFIG, mixer_options=options), tie_embeddings=True, rngs=nnx.Rngs(0))
    param = arrays.under("param/")
    np.testing.assert_array_equal(param["lm_head.weight"], param["backbone.embeddings.weight"])
    model.encoder.embedding.table.embedding[...] = jnp.asarray(param["backbone.embeddings.weight"])
    model.encoder.norm.scale[...] = jnp.asarray(param["backbone.norm_f.weight"])
    for index, block in enumerate(model.encoder.layers):
        at = f"backbone.layers.{index}."
        block.mixer_norm.scale[...] = jnp.asarray(param[at + "norm.weight"])
        mixer, ssm = block.mixer, block.mixer.ssm
        for ours, name in (
            (mixer.in_proj, "in_proj"),
            (mixer.out_proj, "out_proj"),
            (ssm.x_proj, "x_proj"),
            (ssm.dt_proj, "dt_proj"),
        ):
            ours.kernel[...] = jnp.asarray(param[f"{at}mixer.{name}.weight"].T)
        ssm.dt_bias[...] = jnp.asarray(param[at + "mixer.dt_proj.bias"])
        ssm.conv.kernel[...] = jnp.asarray(param[at + "mixer.conv1d.weight"][:, 0].T)
        ssm.conv.bias[...] = jnp.asarray(param[at + "mixer.conv1d.bias"])
        ssm.A_log[...] = jnp.asarray(param[at + "mixer.A_log"])
        ssm.D[...] = jnp.asarray(param[at + "mixer.D"])
    model.eval()
    return model


@comparison("mamba_lm", "language model of `mamba`", MODEL, ("reference", "xla_sequential", "xla_chunked", "xla"))
def mamba_lm(arrays, implementation):
    model = load_mamba(arrays, None if implementation == "xla" else implementation)
    tokens = arrays["in/input_ids"]
    hidden, logits = nnx.jit(lambda model, tokens: (model.encoder(tokens), model(tokens)))(model, tokens)
    yield Found("out/last_hidden_state", hidden)
    yield Found("out/logits", logits)


def load_mamba2_layer(layer, parameters):
    """Fills a layer from the tensors of a checkpoint."""
    layer.in_proj.kernel[...] = parameters["in_proj.weight"].T
    layer.out_proj.kernel[...] = parameters["out_proj.weight"].T
    layer.norm_scale[...] = parameters["norm.weight"]
    ssd = layer.ssd
    ssd.conv.kernel[...] = parameters["conv1d.weight"][:, 0].T
    ssd.conv.bias[...] = parameters["conv1d.bias"]
    for name in ("dt_bias", "A_log", "D"):
        getattr(ssd, name)[...] = parameters[name]


def rms_norm(x, weight):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def load_mamba2(arrays, implementation=None):
    """`run(tokens, states=None)` -> (logits, states) of Hugging Face's model, on whole sequences or pieces."""
    meta, parameters, layers = arrays.meta, arrays.under("param/"), []
    for index in range(meta["num_hidden_layers"]):
        layers.append(
            Mamba2(
                meta["hidden_size"],
                d_state=meta["state_size"],
                d_head=meta["head_dim"],
                num_groups=meta["n_groups"],
                d_conv=meta["conv_kernel"],
                expand=meta["expand"],
                chunk_size=meta["chunk_size"],
                causal=True,
                implementation=implementation,
                rngs=nnx.Rngs(0),
            )
        )
        load_mamba2_layer(layers[-1], arrays.under(f"param/backbone.layers.{index}.mixer."))

    def run(tokens, states=None):
        x, new = jnp.asarray(parameters["backbone.embeddings.weight"])[tokens], []
        for index, layer in enumerate(layers):
            y, state = layer(
                rms_norm(x, parameters[f"backbone.layers.{index}.norm.weight"]),
                state=None if states is None else states[index],
                return_state=True,
            )
            x, new = x + y, [*new, state]
        return rms_norm(x, parameters["backbone.norm_f.weight"]) @ parameters["lm_head.weight"].T, new

    return jax.jit(run)


@comparison("mamba2_lm", "language model of `mamba2`", MODEL, ("reference", "xla_sequential", "xla_chunked", "xla"))
def mamba2_lm(arrays, implementation):
    yield Found("out/logits", load_mamba2(arrays, implementation)(arrays["in/input_ids"])[0])
