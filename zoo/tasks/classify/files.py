"""Classification of one's own files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split, TaskInfo
from zoo.tasks.shortcuts import ShortcutTask, length_percentiles, token_counts

if TYPE_CHECKING:
    from zoo.data.source import Source
    from zoo.data.tables import Empty, Kind, Table, Zero

_CAP = 4_096  # of max_len, where none is given
_BAG = 512  # columns of the baseline of tokens and values
_INPUTS = {"text": "tokens", "tokens": "tokens", "values": "scalars"}
_BAG_NAMES = {"text": "bag_of_bytes", "tokens": "bag_of_tokens", "values": "bag_of_values"}


@register_task(
    "classify/files",
    title="Classification of files of your own: texts, tokens or numbers, each row with a label",
    inputs=("tokens", "scalars"),
    notes="Source: the path of a folder with train, validation and test as csv, tsv, jsonl or npz, or of one such "
    "file: task.source=/the/path. Columns text and label, or as task.options say.",
)
class Files(ShortcutTask):
    """Rows with a label, in csv, tsv, jsonl or npz files: no code to write, and nothing to prepare.

    A text is read as bytes: a token is the byte of its UTF-8 plus 1, and 0 is padding, as in `zoo.tasks.lra.text`.
    Tokens are ids from 1. Values are real numbers, one a position. With `second_column` a row is a pair of texts, and
    inputs and mask are [B, T, 2]. What is wrong with the files is refused with its line before anything is trained.
    How files look: `zoo.data.tables.read_table`.

    A split that has no file is drawn from the training rows, each label in proportion; results say so, and also how
    many rows for test or validation stand in training too. Labels are names, in order; whole numbers, in theirs.

    Args:
      source: path of a folder with files `train.*` and perhaps `validation.*` (or val, valid, dev, eval) and `test.*`,
        or of a single file, whose rows are then split.
      max_len: what is beyond it in a row is cut; None for the longest row of training, 4,096 at most.
      data_dir: unused; files are read where they lie.
      seed: of splits that are drawn.
      column, second_column, label_column, inputs, zero, empty, quotes: see `zoo.data.tables.Reading`.
      validation_share, test_share: of the training rows, for a split that is drawn.
      vocab_size: of tokens, number of ids, 0 included; None for the largest id of training plus 1.
      scale: values are shifted and scaled to mean 0 and deviation 1 in training.

    Raises:
      ValueError: an option is out of range.
    """

    name = "classify/files"
    sources = ()

    def __init__(
        self,
        source: str | None = None,
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        column: str | None = None,
        second_column: str | None = None,
        label_column: str | None = None,
        inputs: "Literal['auto'] | Kind" = "auto",
        zero: "Zero" = "refuse",
        empty: "Empty" = "refuse",
        quotes: bool = True,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        vocab_size: int | None = None,
        scale: bool = True,
    ):
        from zoo.data.tables import Reading

        del data_dir
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}.")
        if not 0 <= seed < 2**64:
            raise ValueError(f"task.seed must lie in 0..2**64-1, got {seed}.")
        if not (0 < validation_share < 1 and 0 < test_share < 1 and validation_share + test_share < 1):
            raise ValueError(
                f"validation_share={validation_share} and test_share={test_share} must be above 0, together below 1."
            )
        if vocab_size is not None and not (isinstance(vocab_size, int) and vocab_size >= 2):
            raise ValueError(f"vocab_size must be at least 2, for padding and a token, got {vocab_size!r}.")
        if not isinstance(scale, bool):
            raise ValueError(f"scale must be true or false, got {scale!r}.")
        self.source = "" if source in (None, "full") else str(source)  # "full" is what recipes say that name none
        self.seed, self.scale, self.vocab_size = seed, scale, vocab_size
        self.shares: dict[str, float] = {"test": test_share, "validation": validation_share}
        # A name such as 2020 is a number to YAML.
        column, second_column, label_column = (
            None if name is None else str(name) for name in (column, second_column, label_column)
        )
        self.reading = Reading(column, second_column, label_column, inputs, zero, empty, quotes)
        self._max_len = max_len
        self._tables: dict[str, Table] | None = None
        self._drawn: list[str] = []
        self._facts: dict[str, Any] | None = None
        self._sources: dict[str, Any] = {}
        self._fingerprint: str | None = None
        self._bins: np.ndarray | None = None

    # --- what the loop asks

    @property
    def info(self) -> TaskInfo:
        """Reads the files, unless `recall` told what is needed of them; raises as `prepare` does."""
        facts = self.facts()
        return TaskInfo(
            _INPUTS[facts["kind"]],  # pyright: ignore[reportArgumentType]
            vocab_size=facts["vocab_size"],
            num_classes=len(facts["classes"]),
            max_len=facts["max_len"],
            pairs=facts["pairs"],
        )

    @property
    def classes(self) -> list[str]:
        """Names of the labels, in the order of a model's logits."""
        return self.facts()["classes"]

    def facts(self) -> dict[str, Any]:
        """What a trained model needs of the files: kind of rows, labels, length, vocabulary or scaling; JSON-ready."""
        if self._facts is None:
            train = self._read()["train"]
            longest = int(_lengths(train).max())
            facts: dict[str, Any] = {
                "kind": train.kind,
                "pairs": train.second is not None,
                "classes": _in_order(set(train.labels)),
                "max_len": self._max_len or min(longest, _CAP),
                "vocab_size": self._ids(train),
            }
            if train.kind == "values":
                mean, std = _moments(train.rows.flat) if self.scale else (0.0, 1.0)
                facts |= {"mean": mean, "std": std}
            self._check(facts)
            self._facts = facts
        return self._facts

    def recall(self, facts: dict[str, Any]) -> None:
        """Takes the facts of the files that a model was trained on, so that the files themselves are not needed."""
        self._facts = dict(facts)

    def is_prepared(self) -> bool:
        """Whether the files are there; whether they are right is seen when they are read."""
        from zoo.data.manifest import DataError
        from zoo.data.splits import find_splits

        try:
            return bool(find_splits(self._path()))
        except (DataError, ValueError):
            return False

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Reads the files, so that what is wrong with them is said now; writes nothing.

        Returns:
          The folder, or the file.

        Raises:
          ValueError: no path was given.
          DataError: a file is missing or cannot be read, or something in it is not what it should be.
        """
        self._check(self.facts())
        return self._path()

    def verify(self) -> None:
        """Reads the files again; raises as `prepare` does. Nobody keeps a checksum of them; see `fingerprint`."""
        self._tables = self._fingerprint = self._bins = self._bag = None
        self._sources = {}
        self.prepare()

    def split(self, name: Split) -> "Source":
        """The rows of a split, in memory.

        Raises:
          ValueError: unknown split.
          DataError: see `prepare`.
        """
        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        if name not in self._sources:
            table = self._read()[name]
            self._check(self.facts())
            numbers = {label: number for number, label in enumerate(self.classes)}
            self._sources[name] = self._source(table, np.array([numbers[label] for label in table.labels]))
        return self._sources[name]

    def encode(self, rows: Sequence[Any]) -> dict[str, np.ndarray]:
        """Rows without labels as a model takes them: `inputs` and `mask`, [B, T] or [B, T, 2], T = `max_len`.

        Args:
          rows: of the kind that the model was trained on: texts, pairs of texts, lists of ids or lists of numbers.

        Raises:
          DataError: a row is of another kind, or empty; says which.
        """
        from zoo.data.tables import table_of

        facts = self.facts()
        table = table_of(rows, facts["kind"], pairs=facts["pairs"], zero=self.reading.zero)
        self._check_ids(table, facts)
        batch = self._source(table, np.zeros(len(table), int)).gather(np.arange(len(table)), facts["max_len"])
        return {name: batch[name] for name in ("inputs", "mask")}

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the rows and labels of all splits; raises as `prepare` does."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, table in self._read().items():
                digest.update(f"{name} {table.kind} {table.labels}\n".encode())
                for rows in (table.rows, table.second):
                    for part in () if rows is None else rows:
                        digest.update(np.ascontiguousarray(part).data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def cautions(self) -> list[str]:
        """Which splits were drawn, what the cap of `max_len` cuts, and rows that stand in training too."""
        tables, facts, found = self._read(), self.facts(), []
        if self._drawn:
            shares = ", ".join(f"{name} {100 * self.shares[name]:g} %" for name in self._drawn)
            found.append(f"drawn from the rows of {tables['train'].path.name}, seed {self.seed}: {shares}")
        cut = sum(int((_lengths(table) > facts["max_len"]).sum()) for table in tables.values())
        if cut and self._max_len is None:
            found.append(f"{cut} rows are cut to max_len={facts['max_len']}, which no one chose; see task.max_len")
        known = {name: self._known(name) for name in ("validation", "test")}
        return found + [
            f"{count} of the {len(tables[name])} rows for {name} stand in training too"
            for name, count in known.items()
            if count
        ]

    def describe(self) -> dict[str, Any]:
        """Files, kind, length, cautions, checksum, and by split its size, lengths, labels and what was cut or dropped.

        Raises:
          ValueError, DataError: see `prepare`.
        """
        facts = {name: value for name, value in self.facts().items() if name != "classes"}
        return {
            "dataset": f"{self.name}/{self.source}",
            "path": str(self._path()),
            **facts,
            "num_classes": len(self.classes),
            "cautions": self.cautions(),
            "splits": {name: self._summary(name) for name in SPLITS},
            "checksum": self.fingerprint(),
        }

    # --- reading

    def _path(self) -> Path:
        if not self.source:
            raise ValueError(
                f"{self.name} needs the path of a folder with train.csv, .tsv, .jsonl or .npz, or of one such file: "
                "task.source=/the/path."
            )
        return Path(self.source).expanduser()

    def _read(self) -> dict[str, "Table"]:
        """The rows of each split; read once per task object."""
        from zoo.data.manifest import DataError
        from zoo.data.splits import find_splits
        from zoo.data.tables import read_table

        if self._tables is None:
            tables = {name: read_table(path, self.reading) for name, path in find_splits(self._path()).items()}
            train = tables["train"]
            for table in tables.values():
                if table.kind != train.kind:
                    raise DataError(f"{table.path} holds {table.kind}, and {train.path} {train.kind}.")
            if len(set(train.labels)) == 1:
                raise DataError(
                    f"{train.path} has one label only, {train.labels[0]!r}; there is nothing to tell apart."
                )
            if len(set(train.labels)) == len(train) > 2:
                raise DataError(
                    f"{train.path}: no label comes twice in its {len(train)} rows. Is {train.labels[0][:30]!r} one? "
                    "Name the column with task.options.label_column."
                )
            self._drawn = [name for name in self.shares if name not in tables]
            self._tables = self._with_drawn(tables)
        return self._tables

    def _with_drawn(self, tables: dict[str, "Table"]) -> dict[str, "Table"]:
        """All splits, those without a file out of training."""
        from zoo.data.draws import Draws
        from zoo.data.manifest import DataError
        from zoo.data.splits import draw_rows

        train = tables["train"]
        left = np.arange(len(train))
        labels = np.unique(np.array(train.labels), return_inverse=True)[1]
        for name in self._drawn:
            # The share is of all rows, whatever was drawn before.
            share = min(1.0, self.shares[name] * len(train) / len(left))
            rows = draw_rows(labels[left], share, Draws(self.seed, stream=SPLITS.index(name)))
            if not len(rows):
                raise DataError(
                    f"{train.path}: {len(train)} rows are too few to draw {name} from ({100 * self.shares[name]:g} %). "
                    f"Put a {name} file beside it, or give task.options.{name}_share."
                )
            tables[name] = train.take(left[rows])
            left = np.delete(left, rows)
        return {**tables, "train": train.take(left)} if self._drawn else tables

    def _check(self, facts: dict[str, Any]) -> None:
        """Raises DataError where the files, once they are read, do not fit what training knows."""
        from zoo.data.manifest import DataError
        from zoo.registry import did_you_mean

        known = set(facts["classes"])
        for table in self._read().values():
            if (table.kind, table.second is not None) != (facts["kind"], facts["pairs"]):
                raise DataError(f"{table.path} holds {table.kind}; the model was trained on {facts['kind']}.")
            if new := set(table.labels) - known:
                row = next(row for row, label in enumerate(table.labels) if label in new)
                label = table.labels[row]
                hint = did_you_mean(label, known) if len(known) <= 100 else f"There are {len(known)} labels."
                raise DataError(f"{table.at(row)}: no row of training has the label {label!r}. {hint}")
            self._check_ids(table, facts)

    def _ids(self, train: "Table") -> int | None:
        """How many ids of tokens there are, 0 included."""
        if train.kind == "values":
            return None
        return 257 if train.kind == "text" else self.vocab_size or int(train.rows.flat.max()) + 1

    def _check_ids(self, table: "Table", facts: dict[str, Any]) -> None:
        from zoo.data.manifest import DataError

        if facts["kind"] != "tokens" or (largest := int(table.rows.flat.max())) < facts["vocab_size"]:
            return
        row, _ = table.rows.row_of(int(table.rows.flat.argmax()))
        raise DataError(
            f"{table.at(row)}: the id {largest} is not below the vocabulary of {facts['vocab_size']}. If the model is "
            f"to have ids that training lacks give task.options.vocab_size={largest + 1}, or more."
        )

    def _source(self, table: "Table", labels: np.ndarray) -> Any:
        """A table as models read it."""
        from zoo.data.pairs import PairSource
        from zoo.data.rows import ByteSource
        from zoo.data.source import RaggedSource

        flat, offsets = table.rows
        if table.second is not None:
            other, count = table.second, len(table)
            both = np.concatenate([offsets, offsets[-1] + other.offsets[1:]])
            documents = RaggedSource(np.concatenate([flat, other.flat]), both, np.zeros(2 * count, int))
            return PairSource(documents, np.arange(2 * count).reshape(2, count).T, labels)
        if table.kind == "text":
            return ByteSource(flat, offsets, labels)
        if table.kind == "values":
            facts = self.facts()
            flat = ((flat.astype(np.float64) - facts["mean"]) / facts["std"]).astype(np.float32)
        return RaggedSource(flat, offsets, labels)

    # --- figures

    def _known(self, name: str) -> int:
        """How many rows of a split stand in training too, whatever their labels."""

        def digests(table: "Table") -> list[bytes]:
            columns = [table.rows] if table.second is None else [table.rows, table.second]
            return [
                hashlib.blake2b(b"".join(bytes(f"{len(part)} ", "ascii") + part.tobytes() for part in parts)).digest()
                for parts in ([column.row(row) for column in columns] for row in range(len(table)))
            ]

        train = set(digests(self._read()["train"]))
        return sum(digest in train for digest in digests(self._read()[name]))

    def _summary(self, name: Split) -> dict[str, Any]:
        table = self._read()[name]
        names, counts = np.unique(np.array(table.labels), return_counts=True)
        by_name = dict(zip(names.tolist(), counts.tolist(), strict=True))
        return {
            "examples": len(table),
            "from": f"{table.path.name}, drawn" if name in self._drawn else table.path.name,
            "lengths": length_percentiles(_lengths(table)),
            "cut": int((_lengths(table) > self.info.max_len).sum()),
            "empty_rows_dropped": 0 if name in self._drawn else table.dropped,
            "in_training_too": 0 if name == "train" else self._known(name),
            "labels": {label: by_name.get(label, 0) for label in self.classes},
        }

    # --- baselines

    @property
    def bag_name(self) -> str:
        """By the kind of rows; of tokens the 511 most frequent count each, of values which 64th of training's."""
        return _BAG_NAMES[self.facts()["kind"]]

    def _tokens(self, split: Split) -> Any:
        from zoo.data.source import RaggedSource

        source: Any = self.split(split)
        if self.facts()["kind"] == "text":
            return source
        train: Any = self.split("train")
        if self.facts()["kind"] == "values":
            if self._bins is None:
                self._bins = np.quantile(train.tokens, np.arange(1, 64) / 64)
            ids = 1 + np.searchsorted(self._bins, source.tokens)
        else:
            if self._bins is None:
                counts = np.bincount(train.tokens, minlength=self.info.vocab_size or 0)
                self._bins = np.minimum(np.argsort(np.argsort(-counts, kind="stable"), kind="stable") + 1, _BAG - 1)
            ids = self._bins[source.tokens]
        return RaggedSource(ids.astype(np.int32), source.offsets, source.labels)

    def _counts(self, source: Any, rows: np.ndarray) -> np.ndarray:
        if self.facts()["kind"] == "text":
            return super()._counts(source, rows)
        return token_counts(source, self.info.max_len, _BAG, rows)


def _lengths(table: "Table") -> np.ndarray:
    """Of each row, of pairs the longer one."""
    return table.rows.lengths if table.second is None else np.maximum(table.rows.lengths, table.second.lengths)


def _moments(values: np.ndarray) -> tuple[float, float]:
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return mean, std or 1.0


def _in_order(labels: set[str]) -> list[str]:
    """Whole numbers by their value, other names by the alphabet."""
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)
