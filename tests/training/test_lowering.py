"""The training step of every variant can be compiled for accelerators that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from zoo import registry
from zoo.functional import Functional
from zoo.training.build import make_task, model_maker
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import load_recipe
from zoo.training.step import abstract_state, make_eval_step, make_train_step

VARIANTS = [spec for spec in registry.list_specs() if spec.kind in ("mixer", "model")]
PLATFORMS = ("cuda", "tpu")
FACTS = {"columns": ["a", "b"], "mean": [0, 0], "std": [1, 1], "step_seconds": 3600, "num_marks": 4}
CASES = {"float32": [], "bfloat16": ["model.dtype=bfloat16", "model.remat=dots", "train.accumulate=2"]}

# Those that the compiler for TPUs takes in seconds, among others.
QUICK = ("dlinear", "flowformer", "mamba")


def batch_of(task, rows):
    """Shapes of a batch."""
    length, info = task.info.max_len, task.info
    shapes = {
        "inputs": ((rows, length), jnp.int32),
        "mask": ((rows, length), jnp.bool_),
        "label": ((rows,), jnp.int32),
    }
    if info.output == "series":
        shapes = {
            "inputs": ((rows, length, info.num_variates), jnp.float32),
            "marks": ((rows, length + info.horizon, info.num_marks), jnp.float32),
            "target": ((rows, info.horizon, info.num_variates), jnp.float32),
        }
    if info.output == "image":
        shapes = {"inputs": ((rows, *info.image_shape), jnp.int32)}
    shapes["weight"] = ((rows,), jnp.float32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def lowered(variant, overrides, platforms, recipe="lra/smoke/listops"):
    """The exported training and evaluation steps of a recipe's shapes."""
    recipe = load_recipe(recipe, ["train.batch_size=4", "model.dropout=0.1", *overrides], variant=variant)
    task = make_task(recipe)
    if recipe.task.name.startswith("forecasting/"):
        task.recall({**FACTS, "time_features": "hour"})
    functional = Functional(model_maker(recipe, task.info))
    optimizer = make_optimizer(recipe.train)
    state = abstract_state(functional, optimizer, recipe.train)
    batch = batch_of(task, recipe.train.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    train_step = make_train_step(functional, task, optimizer, recipe.train)
    eval_step = make_eval_step(functional, task)
    trained = export.export(train_step, platforms=platforms)(state, batch, key)
    return trained, export.export(eval_step, platforms=platforms)(state["params"], state["rest"], batch)


def recipe_of(spec):
    """The name of a recipe whose data the variant takes."""
    recipes = {("series",): "forecasting/lookback96/etth1_96", ("image",): "density/shapes"}
    return recipes.get(spec.inputs, "lra/smoke/listops")


@pytest.mark.parametrize("case", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: spec.name)
def test_the_training_step_lowers(spec, case):
    for exported in lowered(spec.name, CASES[case], PLATFORMS, recipe_of(spec)):
        assert exported.platforms == PLATFORMS
        text = exported.mlir_module()
        assert "dot_general" in text or "nothing to train" in spec.notes
        # Nothing calls back into Python, which an accelerator's program would wait for.
        assert "callback" not in text
        assert all(aval.dtype != jnp.float64 for aval in exported.out_avals)


def test_what_is_lowered_depends_on_the_platform():
    """Or the test above shows nothing: an implementation that is not there for a platform is refused."""
    with pytest.raises(ValueError, match="cudnn"):
        lowered("softmax", ["options.implementation=cudnn"], ["tpu"])


@pytest.mark.parametrize("case", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "spec",
    [spec if spec.name in QUICK else pytest.param(spec, marks=pytest.mark.slow) for spec in VARIANTS],
    ids=lambda spec: spec.name,
)
def test_the_training_step_compiles_for_tpus(compiled_for_tpu, spec, case):
    """The compiler takes every operation, and what it plans fits a small chip's memory many times over."""
    step, _ = lowered(spec.name, CASES[case], ["tpu"], recipe_of(spec))
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in step.in_avals]
    arguments, keywords = jax.tree.unflatten(step.in_tree, shapes)
    assert not keywords
    compiled = compiled_for_tpu(step.call, arguments, "v5e:2x2")
    assert compiled.memory_analysis().temp_size_in_bytes < 2**30
