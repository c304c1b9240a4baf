"""Finds records, matrices, efficiency results and sizes in folders and files."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.reporting.records import Record, RecordError, make_record

_SKIPPED = ("checkpoints", "tensorboard", "cache", "profile", "recipes")


@dataclasses.dataclass
class Found:
    """What was read.

    Attributes:
      records: without duplicates, in the order of their names.
      efficiency: (origin, content) of each file of `benchmarks.lra.efficiency`.
      sizes: rows of {"protocol", "task", "variant", "parameters"} from `benchmarks.lra.recipes`.
      failures: (cell, reason) of the cells of a matrix that failed.
      waiting: number of cells of a matrix that are not finished.
      refused: (origin, reason) of what was not taken.
    """

    records: list[Record] = dataclasses.field(default_factory=list)
    efficiency: list[tuple[str, Mapping[str, Any]]] = dataclasses.field(default_factory=list)
    sizes: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    failures: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    waiting: int = 0
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def read(paths: Sequence[str | Path], *, allow_old: bool = False) -> Found:
    """Reads everything that a report may show.

    Args:
      paths: folders (of a matrix, of runs, of records) and JSON files: records, a comparison's compare.json, a
        matrix.json, results of `benchmarks.lra.efficiency` or `benchmarks.lra.recipes`.
      allow_old: take records without a recipe hash too.

    Raises:
      FileNotFoundError: one of the paths does not exist.
    """
    reader = _Reader(allow_old)
    for given in map(Path, paths):
        if not given.exists():
            raise FileNotFoundError(f"there is no {given}; give folders or JSON files with records.")
        root = given if given.is_dir() else given.parent
        for file in _json_files(given) if given.is_dir() else [given]:
            reader.take(file, root, named=not given.is_dir())
        if given.is_dir() and (given / "recipe.yaml").exists() and not (given / "result.json").exists():
            reader.found.refused.append((given.name, "the run is not finished: it has no result.json"))
    return reader.done()


def _json_files(folder: Path) -> Iterable[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        names = sorted(name for name in files if name.endswith(".json") and not name.startswith("."))
        if "matrix.json" in names:  # which names the runs below it
            names, folders[:] = ["matrix.json"], []
        yield from (Path(where, name) for name in names)


class _Reader:
    def __init__(self, allow_old: bool):
        self.found = Found()
        self._allow_old = allow_old

    def take(self, file: Path, root: Path, *, named: bool) -> None:
        """Reads one file; a file that is none of ours is refused only where it was asked for by name."""
        origin = file.relative_to(root).as_posix()
        values = self._json(file, origin)
        if values is None:
            return
        rows = values.get("rows")
        first = rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], Mapping) else {}
        if "cells" in values:
            self._matrix(file, values, origin)
        elif isinstance(values.get("results"), list):
            for number, result in enumerate(values["results"]):
                self._record(result, f"{origin}, result {number}", {}, None)
        elif "kind" in first:
            self.found.efficiency.append((origin, values))
        elif {"protocol", "task", "variant"} <= first.keys():
            self.found.sizes += [row for row in values["rows"] if isinstance(row.get("parameters"), int)]
        elif "digest" in values or "best" in values:
            self._run(file, values, origin)
        elif named:
            self.found.refused.append((origin, "it holds nothing that a report shows."))

    def _json(self, file: Path, origin: str) -> Any:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            json.dumps(values, ensure_ascii=False).encode()  # half a character can be read, and not be written
        except (OSError, ValueError, RecursionError) as error:
            self.found.refused.append((origin, f"it cannot be read as JSON: {error}."))
            return None
        if not isinstance(values, dict):
            return None
        return values

    def _matrix(self, file: Path, values: Mapping[str, Any], origin: str) -> None:
        for cell in values["cells"]:
            if not isinstance(cell, Mapping) or not isinstance(cell.get("folder"), str):
                self.found.refused.append((origin, f"a cell names no folder: {cell!r:.80}."))
                continue
            name, state = str(cell.get("id") or cell["folder"]), cell.get("state")
            result = file.parent / cell["folder"] / "result.json"
            if state == "failed":
                self.found.failures.append((name, str(cell.get("reason") or "no reason was kept")))
            elif state != "done":
                self.found.waiting += 1
            elif not result.is_file():
                self.found.refused.append((name, "the matrix calls it done, and it has no result.json."))
            else:
                held = self._json(result, name)
                extras = {key: cell[key] for key in ("id", "recipe_hash", "overrides") if cell.get(key) is not None}
                if held is not None:
                    self._run(result, held, name, extras)

    def _run(self, file: Path, values: Mapping[str, Any], origin: str, extras: Mapping[str, Any] | None = None) -> None:
        """A result or record with what lies beside it: the recipe, and the log or the epochs."""
        extras = dict(extras or {})
        recipe = file.parent / "recipe.yaml"
        if file.name == "result.json" and "recipe_hash" not in {**values, **extras} and recipe.is_file():
            try:
                extras["recipe_hash"] = _hash_of(recipe)
            except (RuntimeError, ValueError) as error:
                self.found.refused.append((origin, str(error)))
                return
        curve = None
        if "curve" not in values and isinstance(values.get("metric"), str):
            log = file.parent / "metrics.jsonl" if file.name == "result.json" else None
            epochs = file.with_name(f"{file.stem}-epochs.jsonl")
            curve = _curve(log if log and log.is_file() else epochs, values["metric"])
        self._record(values, origin, extras, curve)

    def _record(self, values: Any, origin: str, extras: Mapping[str, Any], curve: Any) -> None:
        try:
            whole = {**extras, **values} if isinstance(values, Mapping) else values
            self.found.records.append(make_record(whole, origin, curve, allow_old=self._allow_old))
        except RecordError as error:
            self.found.refused.append((origin, str(error)))

    def done(self) -> Found:
        """The result, each run once; of the same run the record that says most is kept."""
        best: dict[str, Record] = {}
        for record in self.found.records:
            held = best.get(record.run)
            if held is None or _said(record) > _said(held):
                best[record.run] = record
        self.found.records = sorted(
            best.values(), key=lambda one: (one.task, one.source, one.protocol, one.variant, one.seed, one.run)
        )
        return self.found


def _said(record: Record) -> tuple[bool, bool, bool]:
    return record.recipe_hash is not None, bool(record.curve), record.overrides is not None


def _hash_of(recipe: Path) -> str:
    from benchmarks.lra.cells import recipe_hash
    from zoo.training.folder import read_recipe

    return recipe_hash(read_recipe(recipe.parent))


def _curve(log: Path, metric: str) -> list[tuple[Any, Any]] | None:
    """Validation's values in metrics.jsonl, or in a file that has nothing else; a last line cut short is left out."""
    if not log.is_file():
        return None
    points = []
    for text in log.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if isinstance(line, dict) and line.get("split", "validation") == "validation" and metric in line:
            points.append((line.get("step"), line[metric]))
    return points
