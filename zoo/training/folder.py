"""What a run directory holds besides checkpoints and the log: the recipe, the result, and a lock while a run writes.

Files are written whole or not at all and carry a checksum, so that one that is cut short or changed later is never
taken for what was written.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from zoo.files import lock_file, remove_partial, seal, unseal, write_json, write_text
from zoo.training.recipe import Recipe, load_recipe

_SEAL = "# sha256 of the lines above: "
# They decide nothing of the result.
_UNCOUNTED = ("workers", "tensorboard", "wandb", "sharding")


class RunError(RuntimeError):
    """A run directory is taken, missing or not what it should be."""


@contextlib.contextmanager
def hold(folder: Path, option: str = "--run-dir") -> Iterator[None]:
    """Keeps every other process from writing a run directory, which is made if missing.

    The system lets go of it when the process ends, however it ends.

    Args:
      folder: the directory.
      option: the argument of the command line that chose it, for messages.

    Raises:
      RunError: another process writes there, or the directory cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+b")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}. Choose another {option}.") from error
    with file:
        if not lock_file(file, wait=False):
            holder = _holder(file)
            raise RunError(f"{folder} is being written by {holder}. Wait for it, stop it, or choose another {option}.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        remove_partial(folder)
        yield


def held_by(folder: Path) -> str | None:
    """Which process writes a directory now, as `hold` has it ("process 12 on HOST"); None where none does."""
    try:
        file = open(folder / ".lock", "r+b")  # noqa: SIM115
    except OSError:
        return None
    with file:
        return None if lock_file(file, wait=False) else _holder(file)


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(200).decode(errors="replace").strip() or "another process"


def require_room(folder: Path, needed: int) -> None:
    """Raises RunError where a directory's disk has less free space than that many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder} has {free / 1e6:,.1f} MB of free space, and the checkpoints need {needed / 1e6:,.1f} MB. "
            "Free some, or choose another --run-dir."
        )


def has_begun(folder: Path) -> bool:
    """Whether a run of any recipe has written something that is worth keeping."""
    return (folder / "metrics.jsonl").exists() or any((folder / "checkpoints").glob("*/[0-9]*"))


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes recipe.yaml: the resolved recipe, which is itself a recipe, and its checksum as a comment."""
    text = recipe.to_yaml()
    write_text(folder / "recipe.yaml", f"{text}{_SEAL}{_sha256(text)}\n")


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run directory.

    Raises:
      RunError: there is none, or it is not what was written.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RunError(f"{folder} is not a run directory: it has no recipe.yaml.")
    text, seal_text, digest = path.read_text(encoding="utf-8", errors="replace").partition(_SEAL)
    if not seal_text or digest.strip() != _sha256(text):
        why = "its checksum does not fit" if seal_text else "its end is missing"
        raise RunError(
            f"{path} is damaged or was changed: {why}. Put the recipe that the run began with there, or delete the "
            "file and run the same command: the checkpoints hold the recipe too."
        )
    return load_recipe(path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_same(recipe: Recipe, held: dict[str, Any], where: Path) -> None:
    """Raises RunError where a recipe (as nested values) that a run was begun with decides another result than ours."""
    ours, theirs = recipe.to_dict(), {**held, "train": dict(held["train"])}
    for values in (ours, theirs):
        for ignored in ("name", "published"):
            values.pop(ignored, None)
        for ignored in _UNCOUNTED:
            values["train"].pop(ignored, None)
    # As JSON, in which lists and tuples are the same.
    ours, theirs = json.loads(json.dumps(ours)), json.loads(json.dumps(theirs))
    if ours != theirs:
        differing = ", ".join(sorted(_differences(theirs, ours)))
        raise RunError(f"{where} holds a run of another recipe; these differ: {differing}. Choose another --run-dir.")


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys()
        return [text for key in keys for text in _differences(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [f"{prefix.rstrip('.')} ({old!r} there, {new!r} here)"]


def write_result(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Writes result.json and returns what it holds: the result and its digest."""
    sealed = seal(result)
    write_json(folder / "result.json", sealed)
    return sealed


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """The result of a finished run, or None.

    Raises:
      RunError: the file is not what was written.
    """
    path = Path(folder) / "result.json"
    if not path.is_file():
        return None
    try:
        return unseal(path.read_bytes())
    except ValueError as error:
        raise RunError(
            f"{path} is damaged or was changed: {error}. Delete the file; the same command makes it again from the "
            "last checkpoint."
        ) from error


def default_run_dir(recipe: Recipe) -> Path:
    """runs/RECIPE/VARIANT-sSEED, below the working directory."""
    return Path("runs", recipe_path(recipe.name), f"{Path(recipe.variant).stem}-s{recipe.train.seed}")


def recipe_path(name: str) -> Path:
    """A recipe's name as a folder below runs/: that of a file elsewhere is the file's name alone."""
    path = Path(name or "recipe")
    path = path.with_suffix("") if re.fullmatch(r"\.ya?ml", path.suffix) else path
    return Path(path.name) if path.is_absolute() or ".." in path.parts else path
