"""Tables as data, drawn as HTML and as Markdown, and the leaderboards."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.lra.averages import TASKS, mean_of_five, mean_of_six
from benchmarks.lra.published import Row as Published
from benchmarks.lra.reporting.groups import Group, Section, short_task
from benchmarks.lra.reporting.records import lower_is_better

TITLES = {
    "listops": "ListOps",
    "text": "Text",
    "retrieval": "Retrieval",
    "image": "Image",
    "pathfinder": "Pathfinder",
    "pathx": "Path-X",
}
EMPTY = "–"
MOST = 1.1
"""LRA's rule of size: parameters by those of softmax, beyond which a variant is not to be ranked."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
      text: what is shown.
      value: what it is sorted by; None sorts last.
      link: key of the record or group that a number comes from.
      title: a longer word on it.
      best: the best of its column among our own.
    """

    text: str
    value: float | str | None = None
    link: str = ""
    title: str = ""
    best: bool = False


NO_CELL = Cell(EMPTY)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: `kind` is "ours", "published" or "baseline", `badges` are short words beside its name."""

    kind: str
    cells: tuple[Cell, ...]
    badges: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `numeric` names the columns that are numbers, by index."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    numeric: frozenset[int]
    notes: tuple[str, ...] = ()


def shown(metric: str, value: float) -> str:
    """A score as tables show it: shares in percent, errors and costs as they are."""
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.4f}"


def score_cell(one: Group, metric: str | None = None) -> Cell:
    """Mean, spread and number of seeds of a group, linked to its records."""
    name = one.first.metric if metric is None else metric
    mean, spread, count = one.mean(name), one.spread(name), len(one.records)
    text = shown(name, mean) + ("" if spread is None else f" ± {shown(name, spread)}")
    seeds = "one seed" if count == 1 else f"{count} seeds"
    marks = "†" if one.status == "unrecorded" else ""
    title = f"{one.first.variant}, {one.first.task}: {seeds}, {one.first.select} parameters"
    return Cell(text + marks + ("" if count == 1 else f" ({count})"), mean, one.key, title)


def mark_best(cells: Sequence[Cell], lower: bool) -> list[Cell]:
    """The cells, the best value marked where there are two to choose from."""
    values = [cell.value for cell in cells if isinstance(cell.value, int | float)]
    if len(values) < 2:
        return list(cells)
    best = min(values) if lower else max(values)
    return [dataclasses.replace(cell, best=cell.value == best) for cell in cells]


def leaderboard(section: Section, groups: Sequence[Group], published: Iterable[Published] = ()) -> Table:
    """Variants by tasks: mean and spread over seeds, the data's baselines, and published rows of the same family.

    Args:
      section: any but forecasting.
      groups: of that section.
      published: rows of one family, for LRA's sections.
    """
    columns = _columns(groups)
    of_lra = section.protocol is not None
    metrics = {column: next(one.first.metric for one in groups if _column(one) == column) for column in columns}
    rows = [_our_row(name, badges, held, columns, of_lra) for name, badges, held in _rows(groups)]
    for index, column in enumerate(columns, start=1):
        marked = mark_best([row.cells[index] for row in rows], lower_is_better(metrics[column]))
        rows = [_with_cell(row, index, cell) for row, cell in zip(rows, marked, strict=True)]
    rows += [_published_row(row, columns) for row in published] if of_lra else []
    rows += _baseline_rows(groups, columns, of_lra)
    titles = [_column_title(column, columns, metrics[column]) for column in columns]
    titles += ["Mean of 5", "Mean of 6"] if of_lra else []
    names = ("Variant", *titles, "Parameters", "Source")
    return Table(
        f"board-{section.key}",
        f"{section.title}: test results",
        names,
        tuple(rows),
        frozenset(range(1, len(names) - 1)),
        _notes(groups, of_lra),
    )


def _column(one: Group) -> tuple[str, str, str]:
    return one.first.task, one.first.source, one.first.data


def _columns(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    order = {task: index for index, task in enumerate(TASKS)}
    return sorted({_column(one) for one in groups}, key=lambda key: (order.get(key[0].partition("/")[2], 9), *key))


def _column_title(column: tuple[str, str, str], columns: Sequence[tuple[str, str, str]], metric: str) -> str:
    task, source, data = column
    name = task.partition("/")[2] or task
    title = TITLES.get(name, name) if task.startswith("lra/") else task
    if sum(other[0] == task for other in columns) > 1:
        title += f", {source}"
    if sum(other[:2] == column[:2] for other in columns) > 1:
        title += f", data {data[:6]}"
    if task.startswith("lra/"):
        return title
    return f"{title} (%)" if metric == "accuracy" else f"{title} ({metric})"


def _rows(groups: Sequence[Group]) -> list[tuple[str, tuple[str, ...], dict[tuple, Group]]]:
    """Groups of a variant with the same changes share a row, as long as no two want the same cell."""
    rows: list[tuple[str, tuple[str, ...], dict[tuple, Group]]] = []
    for one in sorted(groups, key=lambda one: (one.first.variant, one.changes())):
        badges = (f"changed: {one.changes()}",) if one.changes() else ()
        for name, held_badges, held in rows:
            if (name, held_badges) == (one.first.variant, badges) and _column(one) not in held:
                held[_column(one)] = one
                break
        else:
            rows.append((one.first.variant, badges, {_column(one): one}))
    return rows


def _our_row(
    name: str, badges: tuple[str, ...], held: Mapping[tuple, Group], columns: Sequence[tuple], of_lra: bool
) -> Row:
    cells = [Cell(name, name)] + [score_cell(held[column]) if column in held else NO_CELL for column in columns]
    tasks = [short_task(one.first) for one in held.values()]
    if of_lra:
        accuracies = {short_task(one.first): 100 * one.mean() for one in held.values()}
        whole = len(tasks) == len(set(tasks))  # else it is not told which of two is meant
        cells += [_mean_cell(mean(accuracies) if whole else None) for mean in (mean_of_five, mean_of_six)]
    counts = sorted({one.first.parameters for one in held.values()})
    text = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    large = tuple(
        f"{short_task(one.first)}: {one.first.size_ratio:.2f} x softmax's size"
        for one in held.values()
        if (one.first.size_ratio or 0) > MOST
    )
    return Row(
        "ours", (*cells, Cell(text, counts[0], next(iter(held.values())).key), Cell("this project", "")), badges + large
    )


def _mean_cell(value: float | None) -> Cell:
    return NO_CELL if value is None else Cell(f"{value:.2f}", value, title="of the cells of this row")


def _published_row(row: Published, columns: Sequence[tuple[str, str, str]]) -> Row:
    cells = [Cell(row.model, row.model, title=f"here: {row.variant}" if row.variant else "")]
    for task, _, _ in columns:
        value = row.accuracies.get(task.partition("/")[2])
        cells.append(
            NO_CELL
            if value is None
            else Cell("fail", None)
            if value == "fail"
            else Cell(f"{value:.2f}", float(value) / 100)
        )
    cells += [_mean_cell(row.mean_of_five), _mean_cell(row.mean_of_six)]
    read = row.source if row.read == "primary" else f"{row.source}, as a later paper quotes it"
    return Row("published", (*cells, NO_CELL, Cell(read, read, title=row.note or "")), ("published",))


def _baseline_rows(groups: Sequence[Group], columns: Sequence[tuple], of_lra: bool) -> list[Row]:
    found: dict[str, dict[tuple, float]] = {}
    for one in groups:
        for name, value in (one.first.baselines.get("test") or {}).items():
            found.setdefault(str(name), {})[_column(one)] = float(value)
    rows = []
    for name, held in sorted(found.items()):
        metrics = {_column(one): one.first.metric for one in groups}
        links = {_column(one): one.first.key for one in groups if name in (one.first.baselines.get("test") or {})}
        cells = [Cell(name.replace("_", " "), name)]
        cells += [
            Cell(shown(metrics[column], held[column]), held[column], links[column]) if column in held else NO_CELL
            for column in columns
        ]
        cells += [NO_CELL, NO_CELL] if of_lra else []
        rows.append(Row("baseline", (*cells, NO_CELL, Cell("computed from the data in use", "")), ("no model",)))
    return rows


def _with_cell(row: Row, index: int, cell: Cell) -> Row:
    return dataclasses.replace(row, cells=(*row.cells[:index], cell, *row.cells[index + 1 :]))


def _notes(groups: Sequence[Group], of_lra: bool) -> tuple[str, ...]:
    notes = ["Mean ± standard deviation over seeds (number of seeds); without ± it is one seed. Bold: best of ours."]
    if any(one.first.task.startswith("lra/") for one in groups):
        notes.insert(0, "LRA's tasks: accuracy in percent.")
    if of_lra:
        notes.append(
            "Mean of 5 leaves Path-X out, mean of 6 counts a fail there as 50; neither is given where a task is "
            "missing, nor where a task was run on two data sets."
        )
    if any(one.changes() for one in groups):
        notes.append(
            "changed: with overrides of the shipped recipe, or by another recipe than is now shipped under its name."
        )
    if any(one.status == "unrecorded" for one in groups):
        notes.append("† a record of before recipe hashes.")
    notes += sorted(
        {f"{one.first.task}: {text}." for one in groups for each in one.records for text in each.cautions()}
    )
    return tuple(notes)
