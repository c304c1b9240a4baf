"""What a matrix would cost: parameters, memory and time of its cells, as far as they are known without running them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.cells import Cell, recipe_hash
from benchmarks.lra.recipes import random_batch
from benchmarks.lra.records import RECORDS, read_records
from zoo.training.build import make_task
from zoo.training.console import duration_text
from zoo.training.folder import RunError, read_result
from zoo.training.memory import amount, plan_step
from zoo.training.recipe import Recipe

# What an update may take in for its plan to be compiled unasked: that takes seconds.
CHEAP_TOKENS = 4096


@dataclasses.dataclass(frozen=True)
class Known:
    """What results of the same recipe tell of a cell, whatever their seed.

    Attributes:
      seconds: of the updates and of compiling them, on the same device; None where no result is from there.
      step_bytes: what the compiler planned there; None likewise.
    """

    seconds: float | None = None
    step_bytes: int | None = None


def table(
    cells: Sequence[Cell], out: Path, environment: Mapping[str, Any], *, workers: int = 1, records: Path = RECORDS
) -> str:
    """The cells with what they would cost, as aligned text.

    Args:
      cells: of the matrix.
      out: its folder.
      environment: of the device in question; see `benchmarks.lra.runner.device_facts`.
      workers: runs at a time.
      records: folder of records, which are asked besides the matrix's own results.
    """
    results = [*read_records(records), *_own(cells, out)]
    rows, total, unknown = [["cell", "state", "parameters", "memory", "time"]], 0.0, 0
    plans: dict[str, int | None] = {}
    for cell in cells:
        known = _known(cell, results, environment) if cell.recipe else Known()
        memory = known.step_bytes or _planned(cell, plans)
        rows.append(
            [
                cell.id,
                cell.state,
                "-" if cell.parameters is None else f"{cell.parameters:,}",
                "-" if memory is None else amount(memory),
                "-" if known.seconds is None else duration_text(known.seconds),
            ]
        )
        if cell.state == "waiting":
            total, unknown = total + (known.seconds or 0.0), unknown + (known.seconds is None)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    waiting = sum(cell.state == "waiting" for cell in cells)
    said = f"{len(cells)} cells, {waiting} to run"
    if waiting > unknown:
        said += f", {duration_text(total / workers)} for {waiting - unknown} of them on {environment['device']}"
    lines += [f"{cell.id}: {cell.reason}" for cell in cells if cell.state == "failed"]
    return "\n".join([*lines, f"{said}. Times are of updates, without evaluation and data."])


def _own(cells: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """Results of the matrix itself, with their recipes' hashes."""
    found = []
    for cell in cells:
        try:
            result = read_result(out / cell.folder) if cell.state == "done" else None
        except RunError:
            continue
        if result is not None:
            found.append({**result, "recipe_hash": cell.recipe_hash})
    return found


def _known(cell: Cell, results: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> Known:
    assert cell.recipe is not None
    same = ("device", "processor") if environment["platform"] == "cpu" else ("device",)
    seconds = step_bytes = None
    hashes = {}
    for result in results:
        if any(result["environment"].get(name) != environment[name] for name in same):
            continue
        seed = result["seed"]
        hashes[seed] = hashes.get(seed) or recipe_hash(_with_seed(cell.recipe, seed))
        if result["recipe_hash"] == hashes[seed] and result["steps_per_second"]:
            seconds = result["steps"] / result["steps_per_second"] + result["compile_seconds"]
            step_bytes = result["memory"]["step"]
    return Known(seconds, step_bytes)


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))


def _planned(cell: Cell, plans: dict[str, int | None]) -> int | None:
    """Bytes of one update by the compiler on this CPU; None where compiling it would take long, or cannot be."""
    if cell.recipe is None or cell.state == "failed":
        return None
    key = recipe_hash(_with_seed(cell.recipe, 0))
    if key not in plans:
        plans[key] = _compile(cell.recipe)
    return plans[key]


def _compile(recipe: Recipe) -> int | None:
    info, config = make_task(recipe).info, recipe.train
    if info.output != "label" or config.batch_size * info.max_len > CHEAP_TOKENS:
        return None
    plan = plan_step(recipe, random_batch(info, 1, info.max_len), length=info.max_len)
    return plan(config.batch_size, config.accumulate, info.max_len)
