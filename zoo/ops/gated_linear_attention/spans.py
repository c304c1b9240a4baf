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
    """Products over spans of `size` tokens, arrays [..., c, K] (see the module).

    Attributes:
      size: h.
      prefix: from the start of its span to the token, itself included.
      suffix: from after the token to the end of its span.
    """

    size: int
    prefix: Array
    suffix: Array


def spans(factors: Array) -> list[Span]:
    """Products of `factors` [..., c, K] over spans of 1, 2, 4, ... tokens and over all c, which is a power of two."""
    span, total = Span(1, factors, jnp.ones_like(factors)), factors
    found = [span]
    while span.size < factors.shape[-2]:
        first, second = total[..., ::2, :], total[..., 1::2, :]  # over each half of the spans to come
        one = jnp.ones_like(first)
        prefix = _times(span.prefix, span.size, one, first)
        suffix = _times(span.suffix, span.size, second, one)
        span, total = Span(2 * span.size, prefix, suffix), first * second
        found.append(span)
    return found


def _times(x: Array, size: int, first: Array, second: Array) -> Array:
    """`x` [..., c, K] times `first` in the first half of each span of 2 `size` tokens, times `second` in the other."""
    halves = x.reshape(*first.shape[:-1], 2, size, x.shape[-1])
    return (halves * jnp.stack([first, second], axis=-2)[..., None, :]).reshape(x.shape)
