"""Files of one's own, each row with a label: csv, tsv, json lines and npz, and what is wrong with them."""

import contextlib
import dataclasses
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from zoo.data.manifest import DataError
from zoo.registry import did_you_mean

Kind = Literal["text", "tokens", "values"]
Zero = Literal["refuse", "token", "padding"]
Empty = Literal["refuse", "drop"]

_MAX_SHOWN = 5
_SHOWN_FROM = 1 << 26  # bytes of a file whose reading takes long enough to be seen
_REPORTED = 1_000  # lines between two reports
_MOST_IDS = 1 << 20


class Ragged(NamedTuple):
    """Rows of different lengths, one after another.

    Attributes:
      flat: [total].
      offsets: int64 [N + 1]; row i is `flat[offsets[i]:offsets[i + 1]]`.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: Any) -> "Ragged":
        """Of N arrays."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        return cls(np.concatenate(rows).astype(dtype, copy=False) if rows else np.zeros(0, dtype), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Integer [N]."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """One row."""
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: np.ndarray) -> "Ragged":
        """Those rows (integer [n]), in this order."""
        return Ragged.of([self.row(row) for row in rows.tolist()], self.flat.dtype)

    def row_of(self, place: int) -> tuple[int, int]:
        """The row that an element of `flat` is in, and its place there, from 0."""
        row = int(np.searchsorted(self.offsets, place, side="right")) - 1
        return row, int(place - self.offsets[row])


@dataclasses.dataclass(frozen=True)
class Table:
    """Labelled rows of a file.

    Attributes:
      path: the file.
      kind: of the rows: "text" (their UTF-8, uint8), "tokens" (ids from 1, int32) or "values" (float32).
      rows: N of them, none empty.
      second: the other text of each row; None where there are no pairs.
      labels: N names.
      places: where each row stands in the file, integer [N], from 1.
      unit: what `places` count: "line" or "row".
      dropped: how many empty rows were left out.
    """

    path: Path
    kind: Kind
    rows: Ragged
    second: Ragged | None
    labels: tuple[str, ...]
    places: np.ndarray
    unit: str
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, row: int) -> str:
        """Where a row stands, for messages."""
        return f"{self.path}, {self.unit} {self.places[row]}"

    def take(self, rows: np.ndarray) -> "Table":
        """A table of those rows (integer [n]), in this order."""
        second = None if self.second is None else self.second.take(rows)
        labels = tuple(self.labels[row] for row in rows.tolist())
        return dataclasses.replace(
            self, rows=self.rows.take(rows), second=second, labels=labels, places=self.places[rows]
        )


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
      column: name of the column (of an npz file, of the array) with what is classified; None for "text", in json lines
        also "tokens" or "values", and in npz files "inputs" or "values".
      second_column: name of the column with the other text of a pair; None where there are no pairs.
      label_column: name of that with the labels; None for "label", or "labels" in npz files.
      inputs: what `column` holds; "auto" for what it looks like.
      zero: what the token 0, which means padding to models, means here: "refuse" it, take it for a "token" (every id is
        raised by 1), or for "padding" at the end of rows.
      empty: what becomes of rows without anything: "refuse" or "drop" them.
      quotes: of csv and tsv files, whether fields may stand between quotes; off, quotes are text.
    """

    column: str | None = None
    second_column: str | None = None
    label_column: str | None = None
    inputs: Literal["auto"] | Kind = "auto"
    zero: Zero = "refuse"
    empty: Empty = "refuse"
    quotes: bool = True

    def __post_init__(self):
        for name, known in (
            ("inputs", ("auto", *get_args(Kind))),
            ("zero", get_args(Zero)),
            ("empty", get_args(Empty)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; there are {', '.join(known)}.")
        if not isinstance(self.quotes, bool):
            raise ValueError(f"quotes must be true or false, got {self.quotes!r}.")
        if self.second_column is not None and self.inputs not in ("auto", "text"):
            raise ValueError(f"second_column={self.second_column!r}: pairs are of texts, not of {self.inputs}.")


def suffix(path: Path) -> str | None:
    """The kind of file a name says: "csv", "tsv", "jsonl" or "npz", plain or gzipped; None for anything else."""
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    return {"ndjson": "jsonl"}.get(ending, ending) if ending in ("csv", "tsv", "jsonl", "ndjson", "npz") else None


def read_table(path: Path, how: Reading | None = None) -> Table:
    """Reads a csv, tsv, jsonl or npz file, gzipped where its name ends in .gz.

    csv and tsv files have a first line of names and texts as in RFC 4180; json lines have an object each. An npz file
    has `labels` [N] and either `inputs` [N, T], with `lengths` [N] where rows are shorter than T, or `values` [total]
    with `offsets` [N + 1]; integers are tokens, reals are values.

    Args:
      path: the file.
      how: names of columns and rules; None for the defaults.

    Raises:
      DataError: it cannot be read, or something in it is not what it should be; says where, and what would be right.
    """
    from zoo.data.arrays import read_npz
    from zoo.data.delimited import read_csv
    from zoo.data.json_lines import read_jsonl

    how = how or Reading()
    kind = suffix(path)
    readers: dict[str, Callable[[Path, Reading], Table]] = {
        "csv": read_csv,
        "tsv": read_csv,
        "jsonl": read_jsonl,
        "npz": read_npz,
    }
    if kind is None:
        raise DataError(f"{path} is none of csv, tsv, jsonl and npz, plain or with .gz behind.")
    try:
        table = readers[kind](path, how)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read: {reason}. Is it whole?") from error
    return _without_empty(_with_zero_settled(table, how.zero), how.empty)


def table_of(rows: Sequence[Any], kind: Kind, *, pairs: bool = False, zero: Zero = "refuse") -> Table:
    """Rows that are at hand, without labels, by the rules for those of files.

    Args:
      rows: N texts, pairs of texts, or lists or arrays of numbers.
      kind: which of these, "text" or other.
      pairs: each row is two texts.
      zero: see `Reading`.

    Raises:
      DataError: there are none, or one is of another kind or empty; says which.
    """
    problems, sides = Problems(Path("the rows given")), ([], [])
    for number, row in enumerate(rows, 1):
        texts = [row] if not pairs else list(row) if isinstance(row, list | tuple) else []
        if len(texts) != (2 if pairs else 1):
            problems.add(f"row {number}: not two texts")
            continue
        try:
            for side, text in zip(sides, texts, strict=False):
                side.append(converted(text if isinstance(text, str) else np.asarray(text).tolist(), kind))
        except ValueError as error:
            problems.add(f"row {number}: {error}")
    problems.finish()
    names, places = [""] * len(rows), list(range(1, len(rows) + 1))
    path, firsts, seconds = Path("the rows given"), *sides
    if kind == "text":
        table = text_table(path, firsts, seconds if pairs else None, names, places, "row")
    else:
        ragged = Ragged.of(firsts, np.int64 if kind == "tokens" else np.float32)
        table = Table(path, kind, ragged, None, tuple(names), np.array(places, int), "row")
    return _without_empty(_with_zero_settled(table, zero), "refuse")


class Problems:
    """What is wrong with a file, up to five places of it in one message."""

    def __init__(self, path: Path):
        self._path, self._found, self._remedies = path, [], []

    def add(self, text: str, remedy: str = "") -> None:
        """Notes one; raises where there are enough."""
        self._found.append(text)
        if remedy and remedy not in self._remedies:
            self._remedies.append(remedy)
        if len(self._found) > _MAX_SHOWN:
            self.finish()

    def finish(self) -> None:
        """Raises if there are any.

        Raises:
          DataError: with all of them.
        """
        if not self._found:
            return
        more = "; and more" if len(self._found) > _MAX_SHOWN else ""
        advice = " ".join(["Mend the file.", *self._remedies])
        raise DataError(f"{self._path}: {'; '.join(self._found[:_MAX_SHOWN])}{more}. {advice}")


def check_column(path: Path, name: str, known: Sequence[str], option: str) -> None:
    """Raises DataError where a file has no column of that name."""
    if name not in known:
        shown = [column[:40] for column in known]
        raise DataError(
            f"{path} has no column {name!r}. {did_you_mean(name, shown)} Name it with task.options.{option}."
        )


def label_name(label: Any) -> str | None:
    """A label as a name: that of a whole number or a text; None for what is no label."""
    if isinstance(label, bool | np.bool_):
        return str(bool(label)).lower()
    if isinstance(label, int | np.integer):
        return str(int(label))
    return label.strip() or None if isinstance(label, str) else None


def converted(value: Any, kind: Kind) -> Any:
    """A text as bytes, a list as an array. Raises ValueError, which says what it is instead."""
    if kind == "text":
        if not isinstance(value, str):
            raise ValueError(f"{str(value)[:30]} is no text")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text has half of a surrogate pair at character {error.start}") from error
    wanted = "whole numbers" if kind == "tokens" else "numbers"
    try:
        array = np.array(value) if value else np.zeros(0, int)
    except (ValueError, OverflowError):
        array = np.array(None)
    if not isinstance(value, list) or array.ndim != 1 or array.dtype.kind not in ("i" if kind == "tokens" else "iuf"):
        raise ValueError(f"{str(value)[:30]} is no list of {wanted}")
    if kind == "tokens":
        return array
    return finite(array)


def finite(values: np.ndarray) -> np.ndarray:
    """Numbers as float32. Raises ValueError where one is not finite."""
    with np.errstate(over="ignore"):
        array = values.astype(np.float32)
    if len(wrong := np.argwhere(~np.isfinite(array))):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"the number at place {', '.join(str(at + 1) for at in place)} is {values[place]}")
    return array


def text_table(
    path: Path,
    texts: list[bytes],
    seconds: list[Any] | None,
    labels: list[str],
    places: list[int],
    unit: str = "line",
) -> Table:
    """A table of texts, or of pairs of them. Raises DataError where there are none."""

    def ragged(rows: list[bytes]) -> Ragged:
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        return Ragged(np.frombuffer(b"".join(rows), np.uint8), offsets)

    if not texts:
        raise DataError(f"{path} has no row.")
    second = None if seconds is None else ragged(seconds)
    return Table(path, "text", ragged(texts), second, tuple(labels), np.array(places, int), unit)


@contextlib.contextmanager
def open_lines(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a file with their ends, decoded one by one, so that a wrong byte is told with its line."""
    from zoo.data.progress import Progress

    size = path.stat().st_size
    with contextlib.ExitStack() as held:
        raw = held.enter_context(path.open("rb"))
        file: Any = held.enter_context(gzip.open(raw)) if path.name.lower().endswith(".gz") else raw
        shown = held.enter_context(Progress(f"reading {path.name}", size, "bytes", enabled=size >= _SHOWN_FROM))

        def lines() -> Iterator[str]:
            for number, line in enumerate(file, 1):
                if number % _REPORTED == 0:
                    shown.advance(raw.tell() - shown.done)
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: byte {error.start + 1} of it, 0x{error.object[error.start]:02x}, is "
                        "no UTF-8. Save the file in UTF-8."
                    ) from error
            shown.advance(size - shown.done)

        yield lines()


def _with_zero_settled(table: Table, rule: Zero) -> Table:
    """Tokens as ids from 1."""
    if table.kind != "tokens":
        return table
    rows = table.rows
    if rule == "token":
        rows = Ragged(rows.flat + 1, rows.offsets)
    if rule == "padding":
        rows = Ragged.of([np.trim_zeros(rows.row(row), "b") for row in range(len(table))], rows.flat.dtype)
    wrong = np.flatnonzero((rows.flat < 1) | (rows.flat >= _MOST_IDS))
    if len(wrong):
        row, place = rows.row_of(int(wrong[0]))
        token = int(rows.flat[wrong[0]]) - (rule == "token")
        message = f"{table.at(row)}: token {place + 1} is {token}"
        if token == 0 and rule == "refuse":
            raise DataError(
                f"{message}, which means padding to models. If it is a token like any other give "
                "task.options.zero=token (every id is raised by 1), if it fills rows up at their ends, zero=padding."
            )
        why = "0 is padding only after the last token" if token == 0 else f"ids are from 1 to {_MOST_IDS - 1}"
        raise DataError(f"{message}; {why}. Numbers that are no ids are read with task.options.inputs=values.")
    return dataclasses.replace(table, rows=Ragged(rows.flat.astype(np.int32), rows.offsets))


def _without_empty(table: Table, rule: Empty) -> Table:
    """No row without anything."""
    some = table.rows.lengths > 0
    if table.second is not None:
        some &= table.second.lengths > 0
    empty = np.flatnonzero(~some)
    if len(empty) and rule == "refuse":
        raise DataError(
            f"{table.at(int(empty[0]))}: there is nothing in the row (such rows: {len(empty)}). Mend the file, or give "
            "task.options.empty=drop."
        )
    if not some.any():
        raise DataError(f"{table.path} has no row with anything in it.")
    if not len(empty):
        return table
    return dataclasses.replace(table.take(np.flatnonzero(some)), dropped=len(empty))
