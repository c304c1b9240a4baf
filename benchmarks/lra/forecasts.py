"""What a forecaster predicted of one window, for its record."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from zoo.training.run import load_run

_DIGITS = 5


def example(
    folder: str | Path, which: Literal["best", "last"] = "best", *, data_dir: Path | None = None
) -> dict[str, Any] | None:
    """The window in the middle of the test split, which nobody has chosen: what was read, what came, the prediction.

    Args:
      folder: a run directory.
      which: its parameters.
      data_dir: where data lives; None for the default.

    Returns:
      {"variate": a column's name, "past": [L], "truth": [H], "forecast": [H]} in the units of the file, of the column
      that counts or else the last one; None where the run's task forecasts nothing.

    Raises:
      RunError, CheckpointError: see `zoo.load_run`.
      DataError: the table is not there, or is no table.
    """
    loaded = load_run(folder, which, data_dir=data_dir)
    task = loaded.task
    if task.info.output != "series":
        return None
    windows = task.split("test")
    batch = windows.gather(np.array([len(windows) // 2]), task.lookback)
    marks = batch["marks"] if batch["marks"].shape[-1] else None
    y = nnx.jit(lambda model, x, marks: model(x, marks=marks, deterministic=True))(loaded.model, batch["inputs"], marks)
    columns = task.facts()["columns"]
    place = columns.index(task.target) if task.target else len(columns) - 1

    def values(rows: Any) -> list[float]:
        column = task.unscaled(np.asarray(rows[0], np.float64))[:, place]
        return [float(f"{value:.{_DIGITS}g}") for value in column]

    return {
        "variate": columns[place],
        "past": values(batch["inputs"]),
        "truth": values(batch["target"]),
        "forecast": values(y),
    }
