"""Archives that publishers ship: where they are looked for, whether they are theirs, and the order of their rows."""

import dataclasses
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zoo.data.fetch import FetchError, fetch, forbidden, is_address, mirrors
from zoo.data.manifest import DataError, file_sha256

DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
"""What reading an archive raises that was changed or is cut short."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file that a publisher ships.

    Attributes:
      name: of the file.
      folder: what is in it, which is taken in the place of the file where it has been unpacked.
      size, sha256: of the publisher's file, in bytes and hex; None where the publisher names none.
      origin: where it is to be had, a sentence.
      urls: addresses from which it can be fetched; none where it cannot.
    """

    name: str
    folder: str
    size: int | None
    sha256: str | None
    origin: str
    urls: tuple[str, ...] = ()

    def find(self, data_dir: Path, given: str | Path | None = None) -> Path:
        """The archive, or the unpacked folder: `given`, or in a data folder, its `downloads/manual` or `downloads`.

        Raises:
          DataError: there is neither.
        """
        if given is not None:
            path = Path(given).expanduser().absolute()
            if not path.exists():
                raise DataError(f"There is no {path}. {self.origin}")
            return path
        path = self._there(data_dir)
        if path is None:
            raise DataError(self._missing(data_dir))
        return path

    def get(self, data_dir: Path, given: str | Path | None = None, *, progress: bool = True) -> Path:
        """As `find`; and what is not there is fetched into the data folder's `downloads`.

        Only what can be checked is fetched unasked. An archive without a published checksum is when its address is
        given: such archives are large.

        Args:
          data_dir: the folder of all data.
          given: the archive, the unpacked folder, or an address to fetch the archive from; None for the usual places.
          progress: whether to report progress on standard error.

        Raises:
          DataError: it is not there and cannot be fetched, or must not be; the message says what to put where.
        """
        address = str(given) if is_address(given) else None
        if given is not None and address is None:
            return self.find(data_dir, given)
        path = self._there(data_dir)
        if path is not None:
            return path
        if reason := self._why_not(address):
            raise DataError(f"{self._missing(data_dir)} {reason}")
        urls = [*mirrors(self.name), *([address] if address else self.urls)]
        path = data_dir / "downloads" / self.name
        try:
            return fetch(urls, path, size=self.size, sha256=self.sha256, progress=progress)
        except FetchError as error:
            raise DataError(f"{error} {self._missing(data_dir)}") from None

    def _why_not(self, address: str | None) -> str:
        """Why it is not fetched, a sentence; empty where it is."""
        if not self.urls:
            return "It cannot be fetched."
        if address is None and self.sha256 is None:
            return (
                "It has no published checksum, and is fetched only where its address is given: "
                f"archive={self.urls[0]} (in a recipe as task.options.archive)."
            )
        return forbidden()

    def _there(self, data_dir: Path) -> Path | None:
        for place in (_manual(data_dir), data_dir, data_dir / "downloads"):
            for name in (self.name, self.folder):
                if (place / name).exists():
                    return place / name
        return None

    def _missing(self, data_dir: Path) -> str:
        facts = [] if self.size is None else [f"{self.size:,} bytes"]
        facts += [] if self.sha256 is None else [f"SHA-256 {self.sha256}"]
        known = f" ({', '.join(facts)})" if facts else ""
        place = f"{_manual(data_dir) / self.name}{known}"
        return (
            f"There is no {self.name} below {data_dir}. {self.origin} Put it at {place}, or give its folder as "
            "--data-dir."
        )

    def is_published(self, path: str | Path) -> bool | None:
        """Whether a file is the publisher's to the byte; None where there is no checksum, as of a folder."""
        path = Path(path)
        if path.is_dir() or self.sha256 is None:
            return None
        return path.stat().st_size == self.size and file_sha256(path) == self.sha256

    def members(self, path: Path, wanted: Callable[[str, int], bool]) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of files in the archive at `path`, in its order.

        Args:
          path: of the archive.
          wanted: whether a file of this name and size is; may raise, before so much is read.

        Raises:
          DataError: it is no such archive, was changed, or is cut short.
        """
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isfile() and wanted(name, member.size):
                        file = archive.extractfile(member)
                        assert file is not None
                        yield name, file.read()
                # What follows the last member: gzip keeps the checksum of all before it there.
                assert archive.fileobj is not None
                while archive.fileobj.read(1 << 20):
                    pass
        except DAMAGE as error:
            raise DataError(
                f"{path} cannot be read as {self.name}, or is cut short ({error or type(error).__name__}). "
                f"{self.origin}"
            ) from error


def _manual(data_dir: Path) -> Path:
    """Where files are put by hand."""
    return data_dir / "downloads" / "manual"


def tfds_order(keys: Sequence[str | int], split: str) -> list[int]:
    """The places of `keys` in the order in which TFDS' catalogue stores such examples of a split.

    It sorts by the MD5 of the split's name followed by the key. What is sliced off there, as `train[90%:]`, is known
    from this order.
    """
    salt = hashlib.md5(split.encode())

    def digest(key: str | int) -> bytes:
        salted = salt.copy()
        salted.update(str(key).encode())
        return salted.digest()

    digests = [digest(key) for key in keys]
    return sorted(range(len(keys)), key=digests.__getitem__)
