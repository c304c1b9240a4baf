"""From tokens or scalars to vectors, and where they stand."""

import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.axial_positions import AxialPositions, square_grid
from zoo.layers.dropout import Dropout
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, DType, Float, Int, Num

Positions = Literal["sinusoidal", "learned", "axial", "none"]
Inputs = Literal["tokens", "scalars"]


def sinusoidal_table(length: int, d_model: int) -> np.ndarray:
    """Interleaved sines and cosines of base 10000, float32 [length, D] (Vaswani et al. 2017, section 3.5)."""
    position = np.arange(length, dtype=np.float64)[:, None]
    frequency = np.exp(np.arange(0, d_model, 2) * (-np.log(10000.0) / d_model))
    table = np.zeros((length, d_model), np.float32)
    table[:, 0::2] = np.sin(position * frequency)
    table[:, 1::2] = np.cos(position * frequency)[:, : d_model // 2]
    return table


class Embedding(nnx.Module):
    """Tokens through a table or scalars through a linear map, with a CLS vector in front and positions added.

    Args:
      d_model: D.
      max_len: longest sequence, the CLS vector not counted; no limit with positions "none".
      inputs: "tokens" (integers [B, T]) or "scalars" (reals [B, T]).
      vocab_size: number of token ids; needed for tokens.
      positions: "sinusoidal" (fixed), "learned", "axial" (learned, the sum of a vector for each axis of a grid that the
        sequence is laid out on by rows) or "none".
      position_shape: of that grid; None for one of two axes, as wide as the square root of the sequence's length,
        rounded up.
      cls_token: put a learned vector, initially zero, in front: T becomes T + 1.
      embedding_std: standard deviation of the token table.
      position_std: standard deviation of learned positions; None for 0.02, and for 1 (as in `axial-attention`) where
        they are axial.
      dropout: rate, at the end.
      dtype, param_dtype: of computation and parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: tokens without `vocab_size`, an unknown choice, or a grid that is too small or that nothing asks for.
    """

    def __init__(
        self,
        d_model: int,
        max_len: int,
        *,
        inputs: Inputs = "tokens",
        vocab_size: int | None = None,
        positions: Positions = "sinusoidal",
        position_shape: Sequence[int] | None = None,
        cls_token: bool = False,
        embedding_std: float = 1.0,
        position_std: float | None = None,
        dropout: float = 0.0,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.inputs = inputs
        self.max_len = max_len
        self.d_model = d_model
        self.positions = positions
        self.cls_token = cls_token
        self.dtype = dtype or param_dtype
        options = {"dtype": self.dtype, "param_dtype": param_dtype, "rngs": rngs}
        if inputs == "tokens":
            if vocab_size is None or vocab_size < 1:
                raise ValueError(f"inputs='tokens' needs vocab_size >= 1, got {vocab_size}.")
            self.table = nnx.Embed(vocab_size, d_model, embedding_init=initializers.normal(embedding_std), **options)
        elif inputs == "scalars":
            # As torch.nn.Linear(1, D) begins, which S4 has here. With a bias of zero a norm right behind would leave
            # of a number little more than its sign.
            begin = {"kernel_init": kernel_initializer("torch"), "bias_init": bias_initializer("torch", 1)}
            self.table = nnx.Linear(1, d_model, **begin, **options)
        else:
            raise ValueError(f"unknown inputs {inputs!r}; there are tokens, scalars.")
        length = max_len + cls_token
        if position_shape is not None and positions != "axial":
            raise ValueError(f"position_shape={position_shape} is for positions 'axial', not {positions!r}.")
        if positions == "learned":
            init = initializers.normal(0.02 if position_std is None else position_std)
            self.position = nnx.Param(init(rngs.params(), (length, d_model), param_dtype))
        elif positions == "axial":
            shape = square_grid(length) if position_shape is None else tuple(position_shape)
            if math.prod(shape) < length:
                raise ValueError(f"position_shape={shape} has fewer than the {length} places of a sequence.")
            std = 1.0 if position_std is None else position_std
            self.position = AxialPositions(shape, d_model, std=std, param_dtype=param_dtype, rngs=rngs)
        elif positions not in ("sinusoidal", "none"):
            raise ValueError(f"unknown positions {positions!r}; there are sinusoidal, learned, axial, none.")
        if cls_token:
            self.cls = nnx.Param(jnp.zeros((d_model,), param_dtype))
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        inputs: Num[Array, "B T"],
        *,
        places: Int[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T2 D"]:
        """Vectors of the sequence; T2 is T + 1 with a CLS vector, else T.

        Args:
          inputs: tokens or scalars.
          places: where in its sequence each of them stands, from 0; None for 0 to T - 1. At a place from `max_len` on,
            where there is no position, the vector is NaN; positions "none" know no such end.
          deterministic: no dropout; None for the module's own mode.
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError: `inputs` is not [B, T], T is 0 or exceeds `max_len`, or the dtype is not what `inputs=` promised;
            or places are given although there is a CLS vector.
        """
        self._check(inputs, places)
        x = self.table(inputs) if self.inputs == "tokens" else self.table(inputs.astype(self.dtype)[..., None])
        if self.cls_token:
            cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (x.shape[0], 1, self.d_model))
            x = jnp.concatenate([cls, x], axis=1)
        length = x.shape[1]
        if self.positions != "none":
            # The sinusoidal table is a constant of the trace, not data of the module: it enters no checkpoint.
            size = length if places is None else self.max_len
            if self.positions == "sinusoidal":
                table = jnp.asarray(sinusoidal_table(size, self.d_model))
            else:
                position = self.position
                table = position.rows(size) if isinstance(position, AxialPositions) else position[:size]
            table = table.astype(x.dtype)
            x = x + (table if places is None else table.at[places].get(mode="fill", fill_value=jnp.nan))
        return self.dropout(x, deterministic=deterministic, rngs=rngs)

    def _check(self, inputs: Array, places: Array | None) -> None:
        check_shapes("embedding", "inputs [B, T]", inputs)
        if places is not None and self.cls_token:
            raise ValueError("an embedding with a CLS vector in front takes no places.")
        if inputs.shape[1] > self.max_len and self.positions != "none":
            raise ValueError(f"axis 1 (T) of inputs is {inputs.shape[1]}, more than max_len={self.max_len}.")
        if self.inputs == "tokens" and not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f"inputs='tokens' needs integers, got {inputs.dtype}.")
