"""Where a run's numbers go: a JSONL file always, TensorBoard and Weights & Biases where wanted."""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.files import write_text
from zoo.training.recipe import Recipe


class MetricLog:
    """Lines of metrics.jsonl, which hold nothing but what a repeated run repeats, and the optional mirrors.

    Args:
      folder: the run directory.
      recipe: of the run.
      position: bytes of metrics.jsonl to keep; what an interrupted run wrote after its last checkpoint goes.
      step: the step that the run resumes from, 0 for a fresh one; later ones disappear from the mirrors too.

    Raises:
      ModuleNotFoundError: the recipe asks for a logger that is not installed; the message names the extra.
      ValueError: metrics.jsonl is shorter than `position`.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, position: int = 0, step: int = 0):
        self._mirrors = []
        with contextlib.ExitStack() as opened:
            wants = recipe.train.tensorboard
            if wants or (wants is None and importlib.util.find_spec("tensorboardX")):
                self._mirrors.append(
                    opened.enter_context(contextlib.closing(_TensorBoard(folder / "tensorboard", step)))
                )
            if recipe.train.wandb:
                self._mirrors.append(opened.enter_context(contextlib.closing(_Wandb(folder, recipe))))
            # Unbuffered, so that a line that the disk refused is not tried again when the file is closed.
            self._file = opened.enter_context((folder / "metrics.jsonl").open("a+b", buffering=0))
            size = self._file.seek(0, os.SEEK_END)
            if size < position:
                raise ValueError(_too_short("metrics.jsonl", size, position))
            self._file.truncate(position)
            self._file.seek(0)
            self._hash = hashlib.file_digest(self._file, "sha256")
            self._bytes = position
            self._opened = opened.pop_all()

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds one line: {"step": ..., "split": ..., metrics}.

        Raises:
          OSError: the line could not be written; the file ends with the line before it.
        """
        line = {"step": step, "split": split, **{name: _finite(value) for name, value in metrics.items()}}
        self._append((json.dumps(line) + "\n").encode())
        for mirror in self._mirrors:
            mirror.write(step, split, metrics)

    def mark(self) -> dict[str, Any]:
        """How much is written, now on disk, and its checksum: {"bytes": ..., "sha256": ...}; see `check_mark`."""
        os.fsync(self._file.fileno())
        for mirror in self._mirrors:
            mirror.flush()
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Closes the file and the mirrors."""
        self._opened.close()

    def _append(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._bytes)
            raise
        self._hash.update(data)
        self._bytes += len(data)


class NoLog:
    """What a `MetricLog` is on processes that write nothing."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Does nothing."""

    def mark(self) -> dict[str, Any]:
        """The mark of an empty file."""
        return {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}

    def close(self) -> None:
        """Does nothing."""


def check_mark(path: Path, mark: Mapping[str, Any]) -> str | None:
    """Says what is wrong with a file that should begin with what `MetricLog.mark` marked; None if it does."""
    if not mark["bytes"]:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(mark["bytes"])
    except FileNotFoundError:
        return f"{path.name} is missing"
    if len(head) < mark["bytes"]:
        return _too_short(path.name, len(head), mark["bytes"])
    if hashlib.sha256(head).hexdigest() != mark["sha256"]:
        return f"the first {mark['bytes']} bytes of {path.name} are not those that were written (checksum)"
    return None


def _too_short(name: str, size: int, wanted: int) -> str:
    return f"{name} has {size} bytes instead of {wanted}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class _TensorBoard:
    def __init__(self, folder: Path, step: int):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            message = "train.tensorboard=true needs tensorboardX: pip install 'seqzoo[tensorboard]'."
            raise ModuleNotFoundError(message) from error
        # TensorBoard drops what earlier files hold of the purge step and of later ones: step itself stays. A run that
        # was stopped before its first checkpoint left files as well, so that 0 is no exception.
        # Files are named and read in order by the second; the suffix is for those of one second.
        suffix = f".{len(list(folder.glob('*'))):04d}"
        self._writer = SummaryWriter(str(folder), flush_secs=10, purge_step=step + 1, filename_suffix=suffix)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", float(value), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One W&B run for one run directory, however often that is resumed."""

    def __init__(self, folder: Path, recipe: Recipe):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("train.wandb needs wandb: pip install 'seqzoo[wandb]'.") from error
        path = folder / "wandb-id"
        if not path.exists():
            write_text(path, secrets.token_hex(8) + "\n")
        self._run = wandb.init(
            project=recipe.train.wandb,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(folder),
            config=recipe.to_dict(),
        )
        # W&B cannot take steps back, and warns of each line that it drops. Those before this step are there already,
        # from before the interruption. (Offline, W&B does not know of them: what is repeated is in both of its files.)
        self._first = self._run.step

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log({f"{split}/{name}": float(value) for name, value in metrics.items()}, step=step)

    def flush(self) -> None:
        """W&B writes by itself."""

    def close(self) -> None:
        self._run.finish()
