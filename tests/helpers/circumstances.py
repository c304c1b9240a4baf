"""What makes commands fail in `tests/test_failures.py`: damaged files, small disks, signals, tables with faults."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import interrupt, recipe

import zoo
from zoo import cli
from zoo.files import seal
from zoo.training import checkpoint, memory
from zoo.training.folder import hold
from zoo.training.loop import Trainer

PREPARED: list[Path] = []  # the data of lra/listops/smoke, drawn once


@dataclasses.dataclass
class Place:
    """Where a case is provoked: an empty working directory, and how to make things in it."""

    folder: Path
    patch: pytest.MonkeyPatch
    disks: contextlib.ExitStack

    def toy(self, at: int | None = None, **options: Any) -> Path:
        """A run of the task `toy` in run/, stopped after step `at`, and its recipe in toy.yaml."""
        made = recipe(**options)
        (self.folder / "toy.yaml").write_text(made.to_yaml())
        if at is not None:
            interrupt(self.folder / "run", made, at, self.patch)
        return self.folder / "run"

    def data(self) -> Path:
        """The prepared data of lra/listops/smoke in data/."""
        shutil.copytree(PREPARED[0], self.folder / "data")
        return self.folder / "data" / "lra_listops" / "smoke" / "1.0.0"

    def disk(self, name: str, size: str, *options: str) -> Path:
        """A small disk of its own."""
        folder = self.folder / name
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk is not allowed here")
        self.disks.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        return folder


@dataclasses.dataclass
class Case:
    """One thing that goes wrong.

    Attributes:
      what: it, in words.
      command: what the user types: arguments of `zoo`, or Python.
      code: the exit code, or the class of the exception.
      prepare: makes the circumstances.
      goes_on: the command succeeds all the same, and says this on the way.
      slow: whether bringing it about takes half a minute.
    """

    what: str
    command: str
    code: int | str
    prepare: Callable[[Place], Any] = lambda place: None
    goes_on: bool = False
    slow: bool = False


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def damaged_checkpoint(place: Place, steps: list[int], damage: Callable[[Path], Any]) -> None:
    last = place.toy(53) / "checkpoints" / "last"
    for step in steps:
        damage(largest(last / str(step) / "state"))


def other_format(place: Place) -> None:
    with place.patch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 0)
        patch.setattr(zoo, "__version__", "0.0.1")
        place.toy(23)


def other_model(place: Place) -> None:
    folder = place.toy(23)
    other = recipe("model", d_model=16)
    interrupt(place.folder / "other", other, 23, place.patch)
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(place.folder / "other" / "checkpoints", folder / "checkpoints")


def other_generator(place: Place) -> None:
    path = place.data() / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    path.write_text(json.dumps(seal({**manifest, "generator_version": 0})))


def disk_that_fills(place: Place) -> None:
    place.disk("disk", "2500k")
    place.toy()
    save = Trainer._save

    def fill(self, step):
        if step == 40:
            self.best.wait()
            self.last.wait()
            with contextlib.suppress(OSError), (place.folder / "disk" / "filler").open("wb") as file:
                while True:
                    file.write(bytes(1024))
        save(self, step)

    place.patch.setattr(Trainer, "_save", fill)


def small_memory(place: Place) -> None:
    place.patch.setattr(memory, "device_memory", lambda: 400_000_000)
    place.patch.setattr(memory, "_available", lambda rows: 400_000_000)
    place.data()


def locked(place: Place) -> None:
    place.toy()
    place.disks.enter_context(hold(place.folder / "run"))


def trained_on_other_data(place: Place) -> None:
    from zoo.registry import get

    toy = get("toy", "task")
    place.patch.setattr(toy, "fingerprint", lambda self: "0e5f...", raising=False)
    place.toy(53)
    place.patch.setattr(toy, "fingerprint", lambda self: "91aa...", raising=False)


def told(place: Place, number: signal.Signals) -> None:
    place.toy()
    take = Trainer._take

    def signalled(self, step, sums):
        take(self, step, sums)
        if step == 33:
            os.kill(os.getpid(), number)

    place.patch.setattr(Trainer, "_take", signalled)


def published(place: Place, text: str | None) -> None:
    folder = place.folder / "data" / "downloads" / "manual" / "listops-1000"
    folder.mkdir(parents=True)
    for name in ("train", "val", "test"):
        (folder / f"basic_{name}.tsv").write_text(text or "")


def online(place: Place) -> None:
    place.patch.delenv("ZOO_OFFLINE")
    place.patch.delenv("ZOO_MIRROR", raising=False)
    place.patch.setenv("no_proxy", "*")


def write(name: str, text: str) -> Callable[[Place], Any]:
    return lambda place: (place.folder / name).write_text(text)


def own_table(change: Mapping[int, str | None] | None = None, rows: int | None = 80) -> Callable[[Place], Any]:
    """A recipe, and a csv of hours with the columns load and temperature in which lines (from 1) are changed."""

    def prepare(place: Place) -> None:
        (place.folder / "table.yaml").write_text(
            "variant: dlinear\ntask: {name: forecasting/csv, source: table.csv, max_len: 8, options: {horizon: 3}}\n"
            "train: {steps: 2, batch_size: 4, tensorboard: false}\n"
        )
        if rows is None:
            return
        hours = (f"2020-01-{1 + hour // 24:02} {hour % 24:02}:00:00,{hour % 24},{hour % 7}" for hour in range(rows))
        lines: list[str | None] = ["date,load,temperature", *hours]
        for line, text in (change or {}).items():
            lines[line - 1] = text
        (place.folder / "table.csv").write_text("\n".join(line for line in lines if line is not None) + "\n")

    return prepare


def own_rows(change: Mapping[int, str | None] | None = None, **more: str) -> Callable[[Place], Any]:
    """A folder reviews/ with a train.csv in which lines (from 1) are changed, and other files by their names."""

    def prepare(place: Place) -> None:
        (place.folder / "reviews").mkdir()
        lines: list[str | None] = ["text,label", *(f"film {row},{'pos' if row % 2 else 'neg'}" for row in range(60))]
        for line, text in (change or {}).items():
            lines[line - 1] = text
        text = "\n".join(line for line in lines if line is not None) + "\n"
        for name, content in {"train_csv": text, **more}.items():
            path = place.folder / "reviews" / name.replace("_", ".")
            path.write_bytes(content.encode("utf-8", "surrogateescape"))

    return prepare


def own_arrays(**arrays: Any) -> Callable[[Place], Any]:
    """A file reviews.npz."""
    return lambda place: np.savez(place.folder / "reviews.npz", **arrays)


def forecast_of_days(place: Place) -> None:
    own_table()(place)
    cli.main(["train", "table.yaml", "--run-dir", "run"])
    lines = ["date,load,temperature", *(f"2020-02-{day:02},1,2" for day in range(1, 20))]
    (place.folder / "daily.csv").write_text("\n".join(lines) + "\n")
