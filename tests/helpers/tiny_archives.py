"""Archives in the form of IMDB's and CIFAR-10's, with a few examples each."""

import io
import tarfile
from pathlib import Path

import numpy as np

TEXTS = 50  # of each label in each split
ROWS = 20  # of each file of images


def shrink(monkeypatch) -> None:
    """Lets the readers expect archives of these sizes."""
    monkeypatch.setattr("zoo.data.imdb._TEXTS", TEXTS)
    monkeypatch.setattr("zoo.data.cifar10._ROWS", ROWS)


def reviews() -> dict[str, bytes]:
    """Texts by their name in the archive; those of one label have more of a letter than those of the other."""
    rng = np.random.default_rng(0)
    files = {}
    for split in ("train", "test"):
        for label, letters in (("neg", "aab "), ("pos", "abb ")):
            for number in range(TEXTS):
                text = "".join(rng.choice(list(letters), rng.integers(5, 60)))
                name = f"aclImdb/{split}/{label}/{number}_{3 if label == 'neg' else 9}.txt"
                files[name] = f"{split} é<br />{text}{number}".encode()
    return files


def batches() -> dict[str, bytes]:
    """Each image's label and pixels, channel first, by file; the label is told by how bright an image is."""
    rng = np.random.default_rng(0)
    files = {}
    for name in [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 10, (ROWS, 1))
        pixels = np.clip(25 * labels + rng.integers(0, 30, (ROWS, 3072)), 0, 255)
        files[f"cifar-10-batches-bin/{name}"] = np.concatenate([labels, pixels], 1).astype(np.uint8).tobytes()
    return files


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    """A gzipped tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    """The same files unpacked below `path`; the folder that is in the archive."""
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path / next(iter(files)).split("/")[0]
