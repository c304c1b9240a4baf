"""Mamba: a whole published model by its reference arrays, and the official initial values."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.encoder import EncoderConfig
from zoo.factory import create_mixer
from zoo.models.causal_lm import CausalLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CONFIG = EncoderConfig(
    mixer="mamba",
    mixer_options={"d_state": 8, "dt_rank": 4},
    vocab_size=64,
    d_model=32,
    num_layers=2,
    ffn="none",
    norm_kind="rms",
    norm_eps=1e-5,
    positions="none",
    max_len=64,
    causal=True,
)


@pytest.fixture(scope="module")
def published():
    """The arrays of Hugging Face's MambaForCausalLM, and a model of ours that holds its parameters."""
    with np.load(GOLDEN / "mamba_lm.npz") as file:
        arrays = {name: file[name] for name in file.files}
    param = {name.removeprefix("param/"): value for name, value in arrays.items() if name.startswith("param/")}
    model = CausalLM(CONFIG, tie_embeddings=True, rngs=nnx.Rngs(0))
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
    return arrays, model


def error(a, b):
    return np.abs(np.asarray(a) - b).max() / max(1.0, np.abs(b).max())


def test_a_whole_model_is_the_published_one(published):
    arrays, model = published
    tokens = arrays["in/input_ids"]
    assert error(model.encoder(tokens), arrays["out/last_hidden_state"]) <= 1e-5
    assert error(model(tokens), arrays["out/logits"]) <= 1e-5


def test_so_it_is_in_chunks_and_token_by_token(published):
    arrays, model = published
    tokens = arrays["in/input_ids"]
    first, state = model(tokens[:, :17], return_state=True)
    logits = [first]
    for t in range(17, tokens.shape[1]):
        y, state = model.step(tokens[:, t], state)
        logits.append(y[:, None])
    assert error(jnp.concatenate(logits, 1), arrays["out/logits"]) <= 1e-5


def test_the_state_has_one_size_whatever_came_before(published):
    _, model = published
    sizes = set()
    for length in (1, 3, 40):
        _, state = model(np.zeros((2, length), np.int32), return_state=True)
        sizes.add(tuple(leaf.shape for leaf in jax.tree.leaves(state)))
    assert len(sizes) == 1


@pytest.mark.parametrize("causal", [True, False])
def test_initial_values_are_the_authors(causal):
    mixer = create_mixer("mamba", d_model=256, causal=causal)
    directions = [mixer.ssm] if causal else [mixer.ssm, mixer.backward_ssm]
    bound = 1 / math.sqrt(256)
    kernel = np.asarray(mixer.in_proj.kernel[...])
    assert kernel.shape == (256, 1024)
    assert np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for ssm in directions:
        steps = np.asarray(jax.nn.softplus(ssm.dt_bias[...]))
        assert 1e-3 * 0.999 <= steps.min() < 2e-3
        assert 0.05 < steps.max() <= 0.1 * 1.001
        # Log-uniform: half of them lie below the geometric mean.
        assert (steps < 1e-2).mean() == pytest.approx(0.5, abs=0.08)
        np.testing.assert_allclose(np.exp(ssm.A_log[...]), np.tile(np.arange(1.0, 17.0), (512, 1)), rtol=1e-6)
        np.testing.assert_array_equal(ssm.D[...], 1)
        assert ssm.dt_proj.kernel.shape == (16, 512)
        assert np.abs(np.asarray(ssm.dt_proj.kernel[...])).max() <= 16**-0.5
        assert np.abs(np.asarray(ssm.conv.kernel[...])).max() <= 0.5
    if not causal:
        assert np.abs(np.asarray(mixer.ssm.dt_bias[...]) - np.asarray(mixer.backward_ssm.dt_bias[...])).max() > 0.1
