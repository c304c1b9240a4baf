"""Settings for every test: CPU, and the shared reference data where it is at hand."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

REPO = Path(__file__).resolve().parents[1]
GOLDEN = REPO / "tests" / "golden"


def shared_path(*parts: str) -> Path:
    """A file of the reference data beside the checkout (`$ZOO_SHARED`, or `../shared`); skips the test without it."""
    path = Path(os.environ.get("ZOO_SHARED", REPO.parent / "shared")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data {'/'.join(parts)} beside the checkout (../shared or $ZOO_SHARED)")
    return path


@pytest.fixture(name="shared_path")
def shared_path_fixture():
    """The function `shared_path`."""
    return shared_path


@pytest.fixture(name="golden_dir")
def golden_dir_fixture() -> Path:
    """The folder of reference arrays that tests carry with them."""
    return GOLDEN
