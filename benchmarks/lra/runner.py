"""Runs the cells of a matrix: each a `zoo train` process of its own, one on each device."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.board import Board
from benchmarks.lra.cells import FORMAT, Cell, MatrixError, Request, State
from zoo.data.chunks import available_cores
from zoo.files import write_json
from zoo.training.build import make_task
from zoo.training.folder import RunError, held_by, read_result
from zoo.training.launch import start, stop, train_command
from zoo.training.signals import Interrupted

# Programs of one matrix; those of the largest recipes have some ten megabytes.
CACHE_BYTES = 4 << 30
_POLL_SECONDS = 0.2
_REASON_LINES, _REASON_LENGTH = 5, 1000
_ASK = (
    "import json, jax; from zoo.training.run import environment; print(json.dumps([environment(), jax.device_count()]))"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run goes.

    Attributes:
      variables: of its environment, which give it its device.
      cores: of the processor that it may use; empty for all that there are.
    """

    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] = ()


def shares(workers: int | None) -> list[tuple[int, ...]]:
    """The cores of each of so many runs at a time, equally many and none of them in two; [()] for one.

    Raises:
      MatrixError: there are fewer cores.
    """
    if workers is None or workers == 1:
        return [()]
    if not 1 <= workers <= available_cores():
        raise MatrixError(f"--workers must be from 1 to the {available_cores()} cores that there are, got {workers}.")
    if not hasattr(os, "sched_getaffinity"):  # beside Linux nobody can say who has which core
        return [()] * workers
    cores, each = sorted(os.sched_getaffinity(0)), available_cores() // workers
    return [tuple(cores[first : first + each]) for first in range(0, each * workers, each)]


def device_facts(cores: tuple[int, ...] = ()) -> tuple[dict[str, Any], int]:
    """`zoo.training.run.environment()` and the number of devices as a run would see them that has `cores`.

    They are asked of another process: one that has looked at a GPU holds its memory, of which the runs then find none.

    Raises:
      MatrixError: JAX does not start.
    """
    ask = f"import os; os.sched_setaffinity(0, {cores}); {_ASK}" if cores else _ASK
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MatrixError(f"JAX does not start: {_last_lines(done.stderr)}")
    environment, devices = json.loads(done.stdout.splitlines()[-1])
    return environment, devices


def slots(platform: str, present: int, *, devices: int | None = None, workers: int | None = None) -> list[Place]:
    """The place of each run at a time.

    Args:
      platform: of the devices, "cpu" or "gpu"; on others one run at a time has all of them.
      present: how many devices there are.
      devices: how many GPUs to use; None for all.
      workers: how many runs at a time on a CPU, each on cores of its own; None for one.

    Raises:
      MatrixError: there are not so many devices, or the platform has no such choice.
    """
    if platform == "gpu":
        if workers is not None:
            raise MatrixError(
                "--workers is for CPUs; on GPUs there is one run on each, and --devices says on how many."
            )
        count = present if devices is None else devices
        if not 1 <= count <= present:
            raise MatrixError(f"--devices must be from 1 to {present}, got {devices}.")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(present)))
        return [Place({"CUDA_VISIBLE_DEVICES": number.strip()}) for number in visible.split(",")[:count]]
    if devices is not None:
        raise MatrixError(f"--devices is for GPUs, and there are none (JAX runs on {platform}).")
    if workers is not None and platform != "cpu":
        raise MatrixError(f"--workers is for CPUs, got {workers} on {platform}.")
    return [Place(cores=cores) for cores in shares(workers)]


class Runner:
    """Runs what is waiting, keeps matrix.json as things are, and stops in good order.

    Args:
      cells: of the matrix; their states are changed.
      request: what they were made of.
      out: the matrix's folder, held by this process.
      environment: see `device_facts`.
      places: see `slots`.
      data_dir: where data lives; None for the default.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        request: Request,
        out: Path,
        *,
        environment: Mapping[str, Any],
        places: Sequence[Place],
        data_dir: Path | None = None,
    ):
        self.cells, self.out = cells, out
        self._request, self._environment, self._places, self._data_dir = request, environment, places, data_dir
        self._earlier = _earlier(out, {cell.id for cell in cells})
        self._running: dict[int, tuple[Cell, subprocess.Popen]] = {}
        self._waited_for: set[str] = set()

    def run(self) -> None:
        """Runs every waiting cell; one that fails is marked, and the rest goes on.

        Raises:
          Interrupted: this process was told to end. The runs were told so too and have saved; their cells wait.
        """
        self.save()
        with Board(self.cells, self.out) as board:
            try:
                while self._fill(board) or self._running:
                    self._collect(board)
                    board.tick()
                    time.sleep(_POLL_SECONDS)
            except Interrupted as stopped:
                board.line(f"{signal.Signals(stopped.signum).name}: the runs save what they have")
                stop([process for _, process in self._running.values()], stopped.signum)
                raise
            finally:
                self._leave()

    def prepare(self) -> None:
        """Makes or fetches the data of what is waiting; where that fails, so do its cells, before any training."""
        prepared: dict[str, str | None] = {}
        for cell in self.cells:
            if cell.state != "waiting" or cell.recipe is None:
                continue
            key = str(cell.recipe.task)
            if key not in prepared:
                prepared[key] = _complaint(make_task(cell.recipe, self._data_dir).prepare)
            if (reason := prepared[key]) is not None:
                cell.state, cell.reason = "failed", reason
                print(f"{cell.id}: {reason}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Writes matrix.json."""
        cells = [*self._earlier, *(cell.to_dict() for cell in self.cells)]
        facts = {"format": FORMAT, "spec": self._request.to_dict(), "environment": dict(self._environment)}
        write_json(self.out / "matrix.json", {**facts, "cells": cells})

    def _fill(self, board: Board) -> bool:
        """Starts what there is room for; whether anything is still to be started."""
        for place in range(len(self._places)):
            if place in self._running:
                continue
            if (cell := self._next(board)) is None:
                break
            self._start(place, cell)
            board.started(cell)
        return any(cell.state == "waiting" for cell in self.cells)

    def _next(self, board: Board) -> Cell | None:
        """The first waiting cell whose directory is free: a killed matrix leaves runs that still write."""
        for cell in self.cells:
            if cell.state != "waiting":
                continue
            holder = held_by(self.out / cell.folder)
            if holder is None:
                return cell
            if cell.id not in self._waited_for:
                self._waited_for.add(cell.id)
                board.line(f"{cell.id} waits for {holder}, which writes there")
        return None

    def _start(self, place: int, cell: Cell) -> None:
        assert cell.recipe is not None
        bound_cache(self.out / "cache")
        command = train_command(
            cell.recipe, self.out / "recipes" / f"{cell.id}.yaml", self.out / cell.folder, self._data_dir
        )
        variables = {**cache_settings(self.out / "cache"), **self._places[place].variables}
        process = start(command, errors=self._log(cell), environment=variables, cores=self._places[place].cores)
        self._running[place] = cell, process
        cell.state, cell.reason = "running", None
        self.save()

    def _collect(self, board: Board) -> None:
        for place, (cell, process) in list(self._running.items()):
            if process.poll() is not None:
                del self._running[place]
                board.ended(cell, self._finish(cell, process.returncode))
                self.save()

    def _finish(self, cell: Cell, code: int) -> dict[str, Any] | None:
        """Marks a cell whose process has ended; its result, or None where it failed."""
        try:
            result = read_result(self.out / cell.folder)
        except RunError as error:
            result, code = None, code or 1
            cell.reason = str(error)
        if code == 0 and result is not None:
            cell.state, cell.reason = "done", None
            return result
        cell.state = "failed"
        cell.reason = cell.reason or f"{_exit_text(code)}: {_last_lines(self._log(cell).read_text(errors='replace'))}"
        return None

    def _leave(self) -> None:
        """Brings matrix.json in order when the loop ends, whatever ended it."""
        for cell, process in self._running.values():
            if process.poll() is None:
                process.terminate()
            cell.state = "waiting"
            if process.wait() == 0 and _complaint(lambda cell=cell: read_result(self.out / cell.folder)) is None:
                cell.state = "done"
        self._running = {}
        self.save()

    def _log(self, cell: Cell) -> Path:
        return self.out / "logs" / f"{cell.id}.log"


def cache_settings(folder: Path) -> dict[str, str]:
    """Variables by which runs share compiled programs; none where the user has a cache already."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return {}
    return {"JAX_COMPILATION_CACHE_DIR": str(folder.resolve()), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}


def bound_cache(folder: Path, most: int = CACHE_BYTES) -> None:
    """Deletes the oldest compiled programs of a folder beyond `most` bytes.

    JAX bounds a cache only with another package installed (filelock).
    """
    found = []
    for path in folder.glob("*"):
        if path.is_file():
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left <= most:
            return
        path.unlink(missing_ok=True)
        left -= size


def load_matrix(out: Path) -> dict[str, Any]:
    """What matrix.json of a folder holds.

    Raises:
      MatrixError: there is none, or of another format.
    """
    path = out / "matrix.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MatrixError(f"{out} holds no matrix: {path.name} is missing or no JSON.") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise MatrixError(f"{path} has not the format {FORMAT}.")
    return held


def _earlier(out: Path, names: set[str]) -> list[dict[str, Any]]:
    """Cells of earlier requests in the same folder, which stay."""
    if not (out / "matrix.json").exists():
        return []
    state: State = "waiting"
    cells = [cell for cell in load_matrix(out)["cells"] if cell["id"] not in names]
    return [{**cell, "state": state} if cell["state"] == "running" else cell for cell in cells]


def _complaint(act: Callable[[], object]) -> str | None:
    try:
        act()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        return str(error)
    return None


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    hint = " (by the system, where memory ran out)" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def _last_lines(text: str) -> str:
    """The message that a process ended with: from "zoo: " on, or its last lines."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("zoo: ")]
    kept = lines[starts[-1] :] if starts else lines[-_REASON_LINES:]
    return "\n".join(kept)[-_REASON_LENGTH:] or "it said nothing"
