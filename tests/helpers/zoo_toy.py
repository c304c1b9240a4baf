"""A package outside `zoo` with one task: short sequences whose label is their first token modulo 3, or chance."""

from pathlib import Path

import numpy as np

from zoo.data.source import RaggedSource
from zoo.registry import register_task
from zoo.tasks.base import ClassificationTask, TaskInfo

SIZES = {"train": 96, "validation": 37, "test": 29}


@register_task("toy", title="First token modulo 3", inputs=("tokens",))
class Toy(ClassificationTask):
    """Lengths 1 to 12, tokens 1 to 7; "chance" has random labels, so that nothing can be learned but by heart."""

    sources = ("first", "chance")
    name = "toy"

    def __init__(self, source="first", max_len=None, data_dir=None, seed=0):
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
        labels = [row[0] % 3 for row in rows] if self.source == "first" else draw.integers(0, 3, SIZES[name])
        return RaggedSource.from_rows(rows, labels, num_classes=3)

    def baselines(self, split="test"):
        labels = self.split(split).labels
        return {"majority": float(np.bincount(labels).max() / len(labels))}

    def describe(self):
        return {"sizes": SIZES}
