"""Checkpoints: what goes in comes out, to the bit and in its place."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.training import checkpoint
from zoo.training.checkpoint import CheckpointError, Checkpoints

STATE = {"step": jnp.int32(3), "params": {"w": jnp.arange(6.0).reshape(2, 3), "layers": {"0": {"b": jnp.ones(2)}}}}
PARAMS = STATE["params"]
META = {"best": None, "window": {"loss": 0.1 + 0.2}, "data": {"seed": 2**64 - 1, "lengths": [1, 2]}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "deep" / "last"
    forget = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 10):
            state = jax.tree.map(lambda x, step=step: x + step, STATE)
            meta = {**META, "at": step, "window": dict(META["window"])}
            checkpoints.save(step, state, meta)
            # Saved means copied, though it is written in the background: what happens now is no matter.
            meta["window"]["loss"] = -1.0
            forget(state)
        checkpoints.wait()
    return folder


def test_the_newest_are_kept_and_a_step_is_saved_once(saved):
    assert sorted(int(path.name) for path in saved.iterdir() if path.name.isdigit()) == [2, 10]
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.latest() == 10
        step, meta = checkpoints.meta()
        assert step == 10
        assert meta == json.loads(json.dumps({**META, "at": 10}))
        assert meta["window"]["loss"] == 0.1 + 0.2
        assert checkpoints.meta(2)[1]["at"] == 2


def test_arrays_come_back_into_shapes_and_into_arrays(saved):
    with Checkpoints(saved, keep=2) as checkpoints:
        for like in (STATE, jax.eval_shape(lambda: STATE)):
            state = checkpoints.restore(like)
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 10), state, STATE)
            assert state["step"].dtype == jnp.int32
        assert int(checkpoints.restore(STATE, 2)["step"]) == 5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**STATE, "params": {**PARAMS, "w": jnp.zeros((3, 3))}}, r"params\.w is \[2, 3\] there, \[3, 3\] here"),
        ({**STATE, "params": {"w": PARAMS["w"]}}, r"params\.layers\.0\.b is \[2\] there, missing here"),
        ({**STATE, "ema": jnp.zeros(())}, r"ema is missing there, \[\] here"),
        ({"step": STATE["step"], "opt": [jnp.ones(())] * 4}, r"; opt\.2 is .* and 3 more\. Was it made by another"),
    ],
    ids=["shape", "less", "more", "many"],
)
def test_a_checkpoint_of_something_else_is_refused(saved, other, message):
    misfit = pytest.raises(CheckpointError, match=rf"last.10 does not fit this model: .*{message}")
    with Checkpoints(saved, keep=2) as checkpoints, misfit:
        checkpoints.restore(other)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "empty": lambda path: path.write_bytes(b""),
    "changed in a bit": flip,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found_and_named(damage, saved, tmp_path):
    files = [path for path in (saved / "10").rglob("*") if path.is_file() and path.stat().st_size]
    names = [path.relative_to(saved / "10") for path in files]
    checked = [name for name in names if name.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")]
    assert len(checked) >= 5
    for index, name in enumerate(checked):
        shutil.copytree(saved / "10", tmp_path / str(index) / "10")
        DAMAGES[damage](tmp_path / str(index) / "10" / name)
        with Checkpoints(tmp_path / str(index), keep=2, write=False) as checkpoints:
            with pytest.raises(CheckpointError, match="The checkpoint cannot be used: ") as error:
                checkpoints.check(10)
            assert name.name in str(error.value) or "is not complete" in str(error.value)


def test_a_checkpoint_that_orbax_cannot_read_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    shutil.rmtree(tmp_path / "last" / "10" / "state")
    damaged = pytest.raises(CheckpointError, match=r"last.10 cannot be read")
    with Checkpoints(tmp_path / "last", keep=2) as checkpoints, damaged:
        checkpoints.restore(STATE)


def test_another_format_is_refused_with_both_versions(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 7)
        with Checkpoints(tmp_path / "last", keep=1) as checkpoints:
            checkpoints.save(1, STATE, META)
    other = pytest.raises(CheckpointError, match=r"last.1 has checkpoint format 7, written by zoo .*reads format 1\.")
    with Checkpoints(tmp_path / "last", keep=1, write=False) as checkpoints, other:
        checkpoints.check(1)


def test_of_a_step_that_is_there_the_bookkeeping_is_renewed(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    with Checkpoints(tmp_path / "last", keep=2) as checkpoints:
        checkpoints.save(10, jax.tree.map(jnp.zeros_like, STATE), {"at": "again"})
        assert checkpoints.meta() == (10, {"at": "again"})
        assert checkpoints.check(10)["step"] == 10
        assert int(checkpoints.restore(STATE)["step"]) == 13


def test_a_writer_clears_what_was_left_half_written_and_a_reader_does_not(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    half = tmp_path / "last" / "11.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    before = sorted(path for path in tmp_path.rglob("*"))
    with Checkpoints(tmp_path / "last", keep=1, write=False) as checkpoints:
        assert checkpoints.steps() == [2, 10]
    assert sorted(path for path in tmp_path.rglob("*")) == before
    with Checkpoints(tmp_path / "last", keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 10]
    assert not half.exists()


def test_what_cannot_be_used_is_set_aside(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    with Checkpoints(tmp_path / "last", keep=2) as checkpoints:
        assert checkpoints.set_aside(10) == tmp_path / "damaged" / "last-10"
        assert checkpoints.latest() == 2
        assert (tmp_path / "damaged" / "last-10" / "manifest.json").is_file()
        checkpoints.save(10, STATE, META)
        checkpoints.wait()
        assert checkpoints.check(10)["meta"] == json.loads(json.dumps(META))
        checkpoints.set_aside(10)  # in the place of the first


def test_those_that_are_not_wanted_go(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    with Checkpoints(tmp_path / "last", keep=None) as checkpoints:
        checkpoints.save(11, STATE, META)
        checkpoints.wait()
        checkpoints.keep_only({2, 11, 99})
        assert checkpoints.latest() == 11
    assert sorted(int(path.name) for path in (tmp_path / "last").iterdir()) == [2, 11]


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "new", keep=1) as checkpoints:
        assert checkpoints.latest() is None
        for function in (lambda: checkpoints.restore(STATE), checkpoints.meta):
            with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*new"):
                function()
