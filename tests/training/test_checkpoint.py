"""Checkpoints: what goes in comes out, to the bit and in its place."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.training.checkpoint import CheckpointError, Checkpoints

STATE = {"step": jnp.int32(3), "params": {"w": jnp.arange(6.0).reshape(2, 3), "layers": {"0": {"b": jnp.ones(2)}}}}
META = {"best": None, "window": {"loss": 0.1 + 0.2}, "data": {"seed": 2**64 - 1, "lengths": [1, 2]}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "deep" / "last"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 10):
            checkpoints.save(step, jax.tree.map(lambda x, step=step: x + step, STATE), {**META, "at": step})
            # Saved means copied: what happens to the arrays later is no matter.
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
    "other",
    [
        {**STATE, "params": {**STATE["params"], "w": jnp.zeros((3, 3))}},
        {**STATE, "params": {"w": STATE["params"]["w"]}},
        {**STATE, "ema": jnp.zeros(2)},
    ],
    ids=["shape", "less", "more"],
)
def test_a_checkpoint_of_something_else_is_refused(saved, other):
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(CheckpointError, match=r"last.10 does not fit this"):
        checkpoints.restore(other)


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "new", keep=1) as checkpoints:
        assert checkpoints.latest() is None
        for function in (lambda: checkpoints.restore(STATE), checkpoints.meta):
            with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*new"):
                function()
