"""What the tests of the gated delta rule's kernels share, for GPUs and for TPUs."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from closeness import assert_equal

from zoo.ops.gated_delta_rule import gated_delta_rule

# Dtypes of the arrays: of 16 bits, and of float32.
NARROW, WIDE = "bfloat16", "float32"


def operands(length, gated=True, heads=(1, 2), widths=(64, 64), batch=1, seed=0):
    """All arrays of floats, by name: keys of length 1, decays weak and strong."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((batch, length, heads[0], widths[0]))
    found = {
        "q": rng.standard_normal(k.shape),
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": rng.standard_normal((batch, length, heads[1], widths[1])),
        "beta": rng.uniform(0, 1, (batch, length, heads[1])),
        "initial_state": rng.standard_normal((batch, heads[1], *widths)),
    }
    if gated:
        found["log_decay"] = -(rng.exponential(size=(batch, length, heads[1])) ** 3)
    return found


def cotangents(given, seed=9):
    """Of the output and of the last state."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(given["v"].shape), rng.standard_normal(given["initial_state"].shape)


def marks(length, batch=1):
    """Padding on both sides and in between, and three segments."""
    rng = np.random.default_rng(3)
    return {
        "mask": rng.random((batch, length)) > 0.2,
        "segment_ids": np.sort(rng.integers(0, 3, (batch, length)), 1).astype(np.int32),
    }


def with_gradients(implementation, **options):
    """(output, last state) and the gradients of all operands."""

    def run(given, cotangents, marks):
        def forward(given):
            return gated_delta_rule(**given, **marks, return_state=True, implementation=implementation, **options)

        found, pull = jax.vjp(forward, given)
        return found, pull(jax.tree.map(lambda ct, x: ct.astype(x.dtype), cotangents, found))[0]

    return jax.jit(run)


def rounded(tree, dtype):
    """As arrays of `dtype`, but for the state and its gradient, and the log decays, which are float32."""

    def one(path, x):
        wide = jax.tree_util.keystr(path) in ("[0]['initial_state']", "[0]['log_decay']", "[1][1]")
        return jnp.asarray(x, jnp.float32 if wide else dtype)

    return jax.tree_util.tree_map_with_path(one, tree)


def exact(arrays, given_marks, **options):
    """The reference in float64, of the arrays as they were rounded."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arrays)
        return jax.tree.map(np.asarray, with_gradients("reference", **options)(*double, given_marks))


def interpreted(implementation, arrays, given_marks, **options):
    """By kernels; they are compiled once for two calls, whose results are the same to the bit."""
    with importlib.import_module(f"zoo.ops.{implementation}").interpreted():
        run = with_gradients(implementation, **options)
        found = run(*arrays, given_marks)
        assert_equal(run(*arrays, given_marks), found)
    return found
