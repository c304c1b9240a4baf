"""Small runs on the task `toy`, and how two runs are held against each other. For tests with the fixture `toy`."""

import json

import jax
import numpy as np
import pytest

from zoo.training.checkpoint import Checkpoints
from zoo.training.loop import Trainer
from zoo.training.recipe import recipe_from_dict
from zoo.training.run import train

VALUES = {
    "protocol": "toy",
    "variant": "toy_mean",
    "task": {"name": "toy", "source": "last"},
    "model": {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "dropout": 0.1, "pooling": "last"},
    "train": {
        "steps": 60,
        "batch_size": 16,
        "lr": 0.02,
        "warmup_steps": 5,
        "weight_decay": 0.01,
        "eval_every": 10,
        "checkpoint_every": 20,
        "log_every": 7,
        "buckets": [6],
        "tensorboard": False,
    },
    "published": {"softmax": 50.0},
}


def recipe(section="train", **options):
    """The recipe of `VALUES` with other values in one section."""
    return recipe_from_dict({**VALUES, section: {**VALUES[section], **options}})


def run(folder, recipe, **options):
    """Trains in this process, in silence."""
    return train(recipe, folder, progress=False, **options)


def interrupt(folder, recipe, at, monkeypatch, **options):
    """Trains until the host has read step `at`, then stops as a process does that is interrupted there."""
    take = Trainer._take

    def stop(self, step, sums):
        take(self, step, sums)
        if step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_take", stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, recipe, **options)


def metrics(folder, split=None):
    """The lines of a run's log, of one split or of all."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if split in (None, line["split"])]


def arrays(folder, which):
    """Step, bookkeeping and every array of the newest checkpoint, read without knowing what should be in it."""
    import orbax.checkpoint as ocp

    with Checkpoints(folder / "checkpoints" / which, keep=2, write=False) as saved:
        step, meta = saved.meta()
        saved.check(step)
    meta.pop("clock", None)  # seconds are not repeated
    state = ocp.StandardCheckpointer().restore((folder / "checkpoints" / which / str(step) / "state").resolve())
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
    return step, meta, leaves


def assert_same_run(folder, other):
    """The logs, checkpoints and results of two runs are the same to the bit."""
    assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for which in ("best", "last"):
        (step, meta, leaves), (other_step, other_meta, other_leaves) = arrays(folder, which), arrays(other, which)
        assert (step, meta) == (other_step, other_meta)
        assert leaves.keys() == other_leaves.keys()
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, other_leaves[name], err_msg=name)
    one, two = (json.loads((place / "result.json").read_text()) for place in (folder, other))
    for name in ("best", "last", "parameters", "baselines", "steps"):
        assert one[name] == two[name]
