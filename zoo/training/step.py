"""One update, and one evaluation of a batch, as jitted pure functions of nested dicts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from zoo.functional import Functional
from zoo.tasks.base import Task
from zoo.training.recipe import TrainConfig
from zoo.typing import PRNGKeyArray, PyTree

Batch = dict[str, Any]
State = dict[str, Any]


def init_state(functional: Functional, optimizer: optax.GradientTransformation, config: TrainConfig) -> State:
    """The state before the first update: step, params, rest (other variables), opt, and ema where it is on."""

    def init(key):
        params, rest = functional.init(key)
        state = {"step": jnp.zeros((), jnp.int32), "params": params, "rest": rest, "opt": optimizer.init(params)}
        return state if config.ema is None else {**state, "ema": params}

    return jax.jit(init)(jax.random.key(config.seed))


def eval_params(state: State) -> PyTree:
    """The parameters that are evaluated: the moving average where there is one."""
    return state.get("ema", state["params"])


def make_train_step(
    functional: Functional, task: Task, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[State, Batch, PRNGKeyArray], tuple[State, dict[str, jax.Array]]]:
    """`step(state, batch, key) -> (state, sums)`, jitted, the state donated.

    Dropout of update s and part i draws from fold_in(fold_in(key, s), i): a resumed run repeats it exactly. `sums` are
    the task's sums over the batch and the gradient's global norm before clipping.
    """
    parts = config.accumulate

    def part_gradient(params, rest, batch, key, total):
        def loss_fn(params):
            module = functional.module(params, rest)
            rngs = nnx.Rngs(dropout=key)
            outputs = module(batch["inputs"], mask=batch["mask"], deterministic=False, rngs=rngs)
            sums = task.sums(outputs, batch)
            return sums["loss"] / total, (sums, functional.rest(module))

        (_, (sums, rest)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return grads, sums, rest

    def gradient(state, batch, key):
        # The weight of the whole batch divides the loss of each part, so that parts may differ in padding.
        total = jnp.maximum(batch["weight"].sum(), 1e-9)
        if parts == 1:
            return part_gradient(state["params"], state["rest"], batch, jax.random.fold_in(key, 0), total)
        split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)

        def add(carry, item):
            index, part = item
            grads, sums, rest = carry
            more = part_gradient(state["params"], rest, part, jax.random.fold_in(key, index), total)
            return (*jax.tree.map(jnp.add, (grads, sums), more[:2]), more[2]), None

        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(part_gradient, state["params"], state["rest"], first, key, total)
        grads, sums, _ = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, (grads, sums, state["rest"]), (jnp.arange(parts), split))[0]

    def step(state, batch, key):
        grads, sums, rest = gradient(state, batch, jax.random.fold_in(key, state["step"]))
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"step": state["step"] + 1, "params": params, "rest": rest, "opt": opt}
        if config.ema is not None:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - config.ema)
        return new, {**sums, "grad_norm": optax.tree.norm(grads)}

    return jax.jit(step, donate_argnums=0)


def make_eval_step(functional: Functional, task: Task) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
    """`step(params, rest, batch) -> sums`, jitted, without dropout."""

    def step(params, rest, batch):
        module = functional.module(params, rest)
        module.eval()
        return task.sums(module(batch["inputs"], mask=batch["mask"], deterministic=True), batch)

    return jax.jit(step)
