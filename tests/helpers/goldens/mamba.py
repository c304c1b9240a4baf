"""The published language models of Mamba and Mamba-2, their tensors read by `zoo.weights`."""

import jax
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo import weights
from zoo.encoder import EncoderConfig
from zoo.models.causal_lm import CausalLM

IMPLEMENTATIONS = ("reference", "xla_sequential", "xla_chunked", "xla")
CONFIG = {
    "d_model": 32,
    "num_layers": 2,
    "ffn": "none",
    "norm_kind": "rms",
    "norm_eps": 1e-5,
    "positions": "none",
    "max_len": 64,
    "causal": True,
}


def load_lm(arrays, mixer, *, tie_embeddings, implementation=None, **options):
    """Our model with the parameters of Hugging Face's, in evaluation mode."""
    options["implementation"] = None if implementation == "xla" else implementation
    config = EncoderConfig(mixer=mixer, mixer_options=options, vocab_size=arrays.meta["vocab_size"], **CONFIG)
    model = CausalLM(config, tie_embeddings=tie_embeddings, rngs=nnx.Rngs(0))
    weights.load(model, arrays.under("param/"), format="mamba-hf")
    model.eval()
    return model


def load_mamba(arrays, implementation=None):
    """MambaForCausalLM."""
    meta = arrays.meta
    options = {"d_state": meta["state_size"], "dt_rank": meta["time_step_rank"], "implementation": implementation}
    return load_lm(arrays, "mamba", tie_embeddings=True, **options)


def load_mamba2(arrays, implementation=None):
    """Mamba2ForCausalLM."""
    meta = arrays.meta
    options = {"d_state": meta["state_size"], "d_head": meta["head_dim"], "num_groups": meta["n_groups"]}
    options |= {"chunk_size": meta["chunk_size"], "implementation": implementation}
    return load_lm(arrays, "mamba2", tie_embeddings=False, **options)


@comparison("mamba_lm", "language model of `mamba`", MODEL, IMPLEMENTATIONS)
def mamba_lm(arrays, implementation):
    run = nnx.jit(lambda model, tokens: (model.encoder(tokens), model(tokens)))
    hidden, logits = run(load_mamba(arrays, implementation), arrays["in/input_ids"])
    yield Found("out/last_hidden_state", hidden)
    yield Found("out/logits", logits)


@comparison("mamba2_lm", "language model of `mamba2`", MODEL, IMPLEMENTATIONS)
def mamba2_lm(arrays, implementation):
    model = load_mamba2(arrays, implementation)
    yield Found("out/logits", jax.jit(lambda tokens: model(tokens))(arrays["in/input_ids"]))
