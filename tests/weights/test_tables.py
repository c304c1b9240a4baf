"""Tables: every tensor and every variable is accounted for, or named."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import weights
from zoo.mixers.axial import Axial
from zoo.mixers.mamba import Mamba
from zoo.weights import WeightsError
from zoo.weights.tables import CONV, DEPTHWISE, LINEAR, PER_HEAD, POINTWISE, TWO_LINEARS, variables


def mamba(**options):
    return Mamba(8, d_state=4, causal=True, rngs=nnx.Rngs(0), **options)


@pytest.fixture
def tensors():
    return weights.dump(mamba())


@pytest.mark.parametrize(
    ("layout", "shape", "ours"),
    [
        (LINEAR, (5, 3), [(3, 5)]),
        (CONV, (5, 3, 2), [(2, 3, 5)]),
        (POINTWISE, (5, 3, 1), [(3, 5)]),
        (DEPTHWISE, (5, 1, 4), [(4, 5)]),
        (PER_HEAD, (2, 1, 7, 1), [(7, 2)]),
        (TWO_LINEARS, (10, 3), [(3, 5), (3, 5)]),
    ],
)
def test_layouts_are_undone(layout, shape, ours):
    tensor = np.random.default_rng(0).normal(size=shape)
    arrays = layout.read(tensor)
    assert [array.shape for array in arrays] == ours
    np.testing.assert_array_equal(layout.write(arrays), tensor)


def test_problems_are_listed_by_name_and_nothing_changes(tensors):
    layer = mamba()
    before = {path: np.asarray(value.get_value()) for path, value in variables(layer).items()}
    bad = {name: tensor + 1 for name, tensor in tensors.items()}
    del bad["A_log"], bad["x_proj.weight"]
    bad |= {"extra": np.zeros(1), "D": np.zeros(3), "dt_proj.bias": np.zeros(16, np.int64)}
    with pytest.raises(WeightsError) as caught:
        weights.load(layer, bad)
    assert str(caught.value) == (
        "the tensors do not fit Mamba. missing: A_log, x_proj.weight; surplus: extra; misfits: dt_proj.bias (int64, "
        "not real numbers), D [3], not [16]."
    )
    for path, value in variables(layer).items():
        np.testing.assert_array_equal(value.get_value(), before[path])


def test_transposed_tensors_are_misfits(tensors):
    with pytest.raises(WeightsError, match=r"in_proj.weight \[8, 32\], not \[32, 8\]"):
        weights.load(mamba(), tensors | {"in_proj.weight": tensors["in_proj.weight"].T})


def test_numbers_take_the_dtype_of_the_parameters(tensors):
    layer = mamba(param_dtype=jnp.bfloat16)
    weights.load(layer, {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    assert layer.ssm.A_log.get_value().dtype == jnp.bfloat16
    np.testing.assert_array_equal(layer.ssm.A_log[...], tensors["A_log"].astype(jnp.bfloat16))


def test_a_layer_of_a_whole_model(tensors):
    layer = mamba()
    prefix = "backbone.layers.3.mixer."
    weights.load(layer, {f"{prefix}{name}": tensor * 2 for name, tensor in tensors.items()} | A_STRAY, prefix=prefix)
    np.testing.assert_array_equal(layer.ssm.D[...], 2 * tensors["D"])
    assert list(weights.dump(layer, prefix=prefix)) == [prefix + name for name in tensors]


A_STRAY = {"backbone.norm_f.weight": np.ones(8)}


def test_what_a_format_cannot_say(tensors):
    with pytest.raises(WeightsError, match="it is bidirectional"):
        weights.dump(Mamba(8, rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError, match=r"'fla' has names for language models .*, not for Mamba"):
        weights.load(mamba(), tensors, format="fla")
    with pytest.raises(WeightsError, match=r"unknown format 'mamba-hg'\. Did you mean mamba-hf"):
        weights.load(mamba(), tensors, format="mamba-hg")
    with pytest.raises(WeightsError, match="no published format has names for Linear"):
        weights.dump(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError, match="have biases"):
        weights.dump(Axial(8, num_heads=2, use_bias=True, rngs=nnx.Rngs(0)))
