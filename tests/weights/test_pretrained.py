"""Whole models: the config says what they are, and writing then reading changes nothing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens import Arrays
from pretrained_models import FLA, MODELS, RECURRENT, informer, itransformer, lm, nystromformer
from torch_files import write_torch

import zoo
from zoo import weights
from zoo.weights import WeightsError


@pytest.fixture(params=MODELS)
def model(request):
    found = MODELS[request.param]()
    found.eval()
    return found


def call(model):
    draw = np.random.default_rng(1)
    if hasattr(model, "lookback") or hasattr(model, "sizes"):
        x = draw.normal(size=(2, 16, 3)).astype(np.float32)
        marks = draw.choice([-0.5, 0.5], size=(2, 24, 4)).astype(np.float32)
        return nnx.jit(lambda model: model(x, marks=marks))(model)
    tokens = draw.integers(20, size=(2, 32))
    return nnx.jit(lambda model: model(jnp.asarray(tokens)))(model)


def assert_same(a, b):
    a, b = weights.dump(a), weights.dump(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


def test_saving_then_loading_is_the_identity(model, tmp_path):
    zoo.save_pretrained(model, tmp_path)
    loaded = zoo.load_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert_same(loaded, model)
    np.testing.assert_array_equal(call(loaded), call(model))
    first = (tmp_path / "config.json").read_text()
    zoo.save_pretrained(loaded, tmp_path)
    assert (tmp_path / "config.json").read_text() == first
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_authors_mamba(name, tmp_path):
    model = lm(RECURRENT, name, tie=True, d_state=4, **({"d_head": 8} if name == "mamba2" else {}))
    zoo.save_pretrained(model, tmp_path, format="mamba")
    assert "backbone.embedding.weight" in weights.read_tensors(tmp_path)
    assert "model_type" not in json.loads((tmp_path / "config.json").read_text())
    loaded = zoo.load_pretrained(tmp_path)
    assert_same(loaded, model)
    # As they publish it: a file of torch.save with the head, tied, in it once more.
    tensors = weights.read_tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    table = tensors["backbone.embedding.weight"]
    write_torch(tmp_path / "pytorch_model.bin", {**tensors, "lm_head.weight": table})
    assert_same(zoo.load_pretrained(tmp_path), model)
    write_torch(tmp_path / "pytorch_model.bin", {**tensors, "lm_head.weight": table + 1})
    with pytest.raises(WeightsError, match=r"lm_head.weight \(differs from the tensor that it is tied to\)"):
        zoo.load_pretrained(tmp_path)


def test_the_authors_mamba_config_as_published(tmp_path):
    """That of state-spaces/mamba-130m, smaller: the vocabulary is padded to a multiple of 8."""
    config = {"d_model": 16, "n_layer": 1, "vocab_size": 17, "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True}
    config |= {"fused_add_norm": True, "pad_vocab_size_multiple": 8}
    model = lm(dataclasses.replace(RECURRENT, num_layers=1), "mamba", tie=True)
    weights.write_safetensors(tmp_path / "model.safetensors", weights.dump(model, format="mamba"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(zoo.load_pretrained(tmp_path), model)


@pytest.mark.parametrize("kind", ["deltanet", "gated_deltanet"])
def test_names_of_flash_linear_attention(kind):
    """The names and shapes of its checkpoints, written out: they are nowhere here in a file of its own."""
    options = {"num_heads": 2, **({"d_head": 4} if kind == "gated_deltanet" else {})}
    found = {name: tensor.shape for name, tensor in weights.dump(lm(FLA, kind, **options)).items()}
    key, value = (16, 16) if kind == "deltanet" else (8, 16)
    due = {"model.embeddings.weight": (24, 16), "model.norm.weight": (16,), "lm_head.weight": (24, 16)}
    for i in range(2):
        layer = {"attn_norm.weight": (16,), "mlp_norm.weight": (16,), "attn.o_norm.weight": (value // 2,)}
        layer |= {"attn.q_proj.weight": (key, 16), "attn.k_proj.weight": (key, 16), "attn.v_proj.weight": (value, 16)}
        layer |= {"attn.b_proj.weight": (2, 16), "attn.o_proj.weight": (16, value)}
        widths = zip("qkv", (key, key, value), strict=True)
        layer |= {f"attn.{name}_conv1d.weight": (width, 1, 4) for name, width in widths}
        layer |= {"mlp.gate_proj.weight": (24, 16), "mlp.up_proj.weight": (24, 16), "mlp.down_proj.weight": (16, 24)}
        if kind == "gated_deltanet":
            layer |= {"attn.a_proj.weight": (2, 16), "attn.A_log": (2,), "attn.dt_bias": (2,)}
            layer |= {"attn.g_proj.weight": (value, 16)}
        due |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    assert found == due


@pytest.mark.parametrize(
    ("name", "model_type", "key"),
    [
        ("mamba_lm", "mamba", "out/logits"),
        ("mamba2_lm", "mamba2", "out/logits"),
        ("nystromformer_hf", "nystromformer", "out/last_hidden_state"),
    ],
)
def test_from_the_published_config(name, model_type, key, tmp_path):
    """The model that the config of the reference describes, with its tensors, gives its outputs."""
    arrays = Arrays(name)
    missing = {"mamba": {"tie_word_embeddings": True}, "mamba2": {"hidden_act": "silu"}}
    missing |= {"nystromformer": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "type_vocab_size": 2}}
    (tmp_path / "config.json").write_text(json.dumps(arrays.meta | {"model_type": model_type} | missing[model_type]))
    weights.write_safetensors(tmp_path / "model.safetensors", arrays.under("param/"))
    model = zoo.load_pretrained(tmp_path)
    y = jax.jit(lambda tokens: model(tokens))(arrays["in/input_ids"])
    assert np.abs(y - arrays[key]).max() <= 1e-5 * max(1, np.abs(arrays[key]).max())


@pytest.mark.parametrize("name", ["informer_full", "itransformer_full", "axial_2d_sum", "flow_attention"])
def test_published_tensors_are_written_back(name):
    """Import, then export: every number and every name, as it came."""
    arrays = Arrays(name)
    meta, published = arrays.meta, arrays.under("param/")
    if name == "informer_full":
        config = meta | {"model_type": "informer2020"}
        build = weights.formats()["informer2020"].builder(config)
    elif name == "itransformer_full":
        build = weights.formats()["itransformer"].builder(meta | {"enc_in": meta["n_variates"]})
    elif name == "axial_2d_sum":
        build = lambda **_: zoo.Axial(32, num_heads=4, shape=(8, 12), form="sum", rngs=nnx.Rngs(0))  # noqa: E731
    else:
        build = lambda **_: zoo.Flowformer(32, num_heads=4, rngs=nnx.Rngs(0))  # noqa: E731
    model = build(rngs=nnx.Rngs(0), dtype=None, param_dtype=jnp.float32)
    weights.load(model, published)
    written = weights.dump(model)
    constants = {key for key in published if key.endswith(("position_embedding.pe", "num_batches_tracked"))}
    assert set(written) == set(published)
    for key in set(published) - constants:
        np.testing.assert_array_equal(written[key], published[key], err_msg=key)
    for key in constants:
        np.testing.assert_allclose(written[key], published[key], atol=1e-3, err_msg=key)


def test_dtypes(tmp_path):
    zoo.save_pretrained(MODELS["mamba"](), tmp_path)
    half = zoo.load_pretrained(tmp_path, dtype=jnp.bfloat16)
    assert half.encoder.norm.scale.get_value().dtype == jnp.float32
    assert half.encoder.layers[0].mixer.dtype == jnp.bfloat16
    stored = zoo.load_pretrained(tmp_path, param_dtype=jnp.bfloat16)
    assert stored.encoder.norm.scale.get_value().dtype == jnp.bfloat16
    zoo.save_pretrained(stored, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same(zoo.load_pretrained(tmp_path, param_dtype=jnp.bfloat16), stored)


def test_what_cannot_be_described(tmp_path):
    for model, match in (
        (lm(dataclasses.replace(RECURRENT, positions="learned"), "mamba"), "its norms or positions"),
        (lm(dataclasses.replace(RECURRENT, ffn="mlp"), "mamba"), "it has feed-forward layers"),
        (lm(dataclasses.replace(RECURRENT, scan_layers=True), "mamba"), "layers are stacked"),
        (lm(dataclasses.replace(FLA, ffn_bias=True), "deltanet"), "biases"),
        (lm(FLA, "deltanet", conv_bias=True), "convolutions have biases"),
        (nystromformer(pinv_init="per_matrix"), 'has not pinv_init="global"'),
        (itransformer(mixer="nystromformer"), "its mixer is nystromformer"),
        (nystromformer(conv_kernel_size=None), "no convolution"),
        (itransformer(mixer="flowformer"), "its mixer_options are"),
        (informer(sample="shared"), "share their sample"),
        (informer(activation="silu"), "neither gelu_exact nor relu"),
        (zoo.Mamba(8, causal=True, rngs=nnx.Rngs(0)), "has no config file"),
    ):
        with pytest.raises(WeightsError, match=match):
            zoo.save_pretrained(model, tmp_path / "x")
        assert not (tmp_path / "x" / "config.json").exists()


def test_folders_that_cannot_be_loaded(tmp_path):
    with pytest.raises(WeightsError, match="has no config\\.json"):
        zoo.load_pretrained(tmp_path)
    zoo.save_pretrained(MODELS["mamba"](), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (
        ({"model_type": "llama"}, "no model known here .*'llama'"),
        ({"vocab_size": None}, "the config lacks 'vocab_size'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only 'silu'"),
        ({"hidden_size": 32}, "do not fit CausalLM"),
        ({"hidden_size": -1}, "config.json"),
        ({"num_hidden_layers": 3}, r"no tensor backbone\.layers\.2\."),
        ({"num_hidden_layers": 1000}, r"no tensor backbone\.layers\.999\."),
        ({"num_hidden_layers": 10**9}, "must be a whole number from 1 to"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000"),
        ({"expand": float("inf")}, "config.json"),
        ({"norm_eps": 1e-5}, "flash-linear-attention's Mamba"),
        ({"architectures": ["MambaModel"]}, r"architectures=\['MambaModel'\]; MambaForCausalLM"),
        ({"num_hidden_layers": 1}, "surplus: backbone.layers.1"),
        ({"state_size": "many"}, "config.json"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=match):
            zoo.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="no JSON"):
        zoo.load_pretrained(tmp_path)
    for name in ("nowhere", "./a/b", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no folder"):
            zoo.load_pretrained(name)


def test_the_hub_needs_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"seqzoo\[hub\]"):
        zoo.load_pretrained("state-spaces/mamba-130m-hf")


def test_the_hub_gives_a_folder(monkeypatch, tmp_path):
    """What is asked of huggingface_hub; nothing is fetched."""
    import types

    zoo.save_pretrained(MODELS["mamba"](), tmp_path)
    asked = {}

    def snapshot_download(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    files = ["config.json", "model.safetensors", "pytorch_model.bin", "training_args.bin"]
    module = types.SimpleNamespace(
        snapshot_download=snapshot_download, list_repo_files=lambda name, *, revision: files if name else revision
    )
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", module)
    assert_same(zoo.load_pretrained("owner/name", revision="v1"), MODELS["mamba"]())
    assert asked == {"name": "owner/name", "revision": "v1", "patterns": ["config.json", "model.safetensors"]}
    files[1:2] = ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    zoo.load_pretrained("owner/name")
    assert asked["patterns"] == ["config.json", "model.safetensors.index.json", "model-*.safetensors"]
    files[:] = ["config.json", "flax_model.msgpack"]
    with pytest.raises(WeightsError, match="has no file of weights"):
        zoo.load_pretrained("owner/name")


def test_a_recurrent_model_reads_any_length(tmp_path):
    zoo.save_pretrained(MODELS["mamba"](), tmp_path)
    tokens = jnp.zeros((1, 1500), int)
    assert jax.eval_shape(zoo.load_pretrained(tmp_path), tokens).shape == (1, 1500, 24)


def test_buffers_of_older_nystromformer_files(tmp_path):
    for name in ("nystromformer", "nystromformer_lm"):
        model, prefix = MODELS[name](), "nystromformer." if name.endswith("lm") else ""
        zoo.save_pretrained(model, tmp_path)
        tensors = weights.read_tensors(tmp_path)
        buffers = {f"{prefix}embeddings.position_ids": np.arange(32)[None] + 2}
        weights.write_safetensors(tmp_path / "model.safetensors", tensors | buffers)
        assert_same(zoo.load_pretrained(tmp_path), model)
        buffers = {f"{prefix}embeddings.position_ids": np.arange(32)[None]}
        weights.write_safetensors(tmp_path / "model.safetensors", tensors | buffers)
        with pytest.raises(WeightsError, match="a constant of the model"):
            zoo.load_pretrained(tmp_path)


def test_dtypes_that_there_are_not(tmp_path):
    zoo.save_pretrained(MODELS["mamba"](), tmp_path)
    with pytest.raises(ValueError, match="param_dtype=float16 is not known"):
        zoo.load_pretrained(tmp_path, param_dtype=jnp.float16)
