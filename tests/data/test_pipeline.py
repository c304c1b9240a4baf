"""Batches: every row at its turn, the same for any number of processes, and exact after a resume."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from zoo.data.pipeline import batch_shapes, eval_batches, train_batches
from zoo.data.prefetch import prefetch_to_device
from zoo.data.source import IndexedSource, RaggedSource

MAX_LEN = 12


def make_source(lengths):
    """Rows of the given lengths; row i holds the token i + 1 throughout and has the label i: a batch tells its rows."""
    rows = [[i + 1] * n for i, n in enumerate(lengths)]
    return RaggedSource.from_rows(rows, np.arange(len(lengths)), dtype=np.uint16)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def rows_of(batches):
    """The rows of weight 1, in order."""
    return [int(i) for b in batches for i, w in zip(b["label"], b["weight"], strict=True) if w]


def assert_same(left, right):
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])


def assert_well_padded(batch, source, length):
    """Real rows hold their own tokens, cut at MAX_LEN only; rows of weight 0 hold nothing."""
    for row in range(len(batch["label"])):
        label, real = batch["label"][row], batch["weight"][row] == 1
        size = min(int(source.lengths[label]), MAX_LEN) if real else 0
        assert size <= length
        assert batch["mask"][row].tolist() == [t < size for t in range(length)]
        assert batch["inputs"][row].tolist() == [label + 1] * size + [0] * (length - size)
        assert real or label == 0
    assert batch["inputs"].dtype == np.int32
    assert batch["label"].dtype == np.int32
    assert batch["weight"].dtype == np.float32
    assert batch["mask"].dtype == bool


LENGTHS = st.lists(st.integers(0, 16), min_size=1, max_size=30)
BUCKETS = st.sets(st.integers(1, MAX_LEN), max_size=3).map(lambda found: tuple(sorted(found)))


# The order of training


def test_bucket_batches_of_an_epoch_are_mixed_and_complete():
    """With whole batches in every bucket an epoch is exactly the rows, and its batches do not come bucket by bucket."""
    source = make_source([3] * 40 + [8] * 40)
    batches = train_batches(source, batch_size=4, max_len=8, seed=0, buckets=(4,))
    for _ in range(3):
        epoch = take(batches, 20)
        assert sorted(rows_of(epoch)) == list(range(80))
        widths = [batch["inputs"].shape[1] for batch in epoch]
        assert sorted(widths) == [4] * 10 + [8] * 10
        assert widths not in ([4] * 10 + [8] * 10, [8] * 10 + [4] * 10)


def test_a_batch_straddles_epochs():
    batches = take(train_batches(make_source([2] * 5), batch_size=3, max_len=4, seed=1), 5)
    rows = rows_of(batches)
    assert [sorted(rows[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert all((batch["weight"] == 1).all() for batch in batches)


def test_seeds_give_other_orders_and_the_same_seed_the_same():
    source = make_source([3] * 40)
    orders = [
        rows_of(take(train_batches(source, batch_size=8, max_len=4, seed=seed), 5)) for seed in (0, 1, 0, 2**64 - 1)
    ]
    assert orders[0] == orders[2]
    assert len({tuple(order) for order in orders}) == 3


# Batches


@settings(deadline=None, max_examples=30)
@given(LENGTHS, BUCKETS, st.integers(1, 9))
def test_training_batches_are_full_and_padded(lengths, buckets, batch_size):
    source = make_source(lengths)
    batches = train_batches(source, batch_size=batch_size, max_len=MAX_LEN, seed=0, buckets=buckets, threads=0)
    for batch in take(batches, 6):
        width = batch["inputs"].shape[1]
        assert width in batch_shapes(batch_size, MAX_LEN, buckets)
        assert (batch["weight"] == 1).all()
        assert_well_padded(batch, source, width)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, BUCKETS, st.integers(1, 9))
def test_evaluation_sees_every_row_once(lengths, buckets, batch_size):
    source = make_source(lengths)
    batches = eval_batches(source, batch_size=batch_size, max_len=MAX_LEN, buckets=buckets, threads=0)
    walked = list(batches)
    rows = rows_of(walked)
    assert len(walked) == len(batches) == -(-len(lengths) // batch_size)
    assert sorted(rows) == list(range(len(lengths)))
    assert buckets or rows == sorted(rows)
    for batch in walked[:-1]:
        assert (batch["weight"] == 1).all()
    for batch in walked:
        length = batch["inputs"].shape[1]
        assert len(batch["label"]) == batch_size
        assert length in batch_shapes(batch_size, MAX_LEN, buckets)
        assert_well_padded(batch, source, length)


def test_evaluation_can_be_walked_again_and_indexed():
    batches = eval_batches(make_source([1, 2, 3, 4, 5]), batch_size=2, max_len=4)
    first = list(batches)
    assert_same(first, list(batches))
    assert_same(first, batches[:])
    assert_same(first[-1:], [batches[-1]])
    assert first[-1]["weight"].tolist() == [1, 0]
    with pytest.raises(IndexError):
        batches[3]


def test_evaluation_buckets_save_padding():
    source = make_source([12, 1, 12, 1])
    batches = eval_batches(source, batch_size=2, max_len=12, buckets=(2,))
    assert [batch["inputs"].shape for batch in batches] == [(2, 2), (2, 12)]
    assert rows_of(batches) == [1, 3, 0, 2]


@pytest.mark.parametrize("process_count", [2, 3, 6])
@pytest.mark.parametrize("buckets", [(), (4, 8)])
def test_processes_split_the_same_global_batches(process_count, buckets):
    source = make_source([1, 5, 9, 12, 14, 3, 2, 7, 7, 11, 4, 4, 6])
    common = {"batch_size": 6, "max_len": MAX_LEN, "buckets": buckets}

    def joined(parts):
        return [{k: np.concatenate([part[k] for part in step]) for k in step[0]} for step in zip(*parts, strict=True)]

    def shard(p):
        return {**common, "process_index": p, "process_count": process_count}

    parts = [take(train_batches(source, seed=3, **shard(p)), 7) for p in range(process_count)]
    assert_same(joined(parts), take(train_batches(source, seed=3, **common), 7))
    parts = [list(eval_batches(source, **shard(p))) for p in range(process_count)]
    assert_same(joined(parts), list(eval_batches(source, **common)))


def test_more_arrays_and_labels_of_any_shape_are_padded():
    class Pairs:
        lengths = None

        def __len__(self):
            return 3

        def gather(self, indices, length):
            inputs = np.ones((len(indices), 2, length), np.int32)
            target = np.ones((len(indices), 4), np.float32)
            return {"inputs": inputs, "mask": inputs > 0, "label": indices.astype(np.int32) + 1, "target": target}

    last = list(eval_batches(Pairs(), batch_size=2, max_len=3))[-1]
    assert last["label"].tolist() == [3, 0]
    assert last["inputs"].sum(axis=(1, 2)).tolist() == [6, 0]
    assert last["target"].sum(axis=1).tolist() == [4, 0]
    assert last["mask"].any(axis=(1, 2)).tolist() == [True, False]


@pytest.mark.parametrize("threads", [None, 0, 3])
def test_threads_change_nothing(threads):
    source = make_source(range(1, 30))
    common = {"batch_size": 4, "max_len": 20, "seed": 0, "buckets": (5, 10)}
    expected = take(train_batches(source, threads=0, prefetch=0, **common), 20)
    assert_same(take(train_batches(source, threads=threads, prefetch=2, **common), 20), expected)


def test_indexed_source_gives_the_same_batches():
    ragged = make_source([3, 1, 7, 2, 5])
    rows = [([i + 1] * int(n), i) for i, n in enumerate(ragged.lengths)]
    indexed = IndexedSource(rows, lambda row: row, lengths=ragged.lengths)
    common = {"batch_size": 2, "max_len": 6, "seed": 0, "buckets": (3,)}
    assert_same(take(train_batches(indexed, **common), 9), take(train_batches(ragged, **common), 9))


# Resuming


@pytest.mark.parametrize("buckets", [(), (4, 8)])
@pytest.mark.parametrize("prefetched", [False, True])
def test_resume_anywhere_equals_unbroken(buckets, prefetched):
    source = make_source([1, 5, 9, 12, 14, 3, 2, 7, 7, 11, 4])

    def stream(**kwargs):
        batches = train_batches(source, batch_size=3, max_len=MAX_LEN, seed=5, buckets=buckets, **kwargs)
        return prefetch_to_device(batches, lambda batch: batch) if prefetched else batches

    unbroken = take(stream(), 20)
    for k in (0, 1, 4, 13):
        first = stream()
        take(first, k)
        assert first.position == k
        state = json.loads(json.dumps(first.get_state()))
        again = stream()
        take(again, 2)
        again.set_state(state)
        assert again.position == k
        assert_same(take(again, 20 - k), unbroken[k:])
        assert again.position == 20
        first.set_state(state)  # and in place, with batches in flight
        assert_same(take(first, 3), unbroken[k : k + 3])
        assert_same(take(stream(start=k), 3), unbroken[k : k + 3])


def test_a_far_position_is_reached_at_once():
    """Position 10**9 would take days to walk to."""
    source = make_source([1, 5, 9, 12])
    batches = train_batches(source, batch_size=3, max_len=MAX_LEN, seed=0, buckets=(6,), start=10**9)
    assert next(batches)["inputs"].shape[0] == 3
    assert batches.position == 10**9 + 1


def test_resume_with_other_processes_workers_and_threads():
    source = make_source(range(1, 12))
    whole = train_batches(source, batch_size=4, max_len=MAX_LEN, seed=0)
    take(whole, 5)
    part = train_batches(source, batch_size=4, max_len=MAX_LEN, seed=0, process_index=1, process_count=2, threads=2)
    part.set_state(whole.get_state())
    for ours, theirs in zip(take(part, 4), take(whole, 4), strict=True):
        np.testing.assert_array_equal(ours["label"], theirs["label"][2:])


def test_state_through_orbax_with_batches_in_flight(tmp_path):
    source = make_source(range(1, 12))

    def stream():
        return prefetch_to_device(train_batches(source, batch_size=4, max_len=MAX_LEN, seed=0, buckets=(5,)), size=3)

    first = stream()
    take(first, 6)
    with ocp.CheckpointManager(tmp_path) as manager:
        state = ocp.args.StandardSave({"step": np.int32(6)})
        manager.save(6, args=ocp.args.Composite(state=state, data=ocp.args.JsonSave(first.get_state())))
        expected = take(first, 5)
        manager.wait_until_finished()
        restored = manager.restore(6, args=ocp.args.Composite(data=ocp.args.JsonRestore()))
    again = stream()
    again.set_state(restored["data"])
    for ours, theirs in zip(take(again, 5), expected, strict=True):
        for name in theirs:
            np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed=0, this run has seed=1"),
        ({"batch_size": 6}, "batch_size=3, this run has batch_size=6"),
        ({"buckets": (4,)}, r"lengths=\[12\], this run has lengths=\[4, 12\]"),
        ({"max_len": 8}, r"lengths=\[12\], this run has lengths=\[8\]"),
        ({"source": make_source([2, 3])}, "rows=3, this run has rows=2"),
        ({"source": make_source([2, 3, 5])}, "tokens=9, this run has tokens=10"),
    ],
)
def test_state_of_another_run_is_refused(change, words):
    ours = {"source": make_source([2, 3, 4]), "batch_size": 3, "max_len": MAX_LEN, "seed": 0, "buckets": ()}
    state = train_batches(ours.pop("source"), **ours).get_state()
    changed = {"source": make_source([2, 3, 4]), **ours, **change}
    other = train_batches(changed.pop("source"), **changed)
    with pytest.raises(ValueError, match=words):
        other.set_state(state)
    for broken in ({}, {**state, "step": -1}, {**state, "step": "7"}):
        with pytest.raises(ValueError, match="step"):
            other.set_state(broken)


def test_a_batch_that_failed_can_be_tried_again():
    """A read that fails for a moment must not move the position past its batch."""
    source = make_source([1, 2, 3, 4, 5])
    failures = [None, RuntimeError("the disk is away")]
    gather = source.gather

    def flaky(indices, length):
        failure = failures.pop() if failures else None
        if failure:
            raise failure
        return gather(indices, length)

    expected = take(train_batches(make_source([1, 2, 3, 4, 5]), batch_size=2, max_len=5, seed=0), 4)
    source.gather = flaky
    batches = train_batches(source, batch_size=2, max_len=5, seed=0)
    with pytest.raises(RuntimeError, match="the disk is away"):
        next(batches)
    assert batches.position == 0
    assert_same(take(batches, 4), expected)


# Errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 must be divisible by the number of processes, 2"),
        ({"process_index": 2, "process_count": 2}, "got 2 of 2"),
        ({"max_len": 0, "buckets": ()}, "max_len must be at least 1"),
        ({"buckets": (8, 4)}, "strictly ascending"),
        ({"buckets": (4, 4)}, "strictly ascending"),
        ({"buckets": (0, 4)}, "at least 1"),
        ({"buckets": (4, 13)}, "bucket 13 is longer than max_len 12"),
        ({"source": IndexedSource([([1], 0)], lambda row: row)}, "need the length of every row"),
    ],
)
def test_wrong_settings_are_refused(change, words):
    common = {"source": make_source([2, 3, 4]), "batch_size": 4, "max_len": MAX_LEN, "buckets": (4,), **change}
    source = common.pop("source")
    with pytest.raises(ValueError, match=words):
        train_batches(source, seed=0, **common)
    with pytest.raises(ValueError, match=words):
        eval_batches(source, **common)


@pytest.mark.parametrize("name", ["seed", "start", "workers", "threads", "prefetch"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ValueError, match=name):
        train_batches(make_source([1]), **{"batch_size": 1, "max_len": 1, "seed": 0, name: -1})


def test_batch_shapes():
    assert batch_shapes(4, 12) == [12]
    assert batch_shapes(4, 12, (3, 6)) == [3, 6, 12]
    assert batch_shapes(4, 12, (3, 12)) == [3, 12]
    with pytest.raises(ValueError, match="batch_size"):
        batch_shapes(0, 12)


# Processes


def run_python(*arguments):
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(zoo.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    code = "import sys, zoo.data.pipeline, zoo.data.prefetch; print([m for m in ('grain', 'jax') if m in sys.modules])"
    assert run_python("-c", code) == "[]\n"


def test_workers_change_nothing(tmp_path):
    """Worker processes are spawned, so this runs as a script of its own, outside an absl program."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import numpy as np
            from zoo.data.pipeline import train_batches
            from zoo.data.source import RaggedSource

            def stream(workers):
                rows = [[i + 1] * (1 + i % 7) for i in range(23)]
                source = RaggedSource.from_rows(rows, np.arange(23))
                return train_batches(source, batch_size=4, max_len=7, seed=0, buckets=(3,), workers=workers)

            if __name__ == "__main__":
                plain, spawned = stream(0), stream(2)
                for _ in range(3):
                    next(plain)
                spawned.set_state(plain.get_state())
                for _ in range(12):
                    ours, theirs = next(spawned), next(plain)
                    for name in theirs:
                        assert ours[name].dtype == theirs[name].dtype
                        np.testing.assert_array_equal(ours[name], theirs[name])
                spawned.close()
                print("same")
            """
        )
    )
    assert run_python(str(script)) == "same\n"
