"""Modules as pure functions of nested dicts of arrays: the form the train step, checkpoints and plain JAX users hold.

A step on nested dicts costs the host a twentieth of `nnx.jit`, and makes sharding rules, moving averages, parameter
tables and safetensors one-liners.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from zoo.typing import PRNGKeyArray, PyTree


def pure_dict(state: nnx.State) -> dict[str, Any]:
    """Nested dicts of arrays with string keys (list positions included, so that they can be file names)."""

    def keys(tree: Any) -> Any:
        return {str(key): keys(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree

    return keys(nnx.to_pure_dict(state))


class Functional:
    """Splits the modules that `make` builds into a constant part and dicts of arrays.

    Args:
      make: builds the module from an `nnx.Rngs`.

    Attributes:
      abstract_params: shapes and dtypes of the parameters, nested dicts.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graph, self._params, self._rest = nnx.split(abstract, nnx.Param, ...)
        self.abstract_params: PyTree = pure_dict(self._params)

    def init(self, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Fresh parameters, and the other variables (batch statistics, say), as nested dicts."""
        _, params, rest = nnx.split(self._make(nnx.Rngs(key)), nnx.Param, ...)
        return pure_dict(params), pure_dict(rest)

    def module(self, params: PyTree, rest: PyTree) -> Any:
        """The module holding these arrays; cheap inside a trace, which is where it belongs."""
        filled = []
        for template, values in ((self._params, params), (self._rest, rest)):
            state = jax.tree.map(lambda leaf: leaf, template)
            nnx.replace_by_pure_dict(state, values)
            filled.append(state)
        # Without copy=True dropout inside value_and_grad would touch variables of the outer trace.
        return nnx.merge(self._graph, *filled, copy=True)

    @staticmethod
    def rest(module: nnx.Module) -> PyTree:
        """The other variables of a module after a call that may have changed them."""
        return pure_dict(nnx.state(module, nnx.Not(nnx.Param)))


def count_parameters(params: PyTree) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
