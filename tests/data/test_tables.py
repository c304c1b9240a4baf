"""One's own files: what is read of them, and what is said of those that are wrong."""

import csv
import gzip
import json

import numpy as np
import pytest

from zoo.data.draws import Draws
from zoo.data.manifest import DataError
from zoo.data.splits import draw_rows, find_splits
from zoo.data.tables import Ragged, Reading, read_table, table_of


def put(folder, name, content):
    path = folder / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def lines(*objects):
    return "".join(json.dumps(found) + "\n" for found in objects)


def rows_of(table, side="rows"):
    ragged = getattr(table, side)
    rows = [ragged.row(row) for row in range(len(table))]
    return [row.tobytes() for row in rows] if table.kind == "text" else [row.tolist() for row in rows]


TEXTS = ['plain, with a comma, and "quotes"', "two\nlines", "é – 漢字", "x" * 200_000]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.jsonl", "t.ndjson.gz"])
def test_texts_come_back_as_they_were_written(tmp_path, name):
    labels = ["a", " b ", "10", "a"]
    if "json" in name:
        content = lines(*({"label": label, "text": text} for text, label in zip(TEXTS, labels, strict=True)))
    else:
        import io

        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t" if "tsv" in name else ",")
        writer.writerows([["no", "label", "text"], *([1, label, text] for text, label in zip(TEXTS, labels))])  # noqa: B905
        content = file.getvalue() + "\r\n"  # a blank line at the end
    table = read_table(put(tmp_path, name, content))
    assert table.kind == "text"
    assert rows_of(table) == [text.encode() for text in TEXTS]
    assert table.labels == ("a", "b", "10", "a")
    # The second text goes over two lines.
    assert table.places.tolist() == ([1, 2, 3, 4] if "json" in name else [2, 3, 5, 6])
    assert csv.field_size_limit() == 131_072


def test_a_mark_of_byte_order_and_other_separators(tmp_path):
    for text in ("﻿text,label\nhi,a\n", "text;label\nhi;a\n", "text\tlabel\r\nhi\ta\r\n"):
        table = read_table(put(tmp_path, "t.csv", text))
        assert (rows_of(table), table.labels) == ([b"hi"], ("a",))


def test_quotes_that_mean_nothing(tmp_path):
    path = put(tmp_path, "t.tsv", 'text\tlabel\n"Great" film\ta\nsay "\tb\n')
    with pytest.raises(DataError, match=r"line 2: .*written twice; task\.options\.quotes=false"):
        read_table(path)
    assert rows_of(read_table(path, Reading(quotes=False))) == [b'"Great" film', b'say "']


def test_pairs(tmp_path):
    path = put(tmp_path, "t.csv", "text,other,same\nab,c,1\nd,efg,0\n")
    table = read_table(path, Reading(second_column="other", label_column="same"))
    assert (rows_of(table), rows_of(table, "second"), table.labels) == ([b"ab", b"d"], [b"c", b"efg"], ("1", "0"))
    taken = table.take(np.array([1]))
    assert (rows_of(taken), rows_of(taken, "second"), taken.places.tolist()) == ([b"d"], [b"efg"], [3])
    path = put(
        tmp_path, "t.jsonl", lines({"text": "a", "b": "c", "label": True}, {"text": "d", "b": "e", "label": False})
    )
    table = read_table(path, Reading(second_column="b"))
    assert (rows_of(table, "second"), table.labels) == ([b"c", b"e"], ("true", "false"))


def test_lists_of_numbers(tmp_path):
    path = put(tmp_path, "t.jsonl", lines({"tokens": [3, 1], "label": 0}, {"tokens": [7], "label": 1}))
    table = read_table(path)
    assert (table.kind, rows_of(table), table.labels) == ("tokens", [[3, 1], [7]], ("0", "1"))
    path = put(tmp_path, "t.jsonl", lines({"values": [1, 2], "label": 0}, {"values": [0.5], "label": 1}))
    table = read_table(path)
    assert (table.kind, rows_of(table), table.rows.flat.dtype) == ("values", [[1, 2], [0.5]], np.float32)
    path = put(tmp_path, "t.jsonl", lines({"signal": [1, 2], "label": 0}, {"signal": [0.5], "label": 1}))
    with pytest.raises(DataError, match=r"line 2: \[0.5\] is no list of whole numbers.*task\.options\.inputs"):
        read_table(path, Reading("signal"))
    assert rows_of(read_table(path, Reading("signal", inputs="values"))) == [[1, 2], [0.5]]


@pytest.mark.parametrize("name", ["t.npz", "t.npz.gz"])
def test_npz(tmp_path, name):
    import io

    def read(how=None, **arrays):
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return read_table(put(tmp_path, name, file.getvalue()), how)

    table = read(inputs=np.array([[1, 2, 3], [4, 5, 6]], np.uint8), labels=np.array([1, 0]), lengths=np.array([3, 1]))
    assert (table.kind, rows_of(table), table.labels) == ("tokens", [[1, 2, 3], [4]], ("1", "0"))
    table = read(values=np.array([0.5, 1, 2]), offsets=np.array([0, 1, 3]), labels=np.array(["x", "y"]))
    assert (table.kind, rows_of(table), table.labels) == ("values", [[0.5], [1, 2]], ("x", "y"))
    table = read(Reading("x", label_column="y", inputs="values"), x=np.zeros((2, 2), int), y=np.array([True, False]))
    assert (table.kind, rows_of(table), table.labels) == ("values", [[0, 0], [0, 0]], ("true", "false"))


def test_what_zero_means(tmp_path):
    path = put(tmp_path, "t.jsonl", lines({"tokens": [2, 0, 1, 0, 0], "label": 0}, {"tokens": [5], "label": 1}))
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: token 2 is 0.*zero=token.*zero=padding"):
        read_table(path)
    assert rows_of(read_table(path, Reading(zero="token"))) == [[3, 1, 2, 1, 1], [6]]
    with pytest.raises(DataError, match="line 1: token 2 is 0; 0 is padding only after the last token"):
        read_table(path, Reading(zero="padding"))
    path = put(tmp_path, "t.jsonl", lines({"tokens": [2, 1, 0, 0], "label": 0}, {"tokens": [5], "label": 1}))
    assert rows_of(read_table(path, Reading(zero="padding"))) == [[2, 1], [5]]
    path = put(tmp_path, "t.jsonl", lines({"tokens": [-1, 5], "label": 0}))
    for zero in ("token", "refuse"):
        with pytest.raises(DataError, match=r"token 1 is -1; ids are from 1 to 1048575"):
            read_table(path, Reading(zero=zero))


def test_empty_rows(tmp_path):
    path = put(tmp_path, "t.csv", "text,label\na,x\n,y\n,y\nb,y\n")
    with pytest.raises(DataError, match=r"t\.csv, line 3: there is nothing in the row \(such rows: 2\).*empty=drop"):
        read_table(path)
    table = read_table(path, Reading(empty="drop"))
    assert (rows_of(table), table.places.tolist(), table.dropped) == ([b"a", b"b"], [2, 5], 2)
    with pytest.raises(DataError, match="has no row with anything in it"):
        read_table(put(tmp_path, "t.csv", "text,label\n,y\n"), Reading(empty="drop"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "is empty, or its first line"),
        ("t.csv", "text,label\n", "has no row"),
        ("t.csv", "txt,label\na,x\n", "has no column 'text'. Did you mean txt.*task.options.column"),
        ("t.csv", "text,labels\na,x\n", "has no column 'label'. Did you mean labels.*task.options.label_column"),
        ("t.csv", "text,text\na,x\n", "line 1: two columns are called 'text'"),
        ("t.csv", "text,label\na,x\nb, c,y\n", "line 3: 3 fields, and not 2 as in the first line.*double quotes"),
        ("t.csv", "text,label\na,x\nb\n", "line 3: 1 fields, and not 2"),
        ("t.csv", "text,label\na,x\nb, \n", "line 3: there is no label"),
        ("t.csv", 'text,label\na,x\n"b,y\nc,x\n', "line 3: a quote is opened and never closed"),
        ("t.csv", b"text,label\na,x\nb\xff,y\n", "line 3: byte 2 of it, 0xff, is no UTF-8"),
        (
            "t.csv",
            "\ufefftext,label\n" + "a\n" * 9,
            "line 2: .*; line 6: 1 fields, and not 2.*; and more. Mend the file",
        ),
        ("t.jsonl", "", "has no row"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": ', "line 2 is no JSON: .*Every line is an object of its own"),
        ("t.jsonl", '["a", 1]\n', "line 1 is no object such as"),
        ("t.jsonl", lines({"txt": "a", "label": 1}), "has no column 'text'. Did you mean txt"),
        ("t.jsonl", lines({"text": "a", "labl": 1}), "has no column 'label'. Did you mean labl"),
        ("t.jsonl", lines({"text": "a", "tokens": [1], "label": 1}), "has columns text and tokens; name one"),
        ("t.jsonl", lines({"text": "a", "label": 1}, {"text": "b"}), "line 2: there is no 'label'"),
        ("t.jsonl", lines({"text": "a", "label": 1}, {"text": "b", "label": 0.5}), "line 2: the label is 0.5, neither"),
        ("t.jsonl", lines({"text": "a", "label": 1}, {"text": None, "label": 1}), "line 2: None is no text"),
        (
            "t.jsonl",
            lines({"text": "a\ud800", "label": 1}),
            "line 1: the text has half of a surrogate pair at char.* 1",
        ),
        (
            "t.jsonl",
            lines({"values": [1.0], "label": 1}, {"values": [1, None], "label": 1}),
            r"line 2: \[1, None\] is no",
        ),
        ("t.jsonl", lines({"values": [1.0, float("nan")], "label": 1}), "line 1: the number at place 2 is nan"),
        ("t.jsonl", lines({"values": [1e300], "label": 1}), "line 1: the number at place 1 is 1e.300"),
        ("t.jsonl", lines({"tokens": [[1]], "label": 1}), r"line 1: \[\[1\]\] is no list of whole numbers"),
        ("t.jsonl", lines({"tokens": [2**70], "label": 1}), "line 1: .* is no list of whole numbers"),
        ("t.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "cannot be read"),
        ("t.npz", b"no zip", "is no npz file of plain arrays"),
        ("t.parquet", "", "is none of csv, tsv, jsonl and npz"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0]}, "has no column 'inputs'"),
        ({"inputs": [[1]]}, "has no column 'labels'"),
        (
            {"inputs": [[1]], "labels": [0, 1]},
            r"labels must be whole numbers or texts \[N=1\], one a row, got int64 \(2,\)",
        ),
        ({"inputs": [[1]], "labels": [0.5]}, "labels must be whole numbers or texts"),
        ({"inputs": [["a"]], "labels": [0]}, "inputs must be integers"),
        ({"inputs": [[[1]]], "labels": [0]}, r"inputs must be \[N, T\], one number a position, got \(1, 1, 1\)"),
        ({"inputs": np.zeros((0, 3)), "labels": np.zeros(0, int)}, "has no row"),
        ({"inputs": [[1, 2]], "labels": [0], "lengths": [3]}, "lengths must be from 0 to T=2, got 3 to 3"),
        ({"inputs": [[1, 2]], "labels": [0], "lengths": [1, 1]}, r"lengths must be integers \[N=1\]"),
        ({"inputs": [[1, 2]], "labels": [0], "lengths": [0]}, "row 1: there is nothing in the row"),
        ({"values": [1.0], "offsets": [0, 2], "labels": [0]}, "offsets must rise from 0 to 1"),
        ({"values": [[1.0]], "offsets": [0, 1], "labels": [0]}, r"values is \[total\]"),
        ({"inputs": [[1.0, 2.0], [3.0, np.inf]], "labels": [0, 1]}, "row 2: the number at place 2 is inf"),
        ({"inputs": np.array([[2**63]], np.uint64), "labels": [0]}, "too large for an id"),
        ({"inputs": [[1], [2]], "labels": ["a", " "]}, "row 2: there is no label"),
        ({"inputs": np.array([[None]]), "labels": [0]}, "is no npz file of plain arrays: .*no objects"),
    ],
)
def test_arrays_that_are_wrong(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **{name: np.asarray(values) for name, values in arrays.items()})
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.npz")


def test_what_a_kind_of_file_cannot_hold(tmp_path):
    path = put(tmp_path, "t.csv", "text,label\n1 2,x\n")
    with pytest.raises(DataError, match="csv and tsv files hold texts"):
        read_table(path, Reading(inputs="tokens"))
    np.savez(tmp_path / "t.npz", inputs=np.ones((1, 1)), labels=np.zeros(1, int))
    for how, message in (
        (Reading(second_column="b"), "hold tokens and values"),
        (Reading(inputs="tokens"), "tokens are"),
    ):
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / "t.npz", how)
    path = put(tmp_path, "t.jsonl", lines({"tokens": [1], "b": "x", "label": 1}))
    with pytest.raises(DataError, match="'tokens' holds tokens, and pairs are of texts"):
        read_table(path, Reading(second_column="b"))
    for options in (
        {"zero": "pad"},
        {"empty": "keep"},
        {"inputs": "bytes"},
        {"inputs": "tokens", "second_column": "b"},
    ):
        with pytest.raises(ValueError, match=r"is not known|pairs are of texts"):
            Reading(**options)


def test_rows_at_hand():
    assert rows_of(table_of(["ab", "é"], "text")) == [b"ab", "é".encode()]
    pair = table_of([("a", "bc")], "text", pairs=True)
    assert (rows_of(pair), rows_of(pair, "second")) == ([b"a"], [b"bc"])
    assert rows_of(table_of([[0, 1], np.array([2])], "tokens", zero="token")) == [[1, 2], [3]]
    assert rows_of(table_of([[0.5], (1, 2)], "values")) == [[0.5], [1, 2]]
    for rows, kind, pairs, message in (
        ([["a"]], "text", False, "row 1: .* is no text"),
        (["a"], "text", True, "row 1: not two texts"),
        (["a"], "tokens", False, "row 1: a is no list of whole numbers"),
        ([[1], []], "values", False, "row 2: there is nothing"),
        (["a", ""], "text", False, "row 2: there is nothing"),
        ([], "text", False, "has no row"),
    ):
        with pytest.raises(DataError, match=f"the rows given.*{message}"):
            table_of(rows, kind, pairs=pairs)


def test_ragged_rows_know_where_they_are():
    ragged = Ragged.of([np.array([1, 2]), np.array([], int), np.array([3])], np.int64)
    assert [ragged.row_of(place) for place in range(3)] == [(0, 0), (0, 1), (2, 0)]


def test_files_by_split(tmp_path):
    single = put(tmp_path, "reviews.csv", "")
    assert find_splits(single) == {"train": single}
    with pytest.raises(DataError, match=r"has no train file .*there are reviews\.csv\. .*path of a single file"):
        find_splits(tmp_path)
    train, dev = put(tmp_path, "train.csv", ""), put(tmp_path, "Dev.jsonl.gz", "")
    put(tmp_path, "README.md", "")
    assert find_splits(tmp_path) == {"train": train, "validation": dev}
    put(tmp_path, "val.npz", "")
    with pytest.raises(DataError, match=r"two files for validation: Dev\.jsonl\.gz and val\.npz"):
        find_splits(tmp_path)
    with pytest.raises(DataError, match=r"no file or folder .*gone.*task\.source"):
        find_splits(tmp_path / "gone")
    with pytest.raises(DataError, match="is none of csv"):
        find_splits(tmp_path / "README.md")


def test_rows_are_drawn_from_each_label():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(12), [100, 50, 1] + [4] * 9))
    rows = draw_rows(labels, 0.1, Draws(3))
    assert np.array_equal(rows, np.unique(rows))
    counts = np.bincount(labels[rows], minlength=12)
    assert counts[:3].tolist() == [10, 5, 0]
    assert counts[3:].sum() in (3, 4)
    assert np.array_equal(rows, draw_rows(labels, 0.1, Draws(3)))
    assert not np.array_equal(rows, draw_rows(labels, 0.1, Draws(4)))
    assert np.bincount(labels[draw_rows(labels, 0.99, Draws(3))], minlength=12)[3:].max() == 3
