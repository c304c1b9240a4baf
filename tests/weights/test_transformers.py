"""What Hugging Face transformers and PyTorch read and write, side by side. Runs where both are installed."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_models import MODELS

import zoo
from zoo import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
TOKENS = np.random.default_rng(0).integers(20, size=(2, 32))
CLASSES = {
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "nystromformer": "NystromformerModel",
    "nystromformer_lm": "NystromformerForMaskedLM",
}


def theirs(name, folder):
    model = getattr(transformers, CLASSES[name]).from_pretrained(folder)
    model.eval()
    with torch.no_grad():
        found = model(torch.from_numpy(TOKENS))
    return model, (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def agree(a, b):
    assert np.abs(np.asarray(a) - b).max() <= 1e-5 * max(1, np.abs(b).max())


@pytest.mark.parametrize("name", CLASSES)
def test_both_ways(name, tmp_path):
    """Ours is read there, and written there again and read here, in shards and as a pickle."""
    ours = MODELS[name]()
    ours.eval()
    y = ours(jnp.asarray(TOKENS))
    zoo.save_pretrained(ours, tmp_path / "ours")
    model, found = theirs(name, tmp_path / "ours")
    agree(y, found)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="5KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    agree(zoo.load_pretrained(tmp_path / "theirs")(jnp.asarray(TOKENS)), found)
    folder = tmp_path / "pickle"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    agree(zoo.load_pretrained(folder)(jnp.asarray(TOKENS)), found)


def test_every_key_is_used(tmp_path):
    """Hugging Face reports what it neither found nor expected in the file that we wrote."""
    for name in CLASSES:
        zoo.save_pretrained(MODELS[name](), tmp_path / name)
        cls = getattr(transformers, CLASSES[name])
        _, report = cls.from_pretrained(tmp_path / name, output_loading_info=True)
        tied = {"lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
        assert not set(report["missing_keys"]) - tied, name
        assert not report["unexpected_keys"], name
        assert not report["mismatched_keys"], name


def test_a_config_of_theirs_with_all_its_defaults(tmp_path):
    config = transformers.MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)
    model = transformers.MambaForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mamba"
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(TOKENS)).logits.numpy()
    agree(zoo.load_pretrained(tmp_path)(jnp.asarray(TOKENS)), found)
    assert set(weights.read_tensors(tmp_path)) >= {"backbone.embeddings.weight"}
