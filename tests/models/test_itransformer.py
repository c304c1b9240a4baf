"""The classifier of a sequence folded into rows: how it folds, what padding may do, options, the road of recipes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoo.models.itransformer import ITransformer
from zoo.tasks.base import TaskInfo
from zoo.training.build import model_maker
from zoo.training.recipe import RecipeError, load_recipe

B, T, V, C = 3, 22, 7, 4
SMALL = {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "d_token": 4, "row_length": 5}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, V, (B, T)))
LENGTHS = np.array([22, 13, 3])
MASK = jnp.asarray(np.arange(T) < LENGTHS[:, None])

pytestmark = pytest.mark.usefixtures("compilation_cache")


def make(**options) -> Any:
    """In evaluation mode, with no parameter at a special value."""
    options = {"num_classes": C, "max_len": T, "vocab_size": V, **SMALL, **options}
    model = ITransformer(**options, rngs=nnx.Rngs(0))
    model.eval()
    draw = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p: p + 0.1 * draw.normal(size=p.shape).astype(np.float32), params))
    return model


@jax.jit
def forward(model, inputs, mask=None):
    return model(inputs, mask=mask)


@pytest.mark.parametrize(
    ("options", "rows", "length"),
    [
        ({"row_length": 5}, 5, 5),
        ({"row_length": None, "num_rows": 3}, 3, 8),
        ({"row_length": None}, 5, 5),
        ({"row_length": None, "max_len": 1024}, 32, 32),
        ({"row_length": 100}, 1, 100),
    ],
)
def test_how_a_sequence_is_folded(options, rows, length):
    model = nnx.eval_shape(lambda: make(**options))
    assert model.row_length == length
    assert model.position.shape == (rows, 8)
    assert model.row.kernel.shape == (length * 4, 8)


def test_a_row_is_one_linear_map_of_its_tokens():
    model = make()
    x, mask = model._rows(TOKENS, MASK)
    table, kernel = np.asarray(model.table.embedding[...]), np.asarray(model.row.kernel[...])
    for row in range(5):
        vector = np.asarray(model.row.bias[...]) + np.asarray(model.position[row])
        for column in range(5):
            place = 5 * row + column
            if place < LENGTHS[1]:
                vector = vector + table[TOKENS[1, place]] @ kernel[4 * column : 4 * column + 4]
        np.testing.assert_allclose(x[1, row], vector, atol=1e-5)
    np.testing.assert_array_equal(mask, np.arange(5) < np.ceil(LENGTHS / 5)[:, None])


@pytest.mark.parametrize(
    ("pooling", "mixer", "mixer_options"),
    [("mean", "softmax", {}), ("last", "softmax", {}), ("cls", "nystromformer", {"num_landmarks": 3})],
)
def test_padding_has_no_say(pooling, mixer, mixer_options):
    model = make(pooling=pooling, mixer=mixer, mixer_options=mixer_options, max_len=40)
    logits = forward(model, TOKENS, MASK)
    assert logits.shape == (B, C)
    np.testing.assert_array_equal(forward(model, jnp.where(MASK, TOKENS, 3), MASK), logits)
    padded, mask = (jnp.pad(array, ((0, 0), (0, 15))) for array in (TOKENS, MASK))
    np.testing.assert_allclose(forward(model, padded, mask), logits, atol=2e-5)
    alone = forward(model, TOKENS[1:2, : LENGTHS[1]])
    np.testing.assert_allclose(alone[0], logits[1], atol=2e-5)


def test_scalars():
    model = make(inputs="scalars", vocab_size=None)
    assert model.row.kernel.shape == (5, 8)
    values = jnp.asarray(np.random.default_rng(2).normal(size=(B, T)), jnp.float32)
    logits = forward(model, values, MASK)
    np.testing.assert_array_equal(forward(model, jnp.where(MASK, values, jnp.nan), MASK), logits)
    np.testing.assert_allclose(forward(model, (10 * values).round().astype(int)), forward(model, (10 * values).round()))
    assert float(abs(forward(model, values + 0.1, MASK) - logits).min()) > 1e-5


def test_rows_have_an_order_by_their_positions_only():
    rows = TOKENS[:, :20].reshape(B, 4, 5)
    moved = rows[:, jnp.array([2, 0, 3, 1])].reshape(B, 20)
    for row_positions in (True, False):
        model = make(row_positions=row_positions)
        change = float(abs(forward(model, moved) - forward(model, TOKENS[:, :20])).max())
        assert (change > 1e-3) == row_positions


@pytest.mark.parametrize("options", [{}, {"pooling": "cls", "head_dim": 5, "inputs": "scalars"}, {"norm": "pre"}])
def test_gradients_reach_every_parameter_and_empty_sequences_are_finite(options):
    graph, params, rest = nnx.split(make(**options), nnx.Param, ...)
    mask = MASK.at[2].set(False)

    @jax.jit
    @jax.grad
    def gradient(params):
        inputs = TOKENS if options.get("inputs") is None else TOKENS.astype(jnp.float32)
        return jnp.square(nnx.merge(graph, params, rest)(inputs, mask=mask)).sum()

    for path, leaf in nnx.to_flat_state(gradient(params)):
        assert np.isfinite(leaf[...]).all(), path
        assert np.any(leaf[...]), path


def test_it_learns_eight_examples():
    tokens = jnp.asarray(np.random.default_rng(3).integers(1, V, (8, T)))
    labels = jnp.arange(8) % C
    model = ITransformer(num_classes=C, max_len=T, vocab_size=V, **SMALL, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(1e-2)

    def loss(params):
        logits = nnx.merge(graph, params, rest)(tokens, deterministic=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(update, (params, optimizer.init(params)), length=150)[1]

    losses = train(params)
    assert 0.5 < losses[0] < 3
    assert losses[-1] < 0.1


def test_low_precision_dropout_remat_and_scan():
    model = make()
    logits = forward(model, TOKENS, MASK)
    np.testing.assert_allclose(model(TOKENS, mask=MASK), logits, atol=1e-5)
    low = forward(make(dtype="bfloat16"), TOKENS, MASK)
    assert low.dtype == jnp.float32
    assert 0 < float(abs(low - logits).max()) < 0.1
    np.testing.assert_allclose(forward(make(remat="full"), TOKENS, MASK), logits, atol=1e-6)
    stacked = make(scan_layers=True)
    nnx.update(stacked.layers, jax.tree.map(lambda leaf: leaf[None], nnx.state(model.layers[0], nnx.Param)))
    for part in ("table", "row", "norm", "logits"):
        nnx.update(getattr(stacked, part), nnx.state(getattr(model, part)))
    stacked.position[...] = model.position[...]
    np.testing.assert_allclose(forward(stacked, TOKENS, MASK), logits, atol=1e-5)
    dropped = jax.jit(lambda key: model(TOKENS, mask=MASK, deterministic=False, rngs=nnx.Rngs(dropout=key)))
    one, two = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(dropped(one), dropped(one))
    assert float(abs(dropped(one) - dropped(two)).max()) > 1e-3


def test_wrong_inputs_say_which_axis():
    model = make()
    for inputs, mask, message in (
        (TOKENS[0], None, r"itransformer takes inputs \[B, T\]; inputs has 1 axes"),
        (TOKENS[:, :0], None, r"axis 1 \(T\) of inputs is 0"),
        (jnp.pad(TOKENS, ((0, 0), (0, 1))), None, r"axis 1 \(T\) of inputs is 23, more than max_len=22"),
        (TOKENS, MASK[:, 1:], r"axis 1 \(T\) of mask is 21"),
        (TOKENS.astype(jnp.float32), None, "inputs='tokens' needs integers, got float32"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda inputs, mask: model(inputs, mask=mask), inputs, mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 3}, "give num_rows=3 or row_length=5, not both"),
        ({"row_length": 0}, "row_length must be at least 1, got 0"),
        ({"max_len": 0}, "max_len must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"vocab_size": None}, "inputs='tokens' needs vocab_size >= 1, got None"),
        ({"pooling": "max"}, "unknown pooling 'max'; there are mean, mean_padded, cls, last"),
        ({"output": "token"}, "itransformer classifies whole sequences; it has no output 'token'"),
        ({"norm": "both"}, "unknown norm 'both'"),
        ({"inputs": "words"}, "unknown inputs 'words'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_recipe_gives_its_body():
    recipe = load_recipe("lra/smoke/listops", ["model.pooling=cls", "options.row_length=16"], variant="itransformer")
    info = TaskInfo("tokens", vocab_size=17, num_classes=10, max_len=100)
    model: Any = nnx.eval_shape(lambda: model_maker(recipe, info)(nnx.Rngs(0)))
    assert model.config.max_len == math.ceil(100 / 16)
    for name in ("d_model", "num_layers", "num_heads", "d_ff", "norm", "norm_eps", "kernel_init", "embedding_std"):
        assert getattr(model.config, name) == getattr(recipe.model, name)
    assert model.cls is not None
    with pytest.raises(RecipeError, match="itransformer cannot be causal"):
        model_maker(load_recipe("lra/smoke/listops", ["model.causal=true"], variant="itransformer"), info)
    with pytest.raises(RecipeError, match=r"options.rows: itransformer has no such option. Did you mean .*num_rows"):
        model_maker(load_recipe("lra/smoke/listops", ["options.rows=3"], variant="itransformer"), info)
