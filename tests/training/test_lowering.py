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

VARIANTS = [spec.name for spec in registry.list_specs() if spec.kind in ("mixer", "model")]
PLATFORMS = ("cuda", "tpu")
CASES = {"float32": [], "bfloat16": ["model.dtype=bfloat16", "model.remat=dots", "train.accumulate=2"]}


def lowered(variant, overrides, platform):
    """The exported training and evaluation steps of a recipe's shapes."""
    recipe = load_recipe("lra/smoke/listops", ["train.batch_size=4", "model.dropout=0.1", *overrides], variant=variant)
    task = make_task(recipe)
    functional = Functional(model_maker(recipe, task.info))
    optimizer = make_optimizer(recipe.train)
    state = abstract_state(functional, optimizer, recipe.train)
    rows, length = recipe.train.batch_size, task.info.max_len
    batch = {
        "inputs": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((rows, length), jnp.bool_),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    train_step = make_train_step(functional, task, optimizer, recipe.train)
    eval_step = make_eval_step(functional, task)
    trained = export.export(train_step, platforms=[platform])(state, batch, key)
    return trained, export.export(eval_step, platforms=[platform])(state["params"], state["rest"], batch)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_training_step_lowers(variant, case, platform):
    for exported in lowered(variant, CASES[case], platform):
        assert exported.platforms == (platform,)
        text = exported.mlir_module()
        assert "dot_general" in text
        # Nothing calls back into Python, which an accelerator's program would wait for.
        assert "callback" not in text
        assert all(aval.dtype != jnp.float64 for aval in exported.out_avals)


def test_what_is_lowered_depends_on_the_platform():
    """Or the test above shows nothing: an implementation that is not there for a platform is refused."""
    with pytest.raises(ValueError, match="cudnn"):
        lowered("softmax", ["options.implementation=cudnn"], "tpu")
