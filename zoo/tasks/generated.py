"""Tasks whose examples are drawn when they are asked for: nothing is stored, the seed says it all."""

import abc
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zoo.tasks.base import SPLITS, Split, TaskInfo, TokenTask

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.draws import Draws
    from zoo.data.tokens import TokenSource


_BLOCK = 4_096


class Size(NamedTuple):
    """How much a source draws.

    Attributes:
      length: tokens of each sequence, which are all of one length.
      train, heldout: sequences for training, and for validation and test each.
    """

    length: int
    train: int = 50_000
    heldout: int = 1_000


class GeneratedTask(TokenTask):
    """A task of token sequences that `_draw` makes. A subclass names its sources and their sizes.

    Args:
      source: which of the task's settings.
      max_len: length to pad to; None for that of the sequences, which are never cut.
      data_dir: unused; nothing is stored.
      seed: of the draws; another seed is another data set.

    Raises:
      ValueError: unknown source, `max_len` below the length of the sequences, or a seed out of range.
    """

    sizes: ClassVar[Mapping[str, Size]]
    vocab_sizes: ClassVar[Mapping[str, int]]

    def __init__(
        self, source: str = "small", max_len: int | None = None, data_dir: str | Path | None = None, seed: int = 0
    ):
        from zoo.registry import did_you_mean

        if source not in self.sizes:
            raise ValueError(f"{self.name} has no source {source!r}. {did_you_mean(source, self.sizes)}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"task.seed must lie in 0..2**64-1, got {seed}.")
        length = self.sizes[source].length
        if max_len is not None and max_len < length:
            raise ValueError(f"{self.name}/{source} has sequences of {length} tokens, more than max_len={max_len}.")
        self.source, self.seed, self._data_dir = source, seed, data_dir
        self._splits: dict[str, TokenSource] = {}
        size = self.vocab_sizes[source]
        self.info = TaskInfo("tokens", vocab_size=size, num_classes=size, max_len=max_len or length, output="token")

    @abc.abstractmethod
    def _draw(self, draws: "Draws", rows: int) -> tuple["np.ndarray", "np.ndarray"]:
        """Inputs and labels, int16 [rows, length], of this task's source; called again for more of the same split."""

    def is_prepared(self) -> bool:
        """True: there is nothing to prepare."""
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Does nothing, and returns the folder of all data."""
        from zoo.data.paths import data_dir

        return data_dir(self._data_dir)

    def verify(self) -> None:
        """Does nothing: no file can be damaged."""

    def split(self, name: Split) -> "TokenSource":
        """The sequences of a split, drawn once per task object.

        Raises:
          ValueError: unknown split.
        """
        import numpy as np

        from zoo.data.draws import Draws
        from zoo.data.tokens import TokenSource

        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        if name not in self._splits:
            size = self.sizes[self.source]
            rows = size.train if name == "train" else size.heldout
            draws = Draws(self.seed, stream=SPLITS.index(name))
            # In blocks, because draws take several times the memory of what is made of them.
            blocks = [self._draw(draws, min(_BLOCK, rows - first)) for first in range(0, rows, _BLOCK)]
            self._splits[name] = TokenSource(*(np.concatenate(part) for part in zip(*blocks, strict=True)))
        return self._splits[name]

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the sequences and labels of all splits."""
        import numpy as np

        digest = hashlib.sha256()
        for name in SPLITS:
            source = self.split(name)
            digest.update(np.stack([source.inputs, source.labels]).astype("<i2").tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Origin, seed, sizes, vocabulary and checksum."""
        size = self.sizes[self.source]
        asked = int((self.split("test").labels[0] >= 0).sum())
        return {
            "dataset": f"{self.name}/{self.source}",
            "origin": "drawn from the seed",
            "seed": self.seed,
            "splits": {name: size.train if name == "train" else size.heldout for name in SPLITS},
            "length": size.length,
            "tokens_asked_for": asked,
            "vocab_size": self.info.vocab_size,
            "checksum": self.fingerprint(),
        }
