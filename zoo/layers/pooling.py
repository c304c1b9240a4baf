"""From a sequence of vectors to one."""

from typing import Literal

import jax.numpy as jnp

from zoo.typing import Array, Bool, Float

Pooling = Literal["mean", "mean_padded", "cls", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "mean_padded", "cls", "last")


def pool(x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None, how: Pooling) -> Float[Array, "B D"]:
    """One vector a sequence.

    Args:
      x: the sequence.
      mask: True at real positions; None where all are.
      how: "mean" over the real positions; "mean_padded" their sum divided by the padded length T, as the small
        PyTorch family of LRA code does; "cls" the first position; "last" the last real position.

    Returns:
      Zeros for "mean" and "mean_padded" of a sequence without any real position.

    Raises:
      ValueError: unknown `how`.
    """
    if how == "cls":
        return x[:, 0]
    if how not in POOLINGS:
        raise ValueError(f"unknown pooling {how!r}; there are {', '.join(POOLINGS)}.")
    real = jnp.ones(x.shape[:2], bool) if mask is None else mask
    if how == "last":
        position = jnp.arange(x.shape[1])
        last = jnp.where(real, position, 0).max(axis=1)
        return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    total = jnp.where(real[..., None], x, 0).astype(jnp.float32).sum(axis=1)
    count = jnp.full((x.shape[0],), x.shape[1]) if how == "mean_padded" else jnp.maximum(real.sum(axis=1), 1)
    return (total / count[:, None]).astype(x.dtype)
