"""The one evaluation: every example once, sums divided by counts."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from zoo.training.step import Batch
from zoo.typing import PyTree


def evaluate(
    eval_step: Callable[[PyTree, PyTree, Batch], dict[str, Any]],
    params: PyTree,
    rest: PyTree,
    batches: Iterable[Batch],
    put: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, float]:
    """Mean loss and metrics over all examples, and their number as "examples".

    Args:
      eval_step: of `zoo.training.step.make_eval_step`.
      params, rest: of the model.
      batches: padded batches; rows of weight 0 do not count.
      put: moves a batch to the devices.

    Raises:
      ValueError: no example at all.
    """
    totals: dict[str, np.float64] = {}
    pending = []
    for batch in batches:
        pending.append(eval_step(params, rest, put(batch)))
        if len(pending) > 2:  # read behind the device, so that it never waits
            _add(totals, pending.pop(0))
    for sums in pending:
        _add(totals, sums)
    weight = totals.pop("weight", np.float64(0))
    if weight == 0:
        raise ValueError("there is no example to evaluate.")
    return {**{name: float(total / weight) for name, total in totals.items()}, "examples": float(weight)}


def _add(totals: dict[str, np.float64], sums: dict[str, Any]) -> None:
    for name, value in sums.items():
        totals[name] = totals.get(name, np.float64(0)) + np.float64(value)
