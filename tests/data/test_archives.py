"""Archives of publishers, the order of their rows, TensorFlow's grey, and rows of bytes and pixels."""

import hashlib

import numpy as np
import pytest
from tensorflow_datasets.core import hashing

from zoo.data.archives import Archive, tfds_order
from zoo.data.cifar10 import CIFAR10
from zoo.data.grey import tf_grey
from zoo.data.imdb import IMDB
from zoo.data.manifest import DataError
from zoo.data.rows import ByteSource, PixelSource


def test_the_order_is_that_of_the_catalogue():
    """By TFDS' own hash, and by what everybody sees first in its `cifar10`: train_16399."""
    for split, keys in (("train", [f"a/{number}_7.txt" for number in range(200)]), ("test", list(range(300)))):
        hasher = hashing.Hasher(split)
        assert tfds_order(keys, split) == sorted(range(len(keys)), key=lambda i: hasher.hash_key(keys[i]))
    assert tfds_order(range(50_000), "train")[:3] == [16_399, 1_680, 47_917]


def test_published_sums_are_those_of_the_catalogue():
    """What TFDS downloads these data sets by."""
    import tensorflow_datasets as tfds

    for archive, sums in ((CIFAR10, "url_checksums/cifar10.txt"), (IMDB, "datasets/imdb_reviews/checksums.tsv")):
        text = tfds.core.tfds_path(sums).read_text()
        assert f"{archive.name}\t{archive.size}\t{archive.sha256}\t{archive.name}" in text


def test_an_archive_is_the_publishers_to_the_byte(tmp_path):
    data = b"published"
    archive = Archive("a.tar.gz", "a", len(data), hashlib.sha256(data).hexdigest(), "Get it somewhere.")
    path = tmp_path / "a.tar.gz"
    for content, published in ((data, True), (b"Published", False), (b"published more", False)):
        path.write_bytes(content)
        assert archive.is_published(path) is published
    (tmp_path / "a").mkdir()
    assert archive.is_published(tmp_path / "a") is None
    assert archive.find(tmp_path) == path
    assert archive.find(tmp_path / "elsewhere", path) == path
    with pytest.raises(DataError, match=r"There is no .*nowhere.tar.gz. Get it somewhere"):
        archive.find(tmp_path, tmp_path / "nowhere.tar.gz")
    with pytest.raises(
        DataError, match=r"There is no a.tar.gz below .*elsewhere. Get it somewhere. Put it at .*manual"
    ):
        archive.find(tmp_path / "elsewhere")


def grey_of(*colour):
    return int(tf_grey(np.array(colour, np.uint8).reshape(1, 1, 1, 3))[0, 0, 0])


def test_grey_by_hand():
    """(0.2989 r + 0.587 g + 0.114 b) * 255.5 / 255, cut."""
    assert grey_of(0, 0, 0) == 0
    assert grey_of(255, 255, 255) == 255  # 255.474
    assert grey_of(255, 0, 0) == 76  # 76.369
    assert grey_of(0, 255, 0) == 149  # 149.979; rounded it would be 150
    assert grey_of(0, 0, 255) == 29  # 29.127
    assert grey_of(10, 20, 30) == 18  # 18.185
    assert grey_of(200, 100, 50) == 124  # 124.424
    assert grey_of(1, 1, 1) == 1  # 1.0019


def test_grey_is_the_formula_and_not_pils():
    colours = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    grey = tf_grey(colours)
    exact = colours.astype(float) @ [0.2989, 0.587, 0.114] * 255.5 / 255
    clear = np.abs(exact - np.round(exact)) > 1e-4  # of float32's rounding
    np.testing.assert_array_equal(grey[clear], np.floor(exact[clear]))
    assert clear.mean() > 0.999
    assert np.abs(grey - exact).max() < 1.001
    red, green, blue = np.moveaxis(colours.astype(int), -1, 0)
    pil = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    assert set(np.unique(grey.astype(int) - pil)) == {-1, 0}
    assert 0.2 < (grey != pil).mean() < 0.6
    for wrong in (colours[0], colours.astype(int), colours[..., :1]):
        with pytest.raises(ValueError, match=r"images must be uint8 \[N, H, W, 3\]"):
            tf_grey(wrong)


def test_bytes_are_ids_from_one():
    rows = [b"ab", bytes([0, 255, 7, 7]), b""]
    source = ByteSource.from_rows(rows, [0, 1, 1])
    batch = source.gather(np.array([0, 1, 2]), 3)
    np.testing.assert_array_equal(batch["inputs"], [[98, 99, 0], [1, 256, 8], [0, 0, 0]])
    np.testing.assert_array_equal(batch["mask"], [[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    assert batch["inputs"].dtype == np.int32
    part = source.part(1, 3)
    np.testing.assert_array_equal(part.gather(np.array([0]), 5)["inputs"], [[1, 256, 8, 8, 0]])
    assert (part.labels.tolist(), part.lengths.tolist()) == ([1, 1], [4, 0])
    assert part.tokens.base is not None


def test_black_pixels_are_real_unless_asked():
    pixels = np.array([[0, 255, 0, 9], [0, 0, 0, 0]], np.uint8)
    batch = PixelSource(pixels, [3, 4]).gather(np.array([1, 0]), 4)
    np.testing.assert_array_equal(batch["inputs"], pixels[::-1])
    assert batch["mask"].all()
    assert (batch["inputs"].dtype, batch["label"].tolist()) == (np.int32, [4, 3])
    masked = PixelSource(pixels, [3, 4], black_is_padding=True).gather(np.array([0, 1]), 6)
    np.testing.assert_array_equal(masked["mask"], [[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(masked["inputs"][0], [0, 255, 0, 9, 0, 0])
    scaled = PixelSource(pixels, [3, 4], scale=(122.6, 61.0)).gather(np.array([0]), 5)
    np.testing.assert_allclose(scaled["inputs"], [[-122.6 / 61, 132.4 / 61, -122.6 / 61, -113.6 / 61, 0]], rtol=1e-6)
    np.testing.assert_array_equal(scaled["mask"], [[1, 1, 1, 1, 0]])
    assert scaled["inputs"].dtype == np.float32


def test_pixels_of_another_form_are_refused():
    for pixels, labels in ((np.zeros((2, 3, 1), np.uint8), [0, 1]), (np.zeros((2, 3), np.uint8), [0])):
        with pytest.raises(ValueError, match=r"pixels must be \[N, L\] and labels \[N\]"):
            PixelSource(pixels, labels)
    with pytest.raises(TypeError, match="pixels must be uint8, got float64"):
        PixelSource(np.zeros((2, 3)), [0, 1])
