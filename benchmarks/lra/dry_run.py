"""What a matrix would cost: parameters, memory and time of its cells, as far as they are known without running them."""

import dataclasses
import json
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

# What `benchmarks/lra/recipes.py` found of the shipped recipes.
PLANNED = RECORDS.parent / "recipes_cpu.json"


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
    cells: Sequence[Cell], out: Path, environment: Mapping[str, Any], *, workers: int = 1, compiles: bool = False
) -> str:
    """The cells with what they would cost, as aligned text.

    Args:
      cells: of the matrix.
      out: its folder.
      environment: of the device in question; see `benchmarks.lra.runner.device_facts`.
      workers: runs at a time.
      compiles: compile the update of what no result tells the memory of; seconds to minutes for each recipe.
    """
    results = [*read_records(RECORDS), *_own(cells, out)]
    shipped = _shipped()
    rows, total, unknown = [["cell", "state", "parameters", "memory", "time"]], 0.0, 0
    plans: dict[str, int | None] = {}
    for cell in cells:
        known = _known(cell, results, environment) if cell.recipe else Known()
        memory = known.step_bytes
        if memory is None and cell.recipe and cell.recipe.name.startswith("lra/") and not cell.overrides:
            memory = shipped.get((cell.protocol, cell.task, cell.variant))
        if memory is None and compiles and cell.recipe and cell.state != "failed":
            memory = _planned(cell.recipe, plans)
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
    said += ". Times are of updates, without evaluation and data; memory is what the compiler plans for one update"
    return "\n".join([*lines, said + ("." if compiles else ", where it is known (--memory compiles the others).")])


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


def _shipped() -> dict[tuple[str, str, str], int]:
    """Bytes of one update by protocol, task and variant, of the shipped recipes as they are."""
    rows = json.loads(PLANNED.read_text(encoding="utf-8"))["rows"] if PLANNED.exists() else []
    return {(row["protocol"], row["task"], row["variant"]): row["step_bytes"] for row in rows if "step_bytes" in row}


def _planned(recipe: Recipe, plans: dict[str, int | None]) -> int | None:
    """Bytes of one update by the compiler on this CPU; None where the task is none that random inputs are made for."""
    key = recipe_hash(_with_seed(recipe, 0))
    if key not in plans:
        info, config = make_task(recipe).info, recipe.train
        plans[key] = None
        if info.output == "label":
            plan = plan_step(recipe, random_batch(info, 1, info.max_len), length=info.max_len)
            plans[key] = plan(config.batch_size, config.accumulate, info.max_len)
    return plans[key]
