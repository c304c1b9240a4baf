"""Labelled rows out of files with a JSON object a line."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from zoo.data.manifest import DataError
from zoo.data.tables import (
    Kind,
    Problems,
    Ragged,
    Reading,
    Table,
    check_column,
    converted,
    label_name,
    open_lines,
    text_table,
)


def read_jsonl(path: Path, how: Reading) -> Table:
    problems, rows, seconds, labels, places = Problems(path), [], [], [], []
    kind: Kind | None = None
    column, label_column, second = "", how.label_column or "label", how.second_column
    with open_lines(path) as lines:
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            found = _object(path, line, text)
            if kind is None:
                column, kind = _json_column(path, found, how)
                check_column(path, label_column, list(found), "label_column")
                if second is not None:
                    check_column(path, second, list(found), "second_column")
            missing = [name for name in (column, label_column, second) if name is not None and name not in found]
            if missing:
                problems.add(f"line {line}: there is no {missing[0]!r}")
                continue
            try:
                row = converted(found[column], kind)
                other = None if second is None else converted(found[second], "text")
            except ValueError as error:
                problems.add(f"line {line}: {error}", "task.options.inputs says what the column holds.")
                continue
            label = label_name(found[label_column])
            if label is None:
                problems.add(f"line {line}: the label is {found[label_column]!r}, neither a whole number nor a name")
                continue
            rows.append(row)
            seconds.append(other)
            labels.append(label)
            places.append(line)
    problems.finish()
    if kind is None or kind == "text":
        return text_table(path, rows, None if second is None else seconds, labels, places)
    ragged = Ragged.of(rows, np.int64 if kind == "tokens" else np.float32)
    return Table(path, kind, ragged, None, tuple(labels), np.array(places, int), "line")


def _object(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text.strip())
    except (ValueError, RecursionError) as error:
        what = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path}, line {line} is no JSON: {what}. Every line is an object of its own.") from error
    if not isinstance(found, dict):
        raise DataError(f'{path}, line {line} is no object such as {{"text": "...", "label": "..."}}: {text[:40]!r}.')
    return found


def _json_column(path: Path, first: dict[str, Any], how: Reading) -> tuple[str, Kind]:
    """The column to read and what it holds, by the first object."""
    named = [name for name in get_args(Kind) if name in first]
    if how.column is None and len(named) > 1:
        raise DataError(f"{path} has columns {' and '.join(named)}; name one with task.options.column.")
    column = how.column or (named[0] if named else "text")
    check_column(path, column, list(first), "column")
    looks: Kind = "text"
    if isinstance(first[column], list):
        whole = all(isinstance(value, int) for value in first[column])
        looks = "values" if column == "values" or not (whole or column == "tokens") else "tokens"
    kind = looks if how.inputs == "auto" else how.inputs
    if how.second_column is not None and kind != "text":
        raise DataError(f"{path}: {column!r} holds {kind}, and pairs are of texts.")
    return column, kind
