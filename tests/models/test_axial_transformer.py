"""The Axial Transformer: a normalised density, in its order, by a reference in NumPy; fast sampling; learning."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from closeness import assert_same, error
from flax import nnx

import zoo
from zoo import registry
from zoo.models.axial_transformer import AxialTransformer, OneChannel

SMALL: dict[str, Any] = {"d_model": 8, "num_layers": 2, "num_heads": 2, "num_values": 3}
KEY = jax.random.key(5)

pytestmark = pytest.mark.usefixtures("compilation_cache")


@functools.cache
def build(shape=(3, 4, 2), noise=0.3, **options) -> Any:
    """With values in which nothing is zero or equal by chance, so that all depends on what it may depend on."""
    model = AxialTransformer(image_shape=shape, **{**SMALL, **options}, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p: p + noise * draw.normal(size=p.shape).astype(p.dtype), params))
    model.eval()
    return model


def images(shape=(3, 4, 2), batch=3, values=3, seed=0):
    return np.random.default_rng(seed).integers(0, values, (batch, *shape))


@jax.jit
def forward(model, x):
    return model(x, deterministic=True)


@jax.jit
def log_prob(model, x):
    return model.log_prob(x)


def by_equations(model, image):
    """Logits [H, W, C, V] of one image in NumPy, float64, one channel and one value after another."""
    height, width, channels = model.image_shape
    get = lambda variable: np.asarray(variable[...], np.float64)  # noqa: E731
    dense = lambda x, layer: x @ get(layer.kernel) + get(layer.bias)  # noqa: E731

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * get(layer.scale) + get(layer.bias)

    def line(x, block):
        heads = model.inner[0].attention.num_heads
        q, k, v = (
            dense(x, getattr(block.attention, name)).reshape(len(x), heads, -1) for name in ("query", "key", "value")
        )
        y = np.zeros_like(v)
        for i, h in np.ndindex(len(x), heads):
            seen = slice(None, i + 1) if block.causal else slice(None)
            weights = np.exp(k[seen, h] @ q[i, h] / math.sqrt(q.shape[-1]))
            y[i, h] = weights @ v[seen, h] / weights.sum()
        return dense(y.reshape(len(x), -1), block.attention.out)

    def run(blocks, x):
        for block in blocks:
            normed = norm(x, block.attention_norm)
            lines = normed if block.axis == 2 else normed.swapaxes(0, 1)
            y = np.stack([line(part, block) for part in lines])
            x = x + (y if block.axis == 2 else y.swapaxes(0, 1))
            y = dense(norm(x, block.mlp_norm), block.up)
            x = x + dense(y / (1 + np.exp(-1.702 * y)), block.down)
        return x

    def table(positions):
        rows, columns = (get(t) for t in positions.tables)
        return rows[:, None] + columns[None]

    logits = np.zeros((height, width, channels, model.num_values))
    for channel in range(channels):
        condition = 0.0
        if channels > 1:
            planes = np.zeros((height + 2, width + 2, 2 * channels))
            planes[1:-1, 1:-1, :channel] = image[..., :channel] / (model.num_values - 1)
            planes[1:-1, 1:-1, channels + channel] = 1
            kernel = get(model.condition_conv.kernel)
            x = np.zeros((height, width, kernel.shape[-1])) + get(model.condition_conv.bias)
            for i, j in np.ndindex(3, 3):
                x += planes[i : i + height, j : j + width] @ kernel[i, j]
            condition = run(model.exterior, x + table(model.condition_positions))
        h = get(model.embedding.embedding)[image[..., channel]]
        p = table(model.positions)
        above = run(model.outer, h + p + condition)
        above = np.concatenate([np.zeros_like(above[:1]), above[:-1]])
        left = np.concatenate([np.zeros_like(h[:, :1]), h[:, :-1]], axis=1)
        y = run(model.inner, left + above + p + condition)
        logits[:, :, channel] = dense(norm(y, model.norm), model.head)
    return logits


@pytest.mark.parametrize("shape", [(3, 4, 2), (4, 3, 1)])
def test_equals_the_equations(shape):
    model, x = build(shape, num_layers=4, num_inner_layers=3), images(shape)
    found = forward(model, x)
    assert found.shape == (3, *shape, 3)
    assert found.dtype == jnp.float32
    assert error(found, np.stack([by_equations(model, image) for image in x])) <= 1e-5


@pytest.mark.parametrize(
    ("shape", "values"), [((2, 2, 1), 3), ((1, 2, 2), 3), ((2, 1, 2), 3), ((1, 1, 3), 4), ((2, 2, 2), 2)]
)
def test_probabilities_of_all_images_sum_to_one(shape, values):
    model = build(shape, num_values=values)
    count = math.prod(shape)
    every = np.array(list(itertools.product(range(values), repeat=count))).reshape(-1, *shape)
    found = np.asarray(log_prob(model, every), np.float64)
    assert len(found) == values**count
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)
    assert found.max() - found.min() > 0.5


def test_a_value_depends_on_all_before_it_and_on_none_after():
    shape = (3, 4, 2)
    model, x = build(shape, num_values=9), images(shape, batch=1, values=9)
    order = np.moveaxis(np.arange(24).reshape(2, 3, 4), 0, -1)
    changed = np.repeat(x, 25, axis=0)  # the last as it is
    for index in range(24):
        row, column, channel = np.argwhere(order == index)[0]
        changed[index, row, column, channel] = (changed[index, row, column, channel] + 4) % 9
    logits = np.asarray(forward(model, changed))
    moved = (logits[:24] != logits[24]).any(-1)  # [changed, H, W, C]
    for index in range(24):
        np.testing.assert_array_equal(moved[index], order > index)


def test_the_first_value_depends_on_positions_only():
    model = build()
    first = np.asarray(forward(model, images()))[:, 0, 0, 0]
    np.testing.assert_array_equal(first, np.broadcast_to(first[0], first.shape))


def test_as_the_authors_start():
    model: Any = AxialTransformer(image_shape=(8, 8, 3), d_model=64, num_heads=4, num_layers=2, rngs=nnx.Rngs(0))
    x = images((8, 8, 3), 2, 256)
    np.testing.assert_allclose(log_prob(model, x), -192 * math.log(256), rtol=1e-5)
    assert [block.axis for block in model.exterior] == [block.axis for block in model.outer] == [2, 1]
    assert [(block.axis, block.causal) for block in model.inner] == [(2, True)] * 2
    assert [block.causal for block in model.outer] == [False, True]
    assert not any(block.causal for block in model.exterior)
    std = lambda variable: float(variable[...].std())  # noqa: E731
    for table in (model.embedding.embedding, *model.positions.tables, *model.condition_positions.tables):
        assert std(table) == pytest.approx(5 / 8, rel=0.1)
    block = model.outer[0]
    for linear in (block.attention.query, block.attention.key, block.attention.value, block.up):
        assert std(linear.kernel) == pytest.approx(1 / 8, rel=0.05)
        assert not linear.bias[...].any()
    for linear in (block.attention.out, block.down, model.head):
        assert std(linear.kernel) == pytest.approx(1e-5 / 8, rel=0.05)
    assert model.condition_conv.kernel[...].shape == (3, 3, 6, 64)
    assert std(model.condition_conv.kernel) == pytest.approx(1 / math.sqrt(9 * 6), rel=0.05)
    # The published configuration, whose defaults these are.
    whole = nnx.eval_shape(lambda: AxialTransformer(image_shape=(32, 32, 3), rngs=nnx.Rngs(0)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(whole, nnx.Param))]
    width, layers = 1536, 24
    per_layer = 6 * width**2 + 6 * width + 4 * width
    rest = 9 * 6 * width + width + 256 * width + 4 * 32 * width + 2 * width + width * 256 + 256
    assert sum(map(math.prod, shapes)) == layers * per_layer + rest


@pytest.mark.parametrize("shape", [(3, 2, 2), pytest.param((3, 3, 1), marks=pytest.mark.slow)])
def test_fast_sampling_draws_what_slow_sampling_draws(shape):
    model = build(shape, num_values=5)
    fast = model.sample(4, key=KEY)
    slow = model.sample(4, key=KEY, fast=False)
    np.testing.assert_array_equal(fast, slow)
    assert fast.dtype == jnp.int32
    assert fast.min() >= 0
    assert fast.max() < 5
    assert len(np.unique(fast)) == 5
    assert not np.array_equal(fast, model.sample(4, key=jax.random.key(6)))
    np.testing.assert_array_equal(fast, model.sample(4, key=KEY))
    # Each value is what the whole pass over the finished image draws.
    logits = np.asarray(forward(model, fast))
    for index in range(math.prod(shape)):
        channel, row, column = np.unravel_index(index, (shape[2], *shape[:2]))
        drawn = jax.random.categorical(jax.random.fold_in(KEY, index), logits[:, row, column, channel])
        np.testing.assert_array_equal(drawn, fast[:, row, column, channel])


def test_temperature():
    model = build((3, 2, 2), num_values=5)
    best = model.sample(4, key=KEY, temperature=0)
    np.testing.assert_array_equal(best[0], best[1])
    np.testing.assert_array_equal(forward(model, best).argmax(-1), best)
    hot = [float(log_prob(model, model.sample(4, key=KEY, temperature=t)).mean()) for t in (0.1, 1.0, 10.0)]
    assert hot[0] > hot[1] > hot[2]


def test_samples_go_on_from_what_is_known():
    shape = (3, 2, 2)
    model, start = build(shape, num_values=5), jnp.asarray(images(shape, 4, 5))
    order = np.moveaxis(np.arange(12).reshape(2, 3, 2), 0, -1)
    for known in (3, 6, 9, 12):
        fast = model.sample(4, key=KEY, start=start, known=known)
        np.testing.assert_array_equal(np.asarray(fast)[:, order < known], np.asarray(start)[:, order < known])
        if known in (3, 9):
            np.testing.assert_array_equal(fast, model.sample(4, key=KEY, start=start, known=known, fast=False))
            other = start.at[:, order >= known].set(0)
            np.testing.assert_array_equal(fast, model.sample(4, key=KEY, start=other, known=known))
    whole = model.sample(4, key=KEY)
    np.testing.assert_array_equal(whole, model.sample(4, key=KEY, start=whole, known=7))


def test_the_frequencies_of_samples_are_their_probabilities():
    model = build((1, 2, 2), num_values=2)
    every = np.array(list(itertools.product(range(2), repeat=4))).reshape(-1, 1, 2, 2)
    expected = np.exp(np.asarray(log_prob(model, every), np.float64))
    drawn = np.asarray(model.sample(20_000, key=KEY)).reshape(-1, 4) @ [8, 4, 2, 1]
    found = np.bincount(drawn, minlength=16) / 20_000
    # Four standard deviations.
    assert (np.abs(found - expected) < 4 * np.sqrt(expected / 20_000)).all()


def test_training_looks_at_one_channel_drawn_for_each_image():
    model, x = build(), images(batch=64)
    train = jax.jit(lambda model, x, key: model(x, deterministic=False, rngs=nnx.Rngs(dropout=key)))
    found = train(model, x, KEY)
    assert isinstance(found, OneChannel)
    assert set(np.asarray(found.channel).tolist()) == {0, 1}
    every = forward(model, x)
    expected = jnp.take_along_axis(every, found.channel[:, None, None, None, None], axis=3)[:, :, :, 0]
    assert error(found.logits, expected) <= 1e-6
    assert not np.array_equal(found.channel, train(model, x, jax.random.key(6)).channel)
    everything = train(build(train_channels="all"), x, KEY)
    assert error(everything, every) <= 1e-6
    grey = jax.eval_shape(lambda: build((3, 4, 1))(images((3, 4, 1)), deterministic=False))
    assert grey.shape == (3, 3, 4, 1, 3)
    with pytest.raises(ValueError, match="a channel is drawn at random in training"):
        model(images(), deterministic=False)
    assert isinstance(jax.eval_shape(lambda: model(images(), deterministic=False, rngs=nnx.Rngs(0))), OneChannel)


@pytest.mark.slow
def test_remat_changes_nothing():
    x = images((3, 4, 1))

    @jax.jit
    def gradients(model, key):
        graph, params = nnx.split(model, nnx.Param)
        run = lambda params: nnx.merge(graph, params)(x, deterministic=False, rngs=nnx.Rngs(dropout=key)).sum()  # noqa: E731
        return nnx.to_pure_dict(jax.grad(run)(params))

    plain, again = (gradients(build((3, 4, 1), dropout=0.2, remat=remat), KEY) for remat in ("none", "full"))
    assert_same(again, plain, 1e-5)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(plain))


def test_through_the_other_doors():
    options = dict(registry.spec("axial_transformer").test_args)
    x = images(tuple(options["image_shape"]), values=options["num_values"])
    init, apply = zoo.init_apply("axial_transformer", **options)
    params = init(KEY)
    logits = jax.jit(apply)(params, x)
    assert logits.shape == (*x.shape, 3)
    assert jax.jit(lambda params: apply(params, x, method="log_prob"))(params).shape == (3,)
    linen = zoo.to_linen("axial_transformer", **options)
    found = jax.jit(lambda params: linen.apply({"params": params}, x, deterministic=True))(params)
    assert error(found, logits) <= 1e-6


def test_bfloat16_is_near_and_has_logits_in_float32():
    x = images()
    low = forward(build(dtype=jnp.bfloat16), x)
    assert low.dtype == jnp.float32
    assert error(low, forward(build(), x)) < 0.1


@pytest.mark.parametrize("channels", ["one", pytest.param("all", marks=pytest.mark.slow)])
def test_learns_a_few_images_by_heart(channels):
    shape = (3, 3, 2)
    x = jnp.asarray(images(shape, 4, 8))
    model: Any = AxialTransformer(
        image_shape=shape,
        num_values=8,
        d_model=32,
        num_layers=2,
        num_heads=2,
        train_channels=channels,
        rngs=nnx.Rngs(0),
    )
    graph, params = nnx.split(model, nnx.Param)
    optimizer = optax.adam(3e-3)

    def loss(params, key):
        found = nnx.merge(graph, params)(x, deterministic=False, rngs=nnx.Rngs(dropout=key))
        label = x
        if channels == "one":
            label = jnp.take_along_axis(x, found.channel[:, None, None, None], axis=-1)[..., 0]
            found = found.logits
        return optax.softmax_cross_entropy_with_integer_labels(found, label).mean()

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, key)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(KEY, 250))
        return params, losses

    params, losses = train(params)
    assert losses[0] == pytest.approx(math.log(8), rel=1e-3)
    model = nnx.merge(graph, params)
    model.eval()
    # Four images: each as likely as a quarter, but for a little.
    assert -np.asarray(log_prob(model, x)).mean() < math.log(4) + 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (8, 8)}, r"image_shape must be height, width and channels, at least 1, got \[8, 8\]"),
        ({"image_shape": (8, 0, 1)}, "image_shape must be"),
        ({"num_layers": 3}, "num_exterior_layers must be even, because rows and columns take turns"),
        ({"num_outer_layers": 1}, "num_outer_layers must be even"),
        ({"num_inner_layers": -1}, "not negative"),
        ({"num_values": 1}, "num_values must be at least 2"),
        ({"num_heads": 3}, "d_model=8 is not divisible by num_heads=3"),
        ({"train_channels": "two"}, "unknown train_channels 'two'; there are one, all"),
        ({"remat": "dot"}, "unknown remat 'dot'; there are none, full, dots"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        AxialTransformer(**{"image_shape": (3, 4, 2), **SMALL, **options}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(jnp.zeros((2, 3, 4), int)), r"takes images \[B, H, W, C\].*images has 3 axes"),
        (lambda m: m(jnp.zeros((2, 4, 3, 2), int)), r"axis 1 \(H\) of images is 4"),
        (lambda m: m(jnp.zeros((2, 3, 4, 2))), "takes images of integers; their dtype is float32"),
        (lambda m: m.log_prob(np.full((2, 3, 4, 2), 3)), "values from 3 to 3; the model has 0 to 2"),
        (lambda m: m.sample(0, key=KEY), "batch_size must be at least 1"),
        (lambda m: m.sample(1, key=KEY, known=25), "known from 0 to 24, got 1 and 25"),
        (lambda m: m.sample(1, key=KEY, known=2), "known=2 values are to be taken from start"),
        (lambda m: m.sample(1, key=KEY, temperature=-1), "temperature must be 0"),
        (lambda m: m.sample(1, key=KEY, start=images()), "start holds 3 images, not batch_size=1"),
    ],
)
def test_refuses_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call(build())
