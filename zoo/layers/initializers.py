"""Named initialisers: what the code bases that we compare with start from."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

KernelInit = Literal["lecun_normal", "xavier_uniform", "torch", "bert"]


def kernel_initializer(name: KernelInit) -> nnx.Initializer:
    """Initialiser of a Linear kernel.

    "lecun_normal" is Flax's own default, "xavier_uniform" that of the original LRA code, "torch" that of
    `torch.nn.Linear`: uniform within 1 / sqrt(fan_in), 1.73 times smaller than LeCun's, "bert" BERT's and its kin's:
    normal with deviation 0.02 at any width.

    Raises:
      ValueError: unknown name.
    """
    table = {
        "lecun_normal": initializers.lecun_normal(),
        "xavier_uniform": initializers.xavier_uniform(),
        "torch": initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        "bert": initializers.normal(0.02),
    }
    if name not in table:
        raise ValueError(f"unknown kernel_init {name!r}; there are {', '.join(table)}.")
    return table[name]


def bias_initializer(name: KernelInit, fan_in: int, *, feed_forward: bool = False) -> nnx.Initializer:
    """Initialiser of the bias that goes with `kernel_initializer(name)`.

    Zeros, except for "torch" (uniform within 1 / sqrt(fan_in)) and for the feed-forward layers of "xavier_uniform",
    whose biases the original LRA code draws from a normal of standard deviation 1e-6.
    """
    if name == "torch":
        bound = 1 / math.sqrt(fan_in)

        def uniform(key, shape, dtype=None, out_sharding=None):
            del out_sharding
            return jax.random.uniform(key, shape, dtype or "float32", -bound, bound)

        return uniform
    if name == "xavier_uniform" and feed_forward:
        return initializers.normal(1e-6)
    return initializers.zeros_init()


def time_step_bias(low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> nnx.Initializer:
    """Initialiser of Mamba's `dt_bias`: softplus of it is log-uniform from `low` to `high`, and at least `floor`.

    Raises:
      ValueError: not 0 < low <= high, or a floor that is not positive.
    """
    if not 0 < low <= high or floor <= 0:
        raise ValueError(f"time steps need 0 < low <= high and floor > 0; low={low}, high={high}, floor={floor}.")

    def init(key, shape, dtype=None, out_sharding=None):
        del out_sharding
        step = jnp.exp(jax.random.uniform(key, shape, minval=math.log(low), maxval=math.log(high)))
        step = jnp.maximum(step, floor)
        return (step + jnp.log(-jnp.expm1(-step))).astype(dtype or "float32")

    return init
