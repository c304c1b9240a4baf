"""Encoder, pooling and a two-layer head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.encoder import BodyConfig, Encoder, EncoderConfig
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.pooling import POOLINGS, Pooling, pool
from zoo.typing import Array, Bool, Float, Num


class SequenceClassifier(nnx.Module):
    """Classifies whole sequences: encoder, pooling, [Linear, ReLU,] Linear.

    Args:
      config: of the encoder; `cls_token` follows from `pooling`.
      num_classes: C.
      pooling: see `zoo.layers.pooling.pool`; "cls" puts a learned vector in front of the sequence.
      head_dim: width of the head's inner layer; None for a single Linear.
      rngs: for the initial parameters.

    Raises:
      ValueError: unknown pooling, no classes, or CLS pooling in a causal encoder (its first position sees nothing).
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_classes: int,
        *,
        pooling: Pooling = "mean",
        head_dim: int | None = None,
        rngs: nnx.Rngs,
    ):
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; there are {', '.join(POOLINGS)}.")
        if pooling == "cls" and config.causal:
            raise ValueError("pooling='cls' in a causal encoder sees no token: use 'last' or 'mean'.")
        self.pooling: Pooling = pooling
        config = dataclasses.replace(config, cls_token=pooling == "cls")
        self.encoder = Encoder(config, rngs=rngs)
        self.hidden, self.logits = make_head(config, num_classes, head_dim, rngs=rngs)

    def __call__(
        self,
        inputs: Num[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits, float32.

        Args:
          inputs: tokens or scalars.
          mask: True at real positions; None where all are.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError, TypeError: as `Encoder` does.
        """
        x: Any = self.encoder(inputs, mask=mask, deterministic=deterministic, rngs=rngs)
        x = pool(x, mask, self.pooling).astype(jnp.float32)
        return self.logits(x if self.hidden is None else jax.nn.relu(self.hidden(x)))


def make_head(
    config: BodyConfig, num_classes: int, head_dim: int | None, *, rngs: nnx.Rngs
) -> tuple[nnx.Linear | None, nnx.Linear]:
    """The two layers of a head, [Linear(D -> head_dim),] Linear(-> C), which compute in float32; the first may be None.

    Raises:
      ValueError: no classes.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")

    def linear(d_in: int, d_out: int) -> nnx.Linear:
        # The original LRA code leaves its classifier at Flax's own initialiser, whatever the encoder has.
        name = "torch" if config.kernel_init == "torch" else "lecun_normal"
        return nnx.Linear(
            d_in,
            d_out,
            kernel_init=kernel_initializer(name),
            bias_init=bias_initializer(name, d_in),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )

    hidden = None if head_dim is None else linear(config.d_model, head_dim)
    return hidden, linear(head_dim or config.d_model, num_classes)
