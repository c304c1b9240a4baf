"""What a forecaster's record says of one window is what the forecaster predicts of it."""

import csv
import json

import numpy as np
import pytest
from toy_runs import run

from zoo.forecasting import forecast
from zoo.training.recipe import recipe_from_dict

ROWS, LOOKBACK, HORIZON = 300, 16, 4


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "waves.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "a", "b"])
        for hour in range(ROWS):
            phase = 2 * np.pi * hour / 24
            stamp = str(np.datetime64("2020-01-01T00") + np.timedelta64(hour, "h")).replace("T", " ")
            writer.writerow([stamp, 5 + np.sin(phase), 100 * np.cos(phase)])
    return path


def recipe(table, target=None):
    options = {"horizon": HORIZON, "target": target}
    return recipe_from_dict(
        {
            "variant": "dlinear",
            "task": {"name": "forecasting/csv", "source": str(table), "max_len": LOOKBACK, "options": options},
            "train": {"epochs": 1, "batch_size": 16, "lr": 0.02, "log_every": 5, "tensorboard": False},
        }
    )


@pytest.mark.parametrize(("target", "column"), [(None, 1), ("a", 0)])
def test_the_window_in_the_middle_of_the_test_split(table, tmp_path, target, column):
    from benchmarks.lra.cells import recipe_hash
    from benchmarks.lra.forecasts import example
    from benchmarks.lra.records import keep_records
    from zoo.files import write_json
    from zoo.training.folder import read_recipe

    folder = tmp_path / "cells" / "run"
    result = run(folder, recipe(table, target))
    windows = result["best"]["test"]["examples"]
    first = ROWS - HORIZON - windows + 1 + windows // 2
    start = np.datetime64("2020-01-01T00") + np.timedelta64(int(first), "h")
    expected = forecast(folder, table, start=str(start).replace("T", " "))
    held = example(folder)
    assert held["variate"] == "ab"[column]
    np.testing.assert_allclose(held["past"], expected.past[:, column], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(held["truth"], expected.truth[:, column], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(held["forecast"], expected.values[:, column], rtol=1e-4, atol=1e-3)
    # In the record, and where the table is gone there is none.
    digest = recipe_hash(read_recipe(folder))
    cell = {"id": "a", "recipe_hash": digest, "state": "done", "folder": "cells/run", "overrides": []}
    write_json(tmp_path / "matrix.json", {"format": 1, "cells": [cell]})
    ((record,), refused) = keep_records(tmp_path, tmp_path / "records", force=True)
    assert not refused
    assert json.loads(record.read_text())["forecast"] == held
    table.unlink()
    assert "what it forecasts cannot be computed: " in keep_records(tmp_path, tmp_path / "none", force=True)[1]["a"]


def test_what_forecasts_nothing_has_none(toy, tmp_path):
    from benchmarks.lra.forecasts import example

    values = {
        "variant": "toy_mean",
        "task": {"name": "toy", "source": "last"},
        "model": {"d_model": 4, "num_layers": 1, "num_heads": 1, "ffn": "none", "positions": "none", "pooling": "last"},
        "train": {"steps": 2, "batch_size": 16, "tensorboard": False},
    }
    run(tmp_path / "run", recipe_from_dict(values))
    assert example(tmp_path / "run") is None
