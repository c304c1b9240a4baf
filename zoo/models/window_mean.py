"""The forecast of the window's mean."""

import jax.numpy as jnp
from flax import nnx

from zoo.layers.series import SeriesSizes
from zoo.registry import register_model
from zoo.typing import Array, Float


@register_model(
    "window_mean",
    title="The mean of the lookback",
    paper="",
    time="O(T)",
    memory="O(T)",
    causal=False,
    bidirectional=True,
    padding_mask=False,
    decode=False,
    fixed_length=True,
    inputs=("series",),
    test_args={},
    notes="A baseline without parameters: there is nothing to train.",
)
class WindowMean(nnx.Module):
    """y[b, h, n] = the mean of x[b, :, n] at every h.

    Args:
      num_variates: N; any number goes in.
      lookback: L.
      horizon: H.
      num_marks: M, of marks that may be given and are not read.
      rngs: not used.

    Raises:
      ValueError: a size is not positive.
    """

    def __init__(
        self, *, num_variates: int, lookback: int, horizon: int, num_marks: int = 0, rngs: nnx.Rngs | None = None
    ):
        del rngs
        self.sizes = SeriesSizes(num_variates, lookback, horizon, num_marks)

    def __call__(
        self,
        x: Float[Array, "B L N"],
        *,
        marks: Float[Array, "B L+H M"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H N"]:
        """Forecasts every variate, float32. Of the arguments only `x` is read.

        Raises:
          ValueError: `x` or `marks` is misshapen.
        """
        del deterministic, rngs
        self.sizes.check("window_mean", x, marks, any_variates=True, reads_marks=False)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.repeat(x.mean(axis=1, keepdims=True), self.sizes.horizon, axis=1)
