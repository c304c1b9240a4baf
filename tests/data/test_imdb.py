"""The reader of IMDB, on archives made here and on the publisher's layout."""

import tarfile

import pytest
from tiny_archives import TEXTS, reviews, shrink, write_archive, write_folder

from zoo.data.imdb import IMDB, label_of, read_imdb
from zoo.data.manifest import DataError


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    shrink(monkeypatch)


def test_texts_are_those_of_the_files_in_order_of_their_names(tmp_path):
    files = reviews()
    extra = {"aclImdb/README": b"x", "aclImdb/train/unsup/0_0.txt": b"unread", "aclImdb/train/urls_neg.txt": b"http"}
    archive = write_archive(tmp_path / "aclImdb_v1.tar.gz", {**extra, **dict(reversed(files.items()))})
    folder = write_folder(tmp_path, files)
    for path in (archive, folder):
        found = read_imdb(path)
        assert {split: len(texts) for split, texts in found.items()} == {"train": 2 * TEXTS, "test": 2 * TEXTS}
        assert found["train"] | found["test"] == files
        assert list(found["test"]) == sorted(found["test"])
    assert label_of("aclImdb/train/pos/3_9.txt") == 1
    assert label_of("aclImdb/test/neg/3_1.txt") == 0


def test_white_space_around_a_text_is_left_out(tmp_path):
    files = reviews()
    name = "aclImdb/test/pos/7_9.txt"
    text = files[name]
    archive = write_archive(tmp_path / "a.tar.gz", {**files, name: b"\n " + text + b" \n"})
    assert read_imdb(archive)["test"][name] == text


def without(files, name):
    return {other: text for other, text in files.items() if other != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: without(files, "aclImdb/train/pos/7_9.txt"), r"aclImdb/train/pos/ in .* has 49 reviews, not 50"),
        (
            lambda files: files | {"aclImdb/test/neg/50_1.txt": b"more"},
            r"aclImdb/test/neg/ in .* has 51 reviews, not 50",
        ),
        (
            lambda files: without(files, "aclImdb/test/neg/7_3.txt") | {"aclImdb/test/neg/8_1.txt": b"again"},
            r"aclImdb/test/neg/ in .* has no review of number 7",
        ),
        (lambda files: files | {"aclImdb/train/neg/7_3.txt": b" \n"}, r"train/neg/7_3.txt in .* is empty"),
        (lambda files: files | {"aclImdb/train/neg/7_3.txt": b"\xff"}, r"train/neg/7_3.txt in .* is not UTF-8"),
        (lambda files: files | {"aclImdb/train/neg/9_8.txt": b"good"}, r"9_8.txt in .* has 8 of 10 stars, .* not neg"),
        (lambda files: files | {"aclImdb/train/neg/9_4.txt": bytes(2**20 + 1)}, r"9_4.txt in .* has 1,048,577 bytes"),
        (lambda files: {"other/file.txt": b"x"}, r"aclImdb/train/neg/ in .* has 0 reviews"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    files = change(reviews())
    paths = [write_archive(tmp_path / "aclImdb_v1.tar.gz", files)]
    if "other/file.txt" not in files:
        paths.append(write_folder(tmp_path, files))
    for path in paths:
        with pytest.raises(DataError, match=message) as error:
            read_imdb(path)
        assert IMDB.origin in str(error.value)


def test_archives_that_are_cut_short_or_none(tmp_path):
    path = write_archive(tmp_path / "aclImdb_v1.tar.gz", reviews())
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-9], b"no archive", b"", whole[:500] + bytes(200) + whole[700:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be read as aclImdb_v1.tar.gz, or is cut short|reviews, not 50"):
            read_imdb(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_imdb(tmp_path / "nowhere.tar.gz")


def test_a_size_that_is_only_claimed_is_not_read(tmp_path):
    member = tarfile.TarInfo("aclImdb/train/neg/0_1.txt")
    member.size = 100 * 2**30
    path = tmp_path / "aclImdb_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("first"))
        archive.fileobj.write(member.tobuf())
    with pytest.raises(DataError, match=r"0_1.txt in .* has 107,374,182,400 bytes"):
        read_imdb(path)


@pytest.mark.slow
def test_the_whole_archive(shared_path, monkeypatch):
    monkeypatch.setattr("zoo.data.imdb._TEXTS", 12_500)
    texts = read_imdb(shared_path("data", "aclImdb_v1.tar.gz"))
    assert {split: len(found) for split, found in texts.items()} == {"train": 25_000, "test": 25_000}
    assert max(map(len, texts["train"].values())) == 13_704
