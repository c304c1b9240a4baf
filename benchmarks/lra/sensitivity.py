"""How much a grid's settings matter: best point, spread, and the mean by each value of each axis, as Markdown."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.runner import load_matrix
from zoo.training.build import make_task
from zoo.training.folder import read_recipe, read_result


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of a grid for one variant and task, over its seeds.

    Attributes:
      values: by key, as they were given.
      validation, test: of the selected parameters, one a seed, in the metric's own unit.
      missing: seeds without a result.
    """

    values: Mapping[str, str]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    missing: int = 0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The points of one variant on one task; see `sensitivity`."""

    name: str
    metric: str
    lower_is_better: bool
    points: tuple[Point, ...]


def sensitivity(out: Path) -> str:
    """The summary of a matrix with a grid; "" for one without.

    Points are compared on the validation split: a setting that is chosen by its test figure would flatter it.

    Raises:
      MatrixError: no matrix is there.
      RunError: a run is damaged.
    """
    held = load_matrix(out)
    axes = held["spec"]["grid"]
    if not axes:
        return ""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in held["cells"]:
        if all(any(text.startswith(f"{key}=") for text in cell["overrides"]) for key in axes):
            groups.setdefault(f"{cell['protocol']}/{cell['task']}, {cell['variant']}", []).append(cell)
    sweeps = [read_sweep(name, out, cells, axes) for name, cells in groups.items()]
    return "\n\n".join(to_markdown(sweep) for sweep in sweeps)


def read_sweep(name: str, out: Path, cells: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]]) -> Sweep:
    """The points of one variant on one task, from its finished runs."""
    found: dict[tuple[str, ...], list[dict[str, Any] | None]] = {}
    metric, lower = "accuracy", False
    for cell in cells:
        folder = out / cell["folder"]
        result = read_result(folder) if cell["state"] == "done" else None
        found.setdefault(tuple(_value(cell["overrides"], key) for key in axes), []).append(result)
        if result is not None:
            metric, lower = result["metric"], make_task(read_recipe(folder)).lower_is_better
    points = []
    for values, results in found.items():
        done = [result for result in results if result is not None]
        scores = {
            split: tuple(result[result["select"]][split][metric] for result in done) for split in ("validation", "test")
        }
        points.append(Point(dict(zip(axes, values, strict=True)), **scores, missing=len(results) - len(done)))
    return Sweep(name, metric, lower, tuple(points))


def _value(overrides: Sequence[str], key: str) -> str:
    """The last value that the overrides give a key: the grid's come after the others."""
    return [text.partition("=")[2] for text in overrides if text.startswith(f"{key}=")][-1]


def to_markdown(sweep: Sweep) -> str:
    """One sweep: every point, the best first, and the mean of each value over the others' values."""
    measured = [point for point in sweep.points if point.validation]
    lines = [f"### {sweep.name}", ""]
    if not measured:
        return "\n".join([*lines, "No run is finished."])
    ranked = sorted(measured, key=_mean, reverse=not sweep.lower_is_better)
    best, worst = ranked[0], ranked[-1]
    spread = abs(_mean(best) - _mean(worst))
    lines += [
        f"Best of {len(measured)} points on validation: {_setting(best)}, {sweep.metric} "
        f"{_shown(sweep, best.validation)} (test {_shown(sweep, best.test)}). Between the best and the worst point lie "
        f"{_number(sweep, spread)}"
        + (
            f", between all points' means a standard deviation of {_deviation(sweep, measured)}."
            if measured[1:]
            else "."
        ),
        "",
        "| " + " | ".join(best.values) + f" | validation {sweep.metric} | test | seeds |",
        "|" + "---|" * len(best.values) + "---:|---:|---:|",
    ]
    for point in ranked:
        scores = f"{_shown(sweep, point.validation)} | {_shown(sweep, point.test)}"
        lines.append(f"| {' | '.join(point.values.values())} | {scores} | {len(point.validation)} |")
    for key in best.values:
        lines += ["", _axis(sweep, measured, key)]
    unfinished = sum(point.missing for point in sweep.points)
    if unfinished:
        lines += [
            "",
            f"{unfinished} run{'s' * (unfinished > 1)} of this sweep ha{'ve' if unfinished > 1 else 's'} no result.",
        ]
    return "\n".join(lines)


def _axis(sweep: Sweep, points: Sequence[Point], key: str) -> str:
    """What one key does: the mean over all points of each of its values, and how far those are apart."""
    means = {}
    for value in dict.fromkeys(point.values[key] for point in points):
        means[value] = statistics.fmean(_mean(point) for point in points if point.values[key] == value)
    each = ", ".join(f"{value}: {_number(sweep, mean)}" for value, mean in means.items())
    apart = max(means.values()) - min(means.values())
    return f"`{key}`, mean over the rest: {each}; apart by {_number(sweep, apart)}."


def _mean(point: Point) -> float:
    return statistics.fmean(point.validation)


def _setting(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.values.items())


def _deviation(sweep: Sweep, points: Sequence[Point]) -> str:
    return _number(sweep, statistics.stdev(map(_mean, points)))


def _number(sweep: Sweep, value: float) -> str:
    return f"{100 * value:.2f} %" if sweep.metric == "accuracy" else f"{value:.4f}"


def _shown(sweep: Sweep, scores: Sequence[float]) -> str:
    spread = f" ± {_number(sweep, statistics.stdev(scores))}" if len(scores) > 1 else ""
    return _number(sweep, statistics.fmean(scores)) + spread
