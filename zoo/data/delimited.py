"""Labelled texts out of csv and tsv files."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

from zoo.data.manifest import DataError
from zoo.data.tables import Problems, Reading, Table, check_column, label_name, open_lines, suffix, text_table


def read_csv(path: Path, how: Reading) -> Table:
    if how.inputs not in ("auto", "text"):
        raise DataError(f"{path}: csv and tsv files hold texts; put {how.inputs} into a jsonl or npz file.")
    problems, texts, seconds, labels, places = Problems(path), [], [], [], []
    column, label_column = how.column or "text", how.label_column or "label"
    with open_lines(path) as lines, _long_fields():
        header = next(lines, "")
        if not header.strip():
            raise DataError(f"{path} is empty, or its first line, which names the columns, is.")
        separator = "\t" if suffix(path) == "tsv" else max(",;\t", key=header.count)
        rows = _rows(path, _chain(header, lines), separator, how.quotes)
        names = [name.strip() for name in next(rows)[1]]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}, line 1: two columns are called {repeated[0]!r}.")
        check_column(path, column, names, "column")
        check_column(path, label_column, names, "label_column")
        if how.second_column is not None:
            check_column(path, how.second_column, names, "second_column")
        for line, row in rows:
            if not row:
                continue  # a blank line
            if len(row) != len(names):
                problems.add(
                    f"line {line}: {len(row)} fields, and not {len(names)} as in the first line",
                    "A text with separators, quotes or line breaks in it stands between double quotes.",
                )
                continue
            label = label_name(row[names.index(label_column)])
            if label is None:
                problems.add(f"line {line}: there is no label")
                continue
            texts.append(row[names.index(column)].encode())
            seconds += [] if how.second_column is None else [row[names.index(how.second_column)].encode()]
            labels.append(label)
            places.append(line)
    problems.finish()
    return text_table(path, texts, seconds if how.second_column else None, labels, places)


def _rows(path: Path, lines: Iterator[str], separator: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """The line that each row begins in, and its fields."""
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader, begun = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True), 1
    try:
        for row in reader:
            yield begun, row
            begun = reader.line_num + 1
    except csv.Error as error:
        what = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
        raise DataError(
            f"{path}, line {begun}: {what}. In a field between double quotes a quote is written twice; "
            "task.options.quotes=false where quotes are nothing but text."
        ) from error


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Lets fields be longer than the 131,072 characters that the csv module allows."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
