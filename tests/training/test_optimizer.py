"""Schedules and updates against the formulas they are named after, in NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoo.encoder import Encoder, EncoderConfig
from zoo.training.optimizer import learning_rate, make_optimizer
from zoo.training.recipe import TrainConfig, load_recipe

PARAMS = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "bias": np.array([0.3, -0.7], np.float32)}


def rates(config, count):
    schedule: Any = learning_rate(config)
    return np.array([float(schedule(jnp.int32(step))) for step in range(count)])


def test_rsqrt_is_the_original_lra_schedule():
    config = load_recipe("lra/original/listops").train
    schedule: Any = learning_rate(config)
    # constant * linear_warmup * rsqrt_decay: base min(1, s / w) / sqrt(max(s, w)); the first update does nothing.
    for step in (0, 1, 500, 999, 1000, 1001, 4999):
        expected = 0.05 * min(1, step / 1000) / max(step, 1000) ** 0.5
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6)
    assert float(schedule(0)) == 0
    assert float(schedule(1000)) == pytest.approx(1.5811e-3, rel=1e-4)
    assert float(schedule(5000)) == pytest.approx(7.0711e-4, rel=1e-4)


def test_onecycle_is_pytorchs():
    # torch.optim.lr_scheduler.OneCycleLR(max_lr, total_steps=n, pct_start=w / n, anneal_strategy="linear"): two
    # lines, over 0..w-1 and w-1..n-1, from max_lr / 25 through max_lr to max_lr / 25 / 1e4; beta1 as its mirror.
    config = TrainConfig(steps=50, warmup_steps=10, lr=3e-4, schedule="onecycle", cycle_beta1=True)
    expected = np.interp(np.arange(50), [0, 9, 49], [3e-4 / 25, 3e-4, 3e-4 / 25e4])
    np.testing.assert_allclose(rates(config, 50), expected, rtol=1e-5, atol=1e-9)
    assert rates(config, 50).argmax() == 9
    optimizer = make_optimizer(config)
    state: Any = optimizer.init(PARAMS)
    beta1 = []
    for _ in range(50):
        _, state = optimizer.update(PARAMS, state, PARAMS)
        (cycled,) = [part for part in state if hasattr(part, "hyperparams")]
        beta1.append(float(cycled.hyperparams["b1"]))
    np.testing.assert_allclose(beta1, np.interp(np.arange(50), [0, 9, 49], [0.95, 0.85, 0.95]), rtol=1e-6)


def test_unknown_choices():
    for name in ("schedule", "decay", "select"):
        options: dict[str, Any] = {name: "none"}
        with pytest.raises(ValueError, match=f"unknown {name} 'none'; there are "):
            TrainConfig(**options)


def test_cosine_and_constant_after_linear_warm_up():
    config = TrainConfig(steps=30, warmup_steps=10, lr=2.0, schedule="cosine", final_lr=0.1)
    cosine = [2 * (0.1 + 0.9 * (1 + np.cos(np.pi * (step - 10) / 20)) / 2) for step in range(10, 30)]
    np.testing.assert_allclose(rates(config, 30), [*np.arange(10) / 5, *cosine], rtol=1e-5)
    constant = dataclasses.replace(config, schedule="constant")
    np.testing.assert_allclose(rates(constant, 30), [*np.arange(10) / 5, *[2] * 20], rtol=1e-5)
    np.testing.assert_allclose(rates(dataclasses.replace(constant, warmup_steps=0), 3), [2, 2, 2])
    assert rates(dataclasses.replace(config, warmup_steps=0), 1)[0] == 2


def adam(config, gradients, beta1=None, decayed=("kernel", "bias")):
    """Adam with decoupled decay, in float64: the parameters after each update."""
    params = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    rate, trace = rates(config, len(gradients)), []
    for step, gradient in enumerate(gradients):
        if config.clip:
            norm = np.sqrt(sum((value**2).sum() for value in gradient.values()))
            gradient = {name: value * min(1, config.clip / norm) for name, value in gradient.items()}
        b1 = config.beta1 if beta1 is None else beta1[step]
        for name, g in gradient.items():
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            m = first[name] / (1 - b1 ** (step + 1))
            v = second[name] / (1 - config.beta2 ** (step + 1))
            decay = config.weight_decay * params[name] if name in decayed else 0
            params[name] = params[name] - rate[step] * (m / (np.sqrt(v) + config.eps) + decay)
        trace.append(dict(params))
    return trace


def run(config, gradients):
    optimizer = make_optimizer(config)
    params, state, trace = jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        trace.append(params)
    return trace


LRA = TrainConfig(
    steps=9, lr=0.5, schedule="rsqrt", warmup_steps=3, beta2=0.98, eps=1e-9, weight_decay=0.1, decay="all"
)
SMALL = TrainConfig(steps=9, lr=0.05, schedule="onecycle", warmup_steps=3, cycle_beta1=True, beta2=0.999, eps=1e-6)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LRA, {}),
        (SMALL, {"beta1": np.interp(np.arange(9), [0, 2, 8], [0.95, 0.85, 0.95])}),
        (TrainConfig(steps=9, lr=0.1, schedule="constant", weight_decay=0.3, clip=0.5), {"decayed": ("kernel",)}),
    ],
    ids=["lra", "small", "clipped, matrices decayed"],
)
def test_updates_are_those_of_the_formula(config, options):
    draw = np.random.default_rng(0)
    gradients = [
        {name: draw.normal(size=value.shape).astype(np.float32) for name, value in PARAMS.items()} for _ in range(9)
    ]
    for ours, expected in zip(run(config, gradients), adam(config, gradients, **options), strict=True):
        for name in PARAMS:
            np.testing.assert_allclose(ours[name], expected[name], rtol=2e-5, atol=1e-6)


def test_the_original_decays_everything_and_its_first_update_does_nothing():
    zero = {name: np.zeros_like(value) for name, value in PARAMS.items()}
    trace = run(LRA, [zero] * 3)
    for name, value in PARAMS.items():
        np.testing.assert_array_equal(trace[0][name], value)
        # Rates of updates 1 and 2 are 0.5 (s / 3) / sqrt(3); each takes rate x 0.1 of the parameter.
        left = (1 - 0.05 / 3 / 3**0.5) * (1 - 0.1 / 3 / 3**0.5)
        np.testing.assert_allclose(trace[2][name], left * value, rtol=1e-6)


@pytest.mark.parametrize("stacked", [False, True], ids=["loop", "scan"])
def test_only_matrices_are_decayed_also_where_layers_are_stacked(stacked):
    block = {"kernel": np.ones((3, 3), np.float32), "bias": np.ones(3, np.float32)}
    layers = jax.tree.map(lambda x: np.stack([x, x]), block) if stacked else {"0": block, "1": block}
    params = {"encoder": {"layers": layers, "norm": {"scale": np.ones(3, np.float32)}}, "cls": np.ones(3, np.float32)}
    optimizer = make_optimizer(TrainConfig(schedule="constant", lr=1.0, weight_decay=0.5))
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/") for path, update in
               jax.tree.leaves_with_path(updates) if update.any()}  # fmt: skip
    where = ("encoder/layers",) if stacked else ("encoder/layers/0", "encoder/layers/1")
    assert decayed == {f"{place}/kernel" for place in where}


@pytest.mark.parametrize(
    ("variant", "scan_layers"), [("mamba", False), ("mamba", True), ("mamba2", True), ("gated_deltanet", False)]
)
def test_what_the_authors_never_decay(variant, scan_layers):
    """Mamba's A_log and, with a skip per channel, Mamba-2's D are matrices."""
    options = {"d_head": 4, "skip_per_channel": True} if variant == "mamba2" else {}
    config = EncoderConfig(
        d_model=8, num_heads=2, vocab_size=3, mixer=variant, mixer_options=options, scan_layers=scan_layers
    )
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(Encoder(config, rngs=nnx.Rngs(0)), nnx.Param)))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
    never = {"A_log", "dt_bias"} | ({"D"} if variant != "gated_deltanet" else set())
    for decay in ("all", "matrices"):
        optimizer = make_optimizer(TrainConfig(schedule="constant", lr=1.0, weight_decay=0.5, decay=decay))
        updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
        kept, decayed = set(), set()
        for path, update in jax.tree.leaves_with_path(updates):
            (decayed if update.any() else kept).add(jax.tree_util.keystr(path[-1:], simple=True))
        assert never <= kept
        assert not never & decayed
        assert "kernel" in decayed - kept
        if decay == "all":
            assert kept == never


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_the_decay_has_the_state_that_checkpoints_hold(decay):
    state: Any = make_optimizer(TrainConfig(schedule="constant", weight_decay=0.5, decay=decay)).init(PARAMS)
    mask = None if decay == "all" else {"kernel": True, "bias": False}
    plain = optax.add_decayed_weights(0.5, mask).init(PARAMS)
    assert jax.tree.structure(state[-2]) == jax.tree.structure(plain)


def test_shipped_recipes_train_as_their_protocols_do():
    original, small = load_recipe("lra/original/listops"), load_recipe("lra/small/listops")
    flow = load_recipe("lra/original/listops", variant="flowformer")
    train, model = original.train, original.model
    assert (train.steps, train.batch_size, train.lr, train.schedule, train.warmup_steps) == (
        5000,
        32,
        0.05,
        "rsqrt",
        1000,
    )
    assert (train.beta1, train.beta2, train.eps, train.weight_decay, train.decay) == (0.9, 0.98, 1e-9, 0.1, "all")
    assert (train.clip, train.ema, train.select, train.accumulate, train.buckets) == (None, None, "last", 1, ())
    assert (model.d_model, model.num_layers, model.num_heads, model.d_ff, model.head_dim) == (512, 4, 8, 1024, 1024)
    assert (model.norm, model.norm_eps, model.activation, model.positions) == ("pre", 1e-6, "gelu", "sinusoidal")
    assert (model.dropout, model.attention_dropout, model.use_bias, model.pooling) == (0.1, None, False, "cls")
    assert (model.kernel_init, model.embedding_std, model.causal) == ("xavier_uniform", 1.0, False)
    assert (original.task.source, original.task.max_len) == ("full", 2000)
    assert (flow.model.num_layers, flow.model.num_heads, flow.train.lr) == (1, 2, 0.005)
    assert dataclasses.replace(flow.train, lr=0.05) == train
    train, model = small.train, small.model
    assert (train.steps, train.batch_size, train.lr, train.schedule) == (5000, 32, 1e-4, "onecycle")
    assert (train.warmup_steps, train.cycle_beta1, train.beta2, train.eps, train.weight_decay) == (
        1000,
        True,
        0.999,
        1e-6,
        0,
    )
    assert (train.eval_every, train.select, train.clip) == (50, "best", None)
    assert (model.d_model, model.num_layers, model.num_heads, model.d_ff, model.head_dim) == (64, 2, 2, 128, 128)
    assert (model.norm, model.norm_eps, model.activation, model.positions) == ("pre", 1e-5, "gelu_exact", "learned")
    assert (model.dropout, model.use_bias, model.pooling, model.kernel_init) == (0.1, True, "mean_padded", "torch")
    assert (small.task.source, small.task.max_len, model.embedding_std) == ("full", 2048, 0.02)
    assert load_recipe("lra/small/listops", variant="nystromformer").options == {
        "num_landmarks": 64,
        "conv_kernel_size": 35,
    }
    assert (original.published["softmax"], flow.published["flowformer"]) == (36.37, 38.70)
    assert (small.published["softmax"], small.published["nystromformer"]) == (37.10, 37.15)


def test_type1_halves_every_epoch_from_the_third_on():
    config = TrainConfig(steps=50, epochs=5, lr=1e-4, schedule="type1")
    expected = np.repeat([1e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5], 10)
    np.testing.assert_allclose(rates(config, 50), expected, rtol=1e-6)


def test_state_parameters_learn_at_a_rate_of_their_own():
    params = {"mixer": {"A_log": np.ones((2, 2), np.float32), "kernel": np.ones((2, 2), np.float32)}}
    gradient = jax.tree.map(np.ones_like, params)
    plain = TrainConfig(schedule="cosine", steps=10, warmup_steps=2, lr=4e-3, weight_decay=0.1, decay="all")
    moved = {}
    for name, config in {"one": plain, "two": dataclasses.replace(plain, state_lr=1e-3)}.items():
        optimizer = make_optimizer(config)
        state, trace = optimizer.init(params), []
        for _ in range(4):
            updates, state = optimizer.update(gradient, state, params)
            trace.append(updates["mixer"])
        moved[name] = trace
    for one, two in zip(moved["one"], moved["two"], strict=True):
        np.testing.assert_allclose(two["A_log"], one["A_log"] / 4, rtol=1e-6)
        np.testing.assert_array_equal(two["kernel"], one["kernel"])
    # The peak, of a gradient that never changes: Adam's step is 1, and only the matrix decays.
    np.testing.assert_allclose(moved["two"][2]["A_log"], -1e-3, rtol=1e-4)
    np.testing.assert_allclose(moved["two"][2]["kernel"], -4e-3 * 1.1, rtol=1e-4)


@pytest.mark.parametrize("rate", [0.0, -1e-3, float("inf")])
def test_a_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match="state_lr must be positive"):
        TrainConfig(state_lr=rate)


def test_epochs_need_no_steps_for_the_shapes_of_the_state():
    """How many updates they are is known only once the data is read; 2,000 of warm-up are more than `steps`."""
    config = TrainConfig(epochs=3, warmup_steps=2000)
    assert make_optimizer(config).init(PARAMS) is not None
