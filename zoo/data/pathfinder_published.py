"""Pathfinder as the Long Range Arena released it: PNG files, and text files (named .npy) that tell their labels.

The layout, read off the release's loaders (google-research/long-range-arena at cd31e5c, `lra_benchmarks/data/
pathfinder.py`): `pathfinder32/curv_contour_length_14/metadata/<n>.npy` holds a line for each image, whose fields 0, 1,
3 and 5 are its folder, its name, its label and the paddles of a curve.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.data.archives import tfds_order
from zoo.data.manifest import DataError
from zoo.data.pathfinder import DIFFICULTIES

FOLDERS = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
EXAMPLES = 200_000
# The one file of the release that is empty, which every loader leaves out.
_EMPTY = (32, "easy", "imgs/0/sample_172.png")
_FIELDS = 11


class Record(NamedTuple):
    """One image: its file, and whether both discs are on one curve (1) or not (0)."""

    path: Path
    label: int


def find_published(places: list[Path], size: int, difficulty: str) -> Path:
    """The folder `pathfinder<size>` of the release.

    Args:
      places: folders to look in: each as it is, below it, and below `lra_release` in it, which the archive has twice.
      size, difficulty: of the set.

    Raises:
      DataError: it is in none of them.
    """
    name, inner = f"pathfinder{size}", FOLDERS[difficulty]
    for place in places:
        for folder in (place, place / name, place / "lra_release" / name, place / "lra_release" / "lra_release" / name):
            if (folder / inner / "metadata").is_dir():
                return folder
    looked = ", ".join(str(place) for place in places)
    raise DataError(
        f"There is no {name}/{inner}/metadata below {looked}. Get lra_release.gz (a tar of 8 GB) from "
        "https://storage.googleapis.com/long-range-arena/lra_release.gz, and unpack what is needed: "
        f"tar -xzf lra_release.gz lra_release/lra_release/{name}/{inner}. Then name its folder by archive=PATH, or put "
        f"{name} at {places[-1] / name}. Or draw the images instead: source=full."
    )


def list_published(folder: Path, size: int, difficulty: str) -> list[Record]:
    """The images of a set, in the order in which TFDS stores LRA's; their files are not opened.

    Raises:
      DataError: the text files are missing, or are not of this set; the message names file and line.
    """
    inner = folder / FOLDERS[difficulty]
    files = sorted((inner / "metadata").glob("*.npy"))
    if not files:
        raise DataError(f"{inner / 'metadata'} has no .npy files, which tell the labels.")
    records, keys = [], []
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            fields = line.split()
            record = _record(fields, inner, DIFFICULTIES[difficulty], f"{file}, line {number}")
            if (size, difficulty, f"{fields[0]}/{fields[1]}") != _EMPTY:
                records.append(record)
                keys.append(f"{fields[0]}_{fields[1]}_{number}")
    if not records:
        raise DataError(f"{inner / 'metadata'} names no images.")
    if len(set(keys)) < len(keys):
        raise DataError(f"{inner / 'metadata'} names an image twice.")
    # There each difficulty is a split of its own, by whose name keys are hashed; 80, 10 and 10 % are cut out of it.
    return [records[place] for place in tfds_order(keys, difficulty)]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        hint = " It is text there, whatever its name says; arrays of NumPy are of another generator."
        raise DataError(f"{file} cannot be read: {error}.{hint}") from error


def _record(fields: list[str], inner: Path, paddles: int, where: str) -> Record:
    if len(fields) < _FIELDS:
        raise DataError(f"{where}: {len(fields)} fields, where LRA's text has {_FIELDS}.")
    if fields[3] not in ("0", "1"):
        raise DataError(f"{where}: field 4 is {fields[3]!r}, not a label, 0 or 1.")
    if fields[5] != str(paddles):
        raise DataError(f"{where}: field 6 says curves of {fields[5]} paddles, not {paddles}.")
    if ".." in fields[0] or "/" in fields[1]:
        raise DataError(f"{where}: {fields[0]}/{fields[1]} is no image of this set.")
    return Record(inner / fields[0] / fields[1], int(fields[3]))


def read_png(path: Path, size: int) -> np.ndarray:
    """A grey PNG of the release, uint8 [size, size].

    Raises:
      DataError: it is missing, damaged or something else.
      ModuleNotFoundError: Pillow is not installed.
    """
    pillow = _pillow()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        with pillow.open(io.BytesIO(data), formats=["PNG"]) as image:
            found = (image.mode, image.size)
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say that it is no such image
        raise DataError(f"{path} ({len(data)} bytes) is no PNG, or a damaged one: {error}.") from error
    if found != ("L", (size, size)):
        raise DataError(f"{path} is a picture {found[1]} of mode {found[0]}, not ({size}, {size}) in 8-bit grey (L).")
    return pixels


def _pillow() -> Any:
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading PNG files needs Pillow: pip install 'seqzoo[pathfinder]'.") from error
    return PIL.Image
