"""The ListOps task: its data, baselines and description, from the smoke set."""

import time

import numpy as np
import pytest

from zoo.data.listops import evaluate
from zoo.data.manifest import DataError
from zoo.data.source import RaggedSource
from zoo.registry import get, spec
from zoo.tasks.lra.listops import ListOps, shortcut_features


@pytest.fixture(name="task", scope="module")
def task_fixture(tmp_path_factory):
    """The smoke task, prepared by two processes from one that runs JAX threads, as a training script does."""
    import jax.numpy as jnp

    jnp.ones(3).sum().block_until_ready()
    task = ListOps("smoke", data_dir=tmp_path_factory.mktemp("smoke"))
    task.prepare(progress=False, workers=2)
    return task


def test_registered():
    assert get("lra/listops", kind="task") is ListOps
    assert spec("lra/listops").inputs == ("tokens",)
    assert ListOps().source == ListOps.sources[0] == "full"
    for source in ListOps.sources:
        assert ListOps(source).source == source


def test_info():
    info = ListOps().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 17, 10, 2000)
    assert ListOps("published").info.max_len == 2000
    assert ListOps("smoke").info.max_len == 100
    assert ListOps("smoke", max_len=64).info.max_len == 64
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        ListOps(max_len=0)
    with pytest.raises(ValueError, match="no source 'smok'"):
        ListOps("smok")


def test_splits(task):
    sizes = {name: len(task.split(name)) for name in ("train", "validation", "test")}
    assert sizes == {"train": 6000, "validation": 500, "test": 500}
    train = task.split("train")
    assert train is task.split("train")
    assert train.tokens.dtype == np.uint8
    assert train.lengths.min() > 20
    assert train.lengths.max() < task.info.max_len
    assert np.bincount(train.labels, minlength=10).min() > 300
    for i in range(0, 6000, 60):
        assert evaluate(train.tokens[train.offsets[i] : train.offsets[i + 1]]) == train.labels[i]
    with pytest.raises(ValueError, match="no split 'val'; there are train, validation, test"):
        task.split("val")


def test_batches(task):
    batch = task.split("test").gather(np.arange(4), task.info.max_len)
    assert batch["inputs"].shape == (4, 100)
    assert (batch["inputs"][~batch["mask"]] == 0).all()
    assert (batch["inputs"][batch["mask"]] > 0).all()
    assert (batch["inputs"] < task.info.vocab_size).all()


def test_same_bytes_on_every_machine(task):
    """Pinned: another digest means that the data under the name "smoke" has changed."""
    splits = task.describe()["splits"]
    assert splits["test"]["content_sha256"] == "ed184f054e500b691ec1079c70be821630d74a2bbac841a81e7cdadcc16f8875"
    assert splits["train"]["content_sha256"] == "4e1aebe1367cd0d79985839520715519d1ac8c90b9799b3b8861a090e27959fe"


def test_describe(task):
    facts = task.describe()
    assert facts["origin"] == "generated"
    assert facts["seed"] == 0
    assert facts["path"] == str(task.folder)
    assert len(facts["checksum"]) == 64
    assert facts["splits"]["validation"]["examples"] == 500
    assert sum(facts["splits"]["train"]["labels"]) == 6000
    lengths = task.split("train").lengths
    assert facts["splits"]["train"]["lengths"]["p50"] == np.median(lengths)
    assert facts["splits"]["train"]["lengths"]["max"] == lengths.max()


def test_is_prepared_and_prepare(task, tmp_path):
    assert task.is_prepared()
    task.verify()
    assert task.prepare(progress=False) == task.folder
    absent = ListOps("smoke", data_dir=tmp_path)
    assert not absent.is_prepared()
    with pytest.raises(DataError, match=r"does not exist.*zoo data prepare lra/listops/smoke"):
        absent.split("train")
    with pytest.raises(DataError, match=r"zoo data prepare lra/listops/full --seed 4"):
        ListOps("full", data_dir=tmp_path, seed=4).describe()


def test_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert ListOps("smoke").folder == tmp_path / "lra_listops" / "smoke" / "1.0.0"
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ListOps("smoke").folder.is_relative_to(tmp_path / "home" / ".cache" / "zoo")


def plain_shortcuts(tokens):
    """Root operator and visible leaves, by walking the tokens one at a time."""
    depth, leaves = 0, []
    for token in tokens:
        depth += (token <= 4) - (token == 5)
        if depth == 1 and token > 5:
            leaves.append(token)
    value = evaluate([tokens[0], *leaves, 5]) if leaves else None
    return tokens[0], (tokens[0], value)


def test_shortcut_features_agree_with_a_plain_walk(task):
    source = task.split("train")
    features = shortcut_features(source)
    plain = [
        plain_shortcuts(source.tokens[a:b].tolist())
        for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)
    ]
    assert [root for root, _ in plain] == (features["root_operator"] + 1).tolist()
    pairs = set(zip(features["root_operator_and_leaves"].tolist(), [pair for _, pair in plain], strict=True))
    assert len(pairs) == len({number for number, _ in pairs}) == len({pair for _, pair in pairs})
    assert len(pairs) > 30


def test_baselines(task):
    scores = task.baselines()
    train, test = task.split("train"), task.split("test")
    assert list(scores) == ["majority", "root_operator", "root_operator_and_leaves"]
    assert scores["majority"] == (test.labels == np.bincount(train.labels).argmax()).mean()
    assert scores["majority"] + 0.1 < scores["root_operator"] < scores["root_operator_and_leaves"] < 0.7
    on_train = task.baselines("train")
    assert on_train["majority"] == np.bincount(train.labels).max() / 6000
    best = sum(np.bincount(train.labels[train.tokens[train.offsets[:-1]] == op]).max() for op in (1, 2, 3, 4))
    assert on_train["root_operator"] == best / 6000


def test_a_bare_digit_and_a_root_without_leaves_have_features():
    rows = [bytes([9]), bytes([1, 2, 6, 7, 5, 3, 8, 9, 5, 5])]
    features = shortcut_features(RaggedSource.from_rows(rows, [3, 1]))
    assert features["root_operator"].tolist() == [4, 0]
    assert features["root_operator_and_leaves"].tolist() == [54, 10]


@pytest.mark.slow
def test_full_set_in_three_minutes(tmp_path):
    """The whole set on the cores at hand, its known baselines, and reading at 40,000 expressions a second."""
    task = ListOps(data_dir=tmp_path)
    start = time.monotonic()
    task.prepare()
    assert time.monotonic() - start < 180
    start = time.process_time()
    train = task.split("train")
    assert len(train) / (time.process_time() - start) > 40_000
    assert train.lengths.min() > 500
    assert train.lengths.max() < 2000
    scores = task.baselines()
    assert 0.15 < scores["majority"] < 0.19
    assert 0.33 < scores["root_operator"] < 0.39
    assert 0.44 < scores["root_operator_and_leaves"] < 0.51
    assert sum(task.describe()["splits"][name]["examples"] for name in ("train", "validation", "test")) == 100_000
