"""A mixer in one direction, at test size, with what several checks share: parameters and compiled functions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo import registry
from zoo.interop import init_apply

BATCH = 3
LENGTHS = (1, 7, 32, 63)
Apply = Callable[..., Any]


class Case:
    """A mixer that runs causally or bidirectionally, with its registered `test_args`.

    Attributes:
      spec, cls, causal: which; see `cases` for registered ones.
      options: constructor arguments, without `rngs`.
      d_model: D.
      lengths: the T that it is tested at.
      params: initial parameters with noise on top, so that no parameter sits at a special value such as zero.
    """

    def __init__(self, spec: registry.Spec, cls: type, causal: bool):
        self.spec, self.cls, self.causal = spec, cls, causal
        self.options: dict[str, Any] = {"d_model": 16, **spec.test_args, "causal": causal}
        self.d_model = self.options["d_model"]
        self.fixed_length = spec.fixed_length
        self._applies: dict[str, Apply] = {}

    def __repr__(self) -> str:
        return f"{self.spec.name}-{'causal' if self.causal else 'bidirectional'}"

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """LENGTHS, or the one length of a mixer that has one."""
        if not self.fixed_length:
            return LENGTHS
        length = self.options.get("max_len") or self.make().length
        return (int(length),)

    @property
    def length(self) -> int:
        """The T of most checks: odd, so that nothing divides it."""
        return self.lengths[0] if self.fixed_length else 7

    def make(self, seed: int = 0, **options: Any) -> Any:
        """The NNX module."""
        from flax import nnx

        return self.cls(**{**self.options, **options}, rngs=nnx.Rngs(seed))

    @functools.cached_property
    def init(self) -> Callable[..., Any]:
        """The compiled `init` of `zoo.init_apply`."""
        return jax.jit(init_apply(self.cls, **self.options)[0])

    @functools.cached_property
    def params(self) -> Any:
        # Evaluated now, even if the first to ask is a function that is being traced.
        with jax.ensure_compile_time_eval():
            return perturb(self.init(jax.random.key(0)))

    def apply(self, **options: Any) -> Apply:
        """The `apply` of `zoo.init_apply`, with other constructor options that leave the parameters as they are."""
        key = repr(sorted(options.items()))
        if key not in self._applies:
            self._applies[key] = init_apply(self.cls, **{**self.options, **options})[1]
        return self._applies[key]

    @functools.cached_property
    def run(self) -> Apply:
        """Compiled `(params, x, mask=None) -> y`, without dropout; the result is NumPy's."""
        run = jax.jit(self.apply())
        return lambda *args, **kwargs: jax.device_get(run(*args, **kwargs))

    def vjp(self, **options: Any) -> Apply:
        """Compiled `(params, x, mask, ct) -> (y, (gradient of params, gradient of x))` for the loss sum(y * ct).

        The results are NumPy's.
        """
        return _vjp(self.apply(**options))

    def x(self, length: int | None = None, batch: int = BATCH, seed: int = 0) -> np.ndarray:
        """Normal inputs [B, T, D]."""
        shape = (batch, self.length if length is None else length, self.d_model)
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cases(name: str) -> list[Case]:
    """One case per direction that the mixer `name` claims."""
    spec = registry.spec(name, "mixer")
    cls = registry.get(name, "mixer")
    return [Case(spec, cls, causal) for causal in (False, True) if (spec.causal if causal else spec.bidirectional)]


@functools.cache
def _vjp(apply: Apply) -> Apply:
    @jax.jit
    def run(params: Any, x: jax.Array, mask: jax.Array | None, ct: jax.Array) -> tuple[Any, Any]:
        y, pull = jax.vjp(lambda params, x: apply(params, x, mask=mask), params, x)
        return y, pull(ct.astype(y.dtype))

    return lambda *args: jax.device_get(run(*args))


def perturb(params: Any, scale: float = 0.1, seed: int = 1) -> Any:
    """Adds noise to every parameter."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(np.asarray(p) + scale * generator.normal(size=p.shape), p.dtype), params)


def mask_of(lengths: list[int], total: int) -> np.ndarray:
    """A right-padding mask [B, T] for examples of these lengths."""
    return np.arange(total)[None] < np.asarray(lengths)[:, None]


def assert_close(actual: Any, expected: Any, what: str, tolerance: float = 1e-5) -> None:
    """Every leaf differs by at most `tolerance` times the larger of 1 and the expected leaf's largest value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected), f"{what}: different structures"
    pairs = zip(leaves(actual).items(), leaves(expected).values(), strict=True)
    for (path, a), b in pairs:
        assert a.shape == b.shape, f"{what}{path}: shape {a.shape}, not {b.shape}"
        if not a.size:
            continue
        error = np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b)))
        assert error <= tolerance, f"{what}{path}: differs by {error:.2e} (relative), allowed {tolerance:.0e}"


def assert_finite(tree: Any, what: str) -> None:
    """No leaf has a NaN or an infinity."""
    for path, leaf in leaves(tree).items():
        assert np.isfinite(leaf).all(), f"{what}{path}: not finite"


def leaves(tree: Any) -> Mapping[str, np.ndarray]:
    """The leaves as NumPy arrays in float64, by path."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        (" at " + jax.tree_util.keystr(path, simple=True, separator="/")) if path else "": np.asarray(leaf, np.float64)
        for path, leaf in found
    }
