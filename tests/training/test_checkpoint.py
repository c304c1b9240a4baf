"""Checkpoints: what goes in comes out, to the bit and in its place."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

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
        checkpoints.save(10, STATE, {"at": "again"})
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


def test_a_damaged_checkpoint_is_named(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    shutil.rmtree(tmp_path / "last" / "10" / "state")
    damaged = pytest.raises(CheckpointError, match=r"last.10 cannot be read")
    with Checkpoints(tmp_path / "last", keep=2) as checkpoints, damaged:
        checkpoints.restore(STATE)


def test_those_that_are_not_wanted_go(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "last")
    with Checkpoints(tmp_path / "last", keep=None) as checkpoints:
        checkpoints.save(11, STATE, META)
        checkpoints.wait()
        checkpoints.keep_only({2, 11, 99})
        assert checkpoints.latest() == 11
    assert sorted(int(path.name) for path in (tmp_path / "last").iterdir()) == [2, 11]


def test_the_bookkeeping_is_copied_before_it_is_written(tmp_path, monkeypatch):
    given = []
    write = ocp.args.JsonSave
    monkeypatch.setattr(ocp.args, "JsonSave", lambda item: given.append(item) or write(item))
    meta = {"window": {"loss": 1.0}}
    with Checkpoints(tmp_path / "last", keep=1) as checkpoints:
        checkpoints.save(1, STATE, meta)
        meta["window"]["loss"] = 2.0
    assert given == [{"window": {"loss": 1.0}}]


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "new", keep=1) as checkpoints:
        assert checkpoints.latest() is None
        for function in (lambda: checkpoints.restore(STATE), checkpoints.meta):
            with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*new"):
                function()
