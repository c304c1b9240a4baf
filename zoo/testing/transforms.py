"""A mixer under JAX's transformations and in both modes of Flax NNX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.testing.case import BATCH, Case, assert_close, perturb


def check_jit(case: Case) -> None:
    """Compiled equals uncompiled."""
    x = case.x()
    assert_close(case.run(case.params, x), case.apply()(case.params, x), "jit against eager")


def check_vmap(case: Case) -> None:
    """Vectorised over a further axis equals a loop."""
    x = np.stack([case.x(), case.x(seed=1)])
    looped = np.stack([case.run(case.params, part) for part in x])
    assert_close(jax.jit(jax.vmap(case.apply(), (None, 0)))(case.params, x), looped, "vmap against a loop")


def check_remat(case: Case) -> None:
    """Recomputing in the backward pass changes no gradient."""
    x, ct = case.x(), case.x(seed=1)
    mask = np.ones(x.shape[:2], bool)
    apply = jax.checkpoint(case.apply())

    @jax.jit
    def run(params: Any, x: jax.Array) -> Any:
        y, pull = jax.vjp(lambda params, x: apply(params, x, mask=mask), params, x)
        return y, pull(jnp.asarray(ct))

    assert_close(run(case.params, x), case.vjp()(case.params, x, mask, ct), "remat against plain")


def check_nnx_modes(case: Case) -> None:
    """Graph mode equals tree mode: split, merge and `nnx.jit`."""
    x = case.x()
    module = case.make()
    module.eval()
    results = {}
    for graph in (True, False):
        with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
            definition, state = nnx.split(module)
            hash(definition)
            nnx.replace_by_pure_dict(state, case.params)
            results[graph] = nnx.jit(lambda module, x: module(x))(nnx.merge(definition, state), x)
    expected = case.run(case.params, x)
    assert_close(results[True], expected, "graph mode against plain functions", 2e-6)
    assert_close(results[False], expected, "tree mode against plain functions", 2e-6)


def check_scan(case: Case) -> None:
    """Layers stacked and scanned over equal a loop over them."""
    x = case.x()
    layers = [case.params, perturb(case.params, seed=2)]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *layers)
    apply = case.apply()

    @jax.jit
    def run(stacked: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, params: (apply(params, x), None), x, stacked)[0]

    expected = x
    for params in layers:
        expected = case.run(params, expected)
    assert_close(run(stacked, x), expected, f"scan over {len(layers)} layers against a loop, B={BATCH}")
