"""Measurements over time: reading a csv file, saying what is wrong with it, mending it by a named rule."""

import csv
import dataclasses
import datetime
import gzip
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from zoo.data.manifest import DataError
from zoo.registry import did_you_mean

Missing = Literal["refuse", "previous", "linear", "keep"]
Irregular = Literal["refuse", "fill", "keep"]
_TIME_NAMES = ("date", "datetime", "time", "timestamp")
_FORMATS = ("%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y")
_EMPTY = {"", "na", "n/a", "nan", "null", "none"}
_MAX_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Series:
    """Measurements, one row an instant.

    Attributes:
      values: float64 [T, N]; NaN where a cell is empty.
      columns: names of the N columns.
      times: datetime64[s] [T], or None where the file has no column of times.
      path: where they were read.
    """

    values: np.ndarray
    columns: tuple[str, ...]
    times: np.ndarray | None
    path: Path

    def step(self) -> int | None:
        """Seconds from row to row, the commonest difference; None without times or with a single row."""
        if self.times is None or len(self.times) < 2:
            return None
        seconds, counts = np.unique(np.diff(self.times).astype(np.int64), return_counts=True)
        return int(seconds[counts.argmax()])


def read_series(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    time_column: str | None = None,
    date_format: str | None = None,
    header: bool = True,
) -> Series:
    """Reads a csv file, gzipped where its name ends in .gz; fields are separated by commas, semicolons or tabs.

    Args:
      path: the file.
      columns: names of the columns to keep, in this order; None for all but the times.
      time_column: the column of times; None for the first that is called date, datetime, time or timestamp, if any.
      date_format: of the times, as `datetime.strptime` takes it; None for ISO 8601, year/month/day or day.month.year.
      header: whether the first line has names; without one the columns are called 0, 1, 2, ... and are all numbers.

    Raises:
      DataError: there is no such file, it cannot be read, or something in it is not what it should be: the message has
        line, column and what stands there.
    """
    path = Path(path).expanduser()
    try:
        return _read(path, columns, time_column, date_format, header)
    except (OSError, EOFError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read: {reason}. Give the path of a csv file.") from error


def _read(path: Path, columns: Any, time_column: str | None, date_format: str | None, header: bool) -> Series:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        if not first.strip():
            raise DataError(f"{path} is empty, or its first line is.")
        separator = max(",;\t", key=first.count)
        rows = csv.reader(file, delimiter=separator)
        opening = next(csv.reader([first], delimiter=separator))
        names = [name.strip() for name in opening] if header else [str(index) for index in range(len(opening))]
        if header and all(map(_is_number, names)):
            raise DataError(f"{path}, line 1: there are numbers where the names of the columns should be.")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}, line 1: two columns are called {repeated[0]!r}.")
        when = _time_index(path, names, time_column) if header else None
        kept = _kept(path, names, when, columns)
        body = rows if header else _chain(opening, rows)
        return _parse(path, body, names, kept, when, date_format, 2 if header else 1)


def _chain(first: list[str], rest: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rest


def _time_index(path: Path, names: list[str], wanted: str | None) -> int | None:
    if wanted is None:
        return next((index for index, name in enumerate(names) if name.lower() in _TIME_NAMES), None)
    if wanted not in names:
        raise DataError(f"{path} has no column {wanted!r} for the times. {did_you_mean(wanted, names)}")
    return names.index(wanted)


def _kept(path: Path, names: list[str], when: int | None, columns: Sequence[str] | None) -> list[int]:
    if columns is None:
        kept = [index for index in range(len(names)) if index != when]
    else:
        for name in columns:
            if name not in names:
                raise DataError(f"{path} has no column {name!r}. {did_you_mean(str(name), names)}")
        kept = [names.index(name) for name in columns]
    if not kept:
        raise DataError(f"{path} has no column of numbers besides the times.")
    return kept


def _parse(
    path: Path,
    rows: Iterator[list[str]],
    names: list[str],
    kept: list[int],
    when: int | None,
    date_format: str | None,
    line: int,
) -> Series:
    values: list[np.ndarray] = []
    stamps: list[str] = []
    lines: list[int] = []
    problems: list[str] = []
    for number, row in enumerate(rows, line):
        if not row:
            continue  # a blank line
        if len(row) != len(names):
            problems.append(f"line {number}: {len(row)} fields, and not {len(names)} as in the first line")
        else:
            cells = [row[index] for index in kept]
            try:
                values.append(np.array(cells, np.float64))
            except ValueError:
                values.append(_slow_row(cells, [names[index] for index in kept], number, problems))
            lines.append(number)
            if when is not None:
                stamps.append(row[when].strip())
        if len(problems) > _MAX_SHOWN:
            break
    if problems:
        more = "; and more" if len(problems) > _MAX_SHOWN else ""
        raise DataError(f"{path}: {'; '.join(problems[:_MAX_SHOWN])}{more}. Mend the file, or name other columns.")
    if not values:
        raise DataError(f"{path} has no row after the first line.")
    table = np.stack(values)
    if np.isinf(table).any():
        row, column = np.argwhere(np.isinf(table))[0]
        raise DataError(f"{path}, line {lines[row]}, column {names[kept[column]]!r}: the number is infinite.")
    times = None if when is None else _times(path, stamps, lines, names[when], date_format)
    return Series(table, tuple(names[index] for index in kept), times, path)


def _slow_row(cells: list[str], names: list[str], line: int, problems: list[str]) -> np.ndarray:
    """A row with an empty cell, or with one that is no number."""
    found = np.full(len(cells), np.nan)
    for index, cell in enumerate(cells):
        if cell.strip().lower() in _EMPTY:
            continue
        if not _is_number(cell):
            problems.append(f"line {line}, column {names[index]!r}: {cell[:30]!r} is not a number")
            break
        found[index] = float(cell)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _times(path: Path, stamps: list[str], lines: list[int], name: str, date_format: str | None) -> np.ndarray:
    """The times, ascending; equal ones in a row are left to `mend`."""
    parse = _parser(stamps[0], date_format)
    found = np.empty(len(stamps), "datetime64[s]")
    for index, stamp in enumerate(stamps):
        try:
            found[index] = parse(stamp)
        except ValueError:
            how = (
                f"date_format={date_format!r}" if date_format else "ISO 8601 (2016-07-01 00:00:00), or give date_format"
            )
            raise DataError(
                f"{path}, line {lines[index]}, column {name!r}: {stamp[:40]!r} is not a time; expected {how}."
            ) from None
    backwards = np.flatnonzero(np.diff(found) < np.timedelta64(0, "s"))
    if len(backwards):
        row = int(backwards[0])
        raise DataError(
            f"{path}, line {lines[row + 1]}: the time {stamps[row + 1]} comes after {stamps[row]}; sort the rows."
        )
    return found


def _parser(example: str, date_format: str | None) -> Any:
    if date_format is not None:
        return lambda text: datetime.datetime.strptime(text, date_format)
    try:
        datetime.datetime.fromisoformat(example)
    except ValueError:
        for candidate in _FORMATS:
            try:
                datetime.datetime.strptime(example, candidate)
            except ValueError:
                continue
            return lambda text: datetime.datetime.strptime(text, candidate)
    return _iso


def _iso(text: str) -> datetime.datetime:
    """Times with a zone are put to UTC, so that the clocks' change of hour is no gap."""
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo is None else found.astimezone(datetime.UTC).replace(tzinfo=None)


def quality(series: Series) -> dict[str, Any]:
    """What a reader should know of the data before a model is trained on it, JSON-ready.

    Returns:
      "rows", "columns" and, with times, "from", "to", "step_seconds", "repeated_times", "gaps" (their number, the rows
      that are missing, and where the first are); by column "missing" cells, "constant" ones and "sentinels" (values
      such as -9999 that usually stand for a missing one), each only where there are any.
    """
    found: dict[str, Any] = {"rows": len(series.values), "columns": list(series.columns)}
    if series.times is not None:
        repeats, gaps = _irregularities(series)
        found |= {
            "from": str(series.times[0]),
            "to": str(series.times[-1]),
            "step_seconds": series.step(),
            "repeated_times": [str(series.times[row + 1]) for row in repeats[:_MAX_SHOWN]],
            "gaps": {
                "number": len(gaps),
                "missing_rows": sum(count for _, count in gaps),
                "first": [f"{count} rows after {series.times[row]}" for row, count in gaps[:_MAX_SHOWN]],
            },
        }
    missing = np.isnan(series.values).sum(0)
    with np.errstate(invalid="ignore"):
        constant = np.nanmin(series.values, 0, initial=np.inf) == np.nanmax(series.values, 0, initial=-np.inf)
    found["missing"] = {name: int(count) for name, count in zip(series.columns, missing, strict=True) if count}
    found["constant"] = [name for name, flag in zip(series.columns, constant, strict=True) if flag]
    found["sentinels"] = _sentinels(series)
    return found


def _irregularities(series: Series) -> tuple[list[int], list[tuple[int, int]]]:
    """Rows followed by one of the same time; rows followed by a gap, with the number of rows that are missing."""
    step = series.step()
    if series.times is None or not step:
        return [], []
    seconds = np.diff(series.times).astype(np.int64)
    repeats = np.flatnonzero(seconds == 0).tolist()
    gaps = [(int(row), max(1, round(seconds[row] / step) - 1)) for row in np.flatnonzero(_off(seconds, step))]
    return repeats, gaps


def _off(seconds: np.ndarray, step: int) -> np.ndarray:
    """Which differences are neither one step nor none. Months and years have no one length."""
    if step >= 28 * 86400:
        return (seconds != 0) & ((seconds > 1.15 * step) | (seconds < 0.85 * step))
    return (seconds != 0) & (seconds != step)


def _sentinels(series: Series) -> dict[str, dict[str, int]]:
    """Numbers such as -999 and -9999.0 by column, with their counts."""
    found: dict[str, dict[str, int]] = {}
    for index, name in enumerate(series.columns):
        column = series.values[:, index]
        low = column[column <= -99.9]
        for value, count in zip(*np.unique(low, return_counts=True), strict=True):
            digits = f"{-value:.10g}".replace(".", "")
            if set(digits) == {"9"} and len(digits) >= 3:
                found.setdefault(name, {})[f"{value:g}"] = int(count)
    return found


def mend(
    series: Series,
    *,
    missing: Missing = "refuse",
    irregular: Irregular = "refuse",
    sentinels: Sequence[float] | Literal["keep"] = (),
) -> Series:
    """The series as a model may see it, or an error that says what is in the way.

    Args:
      series: as read.
      missing: what becomes of empty cells: "refuse" them, put the "previous" value of the column (which looks at the
        past only; before the first value stands that one), interpolate "linear" in the row number (which looks at the
        next value), or "keep" NaN.
      irregular: what becomes of times that are not one step apart: "refuse" them, "fill" in the missing rows with empty
        cells and leave out the second of two rows of one time, or "keep" the rows as if they were one step apart.
      sentinels: numbers that stand for an empty cell; "keep" takes all numbers for what they are. Where none are given,
        numbers that look like it are refused.

    Raises:
      DataError: what the rules refuse, with its place; a column without any number; or a rule is unknown.
    """
    for name, rule, rules in (("missing", missing, Missing), ("irregular", irregular, Irregular)):
        if rule not in get_args(rules):
            raise DataError(f"{name}={rule!r} is not a rule; there are {', '.join(get_args(rules))}.")
    values = series.values
    if isinstance(sentinels, str):
        if sentinels != "keep":
            raise DataError(f"sentinels={sentinels!r} is neither a list of numbers nor 'keep'.")
    elif sentinels:
        values = np.where(np.isin(values, np.asarray(sentinels, np.float64)), np.nan, values)
    elif suspects := _sentinels(series):
        name, counts = next(iter(suspects.items()))
        value, count = next(iter(counts.items()))
        raise DataError(
            f"{series.path}, column {name!r}: {value} is in {count} row(s) and usually means a missing value. "
            f"Give sentinels=[{value}] and missing=previous (or linear), or sentinels=keep."
        )
    series = dataclasses.replace(series, values=values)
    return _fill_cells(_regular(series, irregular), missing)


def _regular(series: Series, rule: Irregular) -> Series:
    repeats, gaps = _irregularities(series)
    if rule == "keep" or series.times is None or not (repeats or gaps):
        return series
    if rule == "refuse":
        first = (
            f"two rows have the time {series.times[repeats[0]]}"
            if repeats
            else f"{gaps[0][1]} row(s) are missing after {series.times[gaps[0][0]]}"
        )
        raise DataError(
            f"{series.path}: {first} (in all {len(repeats)} repeated times and {len(gaps)} gaps; a step is "
            f"{series.step()} s). Give irregular=fill with missing=previous (or linear), or irregular=keep."
        )
    step = series.step()
    assert step is not None
    keep = np.setdiff1d(np.arange(len(series.values)), np.asarray(repeats, int) + 1)
    times, values = series.times[keep], series.values[keep]
    place = np.rint((times - times[0]).astype(np.int64) / step).astype(np.int64)
    exact = (times - times[0]).astype(np.int64) % step == 0
    if step >= 28 * 86400 or not exact.all():
        raise DataError(
            f"{series.path}: irregular=fill needs times on a grid of {step} s; {times[int((~exact).argmax())]} is not "
            "on it. Give irregular=keep, or mend the file."
        )
    filled = np.full((place[-1] + 1, values.shape[1]), np.nan)
    filled[place] = values
    grid = times[0] + np.arange(len(filled)) * np.timedelta64(step, "s")
    return dataclasses.replace(series, values=filled, times=grid)


def _fill_cells(series: Series, rule: Missing) -> Series:
    empty = np.isnan(series.values)
    if rule == "keep" or not empty.any():
        return series
    if rule == "refuse":
        row, column = np.argwhere(empty)[0]
        where = f"row {row + 1}" if series.times is None else f"at {series.times[row]}"
        raise DataError(
            f"{series.path}, column {series.columns[column]!r}: there is no value {where} ({int(empty.sum())} empty "
            "cells in all). Give missing=previous or missing=linear."
        )
    if empty.all(0).any():
        raise DataError(f"{series.path}, column {series.columns[int(empty.all(0).argmax())]!r} has no value at all.")
    values = series.values.copy()
    rows = np.arange(len(values))
    for column in np.flatnonzero(empty.any(0)):
        known = np.flatnonzero(~empty[:, column])
        if rule == "linear":
            values[:, column] = np.interp(rows, known, values[known, column])
        else:
            latest = np.maximum(np.searchsorted(known, rows, side="right") - 1, 0)
            values[:, column] = values[known[latest], column]
    return dataclasses.replace(series, values=values)


def step_name(seconds: int | None) -> str:
    """A step in words: "15 min", "1 h", "7 d"; "unknown" for None."""
    if not seconds:
        return "unknown"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds % length == 0:
            return f"{seconds // length} {unit}"
    return f"{seconds} s" if math.isfinite(seconds) else "unknown"
