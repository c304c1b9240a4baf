"""Forecasting tasks: windows of a table of measurements, split by time, scaled by what training sees."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from zoo.tasks.base import SPLITS, Split, Task, TaskInfo

if TYPE_CHECKING:
    import jax

    from zoo.data.series import Series
    from zoo.data.windows import TimeFeatures, WindowSource

_LOOKBACK = 96


class ForecastingTask(Task):
    """Reads L rows of N columns and predicts the H rows that follow. The metric is MSE on scaled values.

    Every column is scaled to mean 0 and standard deviation 1 of the training rows (divided by T, not T - 1; constant
    columns are only shifted). Every window is evaluated, one row apart. The lookback of the first validation and test
    windows reaches back into the split before; what is predicted does not.

    A subclass says where its table is (`_find`), how it is read (`_raw`) and mended (`_mended`) and how it is split
    (`_bounds`).

    Args:
      source: which table.
      max_len: L, the lookback; None for 96.
      data_dir: where files are looked for; None for the default.
      seed: unused; nothing is drawn.
      horizon: H.
      target: name of the one column that counts in loss and metrics, all columns are read; None for all.
      time_features: which features of the times models are given, see `zoo.data.windows`; "auto" by the table's step.
      units: of the metrics: "scaled", or "original", those of the file (errors of several columns are averaged
        whatever their units).
      drop_last: leave out the last windows of the test split that do not fill a batch of this size, as older code did.
        For comparison with figures that were made so; None for every window.

    Raises:
      ValueError: an option is out of range.
    """

    metric: ClassVar[str] = "mse"
    lower_is_better: ClassVar[bool] = True

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
    ):
        del seed
        from zoo.data.paths import data_dir as folder

        for name, value in (
            ("horizon", horizon),
            ("max_len (the lookback)", max_len or 1),
            ("drop_last", drop_last or 1),
        ):
            if not isinstance(value, int) or not 1 <= value < 2**31:
                raise ValueError(f"{self.name}: {name} must be a whole number from 1, got {value!r}.")
        if units not in ("scaled", "original"):
            raise ValueError(f"{self.name}: units={units!r} is not known; there are scaled and original.")
        self.source = self.sources[0] if source is None else source
        self.lookback, self.horizon = max_len or _LOOKBACK, horizon
        self.target, self.units, self.drop_last = target, units, drop_last
        self.time_features: TimeFeatures = time_features
        self.data_dir = folder(data_dir)
        self.columns: Sequence[str] | None = None
        self._series: Series | None = None
        self._facts: dict[str, Any] | None = None

    # --- what a subclass says

    def _find(self) -> Path:
        """The file of the table.

        Raises:
          DataError: it is not there.
        """
        raise NotImplementedError

    def _raw(self, path: Path, columns: Sequence[str] | None) -> "Series":
        """The table in a file, as it stands there: all columns, or those named.

        Raises:
          DataError: it is no table.
        """
        raise NotImplementedError

    def _mended(self, series: "Series") -> "Series":
        """The table as models see it.

        Raises:
          DataError: something in it is not right.
        """
        raise NotImplementedError

    def _bounds(self, rows: int) -> tuple[int, int, int]:
        """The rows at which training, validation and test end."""
        raise NotImplementedError

    # --- what the loop asks

    @property
    def info(self) -> TaskInfo:
        """Reads the table, unless `recall` told what is needed of it.

        Raises:
          DataError: see `prepare`.
        """
        facts = self.facts()
        return TaskInfo(
            "series",
            vocab_size=None,
            num_classes=0,
            max_len=self.lookback,
            output="series",
            num_variates=len(facts["columns"]),
            lookback=self.lookback,
            horizon=self.horizon,
            num_marks=facts["num_marks"],
        )

    def facts(self) -> dict[str, Any]:
        """What a trained model needs of the table: columns, scaling, the step, and which features; JSON-ready."""
        from zoo.data.windows import feature_names, features_of

        if self._facts is None:
            series = self.series()
            train = series.values[: self._rows(series)["train"][1]]
            std = train.std(0)
            kind = features_of(series.step(), self.time_features)
            self._facts = {
                "columns": list(series.columns),
                "mean": train.mean(0).tolist(),
                "std": np.where(std > 0, std, 1.0).tolist(),
                "step_seconds": series.step(),
                "time_features": kind,
                "num_marks": len(feature_names(kind)),
            }
            self._targets()
        return self._facts

    def recall(self, facts: dict[str, Any]) -> None:
        """Takes the facts of the table that a model was trained on, so that the table itself is not needed."""
        self._facts = dict(facts)

    def series(self) -> "Series":
        """The whole table, unscaled; read once per task object.

        Raises:
          DataError: see `prepare`.
        """
        if self._series is None:
            self._series = self._mended(self._raw(self._find(), self.columns))
            self._rows(self._series)
        return self._series

    def table(self, path: str | Path) -> "Series":
        """Another file with the columns of this task's table, mended by the same rules.

        Raises:
          DataError: see `prepare`; or a column is not there.
        """
        return self._mended(self._raw(Path(path).expanduser(), self.facts()["columns"]))

    def is_prepared(self) -> bool:
        """Whether the file is there; whether it is whole is seen when it is read."""
        from zoo.data.manifest import DataError

        try:
            return bool(self._find())
        except DataError:
            return False

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Reads the table, so that what is wrong with it is said now; writes nothing.

        Returns:
          The file.

        Raises:
          DataError: it is missing, damaged, or too short for the windows of three splits.
        """
        return self.series().path

    def verify(self) -> None:
        """Reads the table again; raises as `prepare` does."""
        self._series = None
        self.series()

    def split(self, name: Split) -> "WindowSource":
        """The windows of a split.

        Raises:
          ValueError: unknown split.
          DataError: see `prepare`.
        """
        from zoo.data.windows import WindowSource

        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        series = self.series()
        first, last = self._rows(series)[name]
        count = last - first - self.lookback - self.horizon + 1
        if name == "test" and self.drop_last:
            count -= count % self.drop_last
            if not count:
                raise ValueError(f"{self.name}: drop_last={self.drop_last} leaves no test window.")
        values, marks = self.scaled(series)
        return WindowSource(values, marks, first=first, count=count, lookback=self.lookback, horizon=self.horizon)

    def scaled(self, series: "Series", rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scaled values [T, N] and time features of any table with these columns, [T, M], or [rows, M] of its times.

        Raises:
          ValueError: there are no times, and the model reads features of them.
        """
        from zoo.data.windows import time_features

        facts = self.facts()
        values = (series.values - np.asarray(facts["mean"])) / np.asarray(facts["std"])
        return values, time_features(series.times, facts["time_features"], rows or len(values))

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        """Predictions [..., N] in the units of the file."""
        facts = self.facts()
        return values * np.asarray(facts["std"]) + np.asarray(facts["mean"])

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the table, its times and the windows' sizes."""
        series = self.series()
        digest = hashlib.sha256(np.ascontiguousarray(series.values, "<f8").tobytes())
        if series.times is not None:
            digest.update(np.ascontiguousarray(series.times.astype(np.int64), "<i8").tobytes())
        digest.update(repr((series.columns, self._rows(series), self.lookback, self.horizon, self.target)).encode())
        return digest.hexdigest()[:16]

    def season(self) -> int:
        """Rows in a season: a day of steps shorter than that, a week of days, a year of weeks or months; else 1."""
        step = self.facts()["step_seconds"]
        if not step:
            return 1
        if step < 86400:
            return max(1, 86400 // step)
        return 7 if step < 7 * 86400 else 52 if step < 28 * 86400 else 12

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """The MSE, as `units` says, of forecasts without a model over every window; see `naive`."""
        return {name: figures["mse"] for name, figures in self.naive(split).items()}

    def naive(self, split: Split = "test") -> dict[str, dict[str, float]]:
        """MSE and MAE over every window of a split, of predicting what needs no model.

        Returns:
          "repeat_last": the last row. "repeat_season": the last season, again and again, where the lookback holds one
          longer than a row. "window_mean": the mean of the lookback. "train_mean": the mean of the training rows.
        """
        source, season = self.split(split), self.season()
        rules = {
            "repeat_last": lambda x: x[:, -1:],
            "repeat_season": lambda x: x[:, -season:][:, np.arange(self.horizon) % season],
            "window_mean": lambda x: x.mean(1, keepdims=True),
            "train_mean": lambda x: np.zeros_like(x[:, :1]),
        }
        if not 1 < season <= self.lookback:
            del rules["repeat_season"]
        targets, scale = self._targets(), self._unit_scale()
        totals = {name: np.zeros(2) for name in rules}
        block = max(1, 2**22 // (self.horizon * source.values.shape[1]))
        for first in range(0, len(source), block):
            batch = source.gather(np.arange(first, min(first + block, len(source))), self.lookback)
            inputs, target = (batch[name][..., targets].astype(np.float64) for name in ("inputs", "target"))
            for name, rule in rules.items():
                error = (rule(inputs) - target) * scale
                totals[name] += np.square(error).sum(), np.abs(error).sum()
        count = len(source) * self.horizon * len(targets)
        return {name: {"mse": float(mse / count), "mae": float(mae / count)} for name, (mse, mae) in totals.items()}

    def describe(self) -> dict[str, Any]:
        """Origin, the quality of the table as it stands in the file, sizes, scaling, and the windows of each split.

        Of a table that is refused there are origin and quality, and under "refused" the reason.

        Raises:
          DataError: the file is not there, or is no table.
        """
        from zoo.data.manifest import DataError
        from zoo.data.series import quality

        raw = self._raw(self._find(), self.columns)
        found = {
            "dataset": f"{self.name}/{self.source}",
            "path": str(raw.path),
            "lookback": self.lookback,
            "horizon": self.horizon,
            "target": self.target,
            "quality": quality(raw),
        }
        try:
            return {**found, **self._describe()}
        except DataError as error:
            return {**found, "refused": str(error)}

    def _describe(self) -> dict[str, Any]:
        from zoo.data.series import step_name

        series, facts = self.series(), self.facts()
        return {
            "step": step_name(facts["step_seconds"]),
            "time_features": facts["time_features"],
            "rows": {name: list(rows) for name, rows in self._rows(series).items()},
            "windows": {name: len(self.split(name)) for name in SPLITS},
            "mean": dict(zip(series.columns, facts["mean"], strict=True)),
            "std": dict(zip(series.columns, facts["std"], strict=True)),
            "checksum": self.fingerprint(),
        }

    def arguments(self, batch: dict[str, "jax.Array"]) -> dict[str, Any]:
        """Forecasters take the features of the times; nothing is padded."""
        return {"marks": batch["marks"] if batch["marks"].shape[-1] else None}

    def sums(self, outputs: "jax.Array", batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        """Sums over windows of "loss" (MSE, scaled), "mse" and "mae", means over steps and targets; see `units`."""
        import jax.numpy as jnp

        targets, scale = self._targets(), self._unit_scale()
        error = outputs.astype(jnp.float32)[..., targets] - batch["target"][..., targets]
        weight = batch["weight"]

        def total(values: "jax.Array") -> "jax.Array":
            return (values.mean((1, 2)) * weight).sum()

        found = {"loss": total(jnp.square(error)), "weight": weight.sum()}
        error = error * jnp.asarray(scale, jnp.float32)
        return {**found, "mse": total(jnp.square(error)), "mae": total(jnp.abs(error))}

    def _targets(self) -> np.ndarray:
        """Indices of the columns that count."""
        from zoo.registry import did_you_mean

        columns = self.facts()["columns"]
        if self.target is None:
            return np.arange(len(columns))
        if self.target not in columns:
            raise ValueError(f"{self.name} has no column {self.target!r}. {did_you_mean(self.target, columns)}")
        return np.array([columns.index(self.target)])

    def _unit_scale(self) -> np.ndarray | float:
        """By what scaled errors of the targets are multiplied."""
        return np.asarray(self.facts()["std"])[self._targets()] if self.units == "original" else 1.0

    def _rows(self, series: "Series") -> dict[str, tuple[int, int]]:
        """First and last row (exclusive) of each split, the lookback of its first window included."""
        from zoo.data.manifest import DataError

        train, validation, test = self._bounds(len(series.values))
        found = {
            "train": (0, train),
            "validation": (train - self.lookback, validation),
            "test": (validation - self.lookback, test),
        }
        for name, (first, last) in found.items():
            if first < 0 or last > len(series.values) or last - first < self.lookback + self.horizon:
                raise DataError(
                    f"{series.path}: {len(series.values)} rows are too few: the rows of {name}, {max(first, 0)} to "
                    f"{last}, do not hold a lookback of {self.lookback} and a horizon of {self.horizon}. Make "
                    "task.max_len (the lookback) or the horizon smaller."
                )
        return found


class PublishedSeries(ForecastingTask):
    """A table of the usual benchmarks, in its publisher's file.

    Missing values and times are kept as they were published, since the published figures were made with them. All
    features are those of hours whatever the step, as in the code that the figures are from.
    """

    files: ClassVar[dict[str, tuple[str, ...]]]
    """By source: where the file may be below the data folder or its `downloads/manual`; ".gz" may follow."""

    origin: ClassVar[str]
    """Where to get the files."""

    def __init__(
        self,
        source: str | None = None,
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        horizon: int = 96,
        target: str | None = None,
        time_features: "TimeFeatures" = "hour",
        units: Literal["scaled", "original"] = "scaled",
        drop_last: int | None = None,
    ):
        from zoo.registry import did_you_mean

        if source is not None and source not in self.files:
            raise ValueError(f"{self.name} has no source {source!r}. {did_you_mean(source, self.files)}")
        options: Any = {"target": target, "time_features": time_features, "units": units, "drop_last": drop_last}
        super().__init__(source, max_len, data_dir, seed, horizon=horizon, **options)

    def _raw(self, path: Path, columns: Sequence[str] | None) -> "Series":
        from zoo.data.series import read_series

        return self._ordered(read_series(path, columns=columns, header=self._has_header()))

    def _mended(self, series: "Series") -> "Series":
        from zoo.data.series import mend

        return mend(series, missing="refuse", irregular="keep", sentinels="keep")

    def _has_header(self) -> bool:
        return True

    def _ordered(self, series: "Series") -> "Series":
        """The series with its columns in the order of the published code: the file's, "OT" last."""
        import dataclasses

        names = list(series.columns)
        if "OT" not in names or names[-1] == "OT":
            return series
        names.append(names.pop(names.index("OT")))
        order = [series.columns.index(name) for name in names]
        return dataclasses.replace(series, values=series.values[:, order], columns=tuple(names))

    def _bounds(self, rows: int) -> tuple[int, int, int]:
        train, test = int(rows * 0.7), int(rows * 0.2)
        return train, rows - test, rows

    def _find(self) -> Path:
        from zoo.data.manifest import DataError

        folders = (self.data_dir / "downloads" / "manual", self.data_dir)
        for folder in folders:
            for name in self.files[self.source]:
                for path in (folder / name, folder / (name + ".gz")):
                    if path.is_file():
                        return path
        name = self.files[self.source][0]
        raise DataError(
            f"There is no {Path(name).name} below {self.data_dir}. {self.origin} Put it at {folders[0] / name}, or "
            "give its folder as --data-dir."
        )


def check_split(split: Sequence[float]) -> tuple[float, ...]:
    """Three shares of the rows that add up to 1.

    Raises:
      ValueError: they are not.
    """
    shares = tuple(float(share) for share in split)
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"split must be three positive shares that add up to 1, as in [0.7, 0.1, 0.2], got {list(split)}."
        )
    return shares
