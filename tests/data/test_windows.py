"""Windows of a series, and features of its times."""

import datetime

import numpy as np
import pytest

from zoo.data.windows import WindowSource, feature_names, features_of, time_features


def test_windows_are_the_rows_one_after_another():
    values = np.arange(40.0).reshape(20, 2)
    source = WindowSource(values, values[:, :1], first=3, count=5, lookback=4, horizon=2)
    assert len(source) == 5
    batch = source.gather(np.array([0, 4]), 4)
    np.testing.assert_array_equal(batch["inputs"], [values[3:7], values[7:11]])
    np.testing.assert_array_equal(batch["target"], [values[7:9], values[11:13]])
    np.testing.assert_array_equal(batch["marks"], [values[3:9, :1], values[7:13, :1]])
    assert {array.dtype for array in batch.values()} == {np.dtype(np.float32)}


def test_windows_must_fit():
    values = np.zeros((10, 1))
    WindowSource(values, values, first=0, count=5, lookback=4, horizon=2)
    for first, count in ((0, 6), (0, 0), (-1, 2), (6, 1)):
        with pytest.raises(ValueError, match="do not fit 10 rows"):
            WindowSource(values, values, first=first, count=count, lookback=4, horizon=2)
    with pytest.raises(ValueError, match="lookback of 4, asked for is 3"):
        WindowSource(values, values, first=0, count=1, lookback=4, horizon=2).gather(np.array([0]), 3)


def test_time_features_are_those_of_the_calendar():
    times = np.datetime64("2015-12-20T00:00:00") + np.arange(5000) * np.timedelta64(7 * 3600 + 660, "s")
    days = [datetime.datetime.fromisoformat(str(time)) for time in times]
    expected = {
        "minute": [day.minute / 59 for day in days],
        "hour": [day.hour / 23 for day in days],
        "weekday": [day.weekday() / 6 for day in days],
        "day": [(day.day - 1) / 30 for day in days],
        "day_of_year": [(day.timetuple().tm_yday - 1) / 365 for day in days],
        "week_of_year": [(day.isocalendar().week - 1) / 52 for day in days],
        "month": [(day.month - 1) / 11 for day in days],
    }
    for kind in ("minute", "hour", "day", "week", "month"):
        found = time_features(times, kind, len(times))
        assert found.dtype == np.float32
        for column, name in zip(found.T, feature_names(kind), strict=True):
            np.testing.assert_allclose(column, np.array(expected[name]) - 0.5, atol=1e-6, err_msg=name)


def test_the_first_hour_of_etth1():
    found = time_features(np.array(["2016-07-01T00:00:00"], "datetime64[s]"), "hour", 1)
    np.testing.assert_allclose(found, [[-0.5, 0.166667, -0.5, -0.00136986]], atol=1e-6)


def test_features_follow_the_step():
    steps = {
        60: "minute",
        900: "minute",
        3600: "hour",
        86400: "day",
        7 * 86400: "week",
        30 * 86400: "month",
        None: "none",
    }
    assert {step: features_of(step) for step in steps} == steps
    assert features_of(900, "hour") == "hour"
    assert time_features(None, "none", 3).shape == (3, 0)
    with pytest.raises(ValueError, match="needs a column of times"):
        time_features(None, "hour", 3)
    with pytest.raises(ValueError, match="time_features='second' is not known"):
        feature_names("second")  # pyright: ignore[reportArgumentType]
