"""Packs: whole or not there, checked to the last bit, and never mistaken for another."""

import numpy as np
import pytest

from zoo.data.manifest import DataError
from zoo.data.pack import content_sha256, read_pack, read_pack_manifest, write_pack
from zoo.data.prepared import Prepared
from zoo.data.source import RaggedSource

ROWS = RaggedSource.from_rows([b"abc", b"", b"xy" * 400], [0, 1, 1])
FACTS = {"dataset": "set/1.0.0", "splits": {"train": {"examples": 3}}}


@pytest.fixture(name="path")
def path_fixture(tmp_path):
    write_pack(tmp_path / "set-1.0.0.npz", {"train": ROWS}, FACTS)
    return tmp_path / "set-1.0.0.npz"


def same(one, two):
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.offsets, two.offsets)
    np.testing.assert_array_equal(one.labels, two.labels)


def test_what_is_written_is_read(path):
    same(read_pack(path, "train"), ROWS)
    manifest = read_pack_manifest(path)
    assert {key: manifest[key] for key in FACTS} == FACTS
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(DataError, match="has no split 'test'; there are train"):
        read_pack(path, "test")


def test_no_bit_changes_unseen(path):
    """Wherever it is damaged, a reader that returns at all returns what was written."""
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = read_pack(path, "train")
        except DataError as error:
            refused += str(path) in str(error) and "zoo data pack" in str(error)
        else:
            same(found, ROWS)  # what was hit says nothing of the content, as a date does
    assert refused > 50


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_copy_that_was_cut_short_is_refused(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(DataError, match=r"damaged, or no pack"):
        read_pack_manifest(path)


def test_no_pickle_is_ever_loaded(tmp_path):
    path = tmp_path / "set-1.0.0.npz"
    np.savez(path, manifest=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="damaged, or no pack"):
        read_pack_manifest(path)


def test_nothing_is_left_of_a_pack_that_could_not_be_written(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(OSError, match="No space"):
        write_pack(tmp_path / "set.npz", {"train": ROWS}, FACTS)
    assert not list(tmp_path.iterdir())


def test_a_pack_under_the_name_of_another_set_is_refused(path):
    other = Prepared(path.parent, "other/1.0.0", "zoo data prepare other")
    path.rename(other.pack)
    with pytest.raises(DataError, match=r"other-1\.0\.0\.npz is a pack of set/1\.0\.0, not of other/1\.0\.0"):
        other.manifest()


def test_a_folder_counts_before_a_pack(path):
    prepared = Prepared(path.parent, "set/1.0.0", "make it")
    assert (prepared.packed, prepared.path, prepared.bytes) == (True, path, path.stat().st_size)
    prepared.manifest(verify=True)
    prepared.folder.mkdir(parents=True)
    assert not prepared.packed
    with pytest.raises(DataError, match="is not complete"):  # half of a folder is not passed over for the pack
        prepared.manifest()


def test_the_sum_of_the_content_is_that_of_the_builders():
    import hashlib

    digest = hashlib.sha256()
    for row, label in ((b"abc", 0), (b"", 1), (b"xy" * 400, 1)):
        digest.update(bytes([label]) + len(row).to_bytes(4, "little") + row)
    assert content_sha256(ROWS) == digest.hexdigest()


def test_part_and_shortened():
    part = ROWS.part(1, 3)
    assert (len(part), part.lengths.tolist(), part.labels.tolist()) == (2, [0, 800], [1, 1])
    assert len(ROWS.part(0, 99)) == 3
    short = ROWS.shortened(2)
    assert short.lengths.tolist() == [2, 0, 2]
    assert short.tokens.tobytes() == b"abxy"
    same(ROWS.shortened(800), ROWS)
