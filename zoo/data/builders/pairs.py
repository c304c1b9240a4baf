"""Pairs of documents as TFDS data sets: LRA's Retrieval, and citations among ACL papers.

The split "documents" holds each text once; in the others a row is the numbers of two of them, and the label.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from zoo.data.archives import DAMAGE
from zoo.data.builders.archives import ArchiveBuilder, Rows
from zoo.data.manifest import DataError
from zoo.data.pairs import (
    AAN,
    AAN_BYTES,
    AAN_FILES,
    AAN_SIZES,
    ACL,
    DOCUMENTS,
    NUMBERS,
    Pairs,
    collect,
    parse_aan,
    read_aan,
    read_citations,
    split_citations,
)

ACL_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_ACL_SEED = 0


class LraRetrieval(ArchiveBuilder):
    """Pairs of papers of the ACL Anthology Network, as the Long Range Arena's release has them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    ARCHIVE, TASK, NUM_CLASSES = AAN, "lra/retrieval", 2
    TEXT = "Pairs of papers of the ACL Anthology Network (Radev et al. 2013), labelled 1 where one cites the other."
    SIZES = AAN_SIZES

    def read(self, path: Path) -> dict[str, Rows]:
        """The pairs of the three files, below a folder or out of the release's archive, which is streamed."""
        numbers: dict[bytes, int] = {}
        found: dict[str, Pairs] = {}
        for split, rows in self._files(path):
            found[split] = collect(rows, numbers, AAN_BYTES)
        for split, size in self.SIZES.items():
            rows = len(found[split].labels) if split in found else 0
            if rows != size:
                raise DataError(
                    f"{path}: {AAN_FILES[split]} has {rows:,} pairs instead of {size:,}. It is incomplete, or was "
                    "written anew by a program that takes quotes to mean something. Delete it and fetch it again."
                )
        return {split: _rows(found[split]) for split in self.SIZES} | {DOCUMENTS: _documents(list(numbers))}

    def _files(self, path: Path) -> Iterator[tuple[str, Iterator[tuple[int, bytes, bytes]]]]:
        splits = {name: split for split, name in AAN_FILES.items()}
        if path.is_dir():
            for name, split in splits.items():
                file = next((path / x for x in (name, f"{name}.gz") if (path / x).is_file()), None)
                if file is None:
                    raise DataError(f"{path} lacks {name}. {self.ARCHIVE.origin}")
                yield split, read_aan(file)
            return
        try:
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name in splits and (file := archive.extractfile(member)) is not None:
                        with contextlib.closing(file):
                            yield splits[name], parse_aan(file, f"{path}: {member.name}")
        except DAMAGE as error:
            raise DataError(
                f"{path} is damaged: {error}. Delete it and fetch it again. {self.ARCHIVE.origin}"
            ) from error


class AclPairs(ArchiveBuilder):
    """Pairs of ACL papers, labelled 1 where the first cites the second, split by the citing paper."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    ARCHIVE, TASK, NUM_CLASSES = ACL, "pairs/acl", 2
    TEXT = "Pairs of ACL papers, labelled 1 where the first cites the second. As many are no citations as are."

    def read(self, path: Path) -> dict[str, Rows]:
        """Citations, and as many pairs that are none; see `zoo.data.pairs.split_citations`."""
        texts, citations = read_citations(path)
        number = {name: index for index, name in enumerate(texts)}
        splits = {}
        for split, rows in split_citations(citations, ACL_SHARES, seed=_ACL_SEED).items():
            pairs = np.array([[number[first], number[second]] for first, second, _ in rows], np.int64)
            splits[split] = _rows(Pairs(pairs, np.array([label for _, _, label in rows], np.int32)))
        return splits | {DOCUMENTS: _documents([text[:AAN_BYTES] for text in texts.values()])}


def _rows(pairs: Pairs) -> Rows:
    """In the order that TFDS gives numbered rows, which mixes the labels."""
    numbers = [row.tobytes() for row in pairs.pairs.astype(NUMBERS)]
    return Rows(numbers, pairs.labels.tolist(), range(len(numbers)))


def _documents(texts: list[bytes]) -> Rows:
    return Rows(texts, [0] * len(texts), None)  # in the order of their numbers
