"""Two sequences through one encoder, pooling, and a head over what both became."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.encoder import Encoder, EncoderConfig
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.pooling import POOLINGS, Pooling, pool
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, Bool, Float, Num

PairFeatures = Literal["nli", "concat"]
HeadActivation = Literal["relu", "gelu"]


class PairClassifier(nnx.Module):
    """Classifies pairs of sequences, such as whether one document cites the other.

    Both go through the same encoder and are pooled to a and b; the head reads [a, b, a * b, a - b] (Mou et al. 2016,
    arXiv:1512.08422, as the natural-language-inference head), or [a, b] alone as the Long Range Arena's code does.

    Args:
      config: of the encoder.
      num_classes: C.
      pooling: see `zoo.layers.pooling.pool`. There is no CLS vector in front: "cls" takes the first position, as the
        original code does here.
      pair_features: "nli", the four of them, or "concat", the two.
      head_dim: width of the head's first inner layer; None for a single Linear.
      head_layers: inner layers, each half as wide as the one before it.
      head_activation: after each inner layer.
      rngs: for the initial parameters.

    Raises:
      ValueError: a choice is unknown, or a size is out of range.
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_classes: int,
        *,
        pooling: Pooling = "mean",
        pair_features: PairFeatures = "nli",
        head_dim: int | None = None,
        head_layers: int = 1,
        head_activation: HeadActivation = "relu",
        rngs: nnx.Rngs,
    ):
        for name, value, known in (
            ("pooling", pooling, POOLINGS),
            ("pair_features", pair_features, ("nli", "concat")),
            ("head_activation", head_activation, ("relu", "gelu")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}.")
        widths = [] if head_dim is None else [head_dim // 2**i for i in range(head_layers)]
        if num_classes < 1 or head_layers < 1 or min(widths, default=1) < 1:
            raise ValueError(f"num_classes={num_classes}, head_dim={head_dim}, head_layers={head_layers}: too small.")
        self.pooling: Pooling = pooling
        self.pair_features: PairFeatures = pair_features
        self.activation = jax.nn.relu if head_activation == "relu" else jax.nn.gelu
        self.encoder = Encoder(dataclasses.replace(config, cls_token=False), rngs=rngs)
        # The head computes in float32 and starts as that of `SequenceClassifier` does.
        init = "torch" if config.kernel_init == "torch" else "lecun_normal"
        sizes = [config.d_model * (4 if pair_features == "nli" else 2), *widths, num_classes]
        self.head = nnx.List(
            nnx.Linear(
                d_in,
                d_out,
                kernel_init=kernel_initializer(init),
                bias_init=bias_initializer(init, d_in),
                param_dtype=jnp.dtype(config.param_dtype),
                rngs=rngs,
            )
            for d_in, d_out in itertools.pairwise(sizes)
        )

    def __call__(
        self,
        inputs: Num[Array, "B T 2"],
        *,
        mask: Bool[Array, "B T 2"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits, float32.

        Args:
          inputs: tokens or scalars, the two sequences side by side, each padded to T.
          mask: True at real positions; None where all are.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError, TypeError: an array is misshapen, or as `Encoder` does.
        """
        check_shapes("pair_classifier", "inputs [B, T, P]", inputs, P=2)
        if mask is not None and mask.shape != inputs.shape:
            raise ValueError(f"pair_classifier takes mask {list(inputs.shape)}, as inputs; its shape is {mask.shape}.")
        flat = _stacked(inputs)
        flat_mask = None if mask is None else _stacked(mask)
        x: Any = self.encoder(flat, mask=flat_mask, deterministic=deterministic, rngs=rngs)
        x = pool(x, flat_mask, self.pooling).astype(jnp.float32)
        a, b = jnp.split(x, 2)
        features = [a, b, a * b, a - b] if self.pair_features == "nli" else [a, b]
        x = jnp.concatenate(features, axis=-1)
        for layer in self.head[:-1]:
            x = self.activation(layer(x))
        return self.head[-1](x)


def _stacked(x: Array) -> Array:
    """[2 B, T]: all first sequences, then all second ones."""
    return jnp.concatenate([x[..., 0], x[..., 1]])
