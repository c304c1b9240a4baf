"""Pairs of documents: datasets in memory, the files that publishers ship, negatives where only positives are known."""

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.data.archives import Archive
from zoo.data.manifest import DataError
from zoo.data.source import RaggedSource

# Of the release's files, in Retrieval of the Long Range Arena.
AAN_SIZES = {"train": 147_086, "validation": 18_090, "test": 17_437}
AAN_FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
# The original encodes this much of a document before it cuts.
AAN_BYTES = 10_000
_LINE_LIMIT = 2**24

# How pairs are stored: each text once in a split of its own; elsewhere a row is the numbers of two of them.
DOCUMENTS = "documents"
NUMBERS = np.dtype("<u4")
AAN = Archive(
    name="lra_release.gz",
    folder="tsv_data",
    size=None,
    sha256=None,
    origin="It is https://storage.googleapis.com/long-range-arena/lra_release.gz (8 GB); of what is in it, the folder "
    f"tsv_data with {', '.join(AAN_FILES.values())} is enough.",
    urls=("https://storage.googleapis.com/long-range-arena/lra_release.gz",),
)
ACL = Archive(
    name="acl_citation_pairs.tar.gz",
    folder="acl_citation_pairs",
    size=None,
    sha256=None,
    origin="It is a folder with docs.jsonl.gz and citations.tsv.",
)


class Pairs(NamedTuple):
    """Labelled pairs of documents.

    Attributes:
      pairs: integer [N, 2], numbers of documents.
      labels: integer [N].
    """

    pairs: np.ndarray
    labels: np.ndarray


class PairSource:
    """Pairs of texts as bytes, side by side: a token is the byte's value plus 1, so that 0 is padding.

    Args:
      documents: all texts, uint8; its labels mean nothing.
      pairs: integer [N, 2], numbers of documents.
      labels: integer [N], from 0.

    Raises:
      ValueError: shapes do not fit, there are no pairs, or a number is that of no document.
      TypeError: the documents are no bytes, or numbers are no integers.
    """

    def __init__(self, documents: RaggedSource, pairs: Any, labels: Any):
        self.documents, self.pairs, self.labels = documents, np.asarray(pairs), np.asarray(labels)
        if documents.tokens.dtype != np.uint8:
            raise TypeError(f"documents must be uint8, got {documents.tokens.dtype}.")
        for name, array in (("pairs", self.pairs), ("labels", self.labels)):
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name} must be integers, got {array.dtype}.")
        if self.pairs.ndim != 2 or self.pairs.shape[1:] != (2,) or self.labels.shape != self.pairs.shape[:1]:
            raise ValueError(f"pairs must be [N, 2] and labels [N], got {self.pairs.shape} and {self.labels.shape}.")
        if not len(self.pairs) or self.pairs.min() < 0 or self.pairs.max() >= len(documents):
            raise ValueError(f"pairs must number the {len(documents)} documents from 0, and there must be one.")
        self.labels = self.labels.astype(np.int32)
        self.lengths = documents.lengths[self.pairs].max(axis=1).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `zoo.data.source.Source.gather`; inputs and mask are [b, length, 2]."""
        halves = [self.documents.gather(self.pairs[indices, side], length) for side in range(2)]
        mask = np.stack([half["mask"] for half in halves], axis=-1)
        inputs = np.stack([half["inputs"] for half in halves], axis=-1)
        inputs += mask
        return {"inputs": inputs, "mask": mask, "label": self.labels[indices]}


def read_aan(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Label and both texts of each line of a file `new_aan_pairs.*.tsv`, as they are: quotes mean nothing in it.

    A line is label (0.0 or 1.0), id, id, text, text, between tabs. Nothing but the line in hand is held.

    Args:
      path: the file, plain or gzipped.

    Raises:
      DataError: a line has another form; names it.
      OSError: it cannot be read.
    """
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        yield from parse_aan(file, str(path))


def parse_aan(file: Any, name: str) -> Iterator[tuple[int, bytes, bytes]]:
    """As `read_aan`, from an open file of bytes that is called `name` in messages."""
    number = 0
    while line := file.readline(_LINE_LIMIT):
        number += 1
        cells = line.rstrip(b"\n").removesuffix(b"\r").split(b"\t")
        if len(cells) != 5 or cells[0] not in (b"0.0", b"1.0", b"0", b"1"):
            raise DataError(
                f"{name}, line {number}: {len(cells)} cells, the first {cells[0][:20]!r}. A line has a label (0.0 or "
                "1.0), two ids and two texts, between tabs. Fetch the file again."
            )
        yield int(cells[0][:1]), cells[3], cells[4]


def collect(rows: Iterator[tuple[int, bytes, bytes]], numbers: dict[bytes, int], most: int) -> Pairs:
    """Pairs of numbered documents; each text is kept once, however many pairs it is in.

    Args:
      rows: label and both texts.
      numbers: of the texts known so far, cut to `most` bytes; new ones are added.
      most: bytes of a text that are kept.
    """
    pairs, labels = [], []
    for label, first, second in rows:
        pairs.append([numbers.setdefault(text[:most], len(numbers)) for text in (first, second)])
        labels.append(label)
    return Pairs(np.array(pairs, np.int64).reshape(-1, 2), np.array(labels, np.int32))


def read_citations(folder: Path) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    """Texts by id, and who cites whom, from `docs.jsonl.gz` ({"id", "text"} a line) and `citations.tsv` (a title line).

    Raises:
      DataError: a file is missing or damaged, or a citation names a document that is not there.
    """
    for name in ("docs.jsonl.gz", "citations.tsv"):
        if not (folder / name).is_file():
            raise DataError(f"There is no {folder / name}; docs.jsonl.gz and citations.tsv must lie side by side.")
    try:
        with gzip.open(folder / "docs.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = {row["id"]: row["text"].encode() for row in map(json.loads, file)}
        lines = (folder / "citations.tsv").read_text(encoding="utf-8").splitlines()
        citations = [(citing, cited) for citing, cited in (line.split("\t") for line in lines[1:])]
    except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise DataError(f"docs.jsonl.gz or citations.tsv in {folder} is damaged: {error}. Fetch them again.") from error
    if missing := sorted({name for pair in citations for name in pair} - texts.keys()):
        raise DataError(f"{folder / 'citations.tsv'} names documents that docs.jsonl.gz lacks: {missing[:3]}.")
    return texts, citations


def split_citations(
    citations: Sequence[tuple[str, str]], shares: Mapping[str, float], *, seed: int
) -> dict[str, list[tuple[str, str, int]]]:
    """Splits by the citing paper, with as many pairs that are no citations as there are citations in each split.

    Those are made by dealing the cited papers of a split out anew among its citing ones (as often as each is cited, so
    that neither side alone tells the label), never a paper to one that cites it, is cited by it, or is the same.

    Args:
      citations: citing and cited.
      shares: of the splits, by name, which add up to 1.
      seed: of both draws.

    Returns:
      By split, citing, cited or not, and 1 or 0.

    Raises:
      ValueError: the shares do not add up to 1, or a split has too few citations to deal them out.
    """
    if not math.isclose(sum(shares.values()), 1):
        raise ValueError(f"shares must add up to 1, got {dict(shares)}.")
    draw = np.random.default_rng(seed)
    citing = sorted({first for first, _ in citations})
    order = draw.permutation(len(citing))
    ends = np.round(np.cumsum(list(shares.values())) * len(citing)).astype(int)
    known = set(citations) | {(second, first) for first, second in citations}
    found = {}
    for name, start, end in zip(shares, [0, *ends], ends, strict=False):
        members = {citing[i] for i in order[start:end]}
        positives = sorted(pair for pair in set(citations) if pair[0] in members)
        others = _dealt([first for first, _ in positives], [second for _, second in positives], known, draw)
        negatives = list(zip((first for first, _ in positives), others, strict=True))
        found[name] = [(*pair, 1) for pair in positives] + [(*pair, 0) for pair in negatives]
    return found


def _dealt(first: list[str], second: list[str], known: set[tuple[str, str]], draw: np.random.Generator) -> list[str]:
    """A permutation of `second` that makes no known pair, none twice, and no paper one with itself."""
    dealt = [second[i] for i in draw.permutation(len(second))]
    # Whatever is wrong is exchanged with a place drawn at random until nothing is.
    for _ in range(1000):
        wrong, taken = [], set(known)
        for i, pair in enumerate(zip(first, dealt, strict=True)):
            if pair in taken or pair[0] == pair[1]:
                wrong.append(i)
            taken.add(pair)
        if not wrong:
            return dealt
        for i in wrong:
            j = int(draw.integers(len(first)))
            dealt[i], dealt[j] = dealt[j], dealt[i]
    raise ValueError(f"{len(first)} citations are too few to deal them out anew.")
