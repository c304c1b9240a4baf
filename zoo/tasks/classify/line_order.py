"""Whether the lines of a piece of source code are in their order, byte by byte: a stand-in for LRA Text."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split, TaskInfo
from zoo.tasks.standin import StandInTask

if TYPE_CHECKING:
    from zoo.data.draws import Draws
    from zoo.data.rows import ByteSource

_MAX_LEN = 512
_FEWEST_LINES = 6
_PARTS = 8  # of the files; one is for test, one for validation


@register_task(
    "classify/line_order",
    title="Whether lines of source code are in order or shuffled, byte by byte",
    inputs=("tokens",),
    notes="Nothing to download: the sources of Python's standard library, as installed here. A stand-in for lra/text.",
)
class LineOrder(StandInTask):
    """Pieces of the standard library's files: label 0 as they stand, label 1 with their lines shuffled.

    By a fair coin for each piece. Shuffling leaves every byte in the piece, so that a bag of bytes is at chance by
    construction, whatever the Python: what is learned is order. Where the indentation grows after a line that opens
    nothing, lines are shuffled: to look for that alone is right in 78 % of pieces.

    A file's bytes are cut into pieces of as many whole lines as fit in `max_len` bytes; pieces of fewer than 6
    different lines are left out. Tokens are as in `zoo.tasks.lra.text`: the byte's value plus 1, 0 is padding. A file
    is for test, validation (an eighth each) or training by a hash of its name.

    Args:
      source: "stdlib".
      max_len: bytes of a piece; None for 512.
      data_dir: unused; nothing is stored.
      seed: of the coins, the shuffles and the hash.

    Raises:
      ValueError: unknown source, `max_len` below 64, or a seed out of range.
    """

    name = "classify/line_order"
    sources = ("stdlib",)
    stands_for = "LRA Text"

    def __init__(
        self, source: str = "stdlib", max_len: int | None = None, data_dir: str | Path | None = None, seed: int = 0
    ):
        super().__init__(source, data_dir, seed)
        if max_len is not None and max_len < 64:
            raise ValueError(f"max_len must be at least 64, or no piece has lines enough, got {max_len}.")
        self.info = TaskInfo("tokens", vocab_size=257, num_classes=2, max_len=max_len or _MAX_LEN)
        self._documents: dict[str, list[bytes]] | None = None

    @property
    def origin(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Which Python's library it is."""
        import platform

        return f"Python {platform.python_version()}'s standard library"

    def _make(self, name: Split) -> "ByteSource":
        from zoo.data.draws import Draws
        from zoo.data.manifest import DataError
        from zoo.data.rows import ByteSource
        from zoo.data.stdlib import library_folder, read_library

        if self._documents is None:
            try:
                self._documents = read_library(library_folder(), self.seed, parts=_PARTS)
            except OSError as error:
                raise DataError(f"Python's standard library cannot be read: {error}.") from error
        pieces = [piece for text in self._documents[name] for piece in _pieces(text, self.info.max_len)]
        if not pieces:
            raise DataError(
                f"{library_folder()} has no source files for {name}; this Python is installed without them."
            )
        draws = Draws(self.seed, stream=SPLITS.index(name))
        labels = draws.integers(2, (len(pieces),))
        rows = [_shuffled(piece, draws) if label else piece for piece, label in zip(pieces, labels, strict=True)]
        return ByteSource.from_rows([b"\n".join(row) for row in rows], labels)


def _pieces(text: bytes, length: int) -> list[list[bytes]]:
    """Runs of whole lines, each of at most `length` bytes and of lines enough; lines that are longer end a run."""
    pieces: list[list[bytes]] = []
    piece: list[bytes] = []
    size = 0
    for line in [*text.splitlines(), bytes(length + 1)]:
        if size + len(line) > length:
            if len(set(piece)) >= _FEWEST_LINES:
                pieces.append(piece)
            piece, size = [], 0
        if len(line) <= length:
            piece.append(line)
            size += len(line) + 1
    return pieces


def _shuffled(lines: list[bytes], draws: "Draws") -> list[bytes]:
    """The same lines in another order."""
    while True:
        order = np.argsort(draws.uniform((len(lines),)), kind="stable")
        shuffled = [lines[place] for place in order]
        if shuffled != lines:
            return shuffled
