"""IMDB reviews (Maas et al. 2011) in their publisher's form, read from the archive or from the folder in it."""

import re
from collections.abc import Iterator
from pathlib import Path

from zoo.data.archives import Archive
from zoo.data.manifest import DataError

IMDB = Archive(
    name="aclImdb_v1.tar.gz",
    folder="aclImdb",
    size=84_125_825,
    sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    origin="Get it from https://ai.stanford.edu/~amaas/data/sentiment/ (Large Movie Review Dataset v1.0, 84 MB).",
    urls=("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
)
SPLITS = ("train", "test")
LABELS = {"neg": 0, "pos": 1}
_TEXTS = 12_500  # of each label in each split
_MOST_BYTES = 1 << 20  # the longest review has 14 kB
_NAME = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_(\d+)\.txt")


def read_imdb(path: str | Path) -> dict[str, dict[str, bytes]]:
    """The labelled reviews, each by its name in the archive, as in `aclImdb/train/pos/0_9.txt`, in order of the names.

    White space around a text is left out, as TFDS does. Reviews without a label are not read.

    Args:
      path: `aclImdb_v1.tar.gz`, or the folder `aclImdb` that is in it.

    Returns:
      UTF-8 texts by name, for "train" and "test", 25,000 each. `label_of` tells the label of a name.

    Raises:
      DataError: the archive is cut short or no such archive; texts are missing, too many, empty, too long or no UTF-8;
        a rating does not fit its label. The message names the file.
    """
    path = Path(path)
    texts: dict[str, bytes] = {}
    for name, text in _from_folder(path) if path.is_dir() else _from_archive(path):
        texts[name] = _checked(path, name, text)
    _check_complete(path, texts)
    return {split: {name: texts[name] for name in sorted(texts) if name.split("/")[1] == split} for split in SPLITS}


def label_of(name: str) -> int:
    """0 (negative) or 1 (positive), by the folder in a review's name."""
    return LABELS[name.split("/")[2]]


def _from_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for split in SPLITS:
        for label in LABELS:
            for file in (path / split / label).glob("*.txt"):
                try:
                    yield f"aclImdb/{split}/{label}/{file.name}", file.read_bytes()
                except OSError as error:
                    raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    def wanted(name: str, size: int) -> bool:
        if not _NAME.fullmatch(name):
            return False
        _check_size(path, name, size)
        return True

    return IMDB.members(path, wanted)


def _check_size(path: Path, name: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise DataError(f"{name} in {path} has {size:,} bytes; no review has more than {_MOST_BYTES:,}. {IMDB.origin}")


def _checked(path: Path, name: str, text: bytes) -> bytes:
    found = _NAME.fullmatch(name)
    if not found:
        raise DataError(f"{name} in {path} is not named like a review, as in 0_9.txt. {IMDB.origin}")
    _, label, _, rating = found.groups()
    # Maas et al. took reviews of 4 stars or less as negative, of 7 or more as positive.
    if not (1 <= int(rating) <= 4 if label == "neg" else 7 <= int(rating) <= 10):
        raise DataError(f"{name} in {path} has {int(rating)} of 10 stars, which is not {label}. {IMDB.origin}")
    _check_size(path, name, len(text))
    text = text.strip()
    if not text:
        raise DataError(f"{name} in {path} is empty. {IMDB.origin}")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} in {path} is not UTF-8: {error}. {IMDB.origin}") from error
    return text


def _check_complete(path: Path, texts: dict[str, bytes]) -> None:
    """Raises DataError unless each label of each split has its texts, numbered from 0."""
    for split in SPLITS:
        for label in LABELS:
            folder = f"aclImdb/{split}/{label}/"
            numbers = [int(name[len(folder) :].split("_")[0]) for name in texts if name.startswith(folder)]
            if len(numbers) != _TEXTS:
                raise DataError(f"{folder} in {path} has {len(numbers):,} reviews, not {_TEXTS:,}. {IMDB.origin}")
            if missing := set(range(_TEXTS)) - set(numbers):
                raise DataError(f"{folder} in {path} has no review of number {min(missing)}. {IMDB.origin}")
