"""The comparison of Pathfinder images with the reference, on a few images; and what is written down of it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "benchmarks" / "lra" / "results"


@pytest.fixture(name="bench")
def bench_fixture(monkeypatch):
    """`benchmarks` is not installed: it is imported from the checkout."""
    monkeypatch.syspath_prepend(str(REPO))
    from benchmarks.lra import pathfinder

    return pathfinder


def test_standard_errors(bench):
    rng = np.random.default_rng(0)
    ours = rng.normal(1.0, 2.0, 4_000)
    row = bench.compared("x", ours, 1.5, 100)
    assert row["standard_errors"] == pytest.approx((ours.mean() - 1.5) / (2 * math.sqrt(1 / 4000 + 1 / 100)), rel=0.05)
    row = bench.compared_deviation("x", ours, 2.0, 100)
    assert abs(row["standard_errors"]) < 1
    assert bench.compared_deviation("x", ours, 3.0, 100)["standard_errors"] < -5
    assert bench.compared("x", np.ones(9), 1.0, 9)["standard_errors"] == 0
    assert bench.compared("x", np.ones(9), 0.5, 9)["standard_errors"] == math.inf
    images = rng.integers(0, 256, (500, 8, 8)).astype(np.uint8)
    assert abs(bench.pixel_deviation(images, images.std(), 100)["standard_errors"]) < 1e-3
    assert bench.pixel_deviation(images, images.std() + 5, 100)["standard_errors"] < -5


def test_geometry_of_a_straight_curve(bench):
    pytest.importorskip("numba")
    from zoo.data.pathfinder import draw, law

    rules = law(128, "easy")
    drawing = draw(rules, 0, range(20))
    found = bench.geometry(rules, drawing)
    curves = json.loads((REPO / "benchmarks" / "lra" / "pathfinder_geometry.json").read_text())["sets"]["p128_6"]
    assert set(curves) == {*found, "image mean", "image above 0"}
    # Neighbours lie a paddle and two margins apart; curves start at the law's distance.
    assert np.all((found["spacing"] > 7) & (found["spacing"] < 13))
    np.testing.assert_allclose(found["starts_apart"], rules.seed_distance, atol=1)
    assert bench.flooded(rules, drawing)["apart_wrong"] == 0


def test_the_results_say_that_ours_are_the_reference_s():
    found = json.loads((RESULTS / "pathfinder_statistics.json").read_text())
    rows = [row for rows in found["sets"].values() for row in rows]
    assert len(rows) == found["statistics"] > 200
    assert found["beyond_3"] == sum(abs(row["standard_errors"]) > 3 for row in rows) == 0
    labels = json.loads((RESULTS / "pathfinder_labels.json").read_text())["sets"]
    assert labels["32 hard"]["images"] == 10_000
    assert not any(row["wrong"] or row["flood"]["apart_wrong"] for row in labels.values())
    accuracy = json.loads((RESULTS / "pathfinder_classifier.json").read_text())["accuracy"]
    assert accuracy["ours"]["held_out"] <= 0.6
    speed = json.loads((RESULTS / "pathfinder_speed.json").read_text())["sets"]
    limits = {"32 hard": 10, "64 hard": 120, "128 hard": 60}
    assert all(speed[name]["cpu_ms"] <= limit for name, limit in limits.items())
