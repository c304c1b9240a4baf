"""The forecasting section: our errors beside published ones, and forecasts beside the truth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.lra.reporting.charts import Axis, Line, curves
from benchmarks.lra.reporting.groups import Group
from benchmarks.lra.reporting.plots import Figure
from benchmarks.lra.reporting.records import is_number
from benchmarks.lra.reporting.tables import NO_CELL, Cell, Row, Table, mark_best, score_cell

MOST_FORECASTS = 12


def forecasting_table(groups: Sequence[Group]) -> Table:
    """One row a recipe and variant: MSE and MAE, the published ones, the difference, and naive forecasts."""
    names = ("Recipe", "Variant", "MSE", "MAE", "Published MSE", "Published MAE", "Ours less published, MSE",
             "Repeat last, MSE", "Repeat season, MSE", "Parameters", "Source")  # fmt: skip
    ordered = sorted(groups, key=lambda one: (_recipe(one), one.first.variant))
    rows = [_row(one) for one in ordered]
    for recipe in dict.fromkeys(map(_recipe, ordered)):
        where = [index for index, one in enumerate(ordered) if _recipe(one) == recipe]
        for column in (2, 3):
            marked = mark_best([rows[index].cells[column] for index in where], lower=True)
            for index, cell in zip(where, marked, strict=True):
                cells = list(rows[index].cells)
                cells[column] = cell
                rows[index] = Row(rows[index].kind, tuple(cells), rows[index].badges)
    notes = ["Mean ± standard deviation over seeds (number of seeds). Bold: best of ours by that recipe."]
    if any(one.status == "unrecorded" for one in groups):
        notes.append("† a record of before recipe hashes.")
    notes += sorted({f"{_recipe(one)}: {text}." for one in groups for each in one.records for text in each.cautions()})
    return Table(
        "board-forecasting", "Forecasting: test errors", names, tuple(rows), frozenset(range(2, 10)), tuple(notes)
    )


def _recipe(one: Group) -> str:
    """The recipe's name in which numbers sort as numbers."""
    name = one.first.recipe.removeprefix("forecasting/")
    head, _, horizon = name.rpartition("_")
    return f"{head}, {int(horizon):4d}" if horizon.isdecimal() else name


def _row(one: Group) -> Row:
    published = (one.first.values.get("published") or {}).get(one.first.variant)
    figures: Mapping[str, Any] = published if isinstance(published, Mapping) else {}
    source = str((one.first.values.get("published") or {}).get("source", "")) if figures else ""
    recipe, variant = _recipe(one), one.first.variant
    cells = [Cell(recipe.replace(",   ", ", ").replace(",  ", ", "), recipe), Cell(variant, variant)]
    for metric in ("mse", "mae"):
        known = all(metric in record.values[record.select]["test"] for record in one.records)
        cells.append(score_cell(one, metric) if known else NO_CELL)
    for metric in ("mse", "mae"):
        value: Any = figures.get(metric)
        cells.append(Cell(_as_printed(float(value)), float(value), title=source) if is_number(value) else NO_CELL)
    by = cells[2].value
    theirs: Any = figures.get("mse")
    if is_number(theirs) and isinstance(by, float):
        difference = by - float(theirs)
        cells.append(Cell(f"{difference:+.4f}", difference))
    else:
        cells.append(NO_CELL)
    naive = one.first.baselines.get("test") or {}
    for name in ("repeat_last", "repeat_season"):
        known = name in naive and one.first.metric == "mse"
        cells.append(Cell(f"{naive[name]:.4f}", float(naive[name]), one.first.key) if known else NO_CELL)
    cells += [Cell(f"{one.first.parameters:,}", one.first.parameters), Cell(source or "–", source)]
    return Row("ours", tuple(cells), (f"changed: {one.changes()}",) if one.changes() else ())


def _as_printed(value: float) -> str:
    """Three decimals, as such tables have them, or more where there are more."""
    return f"{value:.3f}" if round(value, 3) == value else f"{value:g}"


def forecast_plots(groups: Sequence[Group], color: Callable[[str], int]) -> list[Figure]:
    """A plot for each record that holds a forecast.

    A record's "forecast" is {"variate": name, "past": [...], "truth": [...], "forecast": [...]}, in the units of the
    series. Those of other forms are left out, and all beyond `MOST_FORECASTS`.
    """
    figures = []
    for one in groups:
        for record in one.records:
            held = record.values.get("forecast")
            if not isinstance(held, Mapping) or len(figures) == MOST_FORECASTS:
                continue
            past, truth, drawn = (held.get(name) for name in ("past", "truth", "forecast"))
            if not all(isinstance(some, list) and some and all(map(is_number, some)) for some in (past, truth, drawn)):
                continue
            assert past is not None
            assert truth is not None
            assert drawn is not None
            shift = len(past)
            lines = [
                Line("truth", tuple((float(i - shift), float(v)) for i, v in enumerate([*past, *truth])), -1),
                Line(
                    record.variant,
                    tuple((float(i), float(v)) for i, v in enumerate(drawn)),
                    color(record.variant),
                    record.key,
                ),
            ]
            variate = str(held.get("variate", "a variate"))
            svg = curves(
                lines,
                Axis("steps from the beginning of the forecast"),
                Axis(variate),
                name=f"forecast of {variate} by {record.variant}",
            )
            title = f"{_recipe(one)}: {record.variant}, seed {record.seed}"
            figures.append(Figure(f"forecast-{record.key}", title, svg, "One window of the test split."))
    return figures
