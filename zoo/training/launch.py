"""`zoo train` in processes of their own, so that memory, compilation and caches are the same for every run."""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.files import write_text
from zoo.training.recipe import Recipe
from zoo.training.signals import Interrupted


def train_command(recipe: Recipe, path: Path, folder: Path, data_dir: Path | None = None) -> list[str]:
    """Writes a resolved recipe to `path`, and returns the command that trains it in the run directory `folder`.

    The command goes on with what the directory holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, recipe.to_yaml())
    command = [sys.executable, "-m", "zoo", "train", str(path), "--run-dir", str(folder)]
    return command if data_dir is None else [*command, "--data-dir", str(data_dir)]


def start(
    command: Sequence[str],
    *,
    errors: Path | None = None,
    environment: Mapping[str, str] | None = None,
    cores: Iterable[int] = (),
) -> subprocess.Popen:
    """Starts a command whose standard output is dropped.

    Args:
      command: program and arguments.
      errors: a file for what it writes to standard error, which is emptied first; None for that of this process.
      environment: variables over those of this process.
      cores: numbers of the processor's cores that it may use, on Linux; none for those of this process.
    """
    # A group of its own, so that Ctrl-C reaches it once, through us: twice would end a run unsaved.
    group: dict[str, Any] = {} if os.name == "nt" else {"process_group": 0}
    options = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}}
    if errors is None:
        process = subprocess.Popen(command, **options, **group)
    else:
        errors.parent.mkdir(parents=True, exist_ok=True)
        with errors.open("wb") as file:
            process = subprocess.Popen(command, stderr=file, **options, **group)
    if cores := set(cores):
        # Long before its interpreter is up and JAX counts them; threads take over what their process has.
        os.sched_setaffinity(process.pid, cores)
    return process


def stop(processes: Iterable[subprocess.Popen], signum: int) -> None:
    """Tells processes to end, and waits until each has saved what it has.

    Raises:
      Interrupted: this process was told to end once more; so were they then, and a second signal ends a run unsaved.
    """
    processes = list(processes)
    for process in processes:
        process.send_signal(signum)
    try:
        for process in processes:
            process.wait()
    except Interrupted as again:
        stop(processes, again.signum)
        raise


def wait_for(command: Sequence[str]) -> int:
    """Runs a command and returns its exit code; when this process is told to end, so is the command.

    Raises:
      Interrupted: this process was told to end; the command has ended as well.
    """
    with start(command) as process:
        try:
            return process.wait()
        except Interrupted as stopped:
            stop([process], stopped.signum)
            raise
        except BaseException:
            process.terminate()
            raise
