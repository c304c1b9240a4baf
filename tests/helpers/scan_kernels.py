"""What the tests of the selective scan's kernels share, for GPUs and for TPUs."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
from closeness import assert_same, error

from zoo.ops.selective_scan import selective_scan

GATED = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
PLAIN = ("u", "dt", "A", "B", "C")
ROUNDING = {"float32": 2e-6, "bfloat16": 1e-2}
REAL = {"batch": 8, "length": 4096, "width": 2048, "states": 16}
NARROW = ("A", "D", "dt_bias", "initial_state")


def shapes(*, batch, length, width, states, groups=None):
    tokens, narrow = (batch, length, width), (batch, length, *([groups] if groups else []), states)
    sizes = dict.fromkeys(("u", "dt", "z"), tokens) | dict.fromkeys(("B", "C"), narrow)
    return sizes | {"A": (width, states), "D": (width,), "dt_bias": (width,), "initial_state": (batch, states, width)}


def problem(names, dtype="float32", *, seed=0, **sizes):
    """Operands and cotangents of the output and of the last state."""
    rng = np.random.default_rng(seed)
    form = shapes(**sizes)
    given = {name: rng.standard_normal(form[name]) for name in names}
    given["A"] = -np.exp(given["A"])
    given = {name: jnp.asarray(x, "float32" if name in NARROW else dtype) for name, x in given.items()}
    y, state = (rng.standard_normal(form[name]) for name in ("u", "initial_state"))
    return given, (jnp.asarray(y, dtype), jnp.asarray(state, jnp.float32))


def with_gradients(given, cotangents, **options):
    y, pull = jax.vjp(lambda given: selective_scan(**given, return_state=True, **options), given)
    return y, pull(cotangents)[0]


def exact(given, cotangents, **options):
    with jax.enable_x64(True):
        given, cotangents = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (given, cotangents))
        return jax.jit(functools.partial(with_gradients, implementation="reference", **options))(given, cotangents)


def interpreted(backend, given, cotangents, times=1, interpreter=None, **options):
    """By the kernels of that implementation, once or a list of some times."""
    with importlib.import_module(f"zoo.ops.{backend}").interpreted(**(interpreter or {})):
        run = jax.jit(functools.partial(with_gradients, implementation=backend, **options))
        results = [jax.block_until_ready(run(given, cotangents)) for _ in range(times)]
    return results[0] if times == 1 else results


def check(found, given, cotangents, tolerance, **options):
    (y, _), gradients = found
    assert y.dtype == given["u"].dtype
    assert {name: x.dtype for name, x in gradients.items()} == {name: x.dtype for name, x in given.items()}
    assert_same(found, exact(given, cotangents, **options), tolerance)


def check_vmap(backend):
    """Mapped over an axis of its own, that of examples."""
    given, _ = problem(GATED, batch=2, length=33, width=64, states=8)
    shared = ("A", "D", "dt_bias")
    axes = {name: None if name in shared else 0 for name in given}
    rows = {name: x if name in shared else x[:, None] for name, x in given.items()}
    with importlib.import_module(f"zoo.ops.{backend}").interpreted():
        scan = functools.partial(selective_scan, implementation=backend)
        y = jax.jit(jax.vmap(lambda given: scan(**given), in_axes=(axes,)))(rows)
    assert error(y[:, 0], selective_scan(**given)) <= ROUNDING["float32"]
