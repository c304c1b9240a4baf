"""Modules as pure functions of nested dicts."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.functional import Functional, count_parameters


class Tower(nnx.Module):
    """Twelve layers in a list, dropout, and a running sum that is no parameter."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(12)])
        self.total = nnx.BatchStat(jnp.zeros(2))
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs=None):
        for layer in self.layers:
            x = layer(x)
        self.total[...] += x.sum(0)
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)


def test_a_module_goes_to_dicts_and_back():
    functional = Functional(lambda rngs: Tower(rngs))
    params, rest = functional.init(jax.random.key(3))
    assert list(params["layers"]) == [str(index) for index in range(12)]
    assert rest.keys() == {"total"}
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), functional.abstract_params)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert count_parameters(params) == count_parameters(functional.abstract_params) == 12 * 6
    direct, x = Tower(nnx.Rngs(jax.random.key(3))), jnp.ones((3, 2))
    module = functional.module(params, rest)
    np.testing.assert_array_equal(module(x), direct(x))
    np.testing.assert_array_equal(functional.rest(module)["total"], direct.total[...])
    np.testing.assert_array_equal(rest["total"], [0, 0])  # the dicts are not the module's own


def test_the_second_layer_is_not_the_tenth():
    functional = Functional(lambda rngs: Tower(rngs))
    params, rest = functional.init(jax.random.key(0))
    params["layers"]["2"]["bias"] = jnp.full(2, 7.0)
    module = functional.module(params, rest)
    biases = [float(layer.bias[...].max()) for layer in module.layers]
    assert [index for index, bias in enumerate(biases) if bias] == [2]


def test_gradients_jit_and_dropout_inside_a_trace():
    functional = Functional(lambda rngs: Tower(rngs))
    params, rest = functional.init(jax.random.key(0))

    @jax.jit
    def step(params, key):
        def loss(params):
            module = functional.module(params, rest)
            return module(jnp.ones((4, 2)), nnx.Rngs(dropout=key)).sum(), functional.rest(module)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (first, rest_after), grads = step(params, jax.random.key(1))
    (second, _), _ = step(params, jax.random.key(2))
    assert float(first) != float(second)
    assert float(abs(rest_after["total"]).max()) > 0
    assert jax.tree.structure(grads) == jax.tree.structure(params)
