"""Which of one's own files is which split, and splits that are drawn out of another."""

from pathlib import Path

import numpy as np

from zoo.data.draws import Draws
from zoo.data.manifest import DataError
from zoo.data.tables import suffix

NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test",)}
_KINDS = "csv, tsv, jsonl or npz, plain or .gz"


def find_splits(path: Path) -> dict[str, Path]:
    """The files by split: `train.*`, `validation.*` (or valid, val, dev, eval) and `test.*` of a folder, if they exist.

    Args:
      path: the folder; or one file, which is then "train".

    Raises:
      DataError: there is nothing of the kind, or two files for one split.
    """
    if path.is_file():
        if suffix(path) is None:
            raise DataError(f"{path} is none of {_KINDS}.")
        return {"train": path}
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}. Give the path of one: task.source=/the/path.")
    tables = sorted(file for file in path.iterdir() if file.is_file() and suffix(file) is not None)
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        files = [file for file in tables if file.name.lower().partition(".")[0] in names]
        if len(files) > 1:
            raise DataError(f"{path} has two files for {split}: {files[0].name} and {files[1].name}. Keep one of them.")
        if files:
            found[split] = files[0]
    if "train" not in found:
        others = f"there are {', '.join(file.name for file in tables[:5])}. " if tables else ""
        raise DataError(
            f"{path} has no train file ({_KINDS}); {others}Call it train.csv, say, or give the path of a single file, "
            "which is then split."
        )
    return found


def draw_rows(labels: np.ndarray, share: float, draws: Draws) -> np.ndarray:
    """Rows for a split, drawn so that each label is there in proportion.

    Args:
      labels: integer [N], from 0.
      share: of the rows.
      draws: where chance comes from.

    Returns:
      Integer [n], ascending; of each label one row is left at least, so that n may fall short of the share.
    """
    order = np.argsort(draws.uniform((len(labels),)), kind="stable")
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    ends = np.cumsum(counts)
    # Rounded over the labels together: a label of four rows is not always without one in a tenth.
    wanted = np.diff(np.floor(ends * share + 0.5).astype(int), prepend=0)
    wanted = np.minimum(wanted, np.maximum(counts - 1, 0))
    place = np.arange(len(labels)) - np.repeat(ends - counts, counts)
    return np.sort(order[place < np.repeat(wanted, counts)])
