"""Packed sequences: where a new one begins, and which run of equal ids a token belongs to."""

import jax
import jax.numpy as jnp

from zoo.typing import Array, Bool, Int


def segment_starts(
    segment_ids: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None, *, reverse: bool = False
) -> Bool[Array, "B T"]:
    """True at each real token whose id differs from that of the real token before it (after it, if `reverse`).

    Padding starts nothing, whatever its id, so what was carried outlives it; nor does the first real token, since an
    initial state belongs to its segment.
    """
    if reverse:
        return segment_starts(segment_ids[:, ::-1], None if mask is None else mask[:, ::-1])[:, ::-1]
    if mask is None:
        return jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    positions = jnp.where(mask, jnp.arange(mask.shape[1]), -1)
    last = jnp.pad(jax.lax.cummax(positions, axis=1)[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    before = jnp.take_along_axis(segment_ids, jnp.maximum(last, 0), axis=1)
    return mask & (last >= 0) & (segment_ids != before)


def segment_runs(
    segment_ids: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None, *, reverse: bool = False
) -> Int[Array, "B T"]:
    """Each token's segment as a number from 0 in the direction of processing; padding belongs to the one before.

    Unlike ids, which may return (1, 2, 1), these tell any two segments apart.
    """
    starts = segment_starts(segment_ids, mask, reverse=reverse).astype(jnp.int32)
    return jax.lax.cumsum(starts, axis=1, reverse=reverse)
