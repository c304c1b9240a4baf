"""Tables, figures, cards and records as HTML. Whatever comes from a record is escaped here."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.lra.reporting.cards import Card
from benchmarks.lra.reporting.groups import Group
from benchmarks.lra.reporting.plots import Figure
from benchmarks.lra.reporting.records import Record
from benchmarks.lra.reporting.tables import Cell, Row, Table, shown

_STATUS = {
    "shipped": "as shipped",
    "overridden": "as shipped, with the overrides named here",
    "other": "not the recipe that is shipped now under that name",
    "unrecorded": "not recorded",
}


def table_html(table: Table) -> str:
    """A table that can be sorted and filtered, and read without a script."""
    kinds = list(dict.fromkeys(row.kind for row in table.rows))
    head = "".join(_header(title, index in table.numeric) for index, title in enumerate(table.columns))
    body = "".join(_row_html(row, table.numeric) for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = escape(table.title)
    return (
        f'<div class="table" id="{escape(table.key)}"><h3>{title}</h3>{_tools(table, kinds)}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>" + (f'<ul class="notes">{notes}</ul>' if notes else "") + "</div>"
    )


def _tools(table: Table, kinds: Sequence[str]) -> str:
    names = {"ours": "ours", "published": "published", "baseline": "without a model"}
    boxes = ""
    if len(kinds) > 1:
        boxes = "".join(
            f'<label><input type="checkbox" class="kind" value="{kind}" checked> {names[kind]}</label>'
            for kind in kinds
        )
    return (
        f'<div class="tools"><input type="search" class="filter" placeholder="Filter rows" aria-label="Filter rows of '
        f'{escape(table.title)}">{boxes}<span class="count" role="status"></span></div>'
    )


def _header(title: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    text = escape(title).replace(" of ", " of&nbsp;")
    return f'<th scope="col"{kind}><button type="button" class="sort">{text}</button></th>'


def _row_html(row: Row, numeric: frozenset[int]) -> str:
    cells = []
    for index, cell in enumerate(row.cells):
        badges = "".join(f' <span class="badge">{escape(text)}</span>' for text in row.badges) if index == 0 else ""
        value = "" if cell.value is None else f' data-value="{escape(str(cell.value))}"'
        title = f' title="{escape(cell.title)}"' if cell.title and not cell.link else ""
        kind = ' class="number"' if index in numeric else ""
        tag = 'th scope="row"' if index == 0 else "td"
        cells.append(f"<{tag}{kind}{value}{title}>{cell_html(cell)}{badges}</{tag.split()[0]}>")
    return f'<tr class="{row.kind}">{"".join(cells)}</tr>'


def cell_html(cell: Cell) -> str:
    """A cell's text, linked to where its number comes from."""
    text = escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.best else text
    title = f' title="{escape(cell.title)}"' if cell.title else ""
    return f'<a class="to-record" href="#{escape(cell.link)}"{title}>{text}</a>' if cell.link else text


def figure_html(figure: Figure) -> str:
    """A plot with its title and caption."""
    return (
        f'<figure id="{escape(figure.key)}"><h3>{escape(figure.title)}</h3>{figure.svg}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def card_html(card: Card) -> str:
    """A variant's card."""
    paper = escape(card.paper)
    if card.address:
        paper = f'<a href="{escape(card.address)}" rel="noreferrer">{paper}</a>'
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.facts)
    sizes = "".join(f"<tr><td>{escape(name)}</td><td>{escape(count)}</td></tr>" for name, count in card.sizes)
    results = "".join(f"<tr><td>{escape(name)}</td><td>{cell_html(cell)}</td></tr>" for name, cell in card.results)
    return (
        f'<article class="card" id="card-{escape(card.name)}"><h3>{escape(card.name)}</h3><p>{escape(card.title)}</p>'
        + (f"<p>{paper}</p>" if paper else "")
        + (f"<dl>{facts}</dl>" if facts else "")
        + (f'<p class="small">{escape(card.notes)}</p>' if card.notes else "")
        + (
            f"<details><summary>Parameters ({len(card.sizes)})</summary><table>{sizes}</table></details>"
            if sizes
            else ""
        )
        + (
            f"<details><summary>Results ({len(card.results)})</summary><table>{results}</table></details>"
            if results
            else ""
        )
        + "</article>"
    )


def records_html(groups: Iterable[Group]) -> str:
    """Everything that is known of each number: a panel a record, and one for the seeds that a mean is of."""
    parts = []
    for one in groups:
        if len(one.records) > 1:
            parts.append(_group_html(one))
        parts += [_record_html(record, one.status) for record in one.records]
    return "".join(parts)


def _group_html(one: Group) -> str:
    rows = "".join(
        f'<tr><td>seed {record.seed}</td><td><a class="to-record" href="#{record.key}">'
        f"{shown(record.metric, record.score())}</a></td></tr>"
        for record in one.records
    )
    first = one.first
    title = f"{first.recipe}, {first.variant}: {len(one.records)} seeds"
    spread = one.spread()
    return _panel(
        one.key,
        title,
        f"<p>{escape(first.metric)} on test: mean {shown(first.metric, one.mean())}, standard deviation "
        f"{'–' if spread is None else shown(first.metric, spread)}</p><table>{rows}</table>",
    )


def _record_html(record: Record, status: str) -> str:
    title = f"{record.recipe}, {record.variant}, seed {record.seed}: {shown(record.metric, record.score())}"
    scores = "".join(
        f"<tr><td>{which}, {split}</td><td>{_step(record, which)}</td><td>{_figures(record, which, split)}</td></tr>"
        for which in ("best", "last")
        for split in ("validation", "test")
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(record, status))
    cautions = "".join(f"<li>{escape(text)}</li>" for text in record.cautions())
    return _panel(
        record.key,
        title,
        (f'<ul class="cautions">{cautions}</ul>' if cautions else "")
        + f"<table><tr><th>parameters</th><th>update</th><th>metrics</th></tr>{scores}</table><dl>{facts}</dl>",
    )


def _step(record: Record, which: str) -> str:
    return escape(_written((record.values.get(which) or {}).get("step")))


def _figures(record: Record, which: str, split: str) -> str:
    held = (record.values.get(which) or {}).get(split) or {}
    return escape(", ".join(f"{name} {_written(value)}" for name, value in held.items()))


def _facts(record: Record, status: str) -> list[tuple[str, str]]:
    values, about = record.values, record.environment
    names = ("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = ", ".join(f"{name} {about[name]}" for name in names if name in about)
    changes = "not recorded" if record.overrides is None else ", ".join(record.overrides) or "none"
    baselines = values["baselines"].get("test") or {}
    found = [
        ("task", f"{record.task}, data {record.source}"),
        ("protocol", record.protocol or "none"),
        ("recipe", f"{record.recipe} ({_STATUS[status]})"),
        ("recipe hash", record.recipe_hash or "not recorded"),
        ("overrides", changes),
        ("data fingerprint", record.data),
        ("seed", str(record.seed)),
        ("selected", f"the {record.select} parameters"),
        ("commit", f"{about['commit']} (zoo {about['zoo']})"),
        ("versions", versions),
        ("device", record.device),
        ("mesh", f"{_written(values.get('mesh'))}, {_written(values.get('processes'))} process(es)"),
        ("date", about["date"]),
        (
            "parameters",
            f"{record.parameters:,}" + (f", {record.size_ratio:.2f} x softmax" if record.size_ratio else ""),
        ),
        ("updates", f"{record.steps:,}" + (", stopped early" if values.get("stopped_early") else "")),
        ("batch and length", f"{record.batch_size} x {record.max_len:,}"),
        ("updates a second", _written(values.get("steps_per_second"))),
        ("compile seconds", _written(values.get("compile_seconds"))),
        ("memory (bytes)", _written(values.get("memory"))),
        ("baselines on test", _written(baselines)),
        ("published, in the recipe", _written(values.get("published") or {})),
        ("digest", record.digest),
        ("file", record.origin),
    ]
    return [(name, text) for name, text in found if text]


def _written(value: Any) -> str:
    """A value of a record in words."""
    if isinstance(value, bool) or value is None:
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_written(each)}" for key, each in value.items()) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def source_html(key: str, origin: str, environment: Mapping[str, Any]) -> str:
    """The panel of a file of measurements."""
    facts = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(_written(value))}</dd>" for name, value in environment.items()
    )
    return _panel(key, f"Measurements of {origin}", f"<dl>{facts}</dl>")


def _panel(key: str, title: str, content: str) -> str:
    return f'<details class="record" id="{escape(key)}"><summary>{escape(title)}</summary>{content}</details>'
