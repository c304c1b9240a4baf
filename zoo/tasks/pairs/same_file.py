"""Whether two pieces of source code are from one file, byte by byte: a stand-in for LRA Retrieval."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split, TaskInfo
from zoo.tasks.standin import StandInTask

if TYPE_CHECKING:
    from zoo.data.draws import Draws
    from zoo.data.pairs import PairSource

_MAX_LEN = 128
_MOST_PAIRS = 40  # of one file, so that no file makes up a split
_PARTS = 8  # of the files; one is for test, one for validation
_ALIKE = ("encodings",)  # a hundred tables with one text around them: pairs across them look like those within


@register_task(
    "pairs/same_file",
    title="Whether two pieces of source code are from one file, byte by byte",
    inputs=("tokens",),
    notes="Nothing to download: the sources of Python's standard library, as installed here. A stand-in for "
    "lra/retrieval.",
)
class SameFile(StandInTask):
    """Pairs of windows of the standard library's files: label 1 if both are from the same file, else 0.

    A file is cut into windows of `max_len` bytes; a window is in one pair of label 1, which never has neighbours in it
    (or a word that the cut went through would tell), and in one of label 0, on the same side. So neither side alone
    tells the label, by construction. Files are split, not windows: nothing of a test file is seen in training. A file
    is for test, validation (an eighth each) or training by a hash of its name, and gives 40 pairs of label 1 at most.
    The folder `encodings` is left out: its files are too much alike.

    Inputs and mask are [B, T, 2]. Tokens are as in `zoo.tasks.lra.retrieval`: the byte's value plus 1.

    Args:
      source: "stdlib".
      max_len: bytes of a window; None for 128.
      data_dir: unused; nothing is stored.
      seed: of the pairs and the hash.

    Raises:
      ValueError: unknown source, `max_len` is not from 16 to 4,096, or a seed out of range.
    """

    name = "pairs/same_file"
    sources = ("stdlib",)
    stands_for = "LRA Retrieval"

    def __init__(
        self, source: str = "stdlib", max_len: int | None = None, data_dir: str | Path | None = None, seed: int = 0
    ):
        super().__init__(source, data_dir, seed)
        if max_len is not None and not 16 <= max_len <= 4096:
            raise ValueError(f"max_len must be from 16 to 4096, or few files hold two windows, got {max_len}.")
        self.info = TaskInfo("tokens", vocab_size=257, num_classes=2, max_len=max_len or _MAX_LEN, pairs=True)
        self._documents: dict[str, list[bytes]] | None = None

    @property
    def origin(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which Python's library it is."""
        import platform

        return f"Python {platform.python_version()}'s standard library"

    def _make(self, name: Split) -> "PairSource":
        from zoo.data.draws import Draws
        from zoo.data.manifest import DataError
        from zoo.data.pairs import PairSource
        from zoo.data.source import RaggedSource
        from zoo.data.stdlib import library_folder, read_library

        if self._documents is None:
            try:
                self._documents = read_library(library_folder(), self.seed, parts=_PARTS, leave_out=_ALIKE)
            except OSError as error:
                raise DataError(f"Python's standard library cannot be read: {error}.") from error
        draws = Draws(self.seed, stream=SPLITS.index(name))
        windows, homes = _windows(self._documents[name], self.info.max_len, draws)
        others = _dealt(homes, draws)
        if others is None:
            raise DataError(
                f"{library_folder()} has too few source files for {name} with windows of {self.info.max_len} bytes; "
                "this Python is installed without them, or make max_len smaller."
            )
        # Windows stand two by two: firsts have even numbers, seconds odd ones.
        firsts = 2 * np.arange(len(homes))
        pairs = np.concatenate([np.stack([firsts, firsts + 1], 1), np.stack([firsts, 2 * others + 1], 1)])
        labels = np.repeat([1, 0], len(homes))
        order = np.argsort(draws.uniform((len(labels),)), kind="stable")
        documents = RaggedSource.from_rows(windows, np.zeros(len(windows), int))
        return PairSource(documents, pairs[order], labels[order])


def _windows(texts: list[bytes], length: int, draws: "Draws") -> tuple[list[bytes], np.ndarray]:
    """Windows, two by two from one file and no neighbours in it, and the number of each two's file."""
    windows, homes = [], []
    for home, text in enumerate(texts):
        count = len(text) // length
        order = np.argsort(draws.uniform((count,)), kind="stable")
        twos = [two for two in order[: count - count % 2].reshape(-1, 2) if abs(two[0] - two[1]) > 1]
        for two in twos[:_MOST_PAIRS]:
            windows += [text[place * length : (place + 1) * length] for place in two.tolist()]
            homes.append(home)
    return windows, np.array(homes, int)


def _dealt(homes: np.ndarray, draws: "Draws") -> np.ndarray | None:
    """A permutation that gives each place one of another home; None where there is none."""
    if not len(homes) or 2 * np.bincount(homes).max() > len(homes):
        return None
    dealt = np.argsort(draws.uniform((len(homes),)), kind="stable")
    # Whatever is at home is exchanged with a place drawn at random until nothing is.
    while len(wrong := np.flatnonzero(homes[dealt] == homes)):
        for place, other in zip(wrong, draws.integers(len(homes), wrong.shape), strict=True):
            dealt[place], dealt[other] = dealt[other], dealt[place]
    return dealt
