"""Tasks whose data is prepared once, by a builder: what they share."""

import abc
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.manifest import DataError
from zoo.tasks.base import SPLITS, Split

if TYPE_CHECKING:
    from zoo.data.prepared import Prepared
    from zoo.data.source import Source


class PreparedTask(abc.ABC):
    """Beside a `zoo.tasks.base.Task`: its data is a folder that a builder writes, or the pack of one."""

    name: str

    @property
    @abc.abstractmethod
    def prepared(self) -> "Prepared":
        """The prepared data: a folder, or a pack."""

    @abc.abstractmethod
    def _build(self, **options: Any) -> Path:
        """Makes the folder, unless it is there and whole."""

    @abc.abstractmethod
    def _read_split(self, name: Split) -> "Source":
        """The examples of a split, whose files have been checked."""

    @property
    def folder(self) -> Path:
        """Where the prepared data lies, if it is not packed."""
        return self.prepared.folder

    def is_prepared(self) -> bool:
        """Whether the data is there and whole: all files, with the right sizes."""
        try:
            self._manifest()
        except DataError:
            return False
        return True

    def prepare(self, *, progress: bool = True, workers: int | None = None) -> Path:
        """Makes the data; does nothing where it is whole.

        Args:
          progress: report progress on standard error.
          workers: number of processes; None for one per core. The data does not depend on it.

        Returns:
          The folder of the data, or the pack.

        Raises:
          DataError: damaged or missing files, or no room on the disk; the message says what to do.
        """
        if self.prepared.packed:
            self._manifest()
            return self.prepared.pack
        return self._build(progress=progress, workers=workers)

    def verify(self) -> None:
        """Computes the SHA-256 of every file.

        Raises:
          DataError: a file differs from the manifest; the message names it.
        """
        self._manifest(verify=True)

    def split(self, name: Split) -> "Source":
        """The examples of a split; read once per task object.

        Raises:
          ValueError: unknown split.
          DataError: the data is not prepared, or damaged.
        """
        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        if name not in self._kept:
            _ = self._whole  # checks the files, the first time
            self._kept[name] = self._read_split(name)
        return self._kept[name]

    @functools.cached_property
    def _kept(self) -> "dict[str, Source]":
        return {}

    def fingerprint(self) -> str:
        """The start of the SHA-256 over the checksums of all splits' examples.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        lines = [f"{name} {self._content(name)}" for name in SPLITS]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def stored_splits(self) -> tuple[str, ...]:
        """The names under which rows are stored."""
        return tuple(self._manifest()["splits"])

    def _content(self, name: Split) -> str:
        """What a split's examples are, for `fingerprint`."""
        return self._manifest()["splits"][name]["content_sha256"]

    @functools.cached_property
    def _whole(self) -> dict[str, Any]:
        """The manifest, after checking the files to the last bit; once, and that costs a fraction of reading them."""
        return self._manifest(verify=True)

    def _manifest(self, *, verify: bool = False) -> dict[str, Any]:
        return self.prepared.manifest(verify=verify)

    def _facts(self) -> dict[str, Any]:
        """What every description has."""
        data = self.prepared
        return {"path": str(data.path), "bytes": data.bytes, "checksum": self._manifest()["digest"]}


def cut_caution(manifest: Mapping[str, Any]) -> list[str]:
    """What is to be said with results on a pack that has fewer training examples than the data set."""
    cut = manifest.get("cut", {})
    return [f"a pack of {cut['train']:,} of {cut['of']:,} training examples"] if "train" in cut else []
