"""One update, and one evaluation of a batch, as jitted pure functions of nested dicts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from zoo.functional import Functional
from zoo.tasks.base import Task
from zoo.training.recipe import TrainConfig
from zoo.training.sharding import AXES, state_shardings
from zoo.typing import PRNGKeyArray, PyTree

Batch = dict[str, Any]
State = dict[str, Any]


def init_state(
    functional: Functional,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> State:
    """The state before the first update: step, params, rest (other variables), opt, and ema where it is on.

    Args:
      functional, optimizer, config: of the run.
      mesh: where each array is made, in its place by `train.sharding`; None for the default device.

    Raises:
      MeshError: a rule of `train.sharding` does not fit.
    """
    init, key = _initialiser(functional, optimizer, config), jax.random.key(config.seed)
    if mesh is None:
        return jax.jit(init)(key)
    return jax.jit(init, out_shardings=state_shardings(mesh, jax.eval_shape(init, key), config.sharding))(key)


def abstract_state(
    functional: Functional,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> State:
    """Shapes, dtypes and, with a mesh, places of what `init_state` makes; nothing is computed."""
    state = jax.eval_shape(_initialiser(functional, optimizer, config), jax.random.key(config.seed))
    if mesh is None:
        return state
    places = state_shardings(mesh, state, config.sharding)
    return jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places)


def _initialiser(functional: Functional, optimizer: optax.GradientTransformation, config: TrainConfig):
    def init(key):
        params, rest = functional.init(key)
        state = {"step": jnp.zeros((), jnp.int32), "params": params, "rest": rest, "opt": optimizer.init(params)}
        return state if config.ema is None else {**state, "ema": params}

    return init


def eval_params(state: State) -> PyTree:
    """The parameters that are evaluated: the moving average where there is one."""
    return state.get("ema", state["params"])


def make_train_step(
    functional: Functional,
    task: Task,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[State, Batch, PRNGKeyArray], tuple[State, dict[str, jax.Array]]]:
    """`step(state, batch, key) -> (state, sums)`, jitted, the state donated.

    Dropout of update s and part i draws from fold_in(fold_in(key, s), i): a resumed run repeats it exactly. `sums` are
    the task's sums over the batch and the gradient's global norm before clipping.

    Args:
      functional, task, optimizer, config: of the run.
      mesh: over which the state lies as `init_state` made it, and the batch by its first axis; None for one device.
    """
    parts = config.accumulate
    place = functools.partial(_place, mesh)

    def part_gradient(params, rest, batch, key, total):
        def loss_fn(params):
            module = functional.module(params, rest)
            rngs = nnx.Rngs(dropout=key)
            outputs = module(batch["inputs"], **task.arguments(batch), deterministic=False, rngs=rngs)
            sums = task.sums(outputs, batch)
            return sums["loss"] / total, (sums, functional.rest(module))

        (_, (sums, rest)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return grads, sums, rest

    def gradient(params, rest, batch, key, keep):
        # The weight of the whole batch divides the loss of each part, so that parts may differ in padding.
        total = jnp.maximum(task.weights(batch).sum(), 1e-9)
        if parts == 1:
            grads, sums, rest = part_gradient(params, rest, batch, jax.random.fold_in(key, 0), total)
            return keep(grads), sums, rest
        split = jax.tree.map(lambda x: place(_deal(x, parts), None, AXES), batch)

        def add(carry, item):
            index, part = item
            grads, sums, rest = carry
            more = part_gradient(params, rest, part, jax.random.fold_in(key, index), total)
            grads, sums = jax.tree.map(jnp.add, (grads, sums), (keep(more[0]), more[1]))
            return (keep(grads), sums, more[2]), None

        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(part_gradient, params, rest, first, key, total)
        grads, sums, _ = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, (keep(grads), sums, rest), (jnp.arange(parts), split))[0]

    def step(state, batch, key):
        here = None if mesh is None else state_shardings(mesh, state, config.sharding)

        def keep(grads):
            """Of the summed gradient each device keeps what it keeps of the parameters."""
            return grads if here is None else jax.lax.with_sharding_constraint(grads, here["params"])

        whole = jax.tree.map(place, state["params"])
        grads, sums, rest = gradient(whole, state["rest"], batch, jax.random.fold_in(key, state["step"]), keep)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"step": state["step"] + 1, "params": params, "rest": rest, "opt": opt}
        if config.ema is not None:
            new["ema"] = optax.incremental_update(params, state["ema"], 1 - config.ema)
        sums = {**sums, "grad_norm": optax.tree.norm(grads)}
        if here is not None:
            new = jax.lax.with_sharding_constraint(new, here)
        return new, jax.tree.map(place, sums)

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    functional: Functional, task: Task, mesh: jax.sharding.Mesh | None = None
) -> Callable[[PyTree, PyTree, Batch], dict[str, jax.Array]]:
    """`step(params, rest, batch) -> sums`, jitted, without dropout."""

    def step(params, rest, batch):
        module = functional.module(*jax.tree.map(functools.partial(_place, mesh), (params, rest)))
        module.eval()
        sums = task.sums(module(batch["inputs"], **task.arguments(batch), deterministic=True), batch)
        return jax.tree.map(functools.partial(_place, mesh), sums)

    return jax.jit(step)


def _place(mesh: jax.sharding.Mesh | None, x: jax.Array, *axes: Any) -> jax.Array:
    """`x` split over the mesh axes named for each of its axes; whole on every device where none are."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))


def _deal(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] as [parts, B / parts, ...], row r in part r modulo `parts`: so each device has rows of every part."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
