"""The Informer forecaster: its parts, its options, what it refuses (the authors' numbers are in test_parity.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.functional import Functional, count_parameters, pure_dict
from zoo.layers.distilling import BatchNorm, Distil, circular_conv
from zoo.layers.initializers import kernel_initializer
from zoo.layers.time_embedding import TimeEmbedding, calendar
from zoo.models.informer_forecaster import InformerForecaster

N, L, H, M, B = 3, 24, 8, 4, 2
SMALL = {
    "num_variates": N,
    "lookback": L,
    "horizon": H,
    "num_marks": M,
    "d_model": 16,
    "num_heads": 2,
    "factor": 1,
    "dropout": 0.2,
}
STRUCTURE = ("stack", "distil", "num_layers", "decoder_layers", "num_marks", "time_embedding")
pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(autouse=True)
def light_compilation():
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def build(seed=0, **options):
    return InformerForecaster(**{**SMALL, **options}, rngs=nnx.Rngs(seed))


def abstract(**options):
    """The model without its arrays, which raises as the real one does."""
    return nnx.eval_shape(lambda: build(**options))


@functools.cache
def functional(**options):
    """The model as functions."""
    return Functional(lambda rngs: InformerForecaster(**{**SMALL, **options}, rngs=rngs))


@functools.cache
def initial(**structure):
    """Parameters and other variables."""
    return jax.jit(functional(**structure).init)(jax.random.key(0))


def variables(options):
    """The same for all models of one structure."""
    return initial(**{name: value for name, value in options.items() if name in STRUCTURE})


@functools.cache
def compiled(deterministic=True, **options):
    """`run(x, marks, key=None)`: the forecast, and the variables after it."""
    made, (params, rest) = functional(**options), variables(options)

    @jax.jit
    def run(params, x, marks, key):
        model = made.module(params, rest)
        rngs = None if key is None else nnx.Rngs(dropout=key)
        return model(x, marks=marks, deterministic=deterministic, rngs=rngs), made.rest(model)

    return lambda x, marks, key=None: run(params, x, marks, key)


def inputs(seed=0, batch=B, variates=N, lookback=L, horizon=H, marks=M):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, lookback, variates)).astype(np.float32)
    return x, rng.uniform(-0.5, 0.5, (batch, lookback + horizon, marks)).astype(np.float32)


def relative(a, b):
    """max|a - b| / max(1, max|b|)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    return np.abs(a - b).max() / max(1, np.abs(b).max())


def test_number_of_parameters_of_the_authors_configuration():
    made = Functional(lambda rngs: InformerForecaster(num_variates=7, lookback=96, horizon=24, num_marks=4, rngs=rngs))
    assert count_parameters(made.abstract_params) == 11_330_055


# --- the parts


def test_token_convolution_is_circular():
    conv = circular_conv(3, 5, kernel_initializer("torch"), dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 11, 3))
    np.testing.assert_allclose(conv(jnp.roll(x, 4, 1)), jnp.roll(conv(x), 4, 1), atol=1e-6)
    kernel, x = np.asarray(conv.kernel[...]), np.asarray(x)
    expected = sum(np.roll(x, 1 - w, 1) @ kernel[w] for w in range(3)) + np.asarray(conv.bias[...])
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize(("length", "after"), [(96, 48), (48, 24), (49, 25), (1, 1)])
def test_distil_halves(length, after):
    distil = Distil(4, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, length, 4))
    y = distil(x, deterministic=True)
    assert y.shape == (2, after, 4)
    before = np.asarray(jax.nn.elu(distil.norm(distil.conv(x), use_running_average=True)))
    for t in range(after):
        np.testing.assert_array_equal(y[:, t], before[:, max(0, 2 * t - 1) : 2 * t + 2].max(1))


def test_batch_norm_keeps_the_variance_of_a_sample():
    norm = BatchNorm(3)
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 3)).astype(np.float32)
    y = norm(jnp.asarray(x), use_running_average=False)
    np.testing.assert_allclose(y, (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.reshape(-1, 3).var(0, ddof=1), rtol=1e-5)
    again = norm(jnp.asarray(x), use_running_average=True)
    np.testing.assert_allclose(again, (x - norm.mean[...]) / np.sqrt(norm.var[...] + 1e-5), atol=1e-5)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_calendar_of_every_day(count):
    """Marks of five years of every day, and of every minute of a day, give back the calendar."""
    import datetime

    days = [datetime.datetime(2016, 1, 1) + datetime.timedelta(days=d, minutes=7 * d % 1440) for d in range(5 * 366)]
    marks = np.array(
        [
            [
                t.minute / 59 - 0.5,
                t.hour / 23 - 0.5,
                t.weekday() / 6 - 0.5,
                (t.day - 1) / 30 - 0.5,
                (t.timetuple().tm_yday - 1) / 365 - 0.5,
            ]
            for t in days
        ],
        np.float32,
    )
    found = calendar(jnp.asarray(marks[None, :, -count:]))
    for name, expected in (
        ("minute", [t.minute // 15 for t in days] if count == 5 else None),
        ("hour", [t.hour for t in days] if count >= 4 else None),
        ("weekday", [t.weekday() for t in days]),
        ("day", [t.day for t in days]),
        ("month", [t.month for t in days]),
    ):
        numbers = getattr(found, name)
        assert (numbers is None) == (expected is None), name
        if expected is not None:
            np.testing.assert_array_equal(numbers[0], expected)


def test_calendar_tables():
    friday = np.array([[[-0.5, 4 / 6 - 0.5, -0.5, 182 / 365 - 0.5]]], np.float32)  # 2016-07-01 00:00
    options = {"dtype": None, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    learned = TimeEmbedding(6, 4, kind="learned", **options)
    rows = [learned.hour[0], learned.weekday[4], learned.day[1], learned.month[7]]
    np.testing.assert_allclose(learned(friday)[0, 0], sum(rows), rtol=1e-6)
    assert len(jax.tree.leaves(nnx.state(learned, nnx.Param))) == 4
    fixed = TimeEmbedding(6, 4, kind="fixed", **options)
    angle = 10000.0 ** (-np.arange(0, 6, 2) / 6)
    waves = [np.stack([np.sin(n * angle), np.cos(n * angle)], -1).ravel() for n in (0, 4, 1, 7)]
    np.testing.assert_allclose(fixed(friday)[0, 0], sum(waves), atol=1e-5)
    assert not jax.tree.leaves(nnx.state(fixed))
    with pytest.raises(ValueError, match="M = 5"):
        TimeEmbedding(6, 2, kind="fixed", **options)


def test_initial_values_are_pytorchs():
    params = pure_dict(nnx.state(build(d_model=64, num_marks=4), nnx.Param))
    layer = params["encoders"]["0"]["layers"]["0"]
    for linear, fan_in in ((layer["attention"]["projections"]["query"], 64), (layer["feed_forward"]["down"], 256)):
        for leaf in (linear["kernel"], linear["bias"]):
            assert 0.9 < np.abs(leaf).max() * fan_in**0.5 <= 1
    values = params["encoder_embedding"]["values"]
    assert abs(np.std(values["kernel"]) * (3 * N / 2) ** 0.5 - 1) < 0.1
    assert 0.8 < np.abs(values["bias"]).max() * (3 * N) ** 0.5 <= 1


# --- the whole model


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"stack": (3, 2, 1), "distil": True}, marks=pytest.mark.slow),
        pytest.param({"distil": False, "num_layers": 3, "decoder_layers": 2, "label_len": 0}, marks=pytest.mark.slow),
        {"num_marks": 0, "label_len": L, "sample": "shared"},
        pytest.param(
            {"time_embedding": "learned", "selection": "causal", "causal_context": "mean", "mix": False},
            marks=pytest.mark.slow,
        ),
        {"time_embedding": "fixed"},
    ],
    ids=str,
)
def test_options(options):
    """The forecast has its shape, and differs with the input, the marks and the place of every known step."""
    x, marks = inputs()
    marks = None if options.get("num_marks") == 0 else marks
    run = compiled(**options)
    y, _ = run(x, marks)
    assert y.shape == (B, H, N)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y, run(x, marks)[0])
    assert relative(run(x[::-1], None if marks is None else marks[::-1])[0], y[::-1]) < 1e-6
    if marks is not None:
        assert (run(x, marks[:, ::-1])[0] != y).any()


def test_stack_reads_the_last_parts():
    model = abstract(stack=(3, 2, 1))
    assert [(len(encoder.layers), len(encoder.distils)) for encoder in model.encoders] == [(3, 2), (2, 1), (1, 0)]
    for i, encoder in enumerate(model.encoders):
        part = jax.ShapeDtypeStruct((1, 96 // 2**i, 16), jnp.float32)
        run = nnx.eval_shape(lambda encoder, x: encoder(x, deterministic=True, rngs=None), encoder, part)
        assert run.shape == (1, 24, 16)


def test_causal_options_confine_the_decoder():
    """With them no output moves with later marks; the authors' defaults let it."""
    x, marks = inputs()
    later = marks.copy()
    later[:, L + 4 :] *= -1
    confined = compiled(selection="causal", causal_context="mean", mix=False)
    # The first and the last step of the decoder are neighbours in the circular convolution, of values only.
    np.testing.assert_array_equal(confined(x, later)[0][:, :4], confined(x, marks)[0][:, :4])
    assert (confined(x, later)[0][:, 4:] != confined(x, marks)[0][:, 4:]).any()
    assert (compiled()(x, later)[0][:, :4] != compiled()(x, marks)[0][:, :4]).any()


def test_a_call_decodes_from_the_last_known_steps_and_zeros():
    """Compiled, and by hand without compilation."""
    x, marks = inputs()
    made, (params, rest) = functional(), initial()
    start = np.concatenate([x[:, L // 2 :], np.zeros((B, H, N), np.float32)], axis=1)
    model = made.module(params, rest)
    by_hand = model.decode(jnp.asarray(x), jnp.asarray(start), marks[:, :L], marks[:, L // 2 :], deterministic=True)
    assert relative(compiled()(x, marks)[0], by_hand) <= 1e-5


def test_training_draws_and_moves_the_statistics():
    x, marks = inputs()
    run = compiled(deterministic=False)
    y, rest = run(x, marks, jax.random.key(0))
    np.testing.assert_array_equal(run(x, marks, jax.random.key(0))[0], y)
    assert (run(x, marks, jax.random.key(1))[0] != y).any()
    before = initial()[1]
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), rest, before)
    assert jax.tree.leaves(moved) == [True, True]  # mean and variance of the one distilling layer
    # Without dropout what is left to chance is the sample.
    sampling = compiled(deterministic=False, dropout=0.0)
    runs = [sampling(x, marks, jax.random.key(seed))[0] for seed in range(4)]
    assert any((runs[0] != other).any() for other in runs[1:])


def test_mode_of_the_module_decides():
    x, marks = inputs()
    made, (params, rest) = functional(), initial()
    model = made.module(params, rest)
    model.eval()
    quiet = nnx.jit(lambda model, x, marks: model(x, marks=marks))(model, x, marks)
    assert relative(quiet, compiled()(x, marks)[0]) <= 1e-6
    model.train()
    with pytest.raises(ValueError, match=r"rngs|rng"):
        jax.eval_shape(lambda x: model(x, marks=marks), x)


@pytest.mark.parametrize("options", [{}, pytest.param({"time_embedding": "learned"}, marks=pytest.mark.slow)], ids=str)
def test_gradients_reach_every_parameter(options):
    x, marks = inputs()
    made, (params, rest) = functional(**options), variables(options)

    @jax.jit
    def gradient(params):
        def loss(params):
            return (made.module(params, rest)(x, marks=marks, deterministic=True) ** 2).sum()

        return jax.grad(loss)(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path


def test_bfloat16():
    """The dtype may be given by name, as recipes do; the forecast is float32."""
    x, marks = inputs()
    y = compiled(factor=100, dtype="bfloat16")(x, marks)[0]
    assert y.dtype == jnp.float32
    assert relative(y, compiled(factor=100)(x, marks)[0]) < 0.1
    for leaf in jax.tree.leaves(nnx.state(abstract(param_dtype="bfloat16"), nnx.Param)):
        assert leaf.dtype == jnp.bfloat16


# --- refusals


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((B, L + 1, N), rf"axis 1 \(L\) of x is {L + 1}"),
        ((B, L, N + 1), rf"axis 2 \(N\) of x is {N + 1}"),
        ((L, N), "x has 2 axes"),
    ],
)
def test_refuses_misshapen_series(shape, message):
    with pytest.raises(ValueError, match=message):
        abstract()(np.zeros(shape, np.float32), marks=inputs()[1])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((B, L, M), rf"axis 1 \(L\+H\) of marks is {L}"),
        ((B, L + H, M + 1), rf"axis 2 \(M\) of marks is {M + 1}"),
        ((B + 1, L + H, M), rf"axis 0 \(B\) of marks is {B + 1}"),
        (None, f"num_marks={M}, but none"),
    ],
)
def test_refuses_misshapen_marks(shape, message):
    marks = None if shape is None else np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        abstract()(inputs()[0], marks=marks)


def test_refuses_marks_it_does_not_use():
    with pytest.raises(ValueError, match="num_marks=0"):
        abstract(num_marks=0)(*inputs()[:1], marks=inputs()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_len": L + 1}, f"label_len={L + 1}"),
        ({"horizon": 0}, "horizon=0"),
        ({"num_marks": -1}, "num_marks=-1"),
        ({"num_layers": 0}, "layers must be at least 1"),
        ({"stack": ()}, "layers must be at least 1"),
        ({"stack": (1,) * 6}, "lookback >= 32"),
        ({"num_heads": 3}, "not divisible"),
        ({"factor": 0}, "factor=0"),
        ({"time_embedding": "none"}, "timeF, fixed, learned"),
        ({"activation": "tanh"}, "unknown activation"),
    ],
    ids=str,
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        abstract(**options)
