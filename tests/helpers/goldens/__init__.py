"""Comparisons with the arrays of tests/golden: one entry each, for tests/test_parity.py and for docs/parity.md.

An entry is a generator function, in one of the modules here, that runs our code on an array's inputs and yields what it
found, under the names and in the layout of the array::

    @comparison("retnet", "mixer `retnet`", 1e-5, cases=("causal", "bidirectional"))
    def retnet(arrays, case): ...
        yield Found(f"{case}/out/y", y)
"""

import functools
import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from closeness import error

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
COMPARISONS: list["Comparison"] = []
MODULES = ("attention", "axial", "delta_rule", "deltanet", "forecasting", "informer", "layers", "mamba")
# Of outputs and gradients of ops, and of layers and whole models: max|a - b| / max(1, max|b|) in float32.
OP, MODEL = 2e-6, 1e-5


class Found(NamedTuple):
    """A result of ours, to be compared with the array `key`, where `keep` (an index) says that it has a meaning."""

    key: str
    value: Any
    keep: Any = ...


class Measured(NamedTuple):
    """The largest errors over all outputs and over all gradients (None without any), and the names compared."""

    outputs: float
    gradients: float | None
    keys: frozenset[str]


class Arrays(dict):
    """The arrays of one file by name; `meta` is its description."""

    def __init__(self, name: str):
        with np.load(GOLDEN / f"{name}.npz") as file:
            super().__init__({key: file[key] for key in file.files if key != "meta"})
            self.meta = json.loads(str(file["meta"]))

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Those whose name begins so, without it."""
        return {key.removeprefix(prefix): x for key, x in self.items() if key.startswith(prefix)}

    def results(self) -> set[str]:
        """The names of what is to be compared."""
        return {key for key in self if {"out", "grad"} & set(key.split("/")[:-1])}


class Comparison(NamedTuple):
    """What is compared with an array, in each of some cases (implementations, or directions).

    Attributes:
      array: the file in tests/golden, without its ending.
      what: of ours.
      bound: that all errors must stay within.
      cases: passed on to `run`.
      slow: cases that are compared in slow tests only.
      run: yields the results.
    """

    array: str
    what: str
    bound: float
    cases: tuple[str, ...]
    slow: tuple[str, ...]
    run: Callable[[Arrays, str], Iterable[Found]]

    def measure(self, case: str) -> Measured:
        """Runs it."""
        return _measure(self, case)


@functools.cache
def _measure(entry: Comparison, case: str) -> Measured:
    arrays = Arrays(entry.array)
    worst = {"out": -math.inf, "grad": -math.inf}
    keys = set()
    for key, value, keep in entry.run(arrays, case):
        kind = next(part for part in key.split("/") if part in worst)
        value = np.asarray(value)
        assert value.shape == arrays[key].shape, f"{key}: {value.shape}, not {arrays[key].shape}"
        worst[kind] = max(worst[kind], error(value[keep], arrays[key][keep]))
        keys.add(key)
    gradients = worst["grad"] if math.isfinite(worst["grad"]) else None
    return Measured(worst["out"], gradients, frozenset(keys))


def comparison(array: str, what: str, bound: float, cases: tuple[str, ...] = ("xla",), slow: tuple[str, ...] = ()):
    """Makes an entry of a function."""

    def register(run: Callable[[Arrays, str], Iterator[Found]]) -> Callable[[Arrays, str], Iterator[Found]]:
        COMPARISONS.append(Comparison(array, what, bound, cases, slow, run))
        return run

    return register


def comparisons() -> list[Comparison]:
    """All entries, sorted by array."""
    for module in MODULES:
        importlib.import_module(f"goldens.{module}")
    return sorted(COMPARISONS, key=lambda entry: (entry.array, entry.what))
