"""`benchmarks` is not installed: it is imported from the checkout, here and in the processes that tests start."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """The checkout is where Python looks first."""
    monkeypatch.syspath_prepend(str(REPO))


@pytest.fixture
def processes_know_the_toy(toy, toy_path, monkeypatch):
    """The task `toy` and the mixer `toy_mean`, here and in processes that are started."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toy_path), str(REPO)]))
