"""Dropout (Srivastava et al. 2014)."""

import jax.numpy as jnp
from flax import nnx

from zoo.ops.dropout import draw_kept, kept_scale
from zoo.typing import Array, Float


class Dropout(nnx.Dropout):
    """`nnx.Dropout` with half the random bits: the same arguments, modes and meaning, other masks.

    Without `broadcast_dims`. See `zoo.ops.dropout.draw_kept` for the bits.

    Args:
      rate: probability of dropping, in [0, 1).
      deterministic: no dropout; `train()`, `eval()` and the call can say otherwise.

    Raises:
      ValueError: `rate` is out of range.
    """

    def __init__(self, rate: float, *, deterministic: bool = False):
        if not 0 <= rate < 1:
            raise ValueError(f"dropout={rate} must be at least 0 and below 1.")
        super().__init__(rate, deterministic=deterministic)

    def __call__(
        self, inputs: Float[Array, "..."], *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "..."]:
        """Zeros some elements and scales the others.

        Args:
          inputs: one axis or more.
          deterministic: no dropout; None for the module's own mode.
          rngs: its stream `dropout` is drawn from, where there is dropout.

        Raises:
          ValueError: there is dropout and no `rngs`.
        """
        if self.rate == 0 or (self.deterministic if deterministic is None else deterministic):
            return inputs
        if rngs is None:
            raise ValueError("dropout is on and there is no key to draw from: pass rngs=nnx.Rngs(dropout=key).")
        kept = draw_kept(rngs.dropout(), inputs.shape, self.rate)
        return jnp.where(kept, inputs * kept_scale(self.rate), 0)
