"""Forecasting tasks: splits, scaling, metrics, and the figures of forecasts that need no model."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import registry
from zoo.data.manifest import DataError
from zoo.tasks.forecasting.csv import CSV
from zoo.tasks.forecasting.ett import ETT
from zoo.tasks.forecasting.solar import Solar

# Lookback 96, every test window: MSE and MAE of repeating the last row, the last day, and the mean of the window.
NAIVE = {
    ("ETTh1", 24): (2857, (1.22202, 0.67059), (0.42445, 0.38921), (0.67952, 0.54473), (1.10996, 0.79477)),
    ("ETTh1", 96): (2785, (1.29437, 0.71318), (0.51223, 0.43330), (0.70084, 0.55809), (1.10993, 0.79596)),
    ("ETTh1", 192): (2689, (1.32488, 0.73310), (0.58078, 0.46916), (0.71832, 0.57047), (1.11111, 0.79804)),
    ("ETTh1", 336): (2545, (1.32993, 0.74597), (0.64991, 0.50076), (0.72294, 0.58089), (1.10691, 0.80004)),
    ("ETTh1", 720): (2161, (1.33512, 0.75505), (0.65541, 0.51412), (0.71164, 0.59526), (1.09725, 0.80172)),
    ("ETTh2", 24): (2857, (0.27119, 0.33213), (0.26593, 0.30360), (0.27864, 0.34774), (3.14495, 1.36171)),
    ("ETTh2", 96): (2785, (0.43166, 0.42162), (0.39052, 0.38020), (0.35298, 0.38722), (3.15602, 1.36233)),
    ("ETTh2", 192): (2689, (0.53372, 0.47254), (0.48186, 0.42854), (0.42754, 0.42912), (3.16276, 1.36123)),
    ("ETTh2", 336): (2545, (0.59728, 0.51087), (0.53235, 0.46558), (0.45449, 0.45457), (3.14628, 1.35481)),
    ("ETTh2", 720): (2161, (0.59447, 0.51899), (0.52547, 0.47392), (0.45099, 0.46040), (3.11271, 1.34483)),
}


@pytest.mark.parametrize(
    ("source", "horizon"), [pytest.param(*key, marks=() if key[1] in (24, 96) else pytest.mark.slow) for key in NAIVE]
)
def test_naive_figures_to_five_decimals(shared_path, source, horizon):
    windows, *expected = NAIVE[source, horizon]
    task = ETT(source, data_dir=shared_path("data"), horizon=horizon)
    assert len(task.split("test")) == windows
    assert len(task.split("train")) == 8640 - 96 - horizon + 1
    found = [(row["mse"], row["mae"]) for row in task.naive().values()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=5.1e-6)


def test_scaling_is_that_of_the_training_rows(shared_path):
    task = ETT("ETTh1", data_dir=shared_path("data"))
    facts = task.facts()
    np.testing.assert_allclose(facts["mean"], [7.9377, 2.021, 5.0798, 0.7462, 2.7818, 0.7885, 17.1283], atol=5e-5)
    np.testing.assert_allclose(facts["std"], [5.8127, 2.0901, 5.5188, 1.9264, 1.0235, 0.6302, 9.1765], atol=5e-5)
    assert task.info.num_variates == 7
    assert task.info.num_marks == 4
    assert task.describe()["quality"]["gaps"]["number"] == 0


@pytest.mark.parametrize(
    ("name", "rows", "columns", "step"),
    [("weather", 52_696, 21, "10 min"), ("exchange", 7_588, 8, "1 d"), ("ili", 966, 7, "7 d")],
)
def test_the_other_published_tables(shared_path, name, rows, columns, step):
    task = registry.get(f"forecasting/{name}", "task")(data_dir=shared_path("data"), max_len=36, horizon=24)
    facts = task.describe()
    assert facts["quality"]["rows"] == rows
    assert task.info.num_variates == columns
    assert facts["step"] == step
    assert facts["rows"]["test"] == [rows - int(rows * 0.2) - 36, rows]
    assert facts["rows"]["train"] == [0, int(rows * 0.7)]


def test_every_quarter_of_an_hour(shared_path):
    task = ETT("ETTm1", data_dir=shared_path("data"))
    assert [len(task.split(name)) for name in ("train", "validation", "test")] == [34369, 11425, 11425]
    assert task.season() == 96


def write(folder, rows=60, name="own.csv", columns="ab", times=True):
    """Hours with a daily wave in each column; the last column is constant."""
    lines = [",".join([*(["date"] if times else []), *columns, "c"])]
    for hour in range(rows):
        values = [np.sin(2 * np.pi * hour / 24 + index) + 0.01 * hour for index in range(len(columns))]
        stamp = [str(np.datetime64("2020-01-01T00") + np.timedelta64(hour, "h")).replace("T", " ")] if times else []
        lines.append(",".join([*stamp, *map(repr, map(float, values)), "7.5"]))
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_file_of_ones_own(tmp_path):
    task = CSV(write(tmp_path, 100), max_len=6, horizon=3)
    assert task.facts()["columns"] == ["a", "b", "c"]
    assert task.facts()["time_features"] == "hour"
    assert task.facts()["std"][2] == 1.0  # constant: only shifted
    values, _ = task.scaled(task.series())
    assert np.abs(values[:70].mean(0)).max() < 1e-12
    np.testing.assert_allclose(values[:70, :2].std(0), 1)
    assert [len(task.split(name)) for name in ("train", "validation", "test")] == [62, 8, 18]
    np.testing.assert_allclose(task.unscaled(values), task.series().values, atol=1e-12)
    batch = task.split("test").gather(np.array([0]), 6)
    np.testing.assert_allclose(batch["target"][0], values[80:83].astype(np.float32))
    assert task.describe()["quality"]["constant"] == ["c"]
    assert "repeat_season" not in task.baselines()  # a day is longer than the lookback
    assert "repeat_season" in CSV(write(tmp_path, 400), max_len=24, horizon=3).baselines()


def test_a_file_is_split_at_times(tmp_path):
    dates = {"validation_from": "2020-01-03", "test_from": "2020-01-03 12:00"}
    task = CSV(write(tmp_path, 80), max_len=6, horizon=3, **dates)
    assert task.describe()["rows"] == {"train": [0, 48], "validation": [42, 60], "test": [54, 80]}
    with pytest.raises(DataError, match="no column of times"):
        CSV(write(tmp_path, 80, times=False), max_len=6, horizon=3, **dates).prepare()


def test_without_times_there_are_no_features(tmp_path):
    task = CSV(write(tmp_path, times=False), max_len=6, horizon=3)
    assert task.info.num_marks == 0
    batch = {name: jnp.asarray(array) for name, array in task.split("test").gather(np.array([0]), 6).items()}
    assert task.arguments(batch) == {"marks": None}


def test_metrics_of_a_target_and_in_units(tmp_path):
    path = write(tmp_path)
    draw = np.random.default_rng(0)
    outputs = draw.normal(size=(2, 3, 3)).astype(np.float32)
    for units in ("scaled", "original"):
        for target in (None, "b"):
            task = CSV(path, max_len=6, horizon=3, target=target, units=units)
            batch = task.split("test").gather(np.array([0, 2]), 6) | {"weight": np.array([1.0, 0.0], np.float32)}
            sums = task.sums(jnp.asarray(outputs), batch)
            error = (outputs - batch["target"])[:1]
            scaled = error if target is None else error[..., 1:2]
            scale = np.array(task.facts()["std"])[slice(None) if target is None else slice(1, 2)]
            shown = scaled * (scale if units == "original" else 1)
            np.testing.assert_allclose(sums["loss"], np.square(scaled).mean(), rtol=1e-6)
            np.testing.assert_allclose(sums["mse"], np.square(shown).mean(), rtol=1e-6)
            np.testing.assert_allclose(sums["mae"], np.abs(shown).mean(), rtol=1e-6)
            assert sums["weight"] == 1


def test_dropping_the_last_windows_is_for_comparison_only(tmp_path):
    path = write(tmp_path, 100)
    assert len(CSV(path, max_len=6, horizon=3).split("test")) == 18
    assert len(CSV(path, max_len=6, horizon=3, drop_last=8).split("test")) == 16
    with pytest.raises(ValueError, match="drop_last=32 leaves no test window"):
        CSV(path, max_len=6, horizon=3, drop_last=32).split("test")


def test_facts_are_enough_to_know_a_task(tmp_path):
    path = write(tmp_path)
    known, other = CSV(path, max_len=6, horizon=3), CSV(str(tmp_path / "gone.csv"), max_len=6, horizon=3)
    other.recall(known.facts())
    assert other.info == known.info
    with pytest.raises(DataError, match=r"There is no file .*gone.csv"):
        other.prepare()
    assert not other.is_prepared()


def test_a_table_that_is_refused_is_described_all_the_same(tmp_path):
    path = write(tmp_path)
    lines = Path(path).read_text().splitlines()
    (tmp_path / "gap.csv").write_text("\n".join(lines[:20] + lines[22:]) + "\n")
    task = CSV(str(tmp_path / "gap.csv"), max_len=6, horizon=3)
    found = task.describe()
    assert found["quality"]["gaps"]["first"] == ["2 rows after 2020-01-01T18:00:00"]
    assert "irregular=fill" in found["refused"]
    assert "windows" not in found
    mended = CSV(str(tmp_path / "gap.csv"), max_len=6, horizon=3, irregular="fill", missing="linear")
    assert "refused" not in mended.describe()
    np.testing.assert_allclose(mended.series().values.shape, (60, 3))


def test_errors_say_what_is_wrong(tmp_path):
    path = write(tmp_path)
    for options, message in (
        ({"horizon": 0}, "horizon must be a whole number from 1, got 0"),
        ({"horizon": 2.5}, "horizon must be a whole number from 1, got 2.5"),
        ({"units": "percent"}, "units='percent' is not known"),
        ({"split": [0.5, 0.5]}, "split must be three positive shares"),
        ({"split": [0.5, 0.2, 0.5]}, "split must be three positive shares"),
        ({"test_from": "2020-01-02"}, "both validation_from and test_from"),
        ({"test_from": "soon", "validation_from": "2020-01-02"}, "must be times"),
    ):
        with pytest.raises(ValueError, match=message):
            CSV(path, **{"max_len": 6, "horizon": 3, **options})
    with pytest.raises(ValueError, match="needs the path of a csv file"):
        CSV()
    with pytest.raises(ValueError, match=r"no source 'ETTh3'. Did you mean ETT"):
        ETT("ETTh3")
    with pytest.raises(DataError, match=r"(?s)no ETTh1.csv below .*ETDataset.*ETT-small/ETTh1.csv"):
        ETT("ETTh1", data_dir=tmp_path).prepare()
    with pytest.raises(ValueError, match=r"no column 'load'"):
        _ = CSV(path, max_len=6, horizon=3, target="load").info
    with pytest.raises(DataError, match=r"60 rows are too few: the rows of train, 0 to 42"):
        CSV(path, max_len=40, horizon=30).prepare()


def test_a_table_without_names_is_found_where_it_was_unpacked(tmp_path):
    folder = tmp_path / "downloads" / "manual" / "Solar"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    np.savetxt(folder / "solar_AL.txt", draw.uniform(size=(300, 4)), delimiter=",")
    task = Solar(data_dir=tmp_path, max_len=12, horizon=6)
    assert task.info.num_variates == 4
    assert task.info.num_marks == 0
    assert task.season() == 144
