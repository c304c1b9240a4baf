"""Random masks of dropout."""

import jax
import jax.numpy as jnp

from zoo.typing import Array, Bool, PRNGKeyArray


def draw_kept(key: PRNGKeyArray, shape: tuple[int, ...], rate: float) -> Bool[Array, "..."]:
    """Which elements dropout keeps; the same wherever the arrays are placed.

    Drawing random bits is most of what dropout costs on a CPU, so two elements share a word of 32 bits, and the rate is
    met to 1 in 2**17.

    Args:
      key: of the random bits.
      shape: of the mask, one axis or more.
      rate: probability of dropping, in [0, 1).
    """
    words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    # Halves side by side, not interleaved: on a CPU that is the faster of the two.
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)
    return halves[..., : shape[-1]] < _threshold(rate)


def kept_scale(rate: float) -> float:
    """What the elements kept by `draw_kept` are multiplied by, so that the mean stays."""
    return 2**16 / _threshold(rate)


def _threshold(rate: float) -> int:
    return max(1, round((1.0 - rate) * 2**16))
