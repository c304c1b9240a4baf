"""One update and one evaluation, on a model of a dozen parameters."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.functional import Functional, count_parameters
from zoo.tasks.base import ClassificationTask, TokenTask
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import TrainConfig
from zoo.training.step import eval_params, init_state, make_eval_step, make_train_step

CONFIG = TrainConfig(steps=10, batch_size=6, lr=0.1, schedule="constant")
KEY = jax.random.key(3)


class Bag(nnx.Module):
    """Mean of token vectors, dropout, logits; counts its calls in a variable that is no parameter."""

    def __init__(self, rate, rngs):
        self.table = nnx.Embed(5, 4, rngs=rngs)
        self.logits = nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(rate)
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, inputs, *, mask, deterministic, rngs=None):
        x = jnp.where(mask[..., None], self.table(inputs), 0).sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
        if not deterministic:
            self.calls[...] += 1
        return self.logits(self.dropout(x, deterministic=deterministic, rngs=rngs))


# The loss and metrics of every classification task, without data.
TASK: Any = SimpleNamespace(
    sums=functools.partial(ClassificationTask.sums, None),  # pyright: ignore[reportArgumentType]
    weights=functools.partial(ClassificationTask.weights, None),  # pyright: ignore[reportArgumentType]
    arguments=functools.partial(ClassificationTask.arguments, None),  # pyright: ignore[reportArgumentType]
)


def batch(seed=0, weight=(1, 1, 1, 1, 1, 1)):
    draw = np.random.default_rng(seed)
    mask = np.arange(5) < draw.integers(1, 6, 6)[:, None]
    inputs = np.where(mask, draw.integers(1, 5, (6, 5)), 0)
    label = draw.integers(0, 3, 6).astype(np.int32)
    return {"inputs": inputs, "mask": mask, "label": label, "weight": np.array(weight, np.float32)}


def make(config=CONFIG, rate=0.0):
    functional = Functional(lambda rngs: Bag(rate, rngs))
    optimizer = make_optimizer(config)
    return functional, init_state(functional, optimizer, config), make_train_step(functional, TASK, optimizer, config)


def cross_entropy(logits, data):
    """Sum of -log p(label), and of right answers, in float64."""
    logits = np.array(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.arange(len(logits))
    right = logits.argmax(-1) == data["label"]
    return -(log_p[rows, data["label"]] * data["weight"]).sum(), (right * data["weight"]).sum()


def test_sums_are_sums_over_the_real_rows():
    functional, state, step = make()
    data = batch(weight=(1, 1, 0, 1, 0, 1))
    logits = functional.module(state["params"], state["rest"])(data["inputs"], mask=data["mask"], deterministic=True)
    loss, right = cross_entropy(logits, data)
    evaluated = make_eval_step(functional, TASK)(state["params"], state["rest"], data)
    start = jnp.copy(state["params"]["logits"]["bias"])
    state, trained = step(state, data, KEY)
    (moments,) = [part.mu for part in state["opt"] if hasattr(part, "mu")]
    for sums in (evaluated, trained):
        assert float(sums["loss"]) == pytest.approx(loss, rel=1e-5)
        assert (float(sums["accuracy"]), float(sums["weight"])) == (right, 4)

    # The gradient is that of the mean over the real rows.
    def mean_loss(bias):
        logits_ = logits - start + bias
        return -(jax.nn.log_softmax(logits_)[jnp.arange(6), data["label"]] * data["weight"]).sum() / 4

    np.testing.assert_allclose(moments["logits"]["bias"], 0.1 * jax.grad(mean_loss)(start), rtol=1e-4)


def test_evaluation_sets_the_mode_of_modules_that_have_one():
    class Mode(nnx.Module):
        def __init__(self, rngs):
            self.logits = nnx.Param(jnp.zeros(3))
            self.use_running_average = False  # what nnx.BatchNorm has

        def __call__(self, inputs, *, mask, deterministic):
            return jnp.zeros((len(inputs), 3)) + self.logits[...] + (0.0 if self.use_running_average else jnp.nan)

    functional = Functional(lambda rngs: Mode(rngs))
    sums = make_eval_step(functional, TASK)(*functional.init(KEY), batch())
    assert float(sums["loss"]) == pytest.approx(6 * np.log(3))


def test_the_loss_falls_and_the_state_counts():
    functional, state, step = make()
    data, losses = batch(), []
    for _ in range(20):
        state, sums = step(state, data, KEY)
        losses.append(float(sums["loss"]))
    assert losses[-1] < losses[0] / 3
    assert int(state["step"]) == 20
    assert float(state["rest"]["calls"]) == 20
    assert count_parameters(state["params"]) == count_parameters(functional.abstract_params) == 5 * 4 + 4 * 3 + 3


def test_accumulated_gradients_are_those_of_the_whole_batch():
    # Parts of different weight: the mean is over the batch, not the mean of the parts' means.
    data = batch(weight=(1, 1, 1, 1, 0, 0))
    results = []
    for parts in (1, 2, 3):
        _, state, step = make(dataclasses.replace(CONFIG, accumulate=parts, weight_decay=0.1))
        for _ in range(3):
            state, sums = step(state, data, KEY)
        assert float(state["rest"].pop("calls")) == 3 * parts
        results.append((state["params"], sums))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results[0], other)


def test_dropout_is_a_function_of_key_step_and_part():
    functional, state, step = make(dataclasses.replace(CONFIG, accumulate=2), rate=0.5)
    # The same rows in both parts, to see that they are dropped otherwise.
    data = {name: np.repeat(value[:3], 2, axis=0) for name, value in batch().items()}
    half = {name: value[::2] for name, value in data.items()}

    def loss(number, part, key=KEY):
        rngs = nnx.Rngs(dropout=jax.random.fold_in(jax.random.fold_in(key, number), part))
        module = functional.module(state["params"], state["rest"])
        return cross_entropy(module(half["inputs"], mask=half["mask"], deterministic=False, rngs=rngs), half)[0]

    expected = [loss(0, 0) + loss(0, 1), loss(5, 0) + loss(5, 1)]
    assert loss(0, 0) != pytest.approx(loss(0, 1), rel=1e-3)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    for number, total in zip((0, 5), expected, strict=True):
        start = {**jax.tree.map(jnp.copy, state), "step": jnp.int32(number)}
        assert float(step(start, data, KEY)[1]["loss"]) == pytest.approx(total, rel=1e-4)


def test_the_moving_average_is_evaluated():
    _, state, step = make(dataclasses.replace(CONFIG, ema=0.9))
    average = jax.tree.map(np.array, state["params"])
    for _ in range(3):
        state, _ = step(state, batch(), KEY)
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * np.array(p), average, state["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), eval_params(state), average)
    _, plain, _ = make()
    assert eval_params(plain) is plain["params"]


def test_clipping_bounds_the_update_and_the_logged_norm_is_before_it():
    small = dataclasses.replace(CONFIG, clip=1e-3, eps=1.0, beta1=0.0, beta2=0.0)
    _, state, step = make(small)
    before = jax.tree.map(np.array, state["params"])
    state, sums = step(state, batch(), KEY)
    moved = jax.tree.map(lambda a, b: float(((np.array(b) - a) ** 2).sum()), before, state["params"])
    # beta1 = beta2 = 0: the update is lr g / (|g| + 1), so at most lr times the clipped norm.
    assert sum(jax.tree.leaves(moved)) ** 0.5 <= 0.1 * 1e-3
    assert float(sums["grad_norm"]) > 0.01


def test_equal_seeds_start_equal():
    starts = [make(dataclasses.replace(CONFIG, seed=seed))[1]["params"] for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, starts[0], starts[1])
    assert float(abs(starts[0]["table"]["embedding"] - starts[2]["table"]["embedding"]).max()) > 0.1


class Next(nnx.Module):
    """Logits of the next token from the last one alone."""

    def __init__(self, rngs):
        self.table = nnx.Embed(5, 4, rngs=rngs)
        self.logits = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, inputs, *, mask, deterministic, rngs=None):
        return self.logits(self.table(inputs))


TOKEN_TASK: Any = SimpleNamespace(weights=functools.partial(TokenTask.weights, None))  # pyright: ignore[reportArgumentType]
TOKEN_TASK.arguments = TASK.arguments
TOKEN_TASK.sums = functools.partial(TokenTask.sums, TOKEN_TASK)


def token_batch():
    """Rows that ask for 5, 0, 1, 3, 2 and 4 tokens; the fourth is a fill-up."""
    asked = np.arange(5) < np.array([5, 0, 1, 3, 2, 4])[:, None]
    data = batch(weight=(1, 1, 1, 0, 1, 1))
    label = np.random.default_rng(1).integers(0, 5, (6, 5))
    return {**data, "label": np.where(asked, label, -1).astype(np.int32)}


def test_losses_of_tokens_are_summed_over_those_asked_for():
    functional = Functional(Next)
    params, rest = functional.init(jax.random.key(0))
    data = token_batch()
    logits = np.array(functional.module(params, rest)(data["inputs"], mask=None, deterministic=True), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = right = count = 0
    for row, place in zip(*np.nonzero(data["label"] >= 0), strict=True):
        if row != 3:
            label = data["label"][row, place]
            loss, right = loss - log_p[row, place, label], right + (logits[row, place].argmax() == label)
            count += 1
    sums = make_eval_step(functional, TOKEN_TASK)(params, rest, data)
    assert (float(sums["weight"]), float(sums["accuracy"])) == (count, right) == (12, right)
    assert float(sums["loss"]) == pytest.approx(loss, rel=1e-6)


def test_accumulated_gradients_of_tokens_are_those_of_the_whole_batch():
    """Parts ask for different numbers of tokens, one of them for few: every token counts alike."""
    results = []
    for parts in (1, 2, 3, 6):
        config = dataclasses.replace(CONFIG, accumulate=parts)
        functional, optimizer = Functional(Next), make_optimizer(config)
        state = init_state(functional, optimizer, config)
        step = make_train_step(functional, TOKEN_TASK, optimizer, config)
        state, sums = step(state, token_batch(), KEY)
        results.append((state["opt"], sums))
    assert float(results[0][1]["weight"]) == 12
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results[0], other)
