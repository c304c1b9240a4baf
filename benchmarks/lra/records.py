"""Records: a run's result with what it must be read with, small enough to be committed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lra.cells import recipe_hash
from benchmarks.lra.runner import load_matrix
from zoo.files import seal, unseal, write_json
from zoo.training.folder import RunError, read_recipe, read_result

RECORDS = Path(__file__).parent / "results" / "records"


class RecordError(ValueError):
    """A result is not to be kept, or a record is not what was written."""


def make_record(
    out: Path, cell: Mapping[str, Any], *, force: bool = False, data_dir: Path | None = None
) -> dict[str, Any]:
    """The record of a finished cell: its result, recipe hash, overrides, curve and id, sealed by a digest.

    That of a forecaster also has what it predicted of one window; see `benchmarks.lra.forecasts.example`.

    Args:
      out: the matrix's folder.
      cell: of matrix.json.
      force: also where the code was not that of a commit.
      data_dir: where data lives; None for the default.

    Raises:
      RecordError: the run is not finished, is damaged, or has another recipe than the matrix says; or its code was not
        that of a commit; or a forecast cannot be made again.
    """
    folder = out / cell["folder"]
    try:
        result, recipe = read_result(folder), read_recipe(folder)
    except RunError as error:
        raise RecordError(str(error)) from error
    if result is None:
        raise RecordError(f"{folder} is not finished.")
    found = recipe_hash(recipe)
    if found != cell["recipe_hash"]:
        raise RecordError(f"the recipe in {folder} has the hash {found}, and matrix.json says {cell['recipe_hash']}.")
    commit = result["environment"]["commit"]
    if not force and (commit is None or commit.endswith("+")):
        what = "an unknown state of the code" if commit is None else f"a changed checkout ({commit})"
        raise RecordError(f"it was made by {what}, so that nobody can make it again; --force keeps it all the same.")
    body = {name: value for name, value in result.items() if name != "digest"}
    added = {"recipe_hash": found, "overrides": list(cell["overrides"]), "curve": curve(folder, result["metric"])}
    if recipe.task.name.startswith("forecasting/"):
        from benchmarks.lra.forecasts import example

        try:
            added["forecast"] = example(folder, result["select"], data_dir=data_dir)
        except (ValueError, RuntimeError, OSError) as error:
            raise RecordError(f"what it forecasts cannot be computed: {error}") from error
    return seal({**body, **added, "id": cell["id"]})


def curve(folder: Path, metric: str) -> list[list[float]]:
    """[step, value] of each evaluation on the validation split, from a run's log."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(line) for line in lines]
    return [[line["step"], line[metric]] for line in parsed if line["split"] == "validation"]


def read_record(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
      RecordError: there is none, or it is not what was written.
    """
    try:
        return unseal(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is no whole record: {error}.") from error


def read_records(folder: Path = RECORDS) -> list[dict[str, Any]]:
    """All records of a folder, in order of their names.

    Raises:
      RecordError: one is not what was written.
    """
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def keep_records(
    out: Path, into: Path = RECORDS, *, force: bool = False, data_dir: Path | None = None
) -> tuple[list[Path], dict[str, str]]:
    """Writes the record of every finished cell of a matrix.

    Args:
      out: the matrix's folder.
      into: where the records go; one of the same name is replaced.
      force, data_dir: see `make_record`.

    Returns:
      The files, and by the id of a cell why it has none; cells that are not finished are not among those.

    Raises:
      MatrixError: no matrix is there.
    """
    kept, refused = [], {}
    for cell in load_matrix(out)["cells"]:
        if cell["state"] != "done":
            continue
        try:
            record = make_record(out, cell, force=force, data_dir=data_dir)
        except RecordError as error:
            refused[cell["id"]] = str(error)
            continue
        into.mkdir(parents=True, exist_ok=True)
        kept.append(into / f"{cell['id']}.json")
        write_json(kept[-1], record)
    return kept, refused
