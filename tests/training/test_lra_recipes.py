"""The recipes of LRA Text and Image: the protocols' own figures, and models of the published sizes."""

import jax
import numpy as np
import pytest
from tiny_archives import batches, reviews, shrink, write_archive

from zoo import registry
from zoo.functional import count_parameters
from zoo.training.recipe import load_recipe
from zoo.training.run import check, evaluate_run, train

MIXERS = [spec.name for spec in registry.list_specs(kind="mixer")]


def test_text_trains_as_the_original_code_does():
    recipe = load_recipe("lra/original/text")
    config, model = recipe.train, recipe.model
    assert (config.steps, config.batch_size, config.lr, config.schedule) == (20_000, 32, 0.05, "rsqrt")
    assert (config.warmup_steps, config.beta2, config.eps, config.weight_decay) == (8000, 0.98, 1e-9, 0.1)
    assert (config.decay, config.clip, config.select) == ("all", None, "last")
    assert (model.d_model, model.num_layers, model.num_heads, model.d_ff, model.head_dim) == (256, 4, 4, 1024, 1024)
    assert (model.pooling, model.positions, model.dropout, model.attention_dropout) == ("cls", "sinusoidal", 0.1, None)
    assert (recipe.task.source, recipe.task.max_len) == ("original", 1000)
    flow = load_recipe("lra/original/text", variant="flowformer")
    assert (flow.model.num_layers, flow.model.num_heads, flow.train.lr) == (1, 4, 0.005)


def test_image_trains_as_the_original_code_does():
    recipe = load_recipe("lra/original/image")
    config, model = recipe.train, recipe.model
    assert (config.steps, config.batch_size, config.lr, config.schedule) == (35_000, 256, 5e-4, "cosine")
    assert (config.warmup_steps, config.beta2, config.eps, config.weight_decay) == (175, 0.98, 1e-9, 0)
    assert (model.d_model, model.num_layers, model.num_heads, model.d_ff, model.head_dim) == (128, 1, 8, 128, 128)
    assert (model.pooling, model.positions, model.dropout, model.attention_dropout) == ("cls", "learned", 0.3, 0.2)
    assert recipe.task.options == {"black_is_padding": True}
    flow = load_recipe("lra/original/image", variant="flowformer")
    assert (flow.model.num_heads, flow.options) == (4, {"d_head": 16})


@pytest.mark.parametrize(
    ("task", "steps", "batch_size", "warmup", "every", "length"),
    [("text", 20_000, 32, 8000, 500, 4096), ("image", 35_000, 256, 175, 175, 1024)],
)
def test_the_small_protocol(task, steps, batch_size, warmup, every, length):
    recipe = load_recipe(f"lra/small/{task}")
    config, model = recipe.train, recipe.model
    assert (config.steps, config.batch_size, config.warmup_steps, config.eval_every) == (
        steps,
        batch_size,
        warmup,
        every,
    )
    assert (config.lr, config.schedule, config.eps, config.weight_decay) == (1e-4, "onecycle", 1e-6, 0)
    assert (config.select, model.pooling, model.positions) == ("best", "mean_padded", "learned")
    assert (model.d_model, model.num_layers, model.num_heads, model.d_ff, model.dropout) == (64, 2, 2, 128, 0.1)
    assert check(recipe).task.info.max_len == length
    assert load_recipe(recipe.name, variant="nystromformer").options == {"num_landmarks": 64, "conv_kernel_size": 35}


# S5's table (lindermanlab/S5): layers, width, batch, epochs, rate, weight decay, dropout, updates of warm-up.
S5 = {
    "listops": (8, 128, 50, 40, 0.003, 0.04, 0.0, 96_000 // 50),
    "text": (6, 256, 50, 35, 0.004, 0.07, 0.1, 0),
    "retrieval": (6, 128, 32, 20, 0.002, 0.05, 0.0, 147_086 // 32),
    "image": (6, 512, 50, 250, 0.0045, 0.07, 0.1, 45_000 // 50),
    "pathfinder": (6, 192, 64, 200, 0.0045, 0.03, 0.05, 160_000 // 64),
    "pathx": (6, 128, 32, 75, 0.0018, 0.06, 0.0, 160_000 // 32),
}
STATE_RATE = {"pathfinder": 9e-4, "pathx": 6e-4}


@pytest.mark.parametrize("task", S5)
def test_the_ssm_protocol(task):
    recipe = load_recipe(f"lra/ssm/{task}", variant="mamba")
    model, config = recipe.model, recipe.train
    found = (model.num_layers, model.d_model, config.batch_size, config.epochs, config.lr, config.weight_decay)
    assert (*found, model.dropout, config.warmup_steps) == S5[task]
    rate = STATE_RATE.get(task, 1e-3)
    assert (config.state_lr, config.decay, config.schedule, config.select) == (rate, "all", "cosine", "best")
    assert (model.pooling, model.causal, model.positions) == ("mean", False, "none")
    pixels = task in ("image", "pathfinder", "pathx")
    assert check(recipe).task.info.inputs == ("scalars" if pixels else "tokens")
    assert not recipe.task.options.get("black_is_padding")
    # Attention without positions would see a bag of tokens.
    for variant in ("softmax", "linear_attention", "flowformer", "nystromformer", "informer", "axial"):
        assert load_recipe(recipe.name, variant=variant).model.positions == "sinusoidal"


@pytest.mark.parametrize(
    ("name", "variant", "parameters"),
    [
        # What the original code's shapes come to.
        ("lra/original/text", "softmax", 3_486_722),
        ("lra/original/image", "softmax", 248_458),
        ("lra/original/image", "linear_attention", 248_458),
    ],
)
def test_models_have_the_published_sizes(name, variant, parameters):
    assert count_parameters(check(load_recipe(name, variant=variant)).functional.abstract_params) == parameters


@pytest.mark.parametrize("name", [f"lra/{protocol}/{task}" for protocol in ("original", "small", "ssm") for task in S5])
@pytest.mark.parametrize("variant", MIXERS)
@pytest.mark.slow
def test_every_variant_has_a_state(name, variant):
    """Of shapes alone: nothing is computed."""
    plan = check(load_recipe(name, variant=variant))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(plan.state))
    assert count_parameters(plan.functional.abstract_params) > 1e5


@pytest.mark.usefixtures("compilation_cache")
@pytest.mark.parametrize("task", ["text", "image"])
def test_a_result_says_what_its_data_is(task, tmp_path, monkeypatch):
    shrink(monkeypatch)
    files, name = (reviews(), "aclImdb_v1.tar.gz") if task == "text" else (batches(), "cifar-10-binary.tar.gz")
    archive = write_archive(tmp_path / name, files)
    source = "original" if task == "text" else "smoke"
    model = ["model.d_model=8", "model.num_heads=2", "model.d_ff=8", "model.num_layers=1"]
    steps = ["train.steps=2", "train.batch_size=4", "train.warmup_steps=1", "train.tensorboard=false"]
    where = [f"task.source={source}", f"task.options.archive={archive}"]
    length = ["task.max_len=32"] if task == "text" else []
    recipe = load_recipe(f"lra/smoke/{task}", [*model, *steps, *where, *length], variant="linear_attention")
    result = train(recipe, tmp_path / "run", data_dir=tmp_path / "data", progress=False)
    assert result["cautions"][0].startswith("unverified data: ")
    assert len(result["cautions"]) == (2 if task == "text" else 1)
    assert result["budget"]["parameters"] == result["parameters"]
    assert result["budget"]["within"]
    assert set(result["baselines"]["test"]) == {"majority", "bag_of_bytes"}
    assert np.isfinite(result["last"]["test"]["loss"])
    found = evaluate_run(tmp_path / "run", which="last", data_dir=tmp_path / "data")
    assert found["cautions"] == result["cautions"]
    assert found["accuracy"] == result["last"]["test"]["accuracy"]
