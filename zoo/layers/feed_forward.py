"""Position-wise feed-forward layers."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import KernelInit, bias_initializer, kernel_initializer
from zoo.typing import Array, DType, Float

Activation = Literal["gelu", "gelu_exact", "relu", "silu"]


def activation_function(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """The function of that name; "gelu" is the tanh approximation (Flax's default), "gelu_exact" PyTorch's erf.

    Raises:
      ValueError: unknown name.
    """
    table = {
        "gelu": jax.nn.gelu,
        "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
    }
    if name not in table:
        raise ValueError(f"unknown activation {name!r}; there are {', '.join(table)}.")
    return table[name]


class FeedForward(nnx.Module):
    """Linear, activation, dropout, Linear, dropout; gated (GLU, Shazeer 2020, arXiv:2002.05202) if asked.

    Args:
      d_model: D.
      d_ff: F, the inner width.
      gated: multiply the activated branch by a second linear branch.
      use_bias: biases of the linear maps.
      activation: see `activation_function`.
      dropout: rate, after the activation and at the end.
      kernel_init: see `zoo.layers.initializers`.
      dtype, param_dtype: of computation and parameters.
      rngs: for the initial parameters.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        gated: bool = False,
        use_bias: bool = True,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        kernel_init: KernelInit = "lecun_normal",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.activation = activation_function(activation)

        def linear(d_in: int, d_out: int) -> nnx.Linear:
            return nnx.Linear(
                d_in,
                d_out,
                use_bias=use_bias,
                kernel_init=kernel_initializer(kernel_init),
                bias_init=bias_initializer(kernel_init, d_in, feed_forward=True),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.up = linear(d_model, d_ff)
        self.gate = linear(d_model, d_ff) if gated else None
        self.down = linear(d_ff, d_model)
        self.dropout = Dropout(dropout)

    def __call__(
        self, x: Float[Array, "... D"], *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "... D"]:
        """Applies the layer to every position."""
        y = self.up(x)
        y = self.activation(y) if self.gate is None else self.activation(self.gate(x)) * y
        y = self.dropout(y, deterministic=deterministic, rngs=rngs)
        return self.dropout(self.down(y), deterministic=deterministic, rngs=rngs)
