"""The reader of CIFAR-10, on archives made here and on the publisher's layout."""

import io
import tarfile

import numpy as np
import pytest

from zoo.data import cifar10 as module
from zoo.data.cifar10 import CIFAR10, find_cifar10, read_cifar10
from zoo.data.manifest import DataError

NAMES = [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]
ROWS = 4


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Batches of 4 images, not 10,000."""
    monkeypatch.setattr(module, "_ROWS", ROWS)


def batches():
    """Each image's label and pixels, channel first, by file."""
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 256, (ROWS, 3073), np.uint8) for name in NAMES}
    for part in rows.values():
        part[:, 0] %= 10
    return {name: part.tobytes() for name, part in rows.items()}


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path, files):
    folder = path / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_images_and_labels_are_the_bytes_of_the_files(tmp_path):
    files = batches()
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", {"batches.meta.txt": b"cat\n", **files})
    folder = write_folder(tmp_path, files)
    for path in (archive, folder):
        images, labels = read_cifar10(path, "train")
        assert (images.shape, images.dtype, labels.shape) == ((5 * ROWS, 32, 32, 3), np.uint8, (5 * ROWS,))
        for index in (0, ROWS, 5 * ROWS - 1):
            data = files[NAMES[index // ROWS]]
            start = index % ROWS * 3073
            assert labels[index] == data[start]
            for row, column, channel in ((0, 0, 0), (3, 5, 1), (31, 31, 2)):
                assert images[index, row, column, channel] == data[start + 1 + 1024 * channel + 32 * row + column]
        assert read_cifar10(path, "test")[0].shape == (ROWS, 32, 32, 3)
    assert CIFAR10.is_published(archive) is False
    assert CIFAR10.is_published(folder) is None


def test_where_it_is_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"There is no cifar-10-binary.tar.gz below .*kriz/cifar.html.*--data-dir"):
        find_cifar10(tmp_path)
    folder = write_folder(tmp_path, {})
    assert find_cifar10(tmp_path) == folder
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", {})
    assert find_cifar10(tmp_path) == archive
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    assert find_cifar10(tmp_path) == archive
    kept = write_archive(manual / "cifar-10-binary.tar.gz", {})
    assert find_cifar10(tmp_path) == kept


def test_what_is_wrong_is_named(tmp_path):
    files = batches()
    path = tmp_path / "cifar-10-binary.tar.gz"
    short = {**files, "data_batch_3.bin": files["data_batch_3.bin"][:-1]}
    missing = {name: data for name, data in files.items() if name != "data_batch_2.bin"}
    label = bytearray(files["data_batch_1.bin"])
    label[3073] = 11
    for changed, message in (
        (short, r"data_batch_3.bin in .* has 12,291 bytes, not 12,292"),
        (missing, r"has no file data_batch_2.bin"),
        ({**files, "data_batch_1.bin": bytes(label)}, r"data_batch_1.bin in .* has the label 11 at image 1"),
    ):
        with pytest.raises(DataError, match=message):
            read_cifar10(write_archive(path, changed), "train")
        with pytest.raises(DataError, match=message):
            read_cifar10(write_folder(tmp_path / message[:12].strip("."), changed), "train")
        assert read_cifar10(path, "test")[0].shape == (ROWS, 32, 32, 3)
    write_archive(path, files)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"no archive", b"", whole[:100] + bytes(200) + whole[300:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be read as cifar-10-binary.tar.gz, or is cut short|has no file"):
            read_cifar10(path, "train")
    with pytest.raises(DataError, match="cannot be read"):
        read_cifar10(tmp_path / "nowhere.tar.gz", "train")
    with pytest.raises(ValueError, match="CIFAR-10 has no split 'validation'; there are train, test"):
        read_cifar10(path, "validation")  # pyright: ignore[reportArgumentType]


def test_a_size_that_is_only_claimed_is_not_read(tmp_path):
    """The header says 100 GB; nothing of that is asked for."""
    member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    member.size = 100 * 2**30
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("first"))
        archive.fileobj.write(member.tobuf())
    with pytest.raises(DataError, match=r"test_batch.bin in .* has 107,374,182,400 bytes, not 12,292"):
        read_cifar10(path, "test")


@pytest.mark.slow
def test_the_whole_archive(shared_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 10_000)
    path = shared_path("data", "cifar-10-binary.tar.gz")
    images, labels = read_cifar10(path, "train")
    assert images.shape == (50_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(labels), [5_000] * 10)
    # The well-known means of the training set.
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-3)
    images, labels = read_cifar10(path, "test")
    assert images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(labels), [1_000] * 10)
