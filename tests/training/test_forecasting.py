"""A forecaster through the one loop: by epochs, resumed to the bit, evaluated, and asked for what comes next."""

import csv
import json

import numpy as np
import pytest
from toy_runs import assert_same_run, interrupt, metrics, run

import zoo
from zoo import cli
from zoo.forecasting import forecast
from zoo.training.recipe import RecipeError, TrainConfig, recipe_from_dict, with_steps
from zoo.training.run import evaluate_run

ROWS, LOOKBACK, HORIZON = 300, 16, 4


def write(path, rows=ROWS, start="2020-01-01T00"):
    """Two daily waves by the hour."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "a", "b"])
        for hour in range(rows):
            phase = 2 * np.pi * hour / 24
            stamp = str(np.datetime64(start) + np.timedelta64(hour, "h")).replace("T", " ")
            writer.writerow([stamp, 5 + np.sin(phase), 100 * np.cos(phase)])
    return path


def values(path, variant="dlinear", **train):
    return {
        "protocol": "toy",
        "variant": variant,
        "task": {"name": "forecasting/csv", "source": str(path), "max_len": LOOKBACK, "options": {"horizon": HORIZON}},
        "model": {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8},
        "train": {
            "epochs": 4, "batch_size": 16, "lr": 0.02, "schedule": "type1", "log_every": 5, "tensorboard": False,
            **train,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("table") / "waves.csv")


@pytest.fixture(scope="module")
def folder(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(folder, recipe_from_dict(values(table)))
    return folder


def test_it_learns_by_epochs_and_the_best_has_the_least_error(folder):
    result = json.loads((folder / "result.json").read_text())
    epoch = (210 - LOOKBACK - HORIZON + 1) // 16
    scores = {line["step"]: line["mse"] for line in metrics(folder, "validation")}
    assert list(scores) == [epoch, 2 * epoch, 3 * epoch, 4 * epoch]
    assert result["steps"] == 4 * epoch
    assert result["best"]["step"] == min(scores, key=lambda step: scores[step])
    assert result["best"]["test"]["mse"] < 0.5 * result["baselines"]["test"]["repeat_last"]
    assert result["best"]["test"]["examples"] == 60 - HORIZON + 1
    rates = {round(line["lr"], 7) for line in metrics(folder, "train")}
    assert rates <= {0.02, 0.01, 0.005}
    assert 0.005 in rates


def test_an_interrupted_run_ends_in_the_same_parameters(table, folder, tmp_path, monkeypatch):
    recipe = recipe_from_dict(values(table))
    interrupt(tmp_path / "run", recipe, 15, monkeypatch)
    run(tmp_path / "run", recipe)
    assert_same_run(folder, tmp_path / "run")


def test_patience_counts_epochs(table, tmp_path):
    recipe = recipe_from_dict(values(table, epochs=9, patience=1, lr=1e-15))  # too small to change anything
    result = run(tmp_path / "run", recipe)
    assert result["stopped_early"]
    assert len(metrics(tmp_path / "run", "validation")) == 2


@pytest.mark.parametrize("variant", ["repeat_last", "softmax"])
def test_baselines_and_mixers_are_forecasters_too(table, tmp_path, variant):
    recipe = recipe_from_dict(values(table, variant, epochs=1))
    result = run(tmp_path / "run", recipe)
    if variant == "repeat_last":
        assert result["parameters"] == 0
        assert result["best"]["test"]["mse"] == pytest.approx(result["baselines"]["test"]["repeat_last"], rel=1e-5)
    assert forecast(tmp_path / "run", table).values.shape == (HORIZON, 2)


def test_evaluation_in_the_units_of_the_file(folder):
    scaled, original = evaluate_run(folder), evaluate_run(folder, options={"units": "original"})
    assert original["loss"] == pytest.approx(scaled["loss"])
    assert original["mse"] > 100 * scaled["mse"]


def test_a_forecast_of_what_follows(folder, table):
    found = forecast(folder, table)
    assert found.columns == ("a", "b")
    assert found.times is not None
    assert str(found.times[0]) == "2020-01-13T12:00:00"
    assert np.isnan(found.truth).all()
    assert found.errors() == {}
    hours = np.arange(ROWS, ROWS + HORIZON)
    expected = np.stack([5 + np.sin(2 * np.pi * hours / 24), 100 * np.cos(2 * np.pi * hours / 24)], axis=1)
    assert np.abs((found.values - expected) / [1, 100]).max() < 0.5


def test_a_forecast_held_against_the_table_and_beyond_the_horizon(folder, table):
    whole = forecast(folder, table, holdout=11)
    assert whole.values.shape == (11, 2)
    assert whole.rolled == HORIZON
    np.testing.assert_allclose(whole.truth[:, 1], 100 * np.cos(2 * np.pi * np.arange(289, 300) / 24))
    assert set(whole.errors()) == {"a", "b"}
    first = forecast(folder, table, start="2020-01-13 01:00")
    np.testing.assert_allclose(first.values, whole.values[:HORIZON], rtol=1e-6)
    np.testing.assert_allclose(first.truth, whole.truth[:HORIZON])


def test_rolling_is_forecasting_again_from_what_was_forecast(folder, table, tmp_path):
    whole = forecast(folder, table, steps=2 * HORIZON)
    rows = table.read_text().splitlines()
    first = forecast(folder, table)
    assert first.times is not None
    for time, row in zip(first.times, first.values, strict=True):
        rows.append(",".join([str(time).replace("T", " "), *map(repr, map(float, row))]))
    (tmp_path / "more.csv").write_text("\n".join(rows) + "\n")
    np.testing.assert_allclose(forecast(folder, tmp_path / "more.csv").values, whole.values[HORIZON:], rtol=1e-4)


def test_the_training_data_is_not_needed(folder, table, tmp_path):
    other = write(tmp_path / "other.csv", rows=LOOKBACK, start="2021-06-01T00")
    content = table.read_bytes()
    table.unlink()
    try:
        assert forecast(folder, other).values.shape == (HORIZON, 2)
        assert zoo.load_run(folder).task.info.num_variates == 2
    finally:
        table.write_bytes(content)


def test_the_command_writes_a_csv_and_a_plot(folder, table, tmp_path, capsys):
    cli.main(["forecast", str(folder), str(table), "--holdout", "6", "--out", str(tmp_path / "out.csv")])
    said = capsys.readouterr().out
    assert "6 rows of 2 columns" in said
    assert "in its units: mse" in said
    with open(tmp_path / "out.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["date"] for row in rows][:2] == ["2020-01-13 06:00:00", "2020-01-13 07:00:00"]
    found = forecast(folder, table, holdout=6)
    np.testing.assert_allclose([float(row["b"]) for row in rows], found.values[:, 1])
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_errors_say_what_is_wrong(folder, table, tmp_path):
    short = write(tmp_path / "short.csv", rows=LOOKBACK - 1)
    daily = tmp_path / "daily.csv"
    daily.write_text("date,a,b\n" + "".join(f"2020-02-{day:02},1,2\n" for day in range(1, 29)))
    for path, options, message in (
        (short, {}, "has 15 rows before the forecast; the model reads a lookback of 16"),
        (daily, {}, "has a row every 86400 s; the model was trained on one every 3600 s"),
        (table, {"start": "2021-01-01"}, "lies beyond 2020-01-13T12:00:00"),
        (table, {"start": "soon"}, "start='soon' is not a time"),
        (table, {"holdout": ROWS}, "holdout must be from 1 to 299"),
        (table, {"holdout": 4, "start": "2020-01-02"}, "give start or holdout, not both"),
        (table, {"steps": 0}, "steps must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            forecast(folder, path, **options)


def test_epochs_become_steps():
    config = TrainConfig(epochs=3, batch_size=32, steps=7)
    assert with_steps(config, 100).steps == 9
    assert with_steps(config, 100).eval_every == 3
    assert with_steps(TrainConfig(epochs=3, eval_every=2), 100).eval_every == 2
    assert with_steps(TrainConfig(steps=7), 100) == TrainConfig(steps=7)
    with pytest.raises(RecipeError, match=r"the 31 training examples do not fill one batch of train\.batch_size=32"):
        with_steps(config, 31)
    with pytest.raises(RecipeError, match=r"warmup_steps=9 must be below the 9 steps of train.epochs"):
        with_steps(TrainConfig(epochs=3, warmup_steps=9), 100)
    for options in ({"epochs": 0}, {"schedule": "type1"}, {"schedule": "type1", "epochs": 2, "warmup_steps": 1}):
        with pytest.raises(ValueError, match=r"train\.(epochs|schedule)"):
            TrainConfig(**options)


def test_options_of_the_task_are_checked(table):
    wrong = values(table)
    wrong["task"]["options"] = {"horizn": 4}
    with pytest.raises(RecipeError, match=r"task\.options\.horizn: forecasting/csv has no such"):
        run("unused", recipe_from_dict(wrong))
