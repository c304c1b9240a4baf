"""The report's plots, from groups of records and from efficiency results."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.lra.reporting.charts import Axis, Line, Mark, Rule, curves, scatter
from benchmarks.lra.reporting.groups import Group, Section
from benchmarks.lra.reporting.tables import TITLES, shown

MOST_POINTS = 240
_STAR = " * changed, see the table."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn plot with its title and what is to be said below it; `key` is for links."""

    key: str
    title: str
    svg: str
    caption: str


def data_name(one: Group) -> str:
    """A task and its data in words."""
    task = one.first.task
    name = TITLES.get(task.partition("/")[2], task) if task.startswith("lra/") else task
    return f"{name} ({one.first.source})"


def accuracy_against_speed(section: Section, groups: Sequence[Group], color: Callable[[str], int]) -> list[Figure]:
    """For each data set and device a plot of score against updates a second, memory as the marks' area.

    Only variants on one device at one batch and length stand in one plot; those without speed or memory stay out.
    """
    split: dict[tuple, list[Group]] = {}
    for one in groups:
        if one.steps_per_second is not None and one.memory is not None:
            first = one.first
            key = (first.task, first.source, first.data, first.batch_size, first.max_len, first.device, one.memory[1])
            split.setdefault((*key, first.metric), []).append(one)
    figures = []
    for number, mine in enumerate(split.values()):
        if len(mine) < 2:
            continue
        first = mine[0].first
        share = first.metric == "accuracy"
        scale = 100 if share else 1
        title = f"test {first.metric}{' (%)' if share else ''}"
        marks = [_mark(one, scale, color) for one in mine]
        baselines = {
            name.replace("_", " "): scale * value for name, value in (first.baselines.get("test") or {}).items()
        }
        rules = [Rule(name, value) for name, value in baselines.items()]
        svg = scatter(
            marks,
            Axis("training updates a second", log=True),
            Axis(title),
            f"memory, {(mine[0].memory or (0, ''))[1]}",
            _bytes,
            name=f"{title} against speed on {data_name(mine[0])}",
            rules=rules,
        )
        caption = (
            f"{first.batch_size} x {first.max_len:,} tokens or values an update, on {first.device}. To the right is "
            f"faster, {'up' if share else 'down'} is better; whiskers are the standard deviation over seeds."
        )
        if baselines:
            caption += f" Dashed, where in range: {', '.join(baselines)}."
        caption += _STAR if any(one.changes() for one in mine) else ""
        figures.append(Figure(f"speed-{section.key}-{number}", f"{data_name(mine[0])}: score and cost", svg, caption))
    return figures


def _mark(one: Group, scale: float, color: Callable[[str], int]) -> Mark:
    assert one.steps_per_second is not None
    assert one.memory is not None
    mean, spread = one.mean(), one.spread()
    name = one.first.variant + ("*" if one.changes() else "")
    title = (
        f"{name}: {shown(one.first.metric, mean)} at {one.steps_per_second:.3g} updates a second, "
        f"{_bytes(one.memory[0])}" + (f"; changed: {one.changes()}" if one.changes() else "")
    )
    low, high = (None, None) if spread is None else (scale * (mean - spread), scale * (mean + spread))
    return Mark(
        name, one.steps_per_second, scale * mean, one.memory[0], color(one.first.variant), one.key, title, low, high
    )


def learning_curves(section: Section, groups: Sequence[Group], color: Callable[[str], int]) -> list[Figure]:
    """For each data set the metric on validation against updates, a line a seed."""
    split: dict[tuple, list[Group]] = {}
    for one in groups:
        if any(len(record.curve) > 1 for record in one.records):
            where = one.first.recipe if one.first.task.startswith("forecasting/") else one.first.data
            split.setdefault((one.first.task, one.first.source, where, one.first.metric), []).append(one)
    figures = []
    for number, (key, mine) in enumerate(split.items()):
        share = key[3] == "accuracy"
        lines = [
            Line(
                one.first.variant + ("*" if one.changes() else ""),
                tuple((step, 100 * value if share else value) for step, value in _thinned(record.curve)),
                color(one.first.variant),
                one.key,
                f"{one.first.variant}, seeds {', '.join(str(each.seed) for each in one.records)}",
            )
            for one in mine
            for record in one.records
            if len(record.curve) > 1
        ]
        name = data_name(mine[0])
        if key[0].startswith("forecasting/"):
            name = f"{mine[0].first.source}, {key[2].rpartition('/')[2]}"
        title = f"validation {key[3]}{' (%)' if share else ''}"
        svg = curves(lines, Axis("updates", write=_count), Axis(title), name=f"{title} on {name}")
        caption = "A line is a seed; the name stands at the mean of their last values."
        caption += _STAR if any(one.changes() for one in mine) else ""
        figures.append(Figure(f"curves-{section.key}-{number}", name, svg, caption))
    return figures


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `MOST_POINTS` of them, evenly, the last one included."""
    step = -(-len(points) // MOST_POINTS)
    return [*points[:-1:step], points[-1]]


KINDS = {"train": "a training update", "infer": "a forward pass", "decode": "decoding a token"}


def scaling(
    number: int, rows: Iterable[Mapping[str, Any]], color: Callable[[str], int], about: str, link: str
) -> list[Figure]:
    """Time and memory against length on logarithmic axes, for each kind of work in an efficiency result.

    Args:
      number: of the file, for links.
      rows: checked ones, see `benchmarks.lra.reporting.efficiency`.
      color: of a variant.
      about: the device in words.
      link: key of the file's record.
    """
    figures = []
    rows = list(rows)
    for kind, what in KINDS.items():
        mine = [row for row in rows if row["kind"] == kind and row.get("seconds")]
        for name, axis, value, write in (
            (
                "time",
                f"time {'a token' if kind == 'decode' else 'a sequence'}",
                lambda row: row["seconds"] / row["batch_size"],
                _seconds,
            ),
            ("memory", "memory planned", lambda row: row.get("step_bytes"), _bytes),
        ):
            points: dict[str, list[tuple[float, float]]] = {}
            for row in sorted(mine, key=lambda row: row["length"]):
                if value(row):
                    points.setdefault(row["variant"], []).append((float(row["length"]), float(value(row))))
            if not any(len(some) > 1 for some in points.values()):
                continue
            lines = [
                Line(variant, tuple(some), color(variant), link, f"{variant}, {what}: {name} by length")
                for variant, some in sorted(points.items())
            ]
            title = f"{name.capitalize()} of {what}"
            svg = curves(
                lines,
                Axis("length", log=True, write=_count, ticks=tuple(sorted({float(row["length"]) for row in mine}))),
                Axis(axis, log=True, write=write),
                name=f"{title} against length",
            )
            caption = f"Both axes are logarithmic. {about}"
            figures.append(Figure(f"scaling-{number}-{kind}-{name}", title, svg, caption))
    return figures


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.1g} s"


def _count(value: float) -> str:
    return f"{value:,.0f}"
