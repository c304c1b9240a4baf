"""Every registered variant through its three doors: the NNX class, `to_linen`, `init_apply`. The contract has more of
mixers; here are whole models too, both of Flax's modes, and both dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo import registry
from zoo.functional import pure_dict
from zoo.testing.case import assert_close

SPECS = [spec for spec in registry.list_specs() if spec.kind != "task"]
SIZES = {"num_variates": 3, "lookback": 24, "horizon": 10, "num_marks": 2}
DRAW = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("compilation_cache")


def arguments_of(spec) -> tuple[dict, np.ndarray, dict]:
    """Arguments of the constructor, an input, and further arguments of the call."""
    cls = registry.get(spec.name, spec.kind)
    known = registry.option_names(cls)
    options = dict(spec.test_args)
    if spec.kind == "mixer":
        causal = {"causal": True} if not spec.bidirectional else {}
        return {"d_model": 8, **options, **causal}, DRAW.normal(size=(2, 9, 8)).astype(np.float32), {}
    if "series" in spec.inputs:
        options |= {name: size for name, size in SIZES.items() if name in known}
        x = DRAW.normal(size=(2, 24, 3)).astype(np.float32)
        marks = DRAW.uniform(-0.5, 0.5, size=(2, 34, 2)).astype(np.float32)
        return options, x, {"marks": marks}
    if "image" in spec.inputs:
        return options, DRAW.integers(options["num_values"], size=(2, *options["image_shape"])), {}
    return options | {"vocab_size": 7, "num_classes": 3, "max_len": 16}, DRAW.integers(1, 7, size=(2, 16)), {}


def _perturb(module: nnx.Module) -> None:
    """Moves every parameter away from its initial value, which for some is 0, or nearly."""
    draw, params = np.random.default_rng(1), nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p: (p + 0.3 * draw.normal(size=p.shape)).astype(p.dtype), params))


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(
    "spec",
    # Mixers in float32 are in the contract.
    [pytest.param(spec, id=spec.name, marks=[pytest.mark.slow] if spec.kind == "mixer" else []) for spec in SPECS],
)
def test_doors(spec, dtype):
    cls = registry.get(spec.name, spec.kind)
    options, x, call = arguments_of(spec)
    if "dtype" in registry.option_names(cls):
        options["dtype"] = jnp.dtype(dtype)
    key = jax.random.key(0)
    module = cls(**options, rngs=nnx.Rngs(key))
    module.eval()
    _perturb(module)
    expected = jax.jit(lambda module, x, call: module(x, **call))(module, x, call)
    assert np.isfinite(np.asarray(expected, np.float32)).all()
    assert np.abs(np.asarray(expected, np.float32)).max() > 0.1  # or a bound on differences would show nothing
    bound = 2e-6 if dtype == "float32" else 2e-2

    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        tree = cls(**options, rngs=nnx.Rngs(key))
        tree.eval()
        _perturb(tree)
        found = nnx.jit(lambda module, x, call: module(x, **call))(tree, x, call)
    assert_close(found, expected, "tree mode against graph mode", bound)

    init, apply = zoo.init_apply(spec.name, **options)
    made, variables = init(key, return_variables=True)
    params = pure_dict(nnx.state(module, nnx.Param))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    found = jax.jit(lambda params, x, call: apply(params, x, variables=variables, **call))(params, x, call)
    assert_close(found, expected, "plain functions against NNX", bound)

    linen = zoo.to_linen(spec.name, **options)
    made = dict(jax.jit(linen.init)(key, x, **call))
    assert jax.tree.map(jnp.shape, made.get("params", {})) == jax.tree.map(jnp.shape, params)
    run = jax.jit(lambda variables, x, call: linen.apply(variables, x, deterministic=True, **call))
    assert_close(run({**made, "params": params}, x, call), expected, "Linen against NNX", bound)
