"""Language modelling of bytes: any text file, or the sources of Python's standard library."""

import hashlib
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import SPLITS, Split, TaskInfo, TokenTask

if TYPE_CHECKING:
    import jax

    from zoo.data.tokens import WindowSource

_MAX_LEN = 256


@register_task(
    "lm/bytes",
    title="Language modelling of the bytes of a text",
    inputs=("tokens",),
    notes="Sources: stdlib (the sources of Python's standard library, as installed here), or the path of a text file.",
)
class Bytes(TokenTask):
    """Predicts every byte of a text from those before it. The metric is bits per byte, less is better.

    A token is the byte's value plus 1; 0 begins a document, is padding, and is never asked for. The text is cut into
    windows of `max_len`, each beginning with the byte before it as its only context, so that each byte of a split is
    predicted exactly once.

    Args:
      source: "stdlib", the .py files of the running Python's standard library without its tests: a file goes to test,
        validation (5 % each) or training by a hash of its name, so nearly alike under every Python. Or the path of a
        file: the first 90 % of its bytes are for training, 5 % for validation, the last 5 % for test.
      max_len: T, tokens of a window; None for 256.
      data_dir: unused; the text is read where it lies.
      seed: of the hash that splits "stdlib"; a file is split by position.

    Raises:
      ValueError: `source` is neither "stdlib" nor like a path, or `max_len` is below 1.
    """

    name = "lm/bytes"
    metric = "bpb"
    lower_is_better = True
    sources = ("stdlib",)

    def __init__(
        self, source: str = "stdlib", max_len: int | None = None, data_dir: str | Path | None = None, seed: int = 0
    ):
        del data_dir
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}.")
        # A run can go on writing text where its data is not, so that a file need not be there yet.
        if source != "stdlib" and not set(source) & {"/", "\\", "."} and not Path(source).is_file():
            raise ValueError(
                f"lm/bytes has no source {source!r}: give stdlib, or task.source=/the/path/of/a/text/file."
            )
        self.source, self.seed = source, seed
        self._documents: dict[str, list[bytes]] | None = None
        self.info = TaskInfo("tokens", vocab_size=257, num_classes=257, max_len=max_len or _MAX_LEN, output="token")

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids that a text begins with, int32: 0, then each byte of its UTF-8 plus 1."""
        data = text.encode() if isinstance(text, str) else text
        return np.concatenate([[0], np.frombuffer(data, np.uint8).astype(np.int32) + 1]).astype(np.int32)

    def decode(self, ids: Any) -> str:
        """The text of ids; 0 is left out, and bytes that are no UTF-8 become the replacement character."""
        ids = np.asarray(ids)
        return (ids[ids > 0] - 1).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def is_prepared(self) -> bool:
        """Whether the text is there."""
        return self._path().exists()

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Reads the text, so that what is wrong with it is said now; writes nothing.

        Returns:
          The file, or the folder of the standard library.

        Raises:
          DataError: it is missing, cannot be read, or is too short for three splits.
        """
        self._read()
        return self._path()

    def verify(self) -> None:
        """Reads the text again; raises as `prepare` does. Nobody keeps a checksum of it; see `fingerprint`."""
        self._documents = None
        self._read()

    def split(self, name: Split) -> "WindowSource":
        """The windows of a split.

        Raises:
          ValueError: unknown split.
          DataError: see `prepare`.
        """
        from zoo.data.tokens import WindowSource

        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        stream = np.concatenate([self.encode(document).astype(np.int16) for document in self._read()[name]])
        return WindowSource(stream, self.info.max_len)

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the documents of all splits.

        Raises:
          DataError: see `prepare`.
        """
        digest = hashlib.sha256()
        for name in SPLITS:
            for document in self._read()[name]:
                digest.update(f"{name} {len(document)}\n".encode() + document)
        return digest.hexdigest()[:16]

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Bits per byte of `split` without a model.

        Returns:
          "unigram": coded by the byte frequencies of the training split (every byte counted once more than it came).
          "zlib": compressed by zlib at level 9 (Deflate, as in gzip), which sees nothing of the training split.
        """
        documents = self._read()
        counts = 1 + np.bincount(np.frombuffer(b"".join(documents["train"]), np.uint8), minlength=256)
        text = b"".join(documents[split])
        bits = -np.log2(counts / counts.sum())
        return {
            "unigram": float(bits[np.frombuffer(text, np.uint8)].mean()),
            "zlib": 8 * len(zlib.compress(text, 9)) / len(text),
        }

    def describe(self) -> dict[str, Any]:
        """Origin, checksum, and for each split its documents and bytes.

        Raises:
          DataError: see `prepare`.
        """
        import platform

        splits = {
            name: {"documents": len(documents), "bytes": sum(map(len, documents))}
            for name, documents in self._read().items()
        }
        origin = f"Python {platform.python_version()}'s standard library" if self.source == "stdlib" else "a file"
        return {
            "dataset": f"{self.name}/{self.source}",
            "origin": origin,
            "path": str(self._path()),
            "splits": splits,
            "window": self.info.max_len,
            "checksum": self.fingerprint(),
        }

    def sums(self, outputs: "jax.Array", batch: dict[str, "jax.Array"]) -> dict[str, "jax.Array"]:
        """As `TokenTask.sums`, and "bpb", bits per byte: every token that is asked for is a byte."""
        sums = super().sums(outputs, batch)
        return {**sums, "bpb": sums["loss"] / math.log(2)}

    def _path(self) -> Path:
        from zoo.data.stdlib import library_folder

        return library_folder() if self.source == "stdlib" else Path(self.source).expanduser()

    def _read(self) -> dict[str, list[bytes]]:
        """The documents of each split; read once per task object."""
        from zoo.data.manifest import DataError
        from zoo.data.stdlib import read_library

        if self._documents is not None:
            return self._documents
        path = self._path()
        try:
            documents = read_library(path, self.seed) if self.source == "stdlib" else _cut(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}. Give the path of a text file: task.source=..."
            ) from error
        for name in SPLITS:
            if not any(documents[name]):
                raise DataError(
                    f"{path} has too little text: nothing of it is for {name}. Give the path of a longer text file: "
                    "task.source=..."
                )
        self._documents = documents
        return documents


def _cut(text: bytes) -> dict[str, list[bytes]]:
    first, second = len(text) * 90 // 100, len(text) * 95 // 100
    return {"train": [text[:first]], "validation": [text[first:second]], "test": [text[second:]]}
