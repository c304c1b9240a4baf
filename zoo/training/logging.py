"""Where a run's numbers go: a JSONL file always, TensorBoard and Weights & Biases where wanted, and the console."""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.training.recipe import Recipe


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class MetricLog:
    """Lines of metrics.jsonl, which hold nothing but what a repeated run repeats, and the optional mirrors.

    Args:
      folder: the run directory.
      recipe: of the run.
      position: bytes of metrics.jsonl to keep; what an interrupted run wrote after its last checkpoint goes.

    Raises:
      ModuleNotFoundError: the recipe asks for a logger that is not installed; the message names the extra.
    """

    def __init__(self, folder: Path, recipe: Recipe, *, position: int = 0):
        self._mirrors = []
        wants = recipe.train.tensorboard
        if wants or (wants is None and importlib.util.find_spec("tensorboardX")):
            self._mirrors.append(_TensorBoard(folder / "tensorboard"))
        if recipe.train.wandb:
            self._mirrors.append(_Wandb(folder, recipe))
        self._file = (folder / "metrics.jsonl").open("a+b")
        self._file.truncate(position)
        self._file.seek(0, os.SEEK_END)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Adds one line: {"step": ..., "split": ..., metrics}."""
        line = {"step": step, "split": split, **{name: _finite(value) for name, value in metrics.items()}}
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()
        for mirror in self._mirrors:
            mirror.write(step, split, metrics)

    def position(self) -> int:
        """Bytes written, on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file and the mirrors."""
        self._file.close()
        for mirror in self._mirrors:
            mirror.close()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class _TensorBoard:
    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            message = "train.tensorboard=true needs tensorboardX: pip install 'seqzoo[tensorboard]'."
            raise ModuleNotFoundError(message) from error
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", float(value), step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, recipe: Recipe):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("train.wandb needs wandb: pip install 'seqzoo[wandb]'.") from error
        self._run = wandb.init(project=recipe.train.wandb, dir=str(folder), config=recipe.to_dict(), resume="allow")

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": float(value) for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Console:
    """A progress bar with rate and ETA on a terminal, plain lines in a log; silent if not `enabled`.

    Args:
      total: number of steps.
      start: steps done before this process.
      enabled: print at all.
    """

    def __init__(self, total: int, *, start: int = 0, enabled: bool = True):
        self._total, self._start, self._done = total, start, start
        self._began = time.monotonic()
        self._enabled = enabled
        self._progress = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                BarColumn(bar_width=10),  # all columns together fit a terminal of 80
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=RichConsole(stderr=True),
            )
            self._bar = self._progress.add_task("train", total=total, completed=start, rate="", text="")
            self._progress.start()

    def step(self, done: int) -> None:
        """`done` steps are done."""
        self._done = done
        if self._progress is not None:
            self._progress.update(self._bar, completed=done, rate=f"{self._rate():.2f} step/s")

    def metrics(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Shows metrics as of `step`."""
        text = " ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "examples")
        if self._progress is not None:
            if split == "train":
                shown = {name: value for name, value in metrics.items() if name not in ("grad_norm", "lr")}
                self._progress.update(self._bar, text=" ".join(f"{name} {value:.3g}" for name, value in shown.items()))
            else:
                self._progress.console.print(f"step {step} {split} {text}", highlight=False)
        elif self._enabled:
            rate = self._rate()
            eta = f", {rate:.2f} step/s, {(self._total - step) / rate:.0f} s left" if rate else ""
            self.line(f"step {step}/{self._total} {split} {text}{eta}")

    def line(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False)
        elif self._enabled:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.stop()

    def _rate(self) -> float:
        return (self._done - self._start) / max(time.monotonic() - self._began, 1e-9)
