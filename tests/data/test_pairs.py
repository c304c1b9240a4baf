"""Pairs of documents: the release's files, batches, and negatives that are none by accident."""

import collections
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from zoo.data.manifest import DataError
from zoo.data.pairs import PairSource, collect, read_aan, read_citations, split_citations
from zoo.data.source import RaggedSource

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "acl_citation_pairs"
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def source():
    documents = RaggedSource.from_rows([b"ab", b"\x00\xff", b"", b"abcdef"], [0] * 4)
    return PairSource(documents, [[0, 3], [1, 2], [3, 3]], [1, 0, 1])


def test_batches_are_side_by_side():
    batch = source().gather(np.array([0, 1, 2]), 4)
    assert batch["inputs"].dtype == np.int32
    np.testing.assert_array_equal(batch["inputs"][0].T, [[98, 99, 0, 0], [98, 99, 100, 101]])
    np.testing.assert_array_equal(batch["inputs"][1].T, [[1, 256, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch["mask"][1].T, [[True, True, False, False], [False] * 4])
    np.testing.assert_array_equal(batch["label"], [1, 0, 1])
    np.testing.assert_array_equal(source().lengths, [6, 2, 6])


def test_wrong_pairs():
    documents = RaggedSource.from_rows([b"ab"], [0])
    for pairs, labels, error, match in (
        ([[0, 1]], [0], ValueError, "number the 1 documents"),
        ([[0, 0, 0]], [0], ValueError, r"\[N, 2\]"),
        (np.zeros((0, 2), int), np.zeros(0, int), ValueError, "there must be one"),
        ([[0.0, 0.0]], [0], TypeError, "pairs must be integers"),
    ):
        with pytest.raises(error, match=match):
            PairSource(documents, pairs, labels)


LINES = b'1.0\tA\tB\tsays "so\tdoes not\n0.0\tA\tC\tsays "so\tthird " one\r\n'


@pytest.mark.parametrize("gzipped", [False, True])
def test_quotes_are_not_special(tmp_path, gzipped):
    path = tmp_path / ("new_aan_pairs.train.tsv" + ".gz" * gzipped)
    path.write_bytes(gzip.compress(LINES) if gzipped else LINES)
    rows = list(read_aan(path))
    assert rows == [(1, b'says "so', b"does not"), (0, b'says "so', b'third " one')]
    numbers = {}
    pairs = collect(iter(rows), numbers, 8)
    assert list(numbers) == [b'says "so', b"does not", b'third " ']
    np.testing.assert_array_equal(pairs.pairs, [[0, 1], [0, 2]])
    np.testing.assert_array_equal(pairs.labels, [1, 0])


@pytest.mark.parametrize("line", [b"1.0\tA\tB\ttext\n", b"2.0\tA\tB\tone\ttwo\n", b"\n", b"1.0\tA\tB\ta\tb\tc\n"])
def test_lines_of_another_form_are_named(tmp_path, line):
    path = tmp_path / "new_aan_pairs.eval.tsv"
    path.write_bytes(LINES + line)
    with pytest.raises(DataError, match=r"line 3: .*Fetch the file again"):
        list(read_aan(path))


def citations(count=60, seed=0):
    draw = np.random.default_rng(seed)
    return [(f"P{i}", f"C{j}") for i in range(count) for j in draw.choice(20, draw.integers(1, 4), replace=False)]


def test_negatives_are_none_by_accident_and_neither_side_tells():
    known = citations()
    found = split_citations(known, SHARES, seed=1)
    for rows in found.values():
        positive = [row[:2] for row in rows if row[2] == 1]
        negative = [row[:2] for row in rows if row[2] == 0]
        assert len(positive) == len(negative) == len(set(negative))
        assert set(positive) <= set(known)
        assert not set(negative) & set(known)
        for side in range(2):
            counts = [collections.Counter(pair[side] for pair in pairs) for pairs in (positive, negative)]
            assert counts[0] == counts[1]
    members = [{row[0] for row in rows} for rows in found.values()]
    assert not members[0] & members[1]
    assert not members[0] & members[2]
    assert sum(map(len, members)) == 60
    assert sum(len(rows) for rows in found.values()) == 2 * len(known)


def test_the_split_is_the_seeds():
    assert split_citations(citations(), SHARES, seed=1) == split_citations(citations()[::-1], SHARES, seed=1)
    assert split_citations(citations(), SHARES, seed=1) != split_citations(citations(), SHARES, seed=2)


def test_too_few_citations():
    with pytest.raises(ValueError, match="too few"):
        split_citations([("A", "B"), ("A", "C")], {"train": 1.0}, seed=0)
    with pytest.raises(ValueError, match="add up to 1"):
        split_citations(citations(), {"train": 0.5}, seed=0)


def write_folder(folder, texts, lines):
    rows = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items())
    (folder / "docs.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "citations.tsv").write_text("citing\tcited\n" + "".join(f"{line}\n" for line in lines))


def test_citations_are_read(tmp_path):
    write_folder(tmp_path, {"A": "é", "B": "b"}, ["A\tB"])
    assert read_citations(tmp_path) == ({"A": "é".encode(), "B": b"b"}, [("A", "B")])


def test_damaged_citations(tmp_path):
    with pytest.raises(DataError, match=r"no .*docs\.jsonl\.gz"):
        read_citations(tmp_path)
    write_folder(tmp_path, {"A": "a"}, ["A\tB"])
    with pytest.raises(DataError, match=r"lacks: \['B'\]"):
        read_citations(tmp_path)
    (tmp_path / "citations.tsv").write_text("citing\tcited\nA\n")
    with pytest.raises(DataError, match="damaged"):
        read_citations(tmp_path)
    data = (tmp_path / "docs.jsonl.gz").read_bytes()
    (tmp_path / "docs.jsonl.gz").write_bytes(data[:-9])
    with pytest.raises(DataError, match="damaged"):
        read_citations(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the ACL papers are not at hand")
def test_the_acl_papers():
    texts, known = read_citations(SHARED)
    assert (len(texts), len(known)) == (1664, 2765)
    found = split_citations(known, SHARES, seed=0)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 4350, "validation": 592, "test": 588}
