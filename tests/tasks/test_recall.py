"""Recall tasks: the law of each, by hand, and that they can be solved by what they say."""

from typing import Any

import numpy as np
import pytest

from zoo import registry
from zoo.data.draws import Draws
from zoo.tasks.base import SPLITS
from zoo.tasks.recall.copy import Copy
from zoo.tasks.recall.induction import Induction
from zoo.tasks.recall.mqar import MQAR, draw

TASKS: Any = [MQAR, Copy, Induction]
# Pinned: another checksum means that the data under this name has changed.
CHECKSUMS = {
    "recall/mqar": "9f85fdaba9f52e6b",
    "recall/copy": "21e4044d95ca428b",
    "recall/induction": "6cf3dd2dbb5d5e72",
}


@pytest.fixture(name="task", params=TASKS, ids=lambda cls: cls.name, scope="module")
def task_fixture(request):
    return request.param()


def test_registered(task):
    cls = type(task)
    assert registry.get(task.name, kind="task") is cls
    assert registry.spec(task.name).inputs == ("tokens",)
    assert task.source == cls.sources[0] == "small"
    assert registry.spec(task.name).test_args == {"source": "small"}
    for source in cls.sources:
        info = cls(source).info
        assert (info.inputs, info.output) == ("tokens", "token")
        assert info.num_classes == info.vocab_size
        assert info.max_len == cls.sizes[source].length


def test_splits(task):
    assert task.is_prepared()
    task.prepare()
    task.verify()
    splits = {name: task.split(name) for name in SPLITS}
    assert [len(split) for split in splits.values()] == [50_000, 1_000, 1_000]
    assert task.split("train") is splits["train"]
    inputs, labels = splits["train"].inputs, splits["train"].labels
    assert (inputs.dtype, labels.dtype) == (np.int16, np.int16)
    assert (inputs.min(), labels.min()) >= (0, -1)
    assert max(inputs.max(), labels.max()) == task.info.vocab_size - 1
    assert not (splits["validation"].inputs[:, :4] == splits["test"].inputs[:, :4]).all(axis=1).all()
    with pytest.raises(ValueError, match=f"{task.name} has no split 'val'; there are train, validation, test"):
        task.split("val")


def test_the_seed_says_it_all(task):
    cls = type(task)
    assert task.fingerprint() == cls().fingerprint() == CHECKSUMS[task.name]
    assert cls(seed=1).fingerprint() != task.fingerprint()
    facts = task.describe()
    assert (facts["dataset"], facts["seed"], facts["checksum"]) == (f"{task.name}/small", 0, task.fingerprint())
    assert facts["splits"] == {"train": 50_000, "validation": 1_000, "test": 1_000}
    assert facts["tokens_asked_for"] == (task.split("test").labels[7] >= 0).sum()


def test_wrong_settings(task):
    cls = type(task)
    with pytest.raises(ValueError, match=f"{task.name} has no source 'smal'. Did you mean small"):
        cls("smal")
    length = task.info.max_len
    with pytest.raises(ValueError, match=f"{task.name}/small has sequences of {length} tokens, more than max_len="):
        cls(max_len=length - 1)
    with pytest.raises(ValueError, match=r"task\.seed must lie in"):
        cls(seed=-1)
    longer = cls(max_len=length + 3)
    batch = longer.split("test").gather(np.arange(2), longer.info.max_len)
    assert batch["inputs"].shape == (2, length + 3)
    assert batch["mask"].sum() == 2 * length
    assert (batch["label"][:, length:] == -1).all()


def test_chance_is_what_guessing_scores(task):
    """The first baseline, by drawing: labels are uniform over as many values as it says."""
    labels = task.split("train").labels
    counts = np.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    chance = next(iter(task.baselines().values()))
    assert chance == pytest.approx(1 / len(counts))
    assert counts.max() / counts.min() < 1.2


def test_mqar_answers_are_the_values_of_the_keys():
    split = MQAR().split("test")
    pairs, half = 8, 64
    for inputs, labels in zip(split.inputs[:200], split.labels[:200], strict=True):
        keys, values = inputs[: 2 * pairs : 2], inputs[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert 1 <= keys.min() <= keys.max() < half <= values.min()
        value_of = dict(zip(keys, values, strict=True))
        asked = np.flatnonzero(labels >= 0)
        assert (asked % 2 == 0).all()
        assert asked.min() >= 2 * pairs
        assert sorted(inputs[asked]) == sorted(keys)
        assert [value_of[key] for key in inputs[asked]] == labels[asked].tolist()
        others = np.setdiff1d(np.arange(2 * pairs, 64), asked)
        assert (inputs[others] == 0).all()


def test_mqar_gaps_follow_the_power_law():
    """With one pair the slot has the law itself: P(slot i) in proportion to i^-0.99."""
    rows = 40_000
    inputs, labels = draw(Draws(0), rows, length=22, pairs=1, vocab_size=32)
    weights = np.arange(1, 11) ** -0.99
    expected = weights / weights.sum()
    slots = (labels.argmax(axis=1) - 2) // 2
    found = np.bincount(slots, minlength=10) / rows
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(rows))
    assert (inputs[:, 2:] > 0).sum() == rows
    for length, pairs, vocab_size in ((21, 1, 32), (20, 6, 32), (40, 8, 16)):
        with pytest.raises(ValueError, match=f"{pairs} pairs and their queries do not fit {length} tokens"):
            draw(Draws(0), 1, length=length, pairs=pairs, vocab_size=vocab_size)


def test_mqar_has_the_published_sizes():
    published = {"64x4": 4, "128x8": 8, "256x16": 16, "512x64": 64}
    for source, pairs in published.items():
        task = MQAR(source)
        assert task.info.vocab_size == 8192
        assert task.info.max_len == int(source.split("x")[0])
        assert task.baselines() == {"random_value": 1 / 4096, "value_of_the_sequence": 1 / pairs}
        size = MQAR.sizes[source]
        assert (size.train, size.heldout) == (100_000, 3_000)


def test_copies_are_copies():
    split = Copy().split("test")
    n = 16
    letters = split.inputs[:, :n]
    np.testing.assert_array_equal(split.labels[:, :n], -1)
    np.testing.assert_array_equal(split.labels[:, n:], letters)
    np.testing.assert_array_equal(split.inputs[:, n], 1)
    np.testing.assert_array_equal(split.inputs[:, n + 1 :], letters[:, :-1])
    assert letters.min() == 2


def test_selective_copies_are_the_letters_in_their_order():
    split = Copy("selective").split("test")
    n = 8
    for inputs, labels in zip(split.inputs[:200], split.labels[:200], strict=True):
        body = inputs[:-n]
        assert (inputs[-n:] == 1).all()
        assert body[body > 0].tolist() == labels[-n:].tolist()
        assert (labels[:-n] == -1).all()
    # Anywhere in the body.
    share = (split.inputs[:, :-n] > 0).mean(axis=0)
    np.testing.assert_allclose(share, n / 56, atol=5 * np.sqrt(n / 56 / 1000))


def test_induction_asks_for_what_followed_the_mark():
    split = Induction().split("test")
    for inputs, labels in zip(split.inputs, split.labels, strict=True):
        first, last = np.flatnonzero(inputs == 1)
        assert last == 63
        assert labels[-1] == inputs[first + 1]
        assert (labels[:-1] == -1).all()
    places = np.concatenate([np.flatnonzero(row == 1)[:1] for row in split.inputs])
    assert (places.min(), places.max()) == (0, 61)
