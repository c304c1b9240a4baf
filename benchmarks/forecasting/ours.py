"""The training step of the zoo's iTransformer: the one that the loop runs, on a fixed batch."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.forecasting.sizes import Sizes
from zoo.functional import Functional
from zoo.models.itransformer_forecaster import ITransformerForecaster
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import TrainConfig
from zoo.training.step import init_state, make_train_step


class MeanSquaredError:
    """What the train step asks of a task."""

    def arguments(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model is called with besides its inputs."""
        return {"marks": batch["marks"]}

    def weights(self, batch: dict[str, Any]) -> jax.Array:
        """One a window."""
        return batch["weight"]

    def sums(self, outputs: jax.Array, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """Of the mean squared errors of the windows."""
        error = jnp.square(outputs - batch["y"]).mean(axis=(1, 2))
        return {"loss": (error * batch["weight"]).sum(), "weight": batch["weight"].sum()}


class Trainer:
    """The compiled step, its state, and a batch on the device.

    Args:
      sizes: of the model.
      batch: "x", "marks", "y".
    """

    def __init__(self, sizes: Sizes, batch: dict[str, np.ndarray]):
        self.functional = Functional(
            lambda rngs: ITransformerForecaster(
                num_variates=sizes.num_variates,
                lookback=sizes.lookback,
                horizon=sizes.horizon,
                num_marks=sizes.num_marks,
                d_model=sizes.d_model,
                num_layers=sizes.num_layers,
                num_heads=sizes.num_heads,
                d_ff=sizes.d_ff,
                dropout=sizes.dropout,
                rngs=rngs,
            )
        )
        config = TrainConfig(lr=sizes.lr, schedule="constant", batch_size=sizes.batch)
        optimizer = make_optimizer(config)
        self.state = init_state(self.functional, optimizer, config)
        weight = np.ones(sizes.batch, np.float32)
        self.batch = jax.device_put({"inputs": batch["x"], **batch, "weight": weight})
        self.key = jax.random.key(0)
        task: Any = MeanSquaredError()
        began = time.perf_counter()
        step = make_train_step(self.functional, task, optimizer, config)
        self.compiled = step.lower(self.state, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - began

    def check(self, params: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """The forecast of these parameters without dropout, and the gradients of its mean squared error."""

        @jax.jit
        @jax.grad
        def gradient(params):
            return jnp.square(forecast(params) - self.batch["y"]).mean()

        def forecast(params):
            module = self.functional.module(params, self.state["rest"])
            return module(self.batch["inputs"], marks=self.batch["marks"], deterministic=True)

        return np.asarray(jax.jit(forecast)(params)), jax.device_get(gradient(params))

    def step(self) -> Any:
        """One update with dropout, waited for."""
        self.state, sums = self.compiled(self.state, self.batch, self.key)
        return jax.block_until_ready((self.state, sums))
