"""LRA ListOps: the value of a long nested expression, a classification of 500 to 2000 tokens into 10 classes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from zoo.data.listops import END_ID, NUM_CLASSES, OPERATORS, VOCAB_SIZE, ZERO_ID
from zoo.data.source import RaggedSource
from zoo.registry import register_task
from zoo.tasks.base import ClassificationTask, Split, TaskInfo
from zoo.tasks.prepared import PreparedTask

if TYPE_CHECKING:
    from zoo.data.prepared import Prepared

_BLOCK = 4_096


@register_task(
    "lra/listops",
    title="Value of nested MIN, MAX, MED and SUM-modulo-10 of digits (LRA ListOps)",
    paper="2011.04006",
    inputs=("tokens",),
    test_args={"source": "smoke"},
    notes="Sources: full (96,000/2,000/2,000, drawn here), smoke (short), published (the release's files).",
)
class ListOps(PreparedTask, ClassificationTask):
    """LRA's ListOps (Tay et al. 2020, arXiv 2011.04006).

    Tokens are ids of `zoo.data.listops.VOCABULARY`, whose order never changes, padded with 0 on the right; no start or
    end token is added. An accuracy near 17 % is the majority class, one near 36 % is reading the root operator alone:
    see `baselines`.

    Args:
      source: "full" (the size and law of the paper, drawn here), "smoke" (7,000 short expressions by the same law with
        other bounds) or "published" (the release's own files).
      max_len: length to pad or cut to; None for 2000, or 100 for "smoke", which cut nothing.
      data_dir: the folder of all data; None for `$ZOO_DATA` or `~/.cache/zoo`.
      seed: of the generator; another seed is another data set.

    Raises:
      ValueError: unknown source, or `max_len` below 1.
    """

    name = "lra/listops"
    sources = ("full", "smoke", "published")

    def __init__(
        self,
        source: str = "full",
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
    ):
        from zoo.data.listops_sets import get_config

        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}.")
        self.source = source
        self._config = get_config(source, seed)
        self._data_dir = data_dir
        longest = self._config.law.max_length if max_len is None else max_len
        self.info = TaskInfo(inputs="tokens", vocab_size=VOCAB_SIZE, num_classes=NUM_CLASSES, max_len=longest)

    @property
    def prepared(self) -> "Prepared":
        """The prepared data: a folder, or a pack."""
        from zoo.data.listops_sets import prepared

        return prepared(self._config, self._data_dir)

    def cut(self, splits: Any, *, examples: int | None, max_len: int | None) -> Any:
        """Refuses: another number of expressions is another data set, and one that is cut has another value.

        Raises:
          ValueError: always.
        """
        del splits, examples, max_len
        raise ValueError(f"{self.name} is packed whole only.")

    def _build(self, **options: Any) -> Path:
        from zoo.data.builders.listops import prepare

        return prepare(self._config, self._data_dir, **options)

    def _read_split(self, name: Split) -> RaggedSource:
        return self.prepared.rows(name)

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Accuracy (0..1) on `split` of three rules without a model, each fitted on the training split.

        Returns:
          "majority": the most frequent label. "root_operator": the most frequent label given the first token.
          "root_operator_and_leaves": given the first token and its value over those of the root's arguments that are
          plain digits.
        """
        train, scored = (cast(RaggedSource, self.split(name)) for name in ("train", split))
        train_keys, scored_keys = shortcut_features(train), shortcut_features(scored)
        everything = {"majority": (np.zeros(len(train), int), np.zeros(len(scored), int))}
        for name in train_keys:
            everything[name] = (train_keys[name], scored_keys[name])
        return {
            name: _table_accuracy(keys, train.labels, others, scored.labels)
            for name, (keys, others) in everything.items()
        }

    def _manifest(self, *, verify: bool = False) -> dict[str, Any]:
        from zoo.data.listops_sets import open_dataset

        return open_dataset(self._config, self._data_dir, verify=verify)

    def describe(self) -> dict[str, Any]:
        """Path, origin, seed, law, checksum, and for each split its size, length percentiles and label counts.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        manifest = self._manifest()
        facts = {key: manifest[key] for key in ("dataset", "origin", "seed", "law", "splits") if key in manifest}
        return {**facts, **self._facts()}


def shortcut_features(source: RaggedSource) -> dict[str, np.ndarray]:
    """What can be read off an expression without descending into it.

    Args:
      source: N expressions.

    Returns:
      "root_operator": 0..3, or 4 for a bare digit, integer [N]. "root_operator_and_leaves": a number for the pair of it
      and the operator's value over the root's plain digits (or their absence), integer [N].
    """
    roots, values = [], []
    for first in range(0, len(source), _BLOCK):
        last = min(first + _BLOCK, len(source))
        offsets = source.offsets[first : last + 1] - source.offsets[first]
        tokens = source.tokens[source.offsets[first] : source.offsets[last]]
        root = np.minimum(tokens[offsets[:-1]] - 1, len(OPERATORS))
        # Every expression closes what it opens, so one running depth serves the whole block.
        depth = np.cumsum((tokens <= len(OPERATORS)).astype(np.int8) - (tokens == END_ID), dtype=np.int32)
        leaves = np.flatnonzero((depth == 1) & (tokens >= ZERO_ID))
        rows = np.searchsorted(offsets, leaves, side="right") - 1
        cells = rows * 10 + (tokens[leaves] - ZERO_ID)
        values.append(_aggregate(root, np.bincount(cells, minlength=10 * len(root)).reshape(-1, 10)))
        roots.append(root)
    root = np.concatenate(roots).astype(np.int64)
    return {"root_operator": root, "root_operator_and_leaves": root * 11 + np.concatenate(values)}


def _aggregate(root: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The value of each operator [N] over digits given by their counts [N, 10]; 10 where there are none."""
    total, cumulative = counts.sum(1), counts.cumsum(1)

    def ranked(rank: np.ndarray) -> np.ndarray:
        return (cumulative > rank[:, None]).argmax(1)

    last = np.maximum(total - 1, 0)
    median = (ranked(last // 2) + ranked(total // 2)) // 2
    choices = [ranked(np.zeros_like(total)), ranked(last), median, counts @ np.arange(10) % 10]
    value = np.choose(np.minimum(root, 3), choices)
    return np.where(total > 0, value, 10)


def _table_accuracy(keys: np.ndarray, labels: np.ndarray, other_keys: np.ndarray, other_labels: np.ndarray) -> float:
    """Accuracy of the table "most frequent label given the key"; keys that training lacks get the overall majority."""
    size = max(keys.max(), other_keys.max()) + 1
    counts = np.bincount(keys * NUM_CLASSES + labels, minlength=size * NUM_CLASSES).reshape(size, NUM_CLASSES)
    counts[counts.sum(1) == 0] = counts.sum(0)
    return float((counts.argmax(1)[other_keys] == other_labels).mean())
