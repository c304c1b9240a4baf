"""Packing a task's prepared data into one file; see `zoo.data.pack`."""

from pathlib import Path
from typing import Any

from zoo.data.manifest import DataError
from zoo.data.pack import content_sha256, write_pack


def pack(task: Any, out: str | Path, *, examples: int | None = None, max_len: int | None = None) -> tuple[Path, int]:
    """Writes a task's prepared data, all of its sources, as one file.

    In the data folder of another machine, under the name that it has here, the task finds it there and trains without
    TFDS. What is packed whole has the same fingerprint as the folder, so that a run may go on elsewhere.

    Args:
      task: prepared.
      out: an existing folder, or the file.
      examples: only that many of the first training examples; None for all. Said with every result.
      max_len: only that many bytes of each row; None for all of them.

    Returns:
      The file, and its size in bytes.

    Raises:
      ValueError: a task without prepared data, or one that cannot be cut so.
      DataError: the data is not prepared, damaged, or packed already; or the file cannot be written.
    """
    prepared = getattr(task, "prepared", None)
    if prepared is None:
        raise ValueError(f"{task.name} has nothing to pack: it draws or reads its data where it runs.")
    for name, value in (("examples", examples), ("max_len", max_len)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if prepared.packed:
        raise DataError(f"{prepared.pack} is a pack already: copy that file.")
    manifest = prepared.manifest(verify=True)
    splits = {name: prepared.rows(name) for name in task.stored_splits()}
    facts = {key: value for key, value in manifest.items() if key not in ("files", "digest")}
    if examples is not None or max_len is not None:
        total = len(splits["train"])
        splits = task.cut(splits, examples=examples, max_len=max_len)
        facts["cut"] = {"train": len(splits["train"]), "of": total} if len(splits["train"]) < total else {}
        facts["cut"] |= {} if max_len is None else {"max_len": max_len}
        facts["splits"] = {
            name: {"examples": len(rows), "content_sha256": content_sha256(rows)} for name, rows in splits.items()
        }
    path = Path(out)
    path = path / prepared.pack.name if path.is_dir() else path
    if path.suffix != ".npz":
        raise ValueError(f"a pack is a file *.npz, or a folder that is there; got {path}.")
    try:
        return path, write_pack(path, splits, facts)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
