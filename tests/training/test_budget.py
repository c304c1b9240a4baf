"""The Long Range Arena's rule of size."""

import pytest

from zoo.functional import count_parameters
from zoo.training.budget import Budget, budget
from zoo.training.recipe import load_recipe
from zoo.training.run import check


def of(name, variant, overrides=()):
    recipe = load_recipe(name, overrides, variant=variant)
    plan = check(recipe)
    found = budget(recipe, plan.task.info, count_parameters(plan.functional.abstract_params))
    assert found is not None
    return found


def test_softmax_is_its_own_base():
    found = of("lra/original/text", "softmax")
    assert (found.base, found.ratio, found.within) == (3_486_722, 1.0, True)


def test_a_larger_variant_is_named():
    found = of("lra/original/text", "mamba")
    assert found.base == 3_486_722
    assert found.ratio == pytest.approx(1.25, abs=0.01)
    assert not found.within
    assert "not to be ranked" in found.text()
    assert found.to_dict() == {
        "parameters": found.parameters, "base": found.base, "ratio": found.ratio, "within": False
    }  # fmt: skip


def test_options_of_the_variant_are_not_handed_to_the_base():
    assert of("lra/small/image", "nystromformer").within


@pytest.mark.parametrize(("parameters", "within"), [(1100, True), (1101, False)])
def test_ten_percent_is_the_limit(parameters, within):
    assert Budget(parameters, 1000).within is within


def test_other_tasks_have_no_budget():
    recipe = load_recipe("recall/copy")
    assert budget(recipe, check(recipe).task.info, 1) is None
