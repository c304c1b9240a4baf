"""Vectors of calendar features: when a step of a series is, for models of time series."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.embeddings import sinusoidal_table
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, DType, Float, Int

TimeEmbeddingKind = Literal["timeF", "fixed", "learned"]
# Of a year that is no leap year, the days before each month.
_MONTH_STARTS = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334], np.int32)
_TABLES = {"minute": 4, "hour": 24, "weekday": 7, "day": 32, "month": 13}


class Calendar(NamedTuple):
    """Whole numbers [B, T] of calendar features; None where the marks are too coarse to have them.

    Attributes:
      minute: quarter of the hour, 0 to 3.
      hour: 0 to 23.
      weekday: 0 (Monday) to 6.
      day: of the month, 1 to 31.
      month: 1 to 12.
    """

    minute: Int[Array, "B T"] | None
    hour: Int[Array, "B T"] | None
    weekday: Int[Array, "B T"]
    day: Int[Array, "B T"]
    month: Int[Array, "B T"]


def calendar(marks: Float[Array, "B T M"]) -> Calendar:
    """The calendar that scaled marks stand for, exactly.

    The marks are, in order, [minute / 59, hour / 23, weekday / 6, (day - 1) / 30, (day of the year - 1) / 365], each
    less 0.5: all five, or without the minute, or without minute and hour. The month follows from the last two: day of
    the year less day of the month is the number of days before the month, with or without a leap day.

    Raises:
      ValueError: M is not 3, 4 or 5.
    """
    if marks.shape[-1] not in (3, 4, 5):
        raise ValueError(
            "the calendar of marks [B, T, M] is known for M = 5 (minute, hour, weekday, day, day of the year), 4 (from "
            f"the hour) and 3 (from the weekday); their shape is {marks.shape}."
        )
    marks = marks.astype(jnp.promote_types(marks.dtype, jnp.float32))
    spans = np.array([59, 23, 6, 30, 365][-marks.shape[-1] :], np.float32)
    numbers = jnp.clip(jnp.round((marks + 0.5) * spans), 0, spans).astype(jnp.int32)
    parts = [numbers[..., i] for i in range(marks.shape[-1])]
    weekday, day, day_of_year = parts[-3:]
    month = (((day_of_year - day)[..., None]) >= _MONTH_STARTS).sum(-1).astype(jnp.int32)
    return Calendar(
        minute=parts[0] // 15 if len(parts) == 5 else None,
        hour=parts[-4] if len(parts) >= 4 else None,
        weekday=weekday,
        day=day + 1,
        month=jnp.maximum(month, 1),
    )


class TimeEmbedding(nnx.Module):
    """Marks [B, T, M] as vectors [B, T, D], as in Informer (Zhou et al. 2021, arXiv:2012.07436, appendix B).

    Args:
      d_model: D.
      num_marks: M.
      kind: "timeF", a linear map of the marks; or the sum of one vector for each of minute (quarter of an hour), hour,
        weekday, day and month, which are read off the marks (see `calendar`), from tables that are "fixed" (sines and
        cosines) or "learned".
      dtype, param_dtype: of computation and parameters.
      rngs: for the initial parameters, PyTorch's.

    Raises:
      ValueError: unknown `kind`, or one with tables whose marks do not tell the calendar.
    """

    def __init__(
        self,
        d_model: int,
        num_marks: int,
        *,
        kind: TimeEmbeddingKind = "timeF",
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kind not in ("timeF", "fixed", "learned"):
            raise ValueError(f"unknown time embedding {kind!r}; there are timeF, fixed, learned.")
        self.d_model = d_model
        self.num_marks = num_marks
        self.kind: TimeEmbeddingKind = kind
        self.dtype = dtype
        if kind == "timeF":
            self.linear = nnx.Linear(
                num_marks,
                d_model,
                kernel_init=kernel_initializer("torch"),
                bias_init=bias_initializer("torch", num_marks),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            return
        known = jax.eval_shape(calendar, jax.ShapeDtypeStruct((1, 1, num_marks), jnp.float32))
        self.names = tuple(name for name, numbers in known._asdict().items() if numbers is not None)
        if kind == "learned":
            for name in self.names:
                init = initializers.normal(1.0)
                setattr(self, name, nnx.Param(init(rngs.params(), (_TABLES[name], d_model), param_dtype)))

    def __call__(self, marks: Float[Array, "B T M"]) -> Float[Array, "B T D"]:
        """The vector of every step. Raises ValueError where `marks` is misshapen."""
        check_shapes("time embedding", "marks [B, T, M]", marks, M=self.num_marks)
        if self.kind == "timeF":
            return self.linear(marks)
        numbers = calendar(marks)._asdict()
        y = functools.reduce(jnp.add, [self._table(name)[numbers[name]] for name in self.names])
        return y if self.dtype is None else jnp.asarray(y, self.dtype)

    def _table(self, name: str) -> Array:
        if self.kind == "learned":
            return getattr(self, name)[...]
        # A constant of the trace, not data of the module: it enters no checkpoint.
        return jnp.asarray(sinusoidal_table(_TABLES[name], self.d_model))
