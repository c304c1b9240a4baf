"""Forecasting of any csv file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.registry import register_task
from zoo.tasks.series import ForecastingTask, check_split

if TYPE_CHECKING:
    from zoo.data.series import Irregular, Missing, Series
    from zoo.data.windows import TimeFeatures


@register_task(
    "forecasting/csv",
    title="Forecasting of a csv file of your own",
    inputs=("series",),
    notes="Source: the path of a csv file, one row a time: task.source=/the/path.csv.",
)
class CSV(ForecastingTask):
    """A csv file: a first line of names, one row a time, a column of times if there is one, numbers otherwise.

    What is wrong with the table is refused with its line, unless a rule is named that mends it. `zoo data info
    forecasting/csv/PATH` shows what there is to mend.

    Args:
      source: path of the file; gzipped where it ends in .gz.
      max_len, data_dir, seed, horizon, target, time_features, units, drop_last: see `ForecastingTask`.
      columns: names of the columns to read, besides the times; None for all.
      time_column: name of the column of times; None for one that is called date, datetime, time or timestamp, if any.
      date_format: of the times, as `datetime.strptime` takes it; None for ISO 8601, year/month/day or day.month.year.
      split: shares of the rows for training, validation and test, in this order in time.
      validation_from, test_from: the times at which these begin, as in "2019-01-01"; both or neither, and then `split`
        does not count.
      missing, irregular, sentinels: rules for what is not as it should be, see `zoo.data.series.mend`.

    Raises:
      ValueError: an option is out of range, or there is no path.
    """

    name = "forecasting/csv"
    sources = ()

    def __init__(
        self,
        source: str | None = None,
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        horizon: int = 96,
        target: str | None = None,
        time_features: "TimeFeatures" = "auto",
        units: Literal["scaled", "original"] = "scaled",
        drop_last: int | None = None,
        columns: Sequence[str] | None = None,
        time_column: str | None = None,
        date_format: str | None = None,
        split: Sequence[float] = (0.7, 0.1, 0.2),
        validation_from: str | None = None,
        test_from: str | None = None,
        missing: "Missing" = "refuse",
        irregular: "Irregular" = "refuse",
        sentinels: "Sequence[float] | Literal['keep']" = (),
    ):
        if source in (None, "", "full"):
            raise ValueError("forecasting/csv needs the path of a csv file: task.source=/the/path.csv.")
        if (validation_from is None) != (test_from is None):
            raise ValueError("give both validation_from and test_from, or neither.")
        options: Any = {"target": target, "time_features": time_features, "units": units, "drop_last": drop_last}
        super().__init__(source, max_len, data_dir, seed, horizon=horizon, **options)
        self.columns, self.time_column, self.date_format = columns, time_column, date_format
        self.shares = check_split(split)
        try:
            self.begins = None if test_from is None else np.array([validation_from, test_from], "datetime64[s]")
        except ValueError:
            raise ValueError(
                f"validation_from={validation_from!r} and test_from={test_from!r} must be times, as in 2019-01-01."
            ) from None
        self.missing: Missing = missing
        self.irregular: Irregular = irregular
        self.sentinels: Sequence[float] | Literal["keep"] = sentinels

    def _find(self) -> Path:
        from zoo.data.manifest import DataError

        path = Path(self.source).expanduser()
        if not path.is_file():
            raise DataError(f"There is no file {path}. Give the path of a csv file: task.source=/the/path.csv.")
        return path

    def _raw(self, path: Path, columns: Sequence[str] | None) -> "Series":
        from zoo.data.series import read_series

        return read_series(path, columns=columns, time_column=self.time_column, date_format=self.date_format)

    def _mended(self, series: "Series") -> "Series":
        from zoo.data.series import mend

        return mend(series, missing=self.missing, irregular=self.irregular, sentinels=self.sentinels)

    def _bounds(self, rows: int) -> tuple[int, int, int]:
        from zoo.data.manifest import DataError

        if self.begins is None:
            train, test = int(rows * self.shares[0]), int(rows * self.shares[2])
            return train, rows - test, rows
        assert self._series is not None
        if self._series.times is None:
            raise DataError(f"{self.source} has no column of times; give split=[0.7, 0.1, 0.2], not times.")
        train, validation = np.searchsorted(self._series.times, self.begins)
        return int(train), int(validation), rows
