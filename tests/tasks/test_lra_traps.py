"""Traps of the Long Range Arena that no other file's tests hold; docs/lra.md lists all of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.data.order import TrainOrder
from zoo.data.pipeline import eval_batches
from zoo.data.rows import PixelSource
from zoo.functional import Functional
from zoo.training.build import make_task, model_maker
from zoo.training.evaluate import evaluate
from zoo.training.optimizer import STATE_PARAMETERS, learning_rate, make_optimizer
from zoo.training.recipe import list_recipes, load_recipe
from zoo.training.shipped import recipe_folder

RECIPES = [name for name in list_recipes() if name.startswith("lra/")]
ORIGINALS = [name for name in RECIPES if name.startswith("lra/original/")]
PROTOCOLS = ("original", "small", "ssm")
TINY = ("model.d_model=8", "model.num_heads=2", "model.num_layers=1", "model.d_ff=8", "model.head_dim=8")
QUIET = ("model.dropout=0", "model.attention_dropout=0")

pytestmark = pytest.mark.usefixtures("compilation_cache")


def head_of(name):
    """The comment on top of a recipe."""
    text = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").split("protocol:")[0]
    return " ".join(line.strip("# ") for line in text.splitlines())


@functools.cache
def built(name, variant="softmax", overrides=()):
    """A recipe's task and model, as shapes."""
    recipe = load_recipe(name, overrides, variant=variant)
    task = make_task(recipe)
    return recipe, task.info, Functional(model_maker(recipe, task.info))


def model_of(name, variant="softmax", overrides=TINY, method="__call__"):
    """A recipe's model with its initial parameters, compiled; small unless its overrides say otherwise."""
    functional = built(name, variant, overrides)[2]
    params, rest = jax.jit(functional.init)(jax.random.key(0))

    @functools.partial(jax.jit, static_argnames="training")
    def call(inputs, mask=None, training=False):
        module = functional.module(params, rest)
        module = module.encoder if method == "encoder" else module
        return module(inputs, mask=mask, deterministic=not training, rngs=nnx.Rngs(dropout=0))

    return call


def rates(name):
    """The learning rate of every update of a recipe."""
    config = load_recipe(name).train
    return np.asarray(learning_rate(config)(jnp.arange(config.steps)))


# By protocol and task: ids, and positions that the mixer sees, a CLS vector included. Nothing has an end symbol.
FORMS = {
    "original": {"listops": (17, 2001), "text": (257, 1001), "retrieval": (257, 4000), "image": (256, 1025)},
    "small": {"listops": (17, 2048), "text": (257, 4096), "retrieval": (257, 4096), "image": (256, 1024)},
    "ssm": {"listops": (17, 2048), "text": (257, 4096), "retrieval": (257, 4000), "image": (None, 1024)},
}


@pytest.mark.parametrize(("protocol", "task"), [(protocol, task) for protocol in FORMS for task in FORMS[protocol]])
def test_ids_and_positions_of_each_protocol(protocol, task):
    """T2, T4."""
    _, info, functional = built(f"lra/{protocol}/{task}", overrides=(*TINY, "options={}"))
    shape = (2, info.max_len)
    inputs = jax.ShapeDtypeStruct(shape, jnp.int32 if info.inputs == "tokens" else jnp.float32)

    def encode(params, inputs):
        return functional.module(params, {}).encoder(inputs, deterministic=True)

    encoded = jax.eval_shape(encode, functional.abstract_params, inputs)
    table = functional.abstract_params["encoder"]["embedding"]["table"]
    ids = table["embedding"].shape[0] if info.inputs == "tokens" else None
    assert (ids, encoded.shape[1]) == FORMS[protocol][task]
    assert ("cls" in functional.abstract_params["encoder"]["embedding"]) == (encoded.shape[1] == info.max_len + 1)


@pytest.mark.parametrize(
    ("protocol", "widths"),
    [("original", [2 * 128, 512, 256, 2]), ("small", [4 * 64, 128, 2]), ("ssm", [4 * 128, 128, 2])],
)
def test_the_head_of_retrieval(protocol, widths):
    """T5: two vectors side by side in the original; their product and difference as well elsewhere."""
    recipe, _, functional = built(f"lra/{protocol}/retrieval")
    head = functional.abstract_params["head"]
    shapes = [head[str(layer)]["kernel"].shape for layer in range(len(head))]
    assert [shapes[0][0], *(width for _, width in shapes)] == widths
    assert recipe.model.pair_features == ("concat" if protocol == "original" else "nli")


def test_the_rate_of_the_original_retrieval_never_peaks():
    """T5: 5,000 updates, and a warm-up of 8,000."""
    config, found = load_recipe("lra/original/retrieval").train, rates("lra/original/retrieval")
    assert config.warmup_steps > config.steps
    assert (np.diff(found) > 0).all()
    assert found[-1] < 0.63 * 0.05 / 8000**0.5


# Largest and last rate of the original's recipes, and the update of the largest.
PEAKS = {
    "listops": (1.58e-3, 7.1e-4, 1000),
    "text": (5.6e-4, 3.5e-4, 8000),
    "retrieval": (3.5e-4, 3.5e-4, 4999),
    "image": (5e-4, 0, 175),
    "pathfinder": (1e-3, 0, 312),
    "pathx": (1e-3, 0, 2500),
    "pathfinder64": (1e-3, 0, 625),
    "pathfinder256": (1e-3, 0, 5000),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_rates_and_optimizer_of_the_original(name):
    """T12: a rate of 0.05 is before the root of the update number, and Adam is not Optax' default one."""
    found, config = rates(name), load_recipe(name).train
    peak, last, place = PEAKS[name.split("/")[-1]]
    assert (found[0], found.argmax()) == (0, place)
    assert found.max() == pytest.approx(peak, rel=0.01)
    assert found[-1] == pytest.approx(last, rel=0.02, abs=1e-8)
    assert (config.beta1, config.beta2, config.eps) == (0.9, 0.98, 1e-9)
    assert config.weight_decay == 0 or (config.weight_decay, config.decay) == (0.1, "all")


@pytest.mark.parametrize("variant", ["softmax", "mamba"])
def test_the_original_decays_every_parameter(variant):
    """T12: biases, norms, embeddings and the CLS vector too; rates, skips and time steps of recurrences never."""
    recipe, _, functional = built("lra/original/text", variant, TINY)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), functional.abstract_params)
    optimizer = make_optimizer(recipe.train)
    state, zero = optimizer.init(params), jax.tree.map(np.zeros_like, params)
    move = jax.jit(optimizer.update)
    _, state = move(zero, state, params)  # whose rate is 0
    updates, _ = move(zero, state, params)
    kept = set()
    for path, update in jax.tree.leaves_with_path(updates):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if not np.any(update):
            kept.add(name)
        else:
            np.testing.assert_allclose(update, -0.1 * 0.05 / 8000 / 8000**0.5, rtol=1e-5)
    assert kept == (STATE_PARAMETERS if variant == "mamba" else set())


def test_the_cls_vector_is_seen_although_the_first_pixel_is_black():
    """T6: it attends to itself and to what is not black. In the original's code it is masked where pixel 0 is black."""
    model = model_of("lra/original/image", overrides=(*TINY, "options.d_head=4", "model.positions=none"))
    pixels = jnp.asarray([[0, 7, 9, 0], [7, 0, 0, 9]])
    masked, alone = model(pixels, pixels > 0), model(jnp.asarray([[7, 9]]))
    np.testing.assert_allclose(masked, jnp.repeat(alone, 2, axis=0), atol=1e-6)
    assert not np.allclose(masked, model(pixels, jnp.ones((2, 4), bool)), atol=1e-6)


@pytest.mark.parametrize(("protocol", "variant"), [("original", "softmax"), ("small", "softmax"), ("ssm", "mamba")])
def test_padding_tells_where_the_mean_counts_it(protocol, variant):
    """T6: the mean of `small` divides by the padded length, which so has a say; those of the others have none."""
    model = model_of(f"lra/{protocol}/text", variant)
    tokens = jnp.asarray([[3, 200, 54, 9, 77]])
    padded = jnp.pad(tokens, ((0, 0), (0, 6)))
    same = np.allclose(model(padded, padded > 0), model(tokens), atol=1e-6)
    assert same == (protocol != "small")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_black_pixels_by_protocol(protocol):
    """T6, T7: padding in `original` and `small`, as there; real, and read as scalars, in `ssm`."""
    options = load_recipe(f"lra/{protocol}/image").task.options
    assert options == ({"inputs": "scalars"} if protocol == "ssm" else {"black_is_padding": True})


# Rows of a split, rows of a batch, and how many of them the original's code evaluates.
DENOMINATORS = [
    pytest.param(10_000, 256, 9_984, id="image test"),
    pytest.param(5_000, 256, 4_864, id="image validation"),
    pytest.param(20_000, 512, 19_968, id="pathfinder test"),
    pytest.param(20_000, 64, 19_968, id="path-x test"),
    pytest.param(17_437, 32, 17_408, id="retrieval test"),
    pytest.param(18_090, 32, 18_080, id="retrieval validation"),
]


@pytest.mark.parametrize(("rows", "batch_size", "there"), DENOMINATORS)
def test_no_example_is_left_out_of_an_evaluation(rows, batch_size, there):
    """T10."""
    assert rows // batch_size * batch_size == there < rows
    labels = np.zeros(rows, int)
    labels[there:] = 1  # all right, and only in what the original drops

    def right(params, rest, batch):
        return {"accuracy": ((batch["label"] == 1) * batch["weight"]).sum(), "weight": batch["weight"].sum()}

    source = PixelSource(np.zeros((rows, 1), np.uint8), labels)
    found = evaluate(right, None, None, eval_batches(source, batch_size=batch_size, max_len=1))
    assert found == {"accuracy": (rows - there) / rows, "examples": rows}


@pytest.mark.parametrize("name", [name for name in RECIPES if "/smoke/" not in name])
def test_a_recipe_names_the_code_that_it_follows(name):
    """T11: by repository and commit, for code, paper and earlier code differ."""
    protocol = name.split("/")[1]
    repository, commit = {
        "original": ("google-research/long-range-arena", "cd31e5c"),
        "small": ("mlpen/Nystromformer", "5689313"),
        "ssm": ("lindermanlab/S5", "3c18fdb"),
    }[protocol]
    head = head_of(name)
    assert repository in head.replace(" ", "")  # lines may break at its hyphens
    assert commit in head
    assert "Selection:" in head


def test_examples_are_shuffled_and_not_batches():
    """T13: two that share a batch share another one no more often than chance has it."""
    rows, size = 4096, 64
    order = TrainOrder(np.zeros(rows, int), (1,), batch_size=size, seed=0)
    place = np.empty((2, rows), int)
    for step in range(2 * rows // size):
        place[step * size // rows, order.batch(step)[0]] = step
    first = np.argsort(place[0], kind="stable").reshape(-1, size)
    again = (place[1, first[:, :-1]] == place[1, first[:, 1:]]).mean()
    assert again < 3 / size
    assert (
        len({tuple(np.sort(batch)) for batch in first} & {tuple(np.flatnonzero(place[1] == k)) for k in range(128)})
        == 0
    )


def test_options_of_shipped_recipes_reach_the_mixer():
    """T14: an option that a variant does not take is an error (tests/training/test_recipe.py); these arrive."""

    def mixer(name, variant):
        recipe, info, _ = built(name, variant, ("model.num_layers=1",))
        model: Any = nnx.eval_shape(lambda: model_maker(recipe, info)(nnx.Rngs(0)))
        return model.encoder.layers[0].mixer

    nystrom = mixer("lra/small/text", "nystromformer")
    assert nystrom.num_landmarks == 64
    assert nystrom.conv_kernel.shape == (35, 2)
    for variant, d_head in (("softmax", 8), ("informer", 8), ("nystromformer", 8), ("flowformer", 16)):
        assert mixer("lra/original/image", variant).projections.d_head == d_head
    assert mixer("lra/small/image", "axial").shape == (32, 32)


@pytest.mark.parametrize("name", RECIPES)
def test_which_parameters_are_tested(name):
    """T16: the last in the original, elsewhere those that did best on validation; results hold both."""
    assert load_recipe(name).train.select == ("last" if name in ORIGINALS else "best")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.split("/")[-1] in ("image", "pathx")])
def test_pixels_have_learned_positions(name):
    """T18; in `ssm` sinusoidal ones, for mixers that have no order of their own."""
    assert load_recipe(name).model.positions == ("sinusoidal" if "/ssm/" in name else "learned")


def test_a_recipe_of_pathfinder_with_fixed_positions_says_what_comes_of_it():
    """T18: one of the original's does."""
    for name in RECIPES:
        if "pathfinder" in name and load_recipe(name).model.positions == "sinusoidal":
            assert "stay at 50" in head_of(name), name


@pytest.mark.parametrize("task", ["text", "image"])
def test_ssm_sees_the_future(task):
    """T24: a late input changes an early position, through Mamba."""
    encode = model_of(f"lra/ssm/{task}", "mamba", method="encoder")
    inputs = np.full((2, 9), 3, np.int32 if task == "text" else np.float32)
    inputs[1, -1] = 5 if task == "text" else -3
    encoded = encode(inputs)
    assert np.abs(encoded[0, 0] - encoded[1, 0]).max() > 1e-6


@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "image"])
def test_ssm_has_a_rate_for_state_parameters_and_does_not_decay_them(task):
    """T24: from where the warm-up ends, 1e-3, whatever the others' is."""
    recipe, _, functional = built(f"lra/ssm/{task}", "mamba", (*TINY, "train.warmup_steps=0", "train.epochs=null"))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), functional.abstract_params)
    optimizer = make_optimizer(recipe.train)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    for path, update in jax.tree.leaves_with_path(updates):
        held = jax.tree_util.keystr(path[-1:], simple=True) in STATE_PARAMETERS
        expected = 1e-3 if held else recipe.train.lr * (1 + recipe.train.weight_decay)
        np.testing.assert_allclose(update, -expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("protocol", "variant"), [("original", "softmax"), ("small", "nystromformer"), ("ssm", "mamba"), ("ssm", "softmax")]
)
def test_batch_mates_have_no_say_in_training(protocol, variant):
    """T26: nothing is normalised over the batch."""
    model = model_of(f"lra/{protocol}/text", variant, (*TINY, *QUIET))
    tokens = np.random.default_rng(0).integers(1, 257, (3, 12))
    mask = np.arange(12) < np.asarray([[9], [5], [12]])
    first = model(tokens, mask, training=True)
    again = model(np.where([[1], [0], [0]], tokens, 257 - tokens), mask[[0, 2, 1]], training=True)
    np.testing.assert_allclose(first[0], again[0], atol=1e-6)
    assert not np.allclose(first[1:], again[1:], atol=1e-6)
