"""Informer's distilling: a convolution that halves a sequence (Zhou et al. 2021, arXiv:2012.07436, equation 5)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.typing import Array, DType, Float


def circular_conv(d_in: int, d_out: int, init: nnx.Initializer, **common: Any) -> nnx.Conv:
    """Convolution over three steps of [B, T, D], which takes the first step as what follows the last.

    Args:
      d_in, d_out: widths.
      init: of the kernel [3, D, D2]; the bias is PyTorch's.
      **common: dtype, param_dtype, rngs.
    """
    bias_init = bias_initializer("torch", 3 * d_in)
    return nnx.Conv(d_in, d_out, 3, padding="CIRCULAR", kernel_init=init, bias_init=bias_init, **common)


class Distil(nnx.Module):
    """Circular convolution over three steps, BatchNorm, ELU, maximum over three steps at every second: T halved."""

    def __init__(self, d_model: int, **common: Any):
        self.conv = circular_conv(d_model, d_model, kernel_initializer("torch"), **common)
        self.norm = BatchNorm(d_model, param_dtype=common["param_dtype"])

    def __call__(self, x: Float[Array, "B T D"], *, deterministic: bool) -> Array:
        """[B, ceil(T / 2), D]."""
        y = jax.nn.elu(self.norm(self.conv(x), use_running_average=deterministic))
        count = (y.shape[1] + 1) // 2
        padded = jnp.pad(y, ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf)
        # Three slices: on a CPU the gradient of a windowed maximum takes twenty times as long.
        first, second, third = (padded[:, i : i + 2 * count - 1 : 2] for i in range(3))
        return jnp.maximum(jnp.maximum(first, second), third)


class BatchNorm(nnx.Module):
    """Normalises each channel of [B, T, D] over batch and time, as PyTorch's BatchNorm1d (eps 1e-5, momentum 0.1).

    Unlike Flax's, the running variance is that of a sample: divided by one less than the number of steps. Statistics
    are float32 (float64 for float64 inputs).

    Args:
      width: D.
      param_dtype: of scale and bias.
    """

    def __init__(self, width: int, *, param_dtype: DType = jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Float[Array, "B T D"], *, use_running_average: bool) -> Float[Array, "B T D"]:
        """Normalised `x`; unless told to use the running statistics, uses those of `x` and moves the running ones."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            count = x.shape[0] * x.shape[1]
            mean, var = y.mean((0, 1)), y.var((0, 1))
            for running, now in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
                now = jax.lax.stop_gradient(now).astype(jnp.float32)
                running[...] = 0.9 * running[...] + 0.1 * now
        y = (y - mean) * jax.lax.rsqrt(var + 1e-5) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)
