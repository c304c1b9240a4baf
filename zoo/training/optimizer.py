"""Schedules and the optimizer. The original LRA's, PyTorch's OneCycle and the usual cosine, in Optax."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.training.recipe import TrainConfig
from zoo.typing import PyTree

# Rates, skips and time steps of recurrent mixers, of whatever shape. The authors of Mamba, Mamba-2 and Gated DeltaNet
# exclude these from weight decay, which would pull decays and time steps to values that mean nothing; those of S4 and
# S5 also give them a learning rate of their own.
STATE_PARAMETERS = frozenset({"A_log", "D", "dt_bias"})
# torch.optim.lr_scheduler.OneCycleLR's defaults.
_ONECYCLE_START = 25.0
_ONECYCLE_END = 1e4
_ONECYCLE_BETA1 = (0.95, 0.85)


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The learning rate of update s = 0, 1, ...

    * "constant": lr, after linear warm-up.
    * "cosine": lr (f + (1 - f) (1 + cos(pi (s - w) / (steps - w))) / 2), f = `final_lr`, after linear warm-up over w.
    * "rsqrt": lr min(1, s / w) / sqrt(max(s, w)): the original LRA's `constant * linear_warmup * rsqrt_decay`, so that
      the first update has rate 0.
    * "type1": lr in the first two epochs, then half as much in each as in the one before: Informer's, also that of
      iTransformer and its kin. An epoch is steps / epochs updates.
    * "onecycle": PyTorch's OneCycleLR with linear annealing: from lr / 25 to lr over w updates, then to lr / 25 / 1e4.
    """
    lr, warmup, steps = config.lr, config.warmup_steps, config.steps
    if config.schedule == "rsqrt":
        return lambda step: lr * jnp.minimum(1.0, step / warmup) / jnp.sqrt(jnp.maximum(step, warmup))
    if config.schedule == "type1":
        epoch = max(1, config.steps // (config.epochs or 1))
        return lambda step: lr * 0.5 ** jnp.maximum(jnp.asarray(step) // epoch - 1, 0)
    if config.schedule == "onecycle":
        start = lr / _ONECYCLE_START
        return _two_lines(warmup - 1, steps - 1, start, lr, start / _ONECYCLE_END)
    if config.schedule == "cosine":
        # The steps of `epochs` are not known before the data is read; the shapes of the state do not need them.
        after = optax.cosine_decay_schedule(lr, max(1, steps - warmup), alpha=config.final_lr)
    else:
        after = optax.constant_schedule(lr)
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup]) if warmup else after


def _two_lines(middle: float, end: float, first: float, top: float, last: float) -> optax.Schedule:
    def schedule(step):
        rising = first + (top - first) * step / max(middle, 1)
        falling = top + (last - top) * (step - middle) / max(end - middle, 1)
        return jnp.where(step <= middle, rising, falling)

    return schedule


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, Adam and decoupled weight decay times the learning rate.

    With `decay="all"`, beta2 0.98 and eps 1e-9 this is the original LRA's optimizer; with `decay="matrices"` AdamW
    as usual: parameters of fewer than two axes (biases, norms) are not decayed. Parameters with a name in
    `STATE_PARAMETERS` are not decayed by either, and learn at the schedule's rate times `state_lr` / `lr`.
    """
    beta1 = config.beta1
    if config.cycle_beta1:
        high, low = _ONECYCLE_BETA1
        beta1 = _two_lines(config.warmup_steps - 1, config.steps - 1, high, low, high)
        # numerics stay in float32: inject_hyperparams casts the scheduled value to the dtype of the parameters.
        adam = optax.inject_hyperparams(optax.scale_by_adam)(b1=beta1, b2=config.beta2, eps=config.eps)
    else:
        adam = optax.scale_by_adam(b1=beta1, b2=config.beta2, eps=config.eps)
    parts = [
        optax.clip_by_global_norm(config.clip) if config.clip else None,
        adam,
        _weight_decay(config) if config.weight_decay else None,
        optax.scale_by_learning_rate(learning_rate(config)),
        None if config.state_lr is None else _scale_state(config.state_lr / config.lr),
    ]
    return optax.chain(*[part for part in parts if part is not None])


def _weight_decay(config: TrainConfig) -> optax.GradientTransformation:
    """Adds what decays the parameters to the updates."""
    if config.decay == "matrices":
        return optax.add_decayed_weights(config.weight_decay, functools.partial(_decayed, True))

    def add(updates: PyTree, params: PyTree) -> PyTree:
        def one(update, param, decayed):
            return update + config.weight_decay * param if decayed else update

        return jax.tree.map(one, updates, params, _decayed(False, params))

    # Not by a mask, which brings a state with it: checkpoints of runs with this decay have none.
    return optax.stateless(add)


def _scale_state(factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of the parameters in `STATE_PARAMETERS`."""

    def scale(updates: PyTree, params: PyTree) -> PyTree:
        del params

        def one(path, update):
            return factor * update if _name(path[-1]) in STATE_PARAMETERS else update

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scale)


def _name(key: Any) -> str:
    return str(getattr(key, "key", key))


def _decayed(only_matrices: bool, params: PyTree) -> PyTree:
    """True at the parameters that are decayed."""

    def is_decayed(path, leaf):
        names = [_name(key) for key in path]
        # The blocks of `scan_layers` are stacked: their first axis counts the layers.
        stacked = any(name == "layers" and not child.isdigit() for name, child in itertools.pairwise(names))
        return names[-1] not in STATE_PARAMETERS and not (only_matrices and leaf.ndim - stacked < 2)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
