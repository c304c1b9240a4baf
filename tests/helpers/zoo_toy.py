"""A package outside `zoo`: a task that is learned in seconds, and a mixer that compiles in one.

The label of a short sequence is its last token modulo 3, or chance.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.data.source import RaggedSource
from zoo.registry import register_mixer, register_task
from zoo.tasks.base import ClassificationTask, TaskInfo

SIZES = {"train": 96, "validation": 37, "test": 29}


@register_task("toy", title="Last token modulo 3", inputs=("tokens",))
class Toy(ClassificationTask):
    """Lengths 1 to 12, tokens 1 to 7; "chance" has random labels, so that nothing can be learned but by heart."""

    sources = ("last", "chance")
    name = "toy"

    def __init__(self, source="last", max_len=None, data_dir=None, seed=0):
        if source not in self.sources:
            raise ValueError(f"toy has no source {source!r}; there are {', '.join(self.sources)}.")
        self.source, self.seed = source, seed
        self.info = TaskInfo(inputs="tokens", vocab_size=8, num_classes=3, max_len=max_len or 12)

    def is_prepared(self):
        return True

    def prepare(self, *, progress=True, workers=None):
        return Path()

    def verify(self):
        pass

    def split(self, name):
        draw = np.random.default_rng([self.seed, list(SIZES).index(name)])
        rows = [draw.integers(1, 8, draw.integers(1, 13)) for _ in range(SIZES[name])]
        labels = [row[-1] % 3 for row in rows] if self.source == "last" else draw.integers(0, 3, SIZES[name])
        return RaggedSource.from_rows(rows, labels, num_classes=3)

    def baselines(self, split="test"):
        labels = self.split(split).labels
        return {"majority": float(np.bincount(labels).max() / len(labels))}

    def describe(self):
        return {"sizes": SIZES}


@register_mixer("toy_mean", title="Mean of the sequence", paper="-", time="O(T)", memory="O(T)")
class ToyMean(nnx.Module):
    """Adds a linear map of the mean over real positions."""

    def __init__(self, d_model, *, dtype=None, param_dtype=jnp.float32, rngs):
        self.map = nnx.Linear(d_model, d_model, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x, *, mask=None, deterministic=None, rngs=None):
        real = jnp.ones(x.shape[:2], bool) if mask is None else mask
        total = jnp.where(real[..., None], x, 0).sum(axis=1, keepdims=True)
        return jnp.broadcast_to(self.map(total / jnp.maximum(real.sum(axis=1), 1)[:, None, None]), x.shape)
