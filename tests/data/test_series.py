"""Reading tables of measurements, and the rules for what is wrong with them."""

import gzip

import numpy as np
import pytest

from zoo.data.manifest import DataError
from zoo.data.series import mend, quality, read_series, step_name


def table(folder, rows=6, head="date,a,b", name="table.csv", change=()):
    """A csv of hourly rows, `change` mapping the number of a line (from 1, the header) to another text or to None."""
    lines = [head, *(f"2020-01-01 {hour:02}:00:00,{hour},{hour * hour}" for hour in range(rows))]
    for number, text in dict(change).items():
        lines[number - 1] = text
    text = "\n".join(line for line in lines if line is not None) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_a_table_is_read(tmp_path):
    for name in ("table.csv", "table.csv.gz"):
        series = read_series(table(tmp_path, name=name))
        assert series.columns == ("a", "b")
        np.testing.assert_array_equal(series.values[:, 1], np.arange(6.0) ** 2)
        assert series.times is not None
        assert str(series.times[-1]) == "2020-01-01T05:00:00"
        assert series.step() == 3600
    chosen = read_series(tmp_path / "table.csv", columns=["b"])
    assert chosen.columns == ("b",)
    assert chosen.values.shape == (6, 1)


@pytest.mark.parametrize(
    ("stamp", "options"),
    [
        ("2020/1/1 {}:00", {}),
        ("01.01.2020 {}:00:00", {}),
        ("2020-01-01T{:02}:00:00Z", {}),
        ("Jan 1 2020 {}", {"date_format": "%b %d %Y %H"}),
    ],
)
def test_forms_of_times(tmp_path, stamp, options):
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["when;x", *(f"{stamp.format(hour)};{hour}" for hour in range(3))]))
    times = read_series(path, time_column="when", **options).times
    np.testing.assert_array_equal(
        times, np.datetime64("2020-01-01T00:00:00") + np.arange(3) * np.timedelta64(3600, "s")
    )


def test_a_table_without_names_and_times(tmp_path):
    path = tmp_path / "solar.txt"
    path.write_text("1,2\n3,4\n")
    series = read_series(path, header=False)
    assert series.columns == ("0", "1")
    assert series.times is None
    np.testing.assert_array_equal(series.values, [[1, 2], [3, 4]])


WRONG = {
    "no file": ({}, None, "cannot be read"),
    "empty": ({}, "", "is empty"),
    "no header": ({1: "2020,1,2"}, ..., "numbers where the names"),
    "two names": ({1: "date,a,a"}, ..., "two columns are called 'a'"),
    "a wrong date": ({3: "2020-13-01 00:00:00,1,1"}, ..., "line 3, column 'date': '2020-13-01 00:00:00' is not a time"),
    "text": ({4: "2020-01-01 02:00:00,two,4"}, ..., "line 4, column 'a': 'two' is not a number"),
    "fields": ({5: "2020-01-01 03:00:00,3"}, ..., "line 5: 2 fields, and not 3"),
    "infinite": ({5: "2020-01-01 03:00:00,3,inf"}, ..., "line 5, column 'b': the number is infinite"),
    "backwards": ({3: "2019-01-01 01:00:00,1,1"}, ..., "line 3: the time 2019-01-01 01:00:00 comes after 2020-01-01"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_table_is_refused(tmp_path, what):
    change, content, message = WRONG[what]
    path = tmp_path / "nowhere.csv"
    if content is ...:
        path = table(tmp_path, change=change)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_series(path)


def test_wrong_columns_have_hints(tmp_path):
    path = table(tmp_path, head="date,load,temperature")
    with pytest.raises(DataError, match=r"no column 'temprature'. Did you mean temperature\?"):
        read_series(path, columns=["temprature"])
    with pytest.raises(DataError, match=r"no column 'dat' for the times. Did you mean date\?"):
        read_series(path, time_column="dat")


def test_empty_cells(tmp_path):
    change = {2: "2020-01-01 00:00:00,,0", 4: "2020-01-01 02:00:00,NA,4", 5: "2020-01-01 03:00:00,nan,9"}
    series = read_series(table(tmp_path, change=change))
    with pytest.raises(DataError, match=r"column 'a': there is no value at 2020-01-01T00:00:00 .3 empty"):
        mend(series)
    np.testing.assert_array_equal(mend(series, missing="previous").values[:, 0], [1, 1, 1, 1, 4, 5])
    np.testing.assert_array_equal(mend(series, missing="linear").values[:, 0], [1, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(np.isnan(mend(series, missing="keep").values[:, 0]), [1, 0, 1, 1, 0, 0])
    assert quality(series)["missing"] == {"a": 3}
    nothing = read_series(table(tmp_path, rows=2, change={2: "2020-01-01 00:00:00,,0", 3: "2020-01-01 01:00:00,,0"}))
    with pytest.raises(DataError, match="'a' has no value at all"):
        mend(nothing, missing="previous")


def test_gaps_and_repeats(tmp_path):
    series = read_series(table(tmp_path, rows=8, change={4: None, 5: None, 8: "2020-01-01 05:00:00,77,77"}))
    found = quality(series)
    assert found["gaps"] == {
        "number": 2,
        "missing_rows": 3,
        "first": ["2 rows after 2020-01-01T01:00:00", "1 rows after 2020-01-01T05:00:00"],
    }
    assert found["repeated_times"] == ["2020-01-01T05:00:00"]
    with pytest.raises(
        DataError, match=r"two rows have the time 2020-01-01T05:00:00 .in all 1 repeated times and 2 gaps"
    ):
        mend(series)
    filled = mend(series, irregular="fill", missing="previous")
    np.testing.assert_array_equal(filled.values[:, 0], [0, 1, 1, 1, 4, 5, 5, 7])
    assert filled.times is not None
    assert set(np.diff(filled.times).astype(int)) == {3600}
    assert len(mend(series, irregular="keep").values) == 6
    with pytest.raises(DataError, match="there is no value at 2020-01-01T02:00:00"):
        mend(series, irregular="fill")


def test_times_off_the_grid_cannot_be_filled(tmp_path):
    series = read_series(table(tmp_path, change={4: "2020-01-01 02:10:00,2,4"}))
    with pytest.raises(DataError, match="2020-01-01T02:10:00 is not on it"):
        mend(series, irregular="fill", missing="linear")


def test_months_are_regular(tmp_path):
    path = tmp_path / "months.csv"
    path.write_text("\n".join(["date,x", *(f"2020-{month:02}-01,{month}" for month in range(1, 13))]))
    assert quality(read_series(path))["gaps"]["number"] == 0
    mend(read_series(path))


def test_sentinels(tmp_path):
    series = read_series(table(tmp_path, change={3: "2020-01-01 01:00:00,-9999,1", 5: "2020-01-01 03:00:00,3,-999.9"}))
    assert quality(series)["sentinels"] == {"a": {"-9999": 1}, "b": {"-999.9": 1}}
    with pytest.raises(DataError, match=r"column 'a': -9999 is in 1 row"):
        mend(series)
    assert mend(series, sentinels="keep").values[1, 0] == -9999
    mended = mend(series, sentinels=[-9999, -999.9], missing="previous")
    np.testing.assert_array_equal(mended.values[[1, 3], [0, 1]], [0, 4])
    with pytest.raises(DataError, match="neither a list of numbers"):
        mend(series, sentinels="drop")  # pyright: ignore[reportArgumentType]


def test_constant_columns_are_reported(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("x,c\n1,5\n2,5\n")
    assert quality(read_series(path))["constant"] == ["c"]


def test_unknown_rules(tmp_path):
    series = read_series(table(tmp_path))
    with pytest.raises(DataError, match="missing='drop' is not a rule; there are refuse, previous, linear, keep"):
        mend(series, missing="drop")  # pyright: ignore[reportArgumentType]


def test_steps_have_names():
    assert [step_name(step) for step in (900, 3600, 7 * 86400, 5, None)] == ["15 min", "1 h", "7 d", "5 s", "unknown"]
