"""How far results are from what they should be."""

import jax
import numpy as np


def error(found, expected):
    """max|a - b| / max(1, max|b|), over everything; fails on other shapes, infinities and NaN."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all(), "not finite"
    return float(np.abs(found - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))


def rms_error(found, expected):
    """The root mean square of a - b over that of b; of zeros, 0 or infinity. Fails as `error` does."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all(), "not finite"
    off, size = ((found - expected) ** 2).mean(), (expected**2).mean()
    return float(np.sqrt(off / size)) if size else 0.0 if not off else np.inf


def assert_same(found, expected, tolerance, measure=error):
    """Every array of two trees of one structure is as close as this."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    others = jax.tree.leaves(expected)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), others, strict=True):
        off = measure(one, other)
        assert off <= tolerance, f"{jax.tree_util.keystr(path)}: {off:.2e}"


def assert_equal(found, expected):
    """Every array of two trees of one structure is the same to the bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def assert_differences(function, arguments, cotangents, gradients, tolerance=1e-7):
    """Gradients, along a random direction in each argument, are central differences of a NumPy function.

    Args:
      function: takes `arguments` by name, float64; returns a tree of arrays.
      arguments: arrays by name.
      cotangents: weights of what it returns, of the same structure.
      gradients: of the weighted sum, by name.
      tolerance: relative to max(1, the derivative).
    """

    def weighted(changed):
        outputs = jax.tree.leaves(function(**arguments | changed))
        return sum((np.asarray(w) * y).sum() for w, y in zip(jax.tree.leaves(cotangents), outputs, strict=True))

    rng = np.random.default_rng(7)
    assert gradients.keys() == arguments.keys()
    for name, x in arguments.items():
        direction = rng.standard_normal(x.shape)
        ahead, behind = (weighted({name: x + step * direction}) for step in (1e-5, -1e-5))
        difference = (ahead - behind) / 2e-5
        found = (np.asarray(gradients[name], np.float64) * direction).sum()
        off = abs(found - difference) / max(1, abs(difference))
        assert off <= tolerance, f"{name}: {off:.2e}"
