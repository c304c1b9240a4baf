"""The contract once more, compiled as in use, in Flax's tree mode, and at many lengths."""

import jax
import pytest
from flax import nnx

from zoo import registry
from zoo.testing import cases, check_mixer, checks

NAMES = [spec.name for spec in registry.list_specs(kind="mixer")]
LENGTHS = (1, 2, 16, 33, 64, 129)

pytestmark = pytest.mark.slow


@pytest.fixture
def full_compilation():
    """XLA with all its optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("name", NAMES)
def test_contract_with_optimisations(name):
    check_mixer(name)


@pytest.mark.parametrize("name", NAMES)
def test_contract_in_tree_mode(name):
    with nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        check_mixer(name)


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("name", NAMES)
def test_implementations_at_many_lengths(name):
    for case in cases(name):
        if not case.fixed_length:
            checks(case)["implementations"](case, lengths=LENGTHS)
