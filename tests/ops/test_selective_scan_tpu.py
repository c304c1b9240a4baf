"""The selective scan's kernels for TPUs: interpreted on a CPU against the reference, and compiled for TPUs without one.

No test runs them on a TPU. What a TPU adds to the interpreter is its own rounding, of exponentials above all.
"""

import functools
import importlib.util
import logging

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_equal, assert_same, error
from test_selective_scan_hopper import GATED, PLAIN, REAL, ROUNDING, exact, problem, shapes, with_gradients

from zoo.ops import backend, mosaic_tpu
from zoo.ops.selective_scan import selective_scan


def interpreted(given, cotangents, times=1, **options):
    with mosaic_tpu.interpreted():
        run = jax.jit(functools.partial(with_gradients, implementation="mosaic_tpu", **options))
        results = [jax.block_until_ready(run(given, cotangents)) for _ in range(times)]
    return results[0] if times == 1 else results


def check(found, given, cotangents, tolerance, **options):
    (y, _), gradients = found
    assert y.dtype == given["u"].dtype
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in given.items()}
    assert_same(found, exact(given, cotangents, **options), tolerance)
