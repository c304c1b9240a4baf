"""The short causal convolution in front of the recurrent mixers, with its parameters; one, or one per array."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.ops.causal_conv1d import ConvActivation, causal_conv1d, causal_conv1d_step
from zoo.typing import Array, Bool, DType, Float, Int


class ShortConv(nnx.Module):
    """Causal depthwise convolution along T, bias, activation. See `zoo.ops.causal_conv1d`.

    The weights are [W, D], the newest token's last; a PyTorch checkpoint's [D, 1, W] is `weight[:, 0].T`.

    Args:
      width: D.
      kernel_size: W.
      use_bias: whether there is a bias.
      activation: "silu" or None.
      init_std: None for PyTorch's default, weights and bias uniform within 1 / sqrt(W); a number for normal weights of
        that standard deviation and a bias of zeros.
      implementation: of the op, "xla", "reference" or None.
      dtype: dtype of the output; None follows `x`. Sums are float32 in any case.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: a size is not positive, `init_std` is negative.
    """

    def __init__(
        self,
        width: int,
        kernel_size: int = 4,
        *,
        use_bias: bool = False,
        activation: ConvActivation | None = "silu",
        init_std: float | None = None,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if width < 1 or kernel_size < 1:
            raise ValueError(f"width={width} and kernel_size={kernel_size} must be positive.")
        if init_std is not None and init_std < 0:
            raise ValueError(f"init_std={init_std} must not be negative.")
        self.width = width
        self.kernel_size = kernel_size
        self.activation: ConvActivation | None = activation
        self.implementation = implementation
        self.dtype = dtype
        shape, bound = (kernel_size, width), 1 / math.sqrt(kernel_size)
        if init_std is None:
            kernel = jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound)
        else:
            kernel = init_std * jax.random.normal(rngs.params(), shape, param_dtype)
        self.kernel = nnx.Param(kernel)
        if not use_bias:
            self.bias = nnx.data(None)
        elif init_std is None:
            self.bias = nnx.Param(jax.random.uniform(rngs.params(), (width,), param_dtype, -bound, bound))
        else:
            self.bias = nnx.Param(jnp.zeros((width,), param_dtype))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        state: Float[Array, "B W1 D"] | None = None,
        return_state: bool = False,
        reverse: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], Float[Array, "B W1 D"]]:
        """Convolves `x`; the arguments are those of `zoo.ops.causal_conv1d.causal_conv1d`, `state` its `initial_state`.

        Returns:
          [B, T, D], zero where `mask` is False, and with `return_state` the new state, the last W - 1 inputs.

        Raises:
          ValueError, TypeError: as `causal_conv1d`.
        """
        return causal_conv1d(
            x if self.dtype is None else x.astype(self.dtype),
            *self._weights(),
            activation=self.activation,
            mask=mask,
            segment_ids=segment_ids,
            initial_state=state,
            return_state=return_state,
            reverse=reverse,
            implementation=self.implementation,
        )

    def init_state(self, batch_size: int) -> Float[Array, "B W1 D"]:
        """The state before the first token: float32 zeros."""
        return jnp.zeros((batch_size, self.kernel_size - 1, self.width), jnp.float32)

    def step(
        self, x_t: Float[Array, "B D"], state: Float[Array, "B W1 D"], *, mask: Bool[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B D"], Float[Array, "B W1 D"]]:
        """The output for one more token and the state after it; where `mask` is False, zero and the old state."""
        x_t = x_t if self.dtype is None else x_t.astype(self.dtype)
        return causal_conv1d_step(state, x_t, *self._weights(), activation=self.activation, mask=mask)

    def _weights(self) -> tuple[Array, Array | None]:
        return self.kernel[...], None if self.bias is None else self.bias[...]


class ShortConvs(nnx.Module):
    """A `ShortConv` for each of several arrays, such as queries, keys and values.

    The state is a tuple with that of each, and an empty tuple where there are no convolutions.

    Args:
      widths: of the arrays.
      kernel_size: W; None for no convolutions, only activations.
      activations: of the arrays, "silu" or None each.
      use_bias, init_std, implementation, dtype, param_dtype, rngs: as in `ShortConv`.

    Raises:
      ValueError: as `ShortConv`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernel_size: int | None = 4,
        *,
        activations: Sequence[ConvActivation | None],
        use_bias: bool = False,
        init_std: float | None = None,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.activations = tuple(activations)
        self.each = nnx.List(
            ShortConv(
                width,
                kernel_size,
                use_bias=use_bias,
                activation=activation,
                init_std=init_std,
                implementation=implementation,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for width, activation in zip(widths, self.activations, strict=True)
            if kernel_size is not None
        )

    def __call__(
        self,
        arrays: tuple[Float[Array, "B T _"], ...],
        *,
        mask: Bool[Array, "B T"] | None = None,
        state: tuple[Array, ...] | None = None,
        reverse: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> tuple[tuple[Float[Array, "B T _"], ...], tuple[Array, ...]]:
        """The arrays, convolved, and the new state. The arguments are those of `ShortConv`.

        Raises:
          ValueError, TypeError: as `ShortConv`.
        """
        if not self.each:
            return self._activated(arrays), ()
        marks = {"mask": mask, "reverse": reverse, "segment_ids": segment_ids}
        before = (None,) * len(arrays) if state is None else state
        found = [
            conv(x, state=old, return_state=True, **marks)
            for conv, x, old in zip(self.each, arrays, before, strict=True)
        ]
        return tuple(y for y, _ in found), tuple(new for _, new in found)

    def init_state(self, batch_size: int) -> tuple[Array, ...]:
        """The state before the first token: float32 zeros."""
        return tuple(conv.init_state(batch_size) for conv in self.each)

    def step(
        self, arrays: tuple[Float[Array, "B _"], ...], state: tuple[Array, ...]
    ) -> tuple[tuple[Float[Array, "B _"], ...], tuple[Array, ...]]:
        """The same for one more token."""
        if not self.each:
            return self._activated(arrays), ()
        found = [conv.step(x, old) for conv, x, old in zip(self.each, arrays, state, strict=True)]
        return tuple(y for y, _ in found), tuple(new for _, new in found)

    def _activated(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(x if name is None else jax.nn.silu(x) for x, name in zip(arrays, self.activations, strict=True))
