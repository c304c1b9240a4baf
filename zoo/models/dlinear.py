"""DLinear: two linear maps along time, of the trend and of the rest (Zeng et al. 2023, arXiv:2205.13504)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.layers.series import SeriesSizes, TimeLinear
from zoo.registry import register_model
from zoo.typing import Array, DType, Float


@register_model(
    "dlinear",
    title="DLinear: linear maps of trend and remainder",
    paper="arXiv:2205.13504 (AAAI 2023)",
    time="O(T)",
    memory="O(T)",
    causal=False,
    bidirectional=True,
    padding_mask=False,
    decode=False,
    fixed_length=True,
    inputs=("series",),
    test_args={"window_size": 3},
    notes="A baseline: no variate sees another.",
)
class DLinear(nnx.Module):
    """Trend by a moving average, remainder = x - trend, a Linear(L -> H) for each, and the sum of both.

    The average is over `window_size` steps around each, the first and the last value repeated beyond the ends.

    Args:
      num_variates: N; with shared weights, any number goes in.
      lookback: L.
      horizon: H.
      num_marks: M, of marks that may be given and are not read.
      window_size: of the moving average, odd; 25 in the paper.
      individual: weights of its own for each variate.
      weight_init: "torch", as the authors' code runs, or "average", the weights 1 / L that stand there as a comment
        (pictures of learned weights start from them).
      dtype: computation dtype; None follows `x`. Sums and the output are float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: a size is not positive, an even window, or an unknown `weight_init`.
    """

    def __init__(
        self,
        *,
        num_variates: int,
        lookback: int,
        horizon: int,
        num_marks: int = 0,
        window_size: int = 25,
        individual: bool = False,
        weight_init: Literal["torch", "average"] = "torch",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if window_size < 1 or window_size % 2 == 0:
            raise ValueError(f"window_size must be odd and positive, so that it has a middle; got {window_size}.")
        if weight_init not in ("torch", "average"):
            raise ValueError(f"unknown weight_init {weight_init!r}; there are torch, average.")
        self.sizes = SeriesSizes(num_variates, lookback, horizon, num_marks)
        self.window_size = window_size
        self.individual = individual

        def linear() -> TimeLinear:
            return TimeLinear(
                lookback,
                horizon,
                num_variates=num_variates if individual else None,
                constant=1 / lookback if weight_init == "average" else None,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.trend = linear()
        self.remainder = linear()

    def __call__(
        self,
        x: Float[Array, "B L N"],
        *,
        marks: Float[Array, "B L+H M"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H N"]:
        """Forecasts every variate, float32. Of the arguments only `x` is read; there is no dropout.

        Raises:
          ValueError: `x` or `marks` is misshapen.
        """
        del deterministic, rngs
        self.sizes.check("dlinear", x, marks, any_variates=not self.individual, reads_marks=False)
        trend = moving_average(x, self.window_size)
        return self.trend(trend) + self.remainder(x - trend)


def moving_average(x: Float[Array, "B L N"], window_size: int) -> Float[Array, "B L N"]:
    """The mean of the `window_size` (odd) steps around each, ends repeated; float32 (float64 of float64)."""
    half = window_size // 2
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.pad(x, ((0, 0), (half, half), (0, 0)), mode="edge")
    window, strides = (1, window_size, 1), (1, 1, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "VALID") / window_size
