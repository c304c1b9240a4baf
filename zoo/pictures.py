"""What the images of a task look like: a contact sheet."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from zoo.tasks.base import SPLITS, Split


def task_images(task: Any, split: Split = "train", *, count: int = 20, first: int = 0) -> tuple[np.ndarray, list[int]]:
    """Images of a task whose data are images, on a grid or as sequences of pixels.

    Args:
      task: prepared.
      split: of its data.
      count: N, fewer where there are no more.
      first: number of the first one.

    Returns:
      Values, integer [N, H, W, C], and labels; none of a task without.

    Raises:
      ValueError: the task has no images, or none of these numbers.
      DataError: its data is not prepared, or damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    source = task.split(split)
    if not 0 <= first < len(source):
        raise ValueError(f"{task.name}: {split} has images 0 to {len(source) - 1}, not {first}.")
    rows = np.arange(first, min(first + count, len(source)))
    if task.info.output == "image":
        return source.images[rows], []
    if not hasattr(source, "rows"):
        raise ValueError(f"{task.name} has no images to show.")
    pixels = source.rows(rows)
    side = math.isqrt(pixels.shape[1])
    if side**2 != pixels.shape[1]:
        raise ValueError(f"{task.name} has images of {pixels.shape[1]} pixels, which is no square.")
    return pixels.reshape(len(rows), side, side, 1), source.labels[rows].tolist()


def show(task: Any, path: str | Path, split: Split = "train", *, count: int = 20, first: int = 0) -> str:
    """Writes images of a task as one PNG, row by row; what `zoo data show` does.

    Returns:
      The path of the PNG, and the labels in the same order, a line for each row.

    Raises:
      ValueError, DataError: as `task_images`.
      ModuleNotFoundError: matplotlib is not installed.
    """
    from zoo.sampling import write_png

    images, labels = task_images(task, split, count=count, first=first)
    values = task.info.num_values or 256
    said = str(write_png(images, path, num_values=values))
    columns = math.ceil(math.sqrt(len(images)))
    for start in range(0, len(labels), columns):
        said += "\n" + " ".join(map(str, labels[start : start + columns]))
    return said
