"""Bytes as tokens: every one predicted once, splits that do not mix, and what is said of wrong files."""

import math
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import registry
from zoo.data.manifest import DataError
from zoo.data.pipeline import eval_batches
from zoo.tasks.base import SPLITS
from zoo.tasks.lm import bytes as module
from zoo.tasks.lm.bytes import Bytes

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. " * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of 200 files, and what is not of it."""
    folder = tmp_path / "lib"
    for index in range(200):
        path = folder / f"part{index % 7}" / f"module{index}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# module {index}\n")
    for name in ("test/test_x.py", "a/tests/x.py", "site-packages/x.py", "_sysconfigdata_x.py", "data.txt", "empty.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty.py" else "left out")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(folder)})
    return folder


def bytes_asked_for(task, name):
    """The bytes that a split asks for, in order."""
    batches = eval_batches(task.split(name), batch_size=3, max_len=task.info.max_len)
    labels = np.concatenate([batch["label"][batch["weight"] > 0].ravel() for batch in batches])
    return (labels[labels > 0] - 1).astype(np.uint8).tobytes()


def test_registered():
    assert registry.get("lm/bytes", kind="task") is Bytes
    info = Bytes().info
    assert (info.inputs, info.output, info.vocab_size, info.num_classes, info.max_len) == (
        "tokens",
        "token",
        257,
        257,
        256,
    )
    assert Bytes(max_len=32).info.max_len == 32
    assert Bytes().metric == "bpb"
    assert Bytes().is_better(1.0, 2.0)
    assert not Bytes().is_better(2.0, 1.0)


def test_text_and_ids():
    task = Bytes()
    ids = task.encode("aö")
    assert ids.tolist() == [0, 98, 196, 183]
    assert task.decode(ids) == "aö"
    assert task.decode(ids[:-1]) == "a\ufffd"
    assert task.encode("").tolist() == [0]
    everything = bytes(range(256))
    assert task.encode(everything)[1:].tolist() == list(range(1, 257))


@pytest.mark.parametrize("max_len", [7, 64])
def test_every_byte_of_a_file_is_asked_for_once(file, max_len):
    task = Bytes(str(file), max_len=max_len)
    assert task.is_prepared()
    assert task.prepare() == file
    parts = {name: bytes_asked_for(task, name) for name in SPLITS}
    text = TEXT.encode()
    assert b"".join(parts.values()) == text
    for name, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert len(parts[name]) == pytest.approx(share * len(text), abs=1)
    first = task.split("test").gather(np.array([0]), max_len)
    assert first["inputs"][0, 0] == 0


def test_the_library_is_split_by_files(library):
    task = Bytes("stdlib", max_len=16)
    assert task.prepare() == library
    parts = {name: bytes_asked_for(task, name).decode().splitlines() for name in SPLITS}
    lines = [line for part in parts.values() for line in part]
    assert sorted(lines) == sorted(f"# module {index}" for index in range(200))
    assert 160 < len(parts["train"]) < 195
    other = {name: bytes_asked_for(Bytes("stdlib", seed=1), name).decode().splitlines() for name in SPLITS}
    assert other["test"] != parts["test"]
    # A file more changes the split of no other.
    (library / "new.py").write_text("# more\n")
    more = {name: bytes_asked_for(Bytes("stdlib"), name).decode().splitlines() for name in SPLITS}
    assert {name: [line for line in part if line != "# more"] for name, part in more.items()} == parts
    facts = Bytes("stdlib").describe()
    assert (
        facts["splits"]["train"]["documents"]
        + facts["splits"]["validation"]["documents"]
        + facts["splits"]["test"]["documents"]
        == 201
    )


def test_this_python_has_a_library():
    facts = Bytes().describe()
    assert facts["splits"]["train"]["bytes"] > 4e6
    assert facts["splits"]["test"]["bytes"] > 1e5
    assert facts["origin"].startswith("Python 3")


def test_the_fingerprint_is_of_the_text(file):
    before = Bytes(str(file)).fingerprint()
    assert Bytes(str(file), max_len=8).fingerprint() == before
    file.write_text(TEXT.replace("Viktor", "Victor"))
    task = Bytes(str(file))
    assert task.fingerprint() != before
    file.write_text(TEXT)
    assert task.fingerprint() != before  # as it was read
    task.verify()
    assert task.fingerprint() == before


def test_baselines(file):
    text = TEXT.encode()
    train, test = text[: len(text) * 90 // 100], text[len(text) * 95 // 100 :]
    counts = {byte: train.count(bytes([byte])) + 1 for byte in range(256)}
    bits = sum(-math.log2(counts[byte] / (len(train) + 256)) for byte in test) / len(test)
    baselines = Bytes(str(file)).baselines("test")
    assert baselines == pytest.approx({"unigram": bits, "zlib": 8 * len(zlib.compress(test, 9)) / len(test)})


def test_bits_are_nats_over_the_bytes_asked_for(file):
    task = Bytes(str(file), max_len=8)
    batch: Any = {**task.split("test").gather(np.arange(3), 8), "weight": np.array([1, 1, 0], np.float32)}
    logits = jnp.zeros((3, 8, 257))
    sums = task.sums(logits, batch)
    assert float(sums["weight"]) == 16
    assert float(sums["bpb"] / sums["weight"]) == pytest.approx(math.log2(257), rel=1e-6)
    assert float(sums["loss"] / sums["weight"]) == pytest.approx(math.log(257), rel=1e-6)


def test_wrong_sources(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"lm/bytes has no source 'stdlb': give stdlib, or task\.source=/the/path"):
        Bytes("stdlb")
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        Bytes(max_len=0)
    gone = Bytes(str(tmp_path / "gone.txt"))  # a run's model needs no text
    assert not gone.is_prepared()
    with pytest.raises(DataError, match=r"gone.txt cannot be read: No such file or directory. Give the path"):
        gone.prepare()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        Bytes(str(tmp_path)).prepare()
    short = tmp_path / "short.txt"
    short.write_text("a")
    with pytest.raises(DataError, match=r"short.txt has too little text: nothing of it is for train"):
        Bytes(str(short)).prepare()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="has too little text: nothing of it is for train"):
        Bytes().prepare()
    with pytest.raises(ValueError, match="lm/bytes has no split 'val'"):
        module.Bytes().split("val")  # pyright: ignore[reportArgumentType]
