"""Modules by name, and the errors that teach."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.mixers.softmax import Softmax
from zoo.registry import RegistryError, option_names

SMALL = {"num_classes": 3, "vocab_size": 11, "d_model": 8, "num_layers": 1, "num_heads": 2, "max_len": 6}


def kernel(mixer):
    return np.asarray(mixer.projections.query.kernel[...])


def test_mixer_by_name():
    mixer = zoo.create_mixer("softmax", 8, num_heads=2, causal=True)
    assert isinstance(mixer, Softmax)
    assert mixer.causal
    assert mixer(jnp.zeros((1, 3, 8))).shape == (1, 3, 8)


def test_seeds():
    made = {seed: kernel(zoo.create_mixer("softmax", 8, rngs=seed)) for seed in (None, 0, 1)}
    np.testing.assert_array_equal(made[None], made[0])
    assert not np.allclose(made[0], made[1])
    np.testing.assert_array_equal(kernel(zoo.create_mixer("softmax", 8, rngs=nnx.Rngs(1))), made[1])


def test_mixer_errors():
    with pytest.raises(RegistryError, match=r"no mixer named 'sofmax'\. Did you mean softmax"):
        zoo.create_mixer("sofmax", 8)
    with pytest.raises(TypeError, match=r"softmax has no option 'num_head'\. Did you mean num_heads.* out_bias"):
        zoo.create_mixer("softmax", 8, num_head=2)
    with pytest.raises(TypeError, match=r"softmax has no option 'zzz'\. There are attention_dropout"):
        zoo.create_mixer("softmax", 8, zzz=2)


def test_option_names():
    names = option_names(Softmax)
    assert names[:2] == ["d_model", "num_heads"]
    assert "rngs" not in names
    assert "self" not in names
    assert option_names(lambda a, *, b, rngs, **more: None) == ["a", "b"]


def test_model_around_a_mixer():
    model = zoo.create_model("softmax", **SMALL, pooling="last", query_chunk_size=2, out_bias=False, rngs=0)
    mixer = model.encoder.layers[0].mixer
    assert isinstance(mixer, Softmax)
    assert mixer.query_chunk_size == 2
    assert mixer.projections.out.bias is None
    assert model.pooling == "last"
    assert model(jnp.zeros((2, 5), jnp.int32)).shape == (2, 3)


def test_model_shares_options_with_every_layer():
    model = zoo.create_model("softmax", **SMALL | {"num_layers": 2}, causal=True, mixer_options={"query_chunk_size": 3})
    assert [layer.mixer.causal for layer in model.encoder.layers] == [True, True]
    assert [layer.mixer.query_chunk_size for layer in model.encoder.layers] == [3, 3]


def test_model_errors():
    with pytest.raises(TypeError, match=r"no option 'num_layer'\. Did you mean num_layers"):
        zoo.create_model("softmax", **SMALL, num_layer=3)
    with pytest.raises(TypeError, match=r"no option 'poling'\. Did you mean pooling"):
        zoo.create_model("softmax", **SMALL, poling="mean")
    with pytest.raises(TypeError, match=r"no option 'query_chunks'\. Did you mean query_chunk_size"):
        zoo.create_model("softmax", **SMALL, query_chunks=3)
    with pytest.raises(TypeError, match="needs num_classes"):
        zoo.create_model("softmax", vocab_size=11)
    with pytest.raises(RegistryError, match="Did you mean softmax"):
        zoo.create_model("sofmax", **SMALL)
    tasks = zoo.list_specs(kind="task")
    if tasks:
        with pytest.raises(RegistryError, match="is a task, not a model"):
            zoo.create_model(tasks[0].name)


def test_registered_models(monkeypatch):
    class Whole(nnx.Module):
        def __init__(self, d_model, *, rngs):
            self.linear = nnx.Linear(d_model, 1, rngs=rngs)

    spec = zoo.Spec("whole", "model", "A model")
    monkeypatch.setattr("zoo.registry.spec", lambda name, kind=None: spec)
    monkeypatch.setattr("zoo.registry.get", lambda name, kind=None: Whole)
    assert zoo.create_model("whole", d_model=4, rngs=1).linear.kernel.shape == (4, 1)
    with pytest.raises(TypeError, match="Did you mean d_model"):
        zoo.create_model("whole", d_modle=4)
