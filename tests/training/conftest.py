"""Training compiles the same small programs again and again."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def cached(compilation_cache):
    """Keeps compiled programs, and draws with a generator that compiles in a fraction of the time."""
    before = jax.config.values["jax_default_prng_impl"]
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    yield
    jax.config.update("jax_default_prng_impl", before)
