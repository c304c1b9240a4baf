"""What the forecasters share: sizes and their check, scaling of each window, linear maps along time.

In the shape strings of forecasters L is the lookback, H the horizon, N the number of variates and M that of time marks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.layers.initializers import KernelInit, bias_initializer, kernel_initializer
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, DType, Float


@dataclasses.dataclass(frozen=True)
class SeriesSizes:
    """The sizes that a forecaster is made for.

    Attributes:
      num_variates: N.
      lookback: L, steps that are seen.
      horizon: H, steps that are forecast.
      num_marks: M, time features of each step; 0 for none.

    Raises:
      ValueError: a size is not positive, or `num_marks` is negative.
    """

    num_variates: int
    lookback: int
    horizon: int
    num_marks: int = 0

    def __post_init__(self):
        for name, least in (("num_variates", 1), ("lookback", 1), ("horizon", 1), ("num_marks", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    def check(
        self,
        owner: str,
        x: Float[Array, "B L N"],
        marks: Float[Array, "B L+H M"] | None,
        *,
        any_variates: bool = False,
        reads_marks: bool = True,
    ) -> None:
        """Raises ValueError unless `x` and `marks` have the shapes that `owner` takes.

        Args:
          owner: the forecaster, for the message.
          x, marks: what it was called with.
          any_variates: N may be another one than `num_variates`.
          reads_marks: where M is not 0, `marks` must be there; False where the forecaster takes no notice of them.
        """
        if any_variates:
            check_shapes(owner, "x [B, L, N]", x, L=self.lookback)
        else:
            check_shapes(owner, "x [B, L, N]", x, L=self.lookback, N=self.num_variates)
        if not x.shape[2]:
            raise ValueError(f"{owner} needs at least one variate; axis 2 (N) of x is 0 (its shape is {x.shape}).")
        if marks is not None:
            sizes: dict[str, Any] = {"B": x.shape[0], "L+H": self.lookback + self.horizon, "M": self.num_marks}
            check_shapes(owner, "marks [B, L+H, M]", marks, **sizes)
        elif self.num_marks and reads_marks:
            due = f"[B, L+H, M] with L+H = {self.lookback + self.horizon}, M = {self.num_marks}"
            raise ValueError(f"{owner} was made with num_marks={self.num_marks} and takes marks {due}; marks is None.")


def standardize(
    x: Float[Array, "B L N"], eps: float = 1e-5
) -> tuple[Float[Array, "B L N"], Callable[[Float[Array, "B H N"]], Float[Array, "B H N"]]]:
    """Each window and variate at mean 0 and deviation 1 over time, and the function that leads back, in float32.

    What Liu et al. 2022 (arXiv:2205.14415) do around a forecaster, without its learned part: z = (x - mean) / std with
    std = sqrt(variance + eps), the variance a mean of squares; y = z std + mean.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean
    std = jnp.sqrt(jnp.square(centred).mean(axis=1, keepdims=True) + eps)
    return centred / std, lambda z: z * std + mean


class TimeLinear(nnx.Module):
    """A linear map from the lookback to the horizon: y[b, h, n] = sum over l of w[l, h] x[b, l, n], + c[h].

    Args:
      lookback: L.
      horizon: H.
      num_variates: N, for weights of its own for each variate (kernel [N, L, H]); None for shared ones ([L, H]), which
        take any number of variates.
      kernel_init: see `zoo.layers.initializers`.
      constant: start from this weight everywhere instead; the bias is drawn as before.
      dtype: computation dtype, the sums are float32; None follows the inputs.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        *,
        num_variates: int | None = None,
        kernel_init: KernelInit = "torch",
        constant: float | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        copies = 1 if num_variates is None else num_variates
        param_dtype = jnp.dtype(param_dtype)

        def draw(init: nnx.Initializer, *shape: int) -> Array:
            keys = jax.random.split(rngs.params(), copies)
            found = jax.vmap(lambda key: init(key, shape, param_dtype))(keys)
            return found[0] if num_variates is None else found

        kernel = kernel_initializer(kernel_init) if constant is None else nnx.initializers.constant(constant)
        self.kernel = nnx.Param(draw(kernel, lookback, horizon))
        self.bias = nnx.Param(draw(bias_initializer(kernel_init, lookback), horizon))

    def __call__(self, x: Float[Array, "B L N"]) -> Float[Array, "B H N"]:
        """Maps each variate along time; the result is float32 (float64 of float64)."""
        kernel, bias = self.kernel[...], self.bias[...]
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        full = jnp.promote_types(dtype, jnp.float32)
        # Written so that L is the last axis of one factor and the first of the other: XLA's CPU backend has no product
        # of bfloat16 with float32 sums for other orders.
        if kernel.ndim == 2:
            x, axes, back = x.swapaxes(1, 2), "bnl,lh->bnh", (0, 2, 1)
        else:
            x, axes, back = x.transpose(2, 0, 1), "nbl,nlh->nbh", (1, 2, 0)
            bias = bias[:, None]
        y = jnp.einsum(axes, x.astype(dtype), kernel.astype(dtype), preferred_element_type=full)
        return (y + bias.astype(full)).transpose(back)
