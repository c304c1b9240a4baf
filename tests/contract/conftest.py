"""The contract compiles many small programs: they are compiled lightly, and kept between runs."""

import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

OPTIONS = {
    # Halves the time to compile. What is tested is the mixers' code, not XLA's optimisations.
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": os.environ.get("ZOO_XLA_CACHE", str(Path.home() / ".cache" / "zoo" / "xla_tests")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


# Not of the package: pytest would end such a fixture only with the session, under the tests of other folders.
@pytest.fixture(scope="module", autouse=True)
def light_compilation():
    """Sets `OPTIONS` for the tests of this folder. The cache is in $ZOO_XLA_CACHE; if that is empty, there is none."""
    before = {name: jax.config.values[name] for name in OPTIONS}
    for name, value in OPTIONS.items():
        jax.config.update(name, before[name] if value == "" else value)
    # Programs compiled earlier in the session have settled whether there is a cache.
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
