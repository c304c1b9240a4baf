"""Every example once, sums divided by counts."""

from typing import Any

import numpy as np
import pytest

from zoo.data.pipeline import eval_batches
from zoo.data.source import RaggedSource
from zoo.training.evaluate import evaluate


def sums(params, rest, batch):
    """A model whose loss is the first token times `params`, and whose answer is `rest`."""
    weight = batch["weight"]
    loss = batch["inputs"][:, 0] * params
    right = batch["label"] == rest
    return {"loss": (loss * weight).sum(), "accuracy": (right * weight).sum(), "weight": weight.sum()}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 61])
@pytest.mark.parametrize("buckets", [(), (3,)])
def test_odd_sizes_are_exact(count, buckets):
    draw = np.random.default_rng(count)
    rows = [draw.integers(1, 100, draw.integers(1, 7)) for _ in range(count)]
    labels = draw.integers(0, 2, count)
    batches = eval_batches(RaggedSource.from_rows(rows, labels), batch_size=8, max_len=6, buckets=buckets)
    moved = []
    metrics = evaluate(sums, 0.25, 1, batches, put=lambda batch: moved.append(1) or batch)
    first = np.array([row[0] for row in rows])
    assert metrics == {"loss": (first * 0.25).mean(), "accuracy": labels.mean(), "examples": count}
    assert len(moved) == len(batches)


def test_the_device_is_two_batches_ahead():
    order = []

    class Lazy:
        def __init__(self, value):
            self.value = value

        def __float__(self):
            order.append(f"read {self.value}")
            return float(self.value)

    def step(params, rest, batch):
        order.append(f"run {batch}")
        return {"weight": Lazy(batch)}

    batches: Any = iter([1, 2, 3, 4])
    assert evaluate(step, None, None, batches) == {"examples": 10.0}
    assert order.index("run 3") < order.index("read 1") < order.index("run 4")


def test_no_example():
    with pytest.raises(ValueError, match="there is no example to evaluate"):
        evaluate(sums, 0, 0, [])
