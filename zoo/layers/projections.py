"""The four projections of multi-head attention."""

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.typing import Array, DType, Float


class HeadProjections(nnx.Module):
    """Query, key, value and output maps, each a Linear: [B, T, D] <-> [B, T, H, K].

    Args:
      d_model: D.
      num_heads: H.
      d_head: K, the width of one head; None for D / H.
      use_bias: biases of query, key and value.
      out_bias: bias of the output; None for `use_bias`.
      kernel_init, bias_init: initialisers of all four.
      out_init: initialiser of the output's kernel; None for `kernel_init`.
      dtype: computation dtype; None follows the inputs.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: `d_head` is None and H does not divide D, or a size is not positive.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_head: int | None = None,
        *,
        use_bias: bool = True,
        out_bias: bool | None = None,
        kernel_init: nnx.Initializer = initializers.lecun_normal(),
        bias_init: nnx.Initializer = initializers.zeros_init(),
        out_init: nnx.Initializer | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if d_model <= 0 or num_heads <= 0 or (d_head is not None and d_head <= 0):
            raise ValueError(f"d_model={d_model}, num_heads={num_heads}, d_head={d_head} must be positive.")
        if d_head is None and d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}; change one or give d_head.")
        self.num_heads = num_heads
        self.d_head = d_head or d_model // num_heads
        width = self.num_heads * self.d_head

        def linear(d_in: int, d_out: int, bias: bool, init: nnx.Initializer = kernel_init) -> nnx.Linear:
            return nnx.Linear(
                d_in,
                d_out,
                use_bias=bias,
                kernel_init=init,
                bias_init=bias_init,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.query = linear(d_model, width, use_bias)
        self.key = linear(d_model, width, use_bias)
        self.value = linear(d_model, width, use_bias)
        self.out = linear(width, d_model, use_bias if out_bias is None else out_bias, out_init or kernel_init)

    def split(
        self, x: Float[Array, "... D"]
    ) -> tuple[Float[Array, "... H K"], Float[Array, "... H K"], Float[Array, "... H K"]]:
        """Query, key and value heads of `x`, with any leading axes."""
        heads = (*x.shape[:-1], self.num_heads, self.d_head)
        return self.query(x).reshape(heads), self.key(x).reshape(heads), self.value(x).reshape(heads)

    def merge(self, y: Float[Array, "... H K"]) -> Float[Array, "... D"]:
        """Concatenates the heads and applies the output map."""
        return self.out(y.reshape(*y.shape[:-2], self.num_heads * self.d_head))
