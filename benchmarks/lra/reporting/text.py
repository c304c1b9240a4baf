"""The report as Markdown, and all runs as CSV."""

import csv
import io
import re
from collections.abc import Iterable

from benchmarks.lra.reporting.contents import TITLE, Contents
from benchmarks.lra.reporting.groups import Group, section_of
from benchmarks.lra.reporting.tables import Row, Table

_CSV = ("section", "task", "source", "data", "protocol", "recipe", "recipe_hash", "recipe_is", "overrides", "variant",
        "seed", "metric", "select", "test", "validation", "parameters", "size_ratio", "updates", "batch_size",
        "max_len",
        "updates_per_second", "compile_seconds", "memory_step", "memory_device_peak", "commit", "zoo", "jax", "flax",
        "device", "processor", "date", "cautions", "digest", "file")  # fmt: skip


def to_markdown(contents: Contents) -> str:
    """All tables but that of all runs, with their notes, and what was left out."""
    lines = [f"# {TITLE}", "", escape_markdown(contents.summary)]
    for part in contents.parts:
        if part.key != "records":
            lines += ["", f"## {escape_markdown(part.title)}", "", escape_markdown(part.note)]
            for table in part.tables:
                lines += ["", table_markdown(table)]
    if contents.left_out:
        lines += ["", "## What is not here", ""]
        lines += [f"* {escape_markdown(what)}: {escape_markdown(why)}" for what, why in contents.left_out]
    return "\n".join(lines) + "\n"


def table_markdown(table: Table, notes: bool = True) -> str:
    """One table; columns that hold nothing are left out."""
    keep = [
        index for index in range(len(table.columns)) if any(row.cells[index].value is not None for row in table.rows)
    ]
    lines = [_line(escape_markdown(table.columns[index]) for index in keep)]
    lines.append("|" + "|".join("---:" if index in table.numeric else "---" for index in keep) + "|")
    lines += [_line(_cell(row, index) for index in keep) for row in table.rows]
    if notes and table.notes:
        lines += ["", *(f"* {escape_markdown(note)}" for note in table.notes)]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: Row, index: int) -> str:
    cell = row.cells[index]
    text = escape_markdown(cell.text)
    if index == 0:
        text = f"*{text}*" if row.kind != "ours" else text
        badges = [badge for badge in row.badges if badge not in ("published", "no model")]
        return text + "".join(f" ({escape_markdown(badge)})" for badge in badges)
    return f"**{text}**" if cell.best else text


def escape_markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def to_csv(groups: Iterable[Group]) -> str:
    """One line a run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV)
    for one in groups:
        for record in one.records:
            about, memory = record.environment, record.values.get("memory") or {}
            values = [section_of(record).key, record.task, record.source, record.data, record.protocol, record.recipe]
            values += [record.recipe_hash, one.status, " ".join(record.overrides or ()), record.variant, record.seed]
            values += [record.metric, record.select, record.score(), record.score("validation"), record.parameters]
            values += [record.size_ratio, record.steps, record.batch_size, record.max_len]
            values += [record.values.get("steps_per_second"), record.values.get("compile_seconds")]
            values += [memory.get("step"), memory.get("device_peak")]
            values += [about[name] for name in ("commit", "zoo", "jax", "flax", "device", "processor", "date")]
            values += ["; ".join(record.cautions()), record.digest, record.origin]
            writer.writerow([_plain(value) for value in values])
    return file.getvalue()


def _plain(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
