"""A forecaster around any mixer: time steps are the tokens."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.encoder import EncoderConfig, make_layers, make_norm, run_layers
from zoo.layers.dropout import Dropout
from zoo.layers.embeddings import sinusoidal_table
from zoo.layers.feed_forward import activation_function
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.series import SeriesSizes, TimeLinear, standardize
from zoo.typing import Array, Float


class EncoderForecaster(nnx.Module):
    """Forecasts N variates over the encoder's blocks, which mix along time.

    The N values and M marks of each step of the lookback are mapped by one Linear to D, get positions, and pass through
    the blocks. The head has two layers: one linear map along time, from L to H steps, to which the marks of the steps
    to come are added (mapped to D as well), activation, and a Linear(D -> N) at every step. A causal mixer does as
    well as one that sees both ways: the map along time reads every step.

    Args:
      config: of the blocks, of the positions, and of the head's activation and initial values; `max_len` is the
        lookback here, and what it says of inputs is not read.
      num_variates: N.
      lookback: L.
      horizon: H.
      num_marks: M, time marks of each step.
      use_norm: scale each window to mean 0 and deviation 1 and scale the forecast back, in float32, as iTransformer
        does.
      rngs: for the initial parameters.

    Raises:
      ValueError: a size is not positive, or there would be a CLS vector; and what the mixer's constructor raises.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        num_variates: int,
        lookback: int,
        horizon: int,
        num_marks: int = 0,
        use_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        if config.cls_token:
            raise ValueError("a forecaster has no CLS vector: set cls_token=False.")
        self.sizes = SeriesSizes(num_variates, lookback, horizon, num_marks)
        self.config = config = dataclasses.replace(config, max_len=lookback)
        self.use_norm = use_norm
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)

        def linear(d_in: int, d_out: int, **options: Any) -> nnx.Linear:
            return nnx.Linear(
                d_in,
                d_out,
                kernel_init=kernel_initializer(config.kernel_init),
                bias_init=bias_initializer(config.kernel_init, d_in),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
                **options,
            )

        self.embedding = linear(num_variates + num_marks, config.d_model)
        if config.positions == "learned":
            self.position = nnx.Param(initializers.normal(0.02)(rngs.params(), (lookback, config.d_model), param_dtype))
        self.dropout = Dropout(config.dropout)
        self.layers = make_layers(config, rngs=rngs)
        self.norm = make_norm(config, rngs) if config.norm == "pre" else None
        self.time = TimeLinear(
            lookback, horizon, kernel_init=config.kernel_init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.future = linear(num_marks, config.d_model, use_bias=False) if num_marks else None
        self.activation = activation_function(config.activation)
        self.out = linear(config.d_model, num_variates, preferred_element_type=jnp.float32)

    def __call__(
        self,
        x: Float[Array, "B L N"],
        *,
        marks: Float[Array, "B L+H M"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H N"]:
        """Forecasts every variate, float32, in the units of `x`.

        Args:
          x: the lookback.
          marks: time features of the L steps seen and of the H steps to come.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError: `x` or `marks` is misshapen, or there are no marks although `num_marks` promised them.
        """
        self.sizes.check("encoder_forecaster", x, marks)
        z, restore = standardize(x) if self.use_norm else (x, lambda y: y)
        lookback = self.sizes.lookback
        steps = z if marks is None else jnp.concatenate([z, marks[:, :lookback].astype(z.dtype)], axis=2)
        h = self.embedding(steps)
        if self.config.positions != "none":
            learned = self.config.positions == "learned"
            table = self.position[...] if learned else jnp.asarray(sinusoidal_table(lookback, self.config.d_model))
            h = h + table.astype(h.dtype)
        h = self.dropout(h, deterministic=deterministic, rngs=rngs)
        key = None if rngs is None else rngs.dropout()
        h, _ = run_layers(self.layers, self.config, h, deterministic=deterministic, key=key)
        h = self.time(h if self.norm is None else self.norm(h))
        if self.future is not None and marks is not None:
            h = h + self.future(marks[:, lookback:])
        y = self.out(self.activation(h))
        return restore(y.astype(jnp.promote_types(y.dtype, jnp.float32)))
