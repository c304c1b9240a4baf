"""NLinear: one linear map along time of the differences from the last value (Zeng et al. 2023, arXiv:2205.13504)."""

from typing import Literal

import jax.numpy as jnp
from flax import nnx

from zoo.layers.series import SeriesSizes, TimeLinear
from zoo.registry import register_model
from zoo.typing import Array, DType, Float


@register_model(
    "nlinear",
    title="NLinear: a linear map relative to the last value",
    paper="arXiv:2205.13504 (AAAI 2023)",
    time="O(T)",
    memory="O(T)",
    causal=False,
    bidirectional=True,
    padding_mask=False,
    decode=False,
    fixed_length=True,
    inputs=("series",),
    test_args={},
    notes="A baseline: no variate sees another.",
)
class NLinear(nnx.Module):
    """The last value of the window, plus a Linear(L -> H) of the window less that value.

    Args:
      num_variates: N; with shared weights, any number goes in.
      lookback: L.
      horizon: H.
      num_marks: M, of marks that may be given and are not read.
      individual: weights of its own for each variate.
      weight_init: "torch", as the authors' code runs, or "average", the weights 1 / L that stand there as a comment.
      dtype: computation dtype of the map; None follows `x`. Sums and the output are float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: a size is not positive, or an unknown `weight_init`.
    """

    def __init__(
        self,
        *,
        num_variates: int,
        lookback: int,
        horizon: int,
        num_marks: int = 0,
        individual: bool = False,
        weight_init: Literal["torch", "average"] = "torch",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if weight_init not in ("torch", "average"):
            raise ValueError(f"unknown weight_init {weight_init!r}; there are torch, average.")
        self.sizes = SeriesSizes(num_variates, lookback, horizon, num_marks)
        self.individual = individual
        self.linear = TimeLinear(
            lookback,
            horizon,
            num_variates=num_variates if individual else None,
            constant=1 / lookback if weight_init == "average" else None,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

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
        self.sizes.check("nlinear", x, marks, any_variates=not self.individual, reads_marks=False)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        last = x[:, -1:]
        return last + self.linear(x - last)
