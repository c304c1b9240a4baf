"""Products of decay factors over spans of tokens, by doubling.

A pair of tokens j < i of a chunk is separated at one level: the largest h (1, 2, 4, ...) for which the two are in
neighbouring spans of h tokens, the first and the second half of one span of 2 h. What token j wrote has then decayed by

    prod_{t = j + 1 .. i} a_t = suffix_h[j] * prefix_h[i]

with `prefix_h[i]` the product from the start of i's span to i and `suffix_h[j]` that from after j to the end of j's
span. Each is a product of factors between those two tokens only. Nothing is divided, no large sums of logarithms are
subtracted, so a factor may be anything from 1 to 0 and every pair keeps its relative accuracy.
"""

from typing import NamedTuple

import jax.numpy as jnp

from zoo.typing import Array


class Span(NamedTuple):
    """Products over spans of `size` tokens, arrays [..., c] (see the module).

    Attributes:
      size: h.
      prefix: from the start of its span to the token, itself included.
      suffix: from after the token to the end of its span.
    """

    size: int
    prefix: Array
    suffix: Array


def spans(factors: Array, axis: int = -1) -> list[Span]:
    """The products over spans of 1, 2, 4, ... tokens and over all c of them, which are a power of two, along `axis`."""
    factors = jnp.moveaxis(factors, axis, -1)
    length = factors.shape[-1]
    found = [Span(1, factors, jnp.ones_like(factors))]
    while (size := found[-1].size) < length:
        halves = (*factors.shape[:-1], length // (2 * size), 2, size)
        prefix, suffix = (x.reshape(halves) for x in found[-1][1:])
        first, second = prefix[..., 0, -1:], prefix[..., 1, -1:]  # products over each half
        prefix = jnp.stack([prefix[..., 0, :], prefix[..., 1, :] * first], axis=-2)
        suffix = jnp.stack([suffix[..., 0, :] * second, suffix[..., 1, :]], axis=-2)
        found.append(Span(2 * size, prefix.reshape(factors.shape), suffix.reshape(factors.shape)))
    return [
        Span(size, jnp.moveaxis(prefix, -1, axis), jnp.moveaxis(suffix, -1, axis)) for size, prefix, suffix in found
    ]
