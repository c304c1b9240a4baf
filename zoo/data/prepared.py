"""A prepared data set: the folder that a builder wrote, or the pack of one."""

import dataclasses
from pathlib import Path
from typing import Any

from zoo.data.manifest import DataError, read_manifest
from zoo.data.pack import read_pack, read_pack_manifest
from zoo.data.source import RaggedSource


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where a data set lies once it is prepared. Nothing here needs TFDS but reading a folder.

    A folder counts before a pack.

    Attributes:
      root: the folder of all data.
      name: the data set's folder below it, as in "lra_text/1.0.0".
      mend: the command that makes the folder.
      feature: what the rows of bytes are called in it.
    """

    root: Path
    name: str
    mend: str
    feature: str = "tokens"

    @property
    def folder(self) -> Path:
        """Where a builder writes it."""
        return self.root / self.name

    @property
    def pack(self) -> Path:
        """Where a pack of it is looked for."""
        return self.root / f"{self.name.replace('/', '-')}.npz"

    @property
    def packed(self) -> bool:
        """Whether it is read from a pack."""
        return not self.folder.exists() and self.pack.is_file()

    @property
    def path(self) -> Path:
        """What it is read from."""
        return self.pack if self.packed else self.folder

    def manifest(self, *, verify: bool = False) -> dict[str, Any]:
        """What is known of the data set, after checking its files.

        Args:
          verify: compute every checksum; otherwise sizes are checked, and the sums of small files. The sums of a pack
            are checked as it is read.

        Raises:
          DataError: it is missing or damaged.
        """
        if not self.packed:
            return read_manifest(self.folder, mend=self.mend, verify=verify)
        manifest = read_pack_manifest(self.pack)
        if manifest.get("dataset") != self.name:
            raise DataError(f"{self.pack} is a pack of {manifest.get('dataset')}, not of {self.name}.")
        if verify:
            for name in manifest["arrays"]:
                if name.endswith(".tokens"):
                    read_pack(self.pack, name.removesuffix(".tokens"))
        return manifest

    def rows(self, split: str) -> RaggedSource:
        """The rows of a stored split, in memory.

        Raises:
          DataError: it is damaged.
        """
        if self.packed:
            return read_pack(self.pack, split)
        from zoo.data.builders.base import read_ragged

        return read_ragged(self.folder, split, mend=self.mend, tokens=self.feature)

    @property
    def bytes(self) -> int:
        """The size of its files."""
        if self.packed:
            return self.pack.stat().st_size
        return sum(entry["bytes"] for entry in self.manifest()["files"].values())
