"""The benchmark of iTransformer's training step at tiny shapes. Speed itself is not a test."""

from pathlib import Path

import jax
import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """`benchmarks` is not installed: it is imported from the checkout."""
    monkeypatch.syspath_prepend(str(REPO))


def test_our_step_is_the_loop_s_and_learns():
    from benchmarks.forecasting import ours
    from benchmarks.forecasting.sizes import TINY, make_batch

    trainer = ours.Trainer(TINY, make_batch(TINY))
    assert trainer.compile_seconds > 0
    before = jax.device_get(trainer.state["params"])
    _, sums = trainer.step()
    state, _ = trainer.step()
    assert np.isfinite(float(sums["loss"]))
    assert int(state["step"]) == 2
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, jax.device_get(state["params"]))
    assert 0 < min(jax.tree.leaves(moved)) <= max(jax.tree.leaves(moved)) < 3 * TINY.lr


@pytest.mark.parity
def test_the_peers_are_the_same_function():
    pytest.importorskip("torch")
    from benchmarks.forecasting.itransformer_step import TOLERANCE, measure
    from benchmarks.forecasting.sizes import TINY

    records = measure("all", TINY, 2, compile_torch=False, sample_seconds=0.0)
    assert list(records) == ["zoo", "torch", "torch tuned"]
    for name in ("torch", "torch tuned"):
        assert records[name]["error"] <= TOLERANCE
        assert records[name]["gradient_error"] <= TOLERANCE
        assert records[name]["speedup_of_ours"] == records[name]["seconds"] / records["zoo"]["seconds"]


def test_the_table():
    from benchmarks.forecasting.itransformer_step import to_markdown
    from benchmarks.forecasting.sizes import TINY

    about = dict.fromkeys(("device", "processor", "cores", "load_before", "load_after", "commit", "date"), "x")
    about |= dict.fromkeys(("python", "jax", "flax", "repeats"), "y") | {"packages": {"torch": "z"}}
    ours = {"threads": "one", "peer": "zoo", "seconds": 0.01, "cpu_seconds": 0.01, "compile_seconds": 5.0}
    peer = {"threads": "one", "peer": "torch", "seconds": 0.03, "cpu_seconds": 0.02}
    ours |= {"speedup_of_ours": 1.0, "steps_until_ours_has_paid": None}
    peer |= {"speedup_of_ours": 3.0, "steps_until_ours_has_paid": 250}
    text = to_markdown(about, TINY, [ours, peer])
    assert "| one thread | zoo | 10.0 | 10.0 | 1.00x | 5.0 | - |" in text
    assert "| one thread | torch | 30.0 | 20.0 | 3.00x | - | 250 |" in text


def test_a_difference_is_relative_where_values_are_large():
    from benchmarks.forecasting.itransformer_step import difference

    a, b = {"x": np.array([0.1, 0.2])}, {"x": np.array([0.1, 0.1])}
    assert difference(a, b) == pytest.approx(0.1)
    assert difference({"x": 100 * a["x"], "y": a["x"]}, {"x": 100 * b["x"], "y": a["x"]}) == pytest.approx(1.0)
