"""Training compiles the same small programs again and again."""

import pytest


@pytest.fixture(autouse=True)
def cached(compilation_cache):
    """Keeps compiled programs."""
