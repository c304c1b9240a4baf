"""The forecast that the last season comes again (seasonal persistence)."""

import jax.numpy as jnp
from flax import nnx

from zoo.layers.series import SeriesSizes
from zoo.registry import register_model
from zoo.typing import Array, Float


@register_model(
    "repeat_season",
    title="The last season, repeated",
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
class RepeatSeason(nnx.Module):
    """y[b, h, n] = x[b, L - S + (h mod S), n]: the last S steps over and over.

    Args:
      num_variates: N; any number goes in.
      lookback: L.
      horizon: H.
      num_marks: M, of marks that may be given and are not read.
      season: S, steps after which things repeat themselves; 24 is a day of hours.
      rngs: not used.

    Raises:
      ValueError: a size is not positive, or the lookback is shorter than a season.
    """

    def __init__(
        self,
        *,
        num_variates: int,
        lookback: int,
        horizon: int,
        num_marks: int = 0,
        season: int = 24,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        if not 1 <= season <= lookback:
            raise ValueError(f"season must be from 1 to the lookback ({lookback}), got {season}.")
        self.season = season
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
        self.sizes.check("repeat_season", x, marks, any_variates=True, reads_marks=False)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        last = x[:, -self.season :]
        return last[:, jnp.arange(self.sizes.horizon) % self.season]
