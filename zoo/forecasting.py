"""Forecasts by a trained run: of what follows a table, or of rows that it has, to be held against them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

_MONTH = 28 * 86400
_MAX_PLOTTED = 8


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Predictions in the units of the file.

    Attributes:
      columns: names of the N columns.
      values: [H, N], of all columns.
      times: datetime64[s] [H], or None where the file has no times.
      truth: [H, N], NaN where the file ends before.
      past, past_times: what the first prediction was made from, [L, N] and [L].
      rolled: steps from here on were predicted from predictions; H where none were.
    """

    columns: tuple[str, ...]
    values: np.ndarray
    times: np.ndarray | None
    truth: np.ndarray
    past: np.ndarray
    past_times: np.ndarray | None
    rolled: int

    def errors(self) -> dict[str, dict[str, float]]:
        """By column the mean squared and absolute error over the steps that the file has; empty where it has none."""
        known = ~np.isnan(self.truth).any(1)
        if not known.any():
            return {}
        error = (self.values - self.truth)[known]
        return {
            name: {"mse": float(np.square(error[:, index]).mean()), "mae": float(np.abs(error[:, index]).mean())}
            for index, name in enumerate(self.columns)
        }

    def to_csv(self, path: str | Path) -> None:
        """Writes one row a step: the time (or the number of the step, from 1) and the columns."""
        import csv
        import io

        from zoo.files import write_text

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["step" if self.times is None else "date", *self.columns])
        for index, row in enumerate(self.values):
            when = index + 1 if self.times is None else str(self.times[index]).replace("T", " ")
            writer.writerow([when, *(repr(float(value)) for value in row)])
        write_text(Path(path), text.getvalue())

    def plot(self, path: str | Path) -> None:
        """Draws up to 8 columns: the past, the truth where it is known, and the forecast.

        Raises:
          ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            import matplotlib as mpl
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("a plot needs matplotlib: pip install 'seqzoo[plot]'.") from error
        mpl.use("Agg")
        from matplotlib import pyplot as plt

        shown = self.columns[:_MAX_PLOTTED]
        figure, axes = plt.subplots(
            len(shown), 1, figsize=(9, 1.2 + 1.7 * len(shown)), sharex=True, squeeze=False, layout="constrained"
        )
        before, after = len(self.past), len(self.values)
        x: Any = np.arange(-before, after)
        if self.times is not None and self.past_times is not None:
            x = np.concatenate([self.past_times, self.times])
        for axis, (index, name) in zip(axes[:, 0], enumerate(shown), strict=True):
            axis.plot(x[:before], self.past[:, index], color="0.35", label="past")
            if not np.isnan(self.truth[:, index]).all():
                axis.plot(x[before:], self.truth[:, index], color="C0", label="truth")
            axis.plot(x[before:], self.values[:, index], color="C1", label="forecast")
            if self.rolled < after:
                axis.axvline(
                    x[before + self.rolled], color="0.6", linestyle=":", label="from here on its own forecasts"
                )
            axis.set_ylabel(name)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0, 0].legend(loc="upper left", fontsize="small", ncols=4, frameon=False)
        axes[0, 0].margins(y=0.25)
        hidden = len(self.columns) - len(shown)
        axes[-1, 0].set_xlabel(
            ("time" if self.times is not None else "step") + (f"; {hidden} more columns" if hidden else "")
        )
        figure.align_ylabels()
        path = Path(path)
        temporary = path.with_name("partial-" + path.name)
        figure.savefig(temporary, dpi=150)
        plt.close(figure)
        temporary.replace(path)


def forecast(
    run: str | Path,
    table: str | Path,
    *,
    start: str | None = None,
    holdout: int | None = None,
    steps: int | None = None,
    which: Literal["best", "last"] = "best",
) -> Forecast:
    """Predicts the rows of a table from some row on.

    The training data is not needed: the run's checkpoint knows the columns and their scaling.

    Args:
      run: directory of a run of a `forecasting/*` task.
      table: a csv file with the run's columns, and times where the run was given some.
      start: time of the first predicted row, as in "2018-01-01 00:00"; None for the row after the last.
      holdout: predict the last so many rows instead, to be held against them.
      steps: how many rows; None for the horizon, or the `holdout`. Beyond the horizon the model goes on from its own
        predictions.
      which: the parameters that did best on validation, or the last ones saved.

    Raises:
      RunError, CheckpointError: see `zoo.load_run`.
      DataError: the table cannot be read, lacks a column, or is not regular; see `zoo.data.series.mend`.
      ValueError: the run is of another task, `start` lies outside of the table, there are fewer rows before it than the
        lookback, or an argument is out of range.
    """
    from zoo.training.run import load_run

    loaded = load_run(run, which)
    task = loaded.task
    if task.info.output != "series":
        raise ValueError(f"{run} is a run of {task.name}, which forecasts nothing; give one of a forecasting/* task.")
    if start is not None and holdout is not None:
        raise ValueError("give start or holdout, not both.")
    series = task.table(table)
    _check_step(series, task)
    first = _first_row(series, start, holdout)
    count = steps if steps is not None else holdout or task.horizon
    if count < 1:
        raise ValueError(f"steps must be at least 1, got {count}.")
    if first < task.lookback:
        raise ValueError(
            f"{series.path} has {first} rows before the forecast; the model reads a lookback of {task.lookback}."
        )
    past = slice(first - task.lookback, first)
    past_times = times = around = None
    if series.times is not None:
        past_times = series.times[past]
        times = _times_after(past_times[-1], task.facts()["step_seconds"] or series.step(), count)
        around = np.concatenate([past_times, times])
    seen = dataclasses.replace(series, values=series.values[past], times=around)
    scaled, marks = task.scaled(seen, rows=task.lookback + count)
    values = task.unscaled(_roll(loaded.model, task, scaled, marks, count))
    truth = np.full((count, len(series.columns)), np.nan)
    known = series.values[first : first + count]
    truth[: len(known)] = known
    return Forecast(series.columns, values, times, truth, seen.values, past_times, min(count, task.horizon))


def _check_step(series: Any, task: Any) -> None:
    """Raises where the rows of a table are not as far apart as those that the model was trained on."""
    ours, theirs = series.step(), task.facts()["step_seconds"]
    if ours and theirs and ours != theirs and min(ours, theirs) < _MONTH:
        raise ValueError(f"{series.path} has a row every {ours} s; the model was trained on one every {theirs} s.")


def _roll(model: Any, task: Any, scaled: np.ndarray, marks: np.ndarray, steps: int) -> np.ndarray:
    """[steps, N], scaled: a horizon at a time, each from the rows before it."""
    from flax import nnx

    run = nnx.jit(lambda model, x, marks: model(x, marks=marks, deterministic=True))
    window, horizon = task.lookback, task.horizon
    rows = scaled.astype(np.float32)
    while len(rows) < window + steps:
        at = len(rows) - window
        around = marks[at : at + window + horizon]
        if len(around) < window + horizon:  # the last horizon is cut; what its times are does not matter
            around = np.pad(around, ((0, window + horizon - len(around)), (0, 0)), mode="edge")
        y = run(model, rows[at:][None], around[None] if around.shape[1] else None)
        rows = np.concatenate([rows, np.asarray(y[0], np.float32)])
    return rows[window : window + steps].astype(np.float64)


def _first_row(series: Any, start: str | None, holdout: int | None) -> int:
    rows = len(series.values)
    if holdout is not None:
        if not 1 <= holdout < rows:
            raise ValueError(
                f"holdout must be from 1 to {rows - 1}, the rows of {series.path} less one; got {holdout}."
            )
        return rows - holdout
    if start is None:
        return rows
    if series.times is None:
        raise ValueError(f"{series.path} has no column of times, so start={start!r} is nowhere; give holdout.")
    try:
        when = np.datetime64(start, "s")
    except ValueError:
        raise ValueError(f"start={start!r} is not a time, as in 2018-01-01 00:00.") from None
    row = int(np.searchsorted(series.times, when))
    after = _times_after(series.times[-1], series.step(), 1)[0]
    if row == rows and when > after:
        raise ValueError(f"start={start!r} lies beyond {after}, the time after the last row of {series.path}.")
    return row


def _times_after(last: np.datetime64, step: int | None, count: int) -> np.ndarray:
    """The times that follow; of steps of a month or more they keep their day of the month."""
    steps = np.arange(1, count + 1)
    if not step or step < _MONTH:
        return last + steps * np.timedelta64(step or 0, "s")
    month = last.astype("datetime64[M]")
    months = month + steps * np.timedelta64(round(step / (30.44 * 86400)), "M")
    return months.astype("datetime64[s]") + (last - month.astype("datetime64[s]"))
