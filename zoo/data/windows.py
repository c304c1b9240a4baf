"""Windows of a series: a lookback that is read and a horizon that is asked for."""

from typing import Any, Literal

import numpy as np

TimeFeatures = Literal["auto", "minute", "hour", "day", "week", "month", "none"]
"""Which features a step has, by the finest: those of "hour" are hour, weekday, day of the month and of the year."""


class WindowSource:
    """All windows of a part of a series, one row of the data set each.

    Args:
      values: [T, N], scaled.
      marks: [T, M], features of the times.
      first: row at which the lookback of the first window begins.
      count: number of windows, each one row later than the one before.
      lookback, horizon: L and H.

    Raises:
      ValueError: there is no window, or the windows leave the series.
    """

    lengths = None

    def __init__(self, values: Any, marks: Any, *, first: int, count: int, lookback: int, horizon: int):
        self.values, self.marks = np.asarray(values, np.float32), np.asarray(marks, np.float32)
        self.lookback, self.horizon = lookback, horizon
        if count < 1 or first < 0 or first + count - 1 + lookback + horizon > len(self.values):
            raise ValueError(
                f"{count} windows of {lookback} + {horizon} rows from row {first} do not fit {len(self.values)} rows."
            )
        self.starts = first + np.arange(count)

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns the windows `indices`: `inputs` [b, L, N], `marks` [b, L + H, M] and `target` [b, H, N], float32.

        Raises:
          ValueError: `length` is not L; windows are neither padded nor cut.
        """
        if length != self.lookback:
            raise ValueError(f"windows have a lookback of {self.lookback}, asked for is {length}.")
        rows = self.starts[indices][:, None] + np.arange(self.lookback + self.horizon)
        values = self.values[rows]
        return {
            "inputs": values[:, : self.lookback],
            "marks": self.marks[rows],
            "target": values[:, self.lookback :],
        }


def features_of(step_seconds: int | None, wanted: TimeFeatures = "auto") -> TimeFeatures:
    """The features that "auto" means for a step: those that change within it and above; "none" without times."""
    if wanted != "auto":
        return wanted
    if not step_seconds:
        return "none"
    limits: dict[TimeFeatures, int] = {"minute": 3600, "hour": 86400, "day": 7 * 86400, "week": 28 * 86400}
    fitting: list[TimeFeatures] = [name for name, below in limits.items() if step_seconds < below]
    return fitting[0] if fitting else "month"


def feature_names(kind: TimeFeatures) -> tuple[str, ...]:
    """The features of a kind, in order."""
    table = {
        "minute": ("minute", "hour", "weekday", "day", "day_of_year"),
        "hour": ("hour", "weekday", "day", "day_of_year"),
        "day": ("weekday", "day", "day_of_year"),
        "week": ("day", "week_of_year"),
        "month": ("month",),
        "none": (),
    }
    if kind not in table:
        raise ValueError(f"time_features={kind!r} is not known; there are auto, {', '.join(table)}.")
    return table[kind]


def time_features(times: np.ndarray | None, kind: TimeFeatures, rows: int) -> np.ndarray:
    """Features of times in [-0.5, 0.5], float32 [T, M], as Informer's "timeF" embedding takes them.

    Args:
      times: datetime64 [T]; None for no features.
      kind: see `feature_names`.
      rows: T.

    Raises:
      ValueError: unknown kind, or features are asked for and there are no times.
    """
    names = feature_names(kind)
    if not names:
        return np.zeros((rows, 0), np.float32)
    if times is None:
        raise ValueError(f"time_features={kind} needs a column of times; there is none. Give time_features=none.")
    days, months = times.astype("datetime64[D]"), times.astype("datetime64[M]")
    seconds = (times.astype("datetime64[s]") - days).astype(np.int64)
    weekday = (days.astype(np.int64) + 3) % 7  # the epoch was a Thursday; Monday is 0
    day_of_year = (days - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64)
    shares = {
        "minute": seconds // 60 % 60 / 59,
        "hour": seconds // 3600 / 23,
        "weekday": weekday / 6,
        "day": (days - months.astype("datetime64[D]")).astype(np.int64) / 30,
        "day_of_year": day_of_year / 365,
        "week_of_year": (_iso_week(days, weekday) - 1) / 52,
        "month": months.astype(np.int64) % 12 / 11,
    }
    return np.stack([shares[name] - 0.5 for name in names], axis=1).astype(np.float32)


def _iso_week(days: np.ndarray, weekday: np.ndarray) -> np.ndarray:
    """Number of the week from 1; the week belongs to the year that its Thursday is in."""
    thursday = days + (3 - weekday).astype("timedelta64[D]")
    return (thursday - thursday.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) // 7 + 1
