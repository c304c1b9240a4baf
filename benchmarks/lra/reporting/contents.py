"""What a report says, section by section, before it is drawn as a page or as text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.lra.published import load_published, load_sources
from benchmarks.lra.reporting.cards import Card, make_cards
from benchmarks.lra.reporting.efficiency import check_efficiency, efficiency_table
from benchmarks.lra.reporting.forecasting import forecast_plots, forecasting_table
from benchmarks.lra.reporting.groups import FAMILIES, Group, Section, group, slug
from benchmarks.lra.reporting.plots import Figure, accuracy_against_speed, learning_curves, scaling
from benchmarks.lra.reporting.reading import Found
from benchmarks.lra.reporting.records import RecordError
from benchmarks.lra.reporting.tables import Cell, Row, Table, leaderboard, shown
from zoo import registry

TITLE = "Long Range Arena suite: results"


@dataclasses.dataclass(frozen=True)
class Part:
    """A section of the report: tables and figures are shown at once, folded figures on demand."""

    key: str
    title: str
    note: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: tuple[Figure, ...] = ()
    figures_first: bool = False


@dataclasses.dataclass(frozen=True)
class Contents:
    """A report.

    Attributes:
      summary: what it is of, in a few sentences.
      parts: sections in order.
      cards: of the variants.
      groups: results, for their panels.
      sources: (key, file, environment) of measurements, for theirs.
      left_out: (what, why).
    """

    summary: str
    parts: tuple[Part, ...]
    cards: tuple[Card, ...]
    groups: tuple[Group, ...]
    sources: tuple[tuple[str, str, Mapping[str, Any]], ...]
    left_out: tuple[tuple[str, str], ...]


def make_contents(found: Found) -> Contents:
    """Sorts what was read into sections.

    Raises:
      RecordError: two different results of one recipe, variant and seed.
    """
    grouped = group(found.records)
    color = _colors({record.variant for record in found.records})
    parts = [_part(section, groups, color) for section, groups in grouped.items()]
    measured, sources, refused = _measured(found, color)
    parts += [measured] if measured else []
    everything = tuple(one for groups in grouped.values() for one in groups)
    if everything:
        parts.append(
            Part("records", "Records", "One row a run; a number opens all that is kept of it.", (_records(everything),))
        )
    left_out = [*found.refused, *refused, *((name, f"the cell failed: {why}") for name, why in found.failures)]
    if found.waiting:
        left_out.append(("cells of a matrix", f"{found.waiting} are not finished"))
    also = {row["variant"] for part in [measured] if part for row in _rows_of(found)}
    cards = tuple(make_cards(grouped, found.sizes, also))
    return Contents(_summary(found), tuple(parts), cards, everything, tuple(sources), tuple(left_out))


def _colors(variants: set[str]) -> Callable[[str], int]:
    """A colour by registered name, the same in every report; those of other packages follow in their order."""
    known = [spec.name for kind in ("mixer", "model") for spec in registry.list_specs(kind=kind)]
    names = [*known, *sorted(variants - set(known))]
    places = {name: index for index, name in enumerate(names)}
    return lambda variant: places.get(variant, len(names))


def _part(section: Section, groups: Sequence[Group], color: Callable[[str], int]) -> Part:
    curves = tuple(learning_curves(section, groups, color))
    if section.key == "forecasting":
        figures = tuple(forecast_plots(groups, color))
        return Part(section.key, section.title, section.note, (forecasting_table(groups),), figures, curves)
    published = []
    if section.protocol:
        sources = load_sources()
        rows = [row for row in load_published() if row.family == FAMILIES[section.protocol]]
        published = [dataclasses.replace(row, source=sources[row.source]) for row in rows]
    speed = tuple(accuracy_against_speed(section, groups, color))
    board = leaderboard(section, groups, published)
    return Part(section.key, section.title, section.note, (board,), speed + curves)


def _measured(found: Found, color: Callable[[str], int]):
    """The section of time and memory against length, the panels of its files, and files that are not whole."""
    tables, figures, sources, refused = [], [], [], []
    for number, (origin, content) in enumerate(found.efficiency):
        key = f"m-{number}-{slug(origin)}"
        try:
            rows = check_efficiency(content)
        except RecordError as error:
            refused.append((origin, str(error)))
            continue
        about = content["environment"]
        text = f"On {about['device']} ({about['processor']})."
        figures += scaling(number, rows, color, text, key)
        tables.append(efficiency_table(number, rows, key))
        sources.append((key, origin, about))
    if not sources:
        return None, sources, refused
    note = "Measured apart from training, variants in turn within one run; compare within one run only."
    return (
        Part("efficiency", "Time and memory by length", note, tuple(tables), tuple(figures), (), True),
        sources,
        refused,
    )


def _rows_of(found: Found) -> list[Mapping[str, Any]]:
    return [
        row
        for _, content in found.efficiency
        for row in content["rows"]
        if isinstance(row, Mapping) and "variant" in row
    ]


def _records(groups: Sequence[Group]) -> Table:
    columns = ("Run", "Seed", "Test", "Validation", "Updates", "Recipe hash", "Commit", "Device", "Date", "File")
    rows = []
    for one in groups:
        for record in one.records:
            test, validation = record.score(), record.score("validation")
            name = f"{record.recipe}, {record.variant}"
            cells = [Cell(name, name), Cell(str(record.seed), record.seed)]
            cells += [Cell(f"{record.metric} {shown(record.metric, test)}", test, record.key)]
            cells += [Cell(shown(record.metric, validation), validation, record.key)]
            cells += [Cell(f"{record.steps:,}", record.steps)]
            about = record.environment
            texts = (record.recipe_hash or "not recorded", about["commit"], record.device, about["date"], record.origin)
            cells += [Cell(text, text) for text in texts]
            rows.append(Row("ours", tuple(cells)))
    return Table("records-table", "All runs", columns, tuple(rows), frozenset((1, 2, 3, 4)))


def _summary(found: Found) -> str:
    if not found.records:
        return "No results."
    records = found.records
    variants, data = {record.variant for record in records}, {(record.task, record.source) for record in records}
    dates = sorted(record.environment["date"][:10] for record in records)
    devices = sorted({record.device for record in records})
    commits = sorted({record.environment["commit"] for record in records})
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    code = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"
    return (
        f"{len(records)} runs of {len(variants)} variants on {len(data)} data sets, {span}, {code}, on "
        f"{'; '.join(devices)}. Every number leads to its record. Compare within a section only."
    )
