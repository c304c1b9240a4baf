"""The Long Range Arena's rule of size: a variant is compared like with like if it is hardly larger than softmax."""

import dataclasses
from typing import Any

from zoo.functional import Functional, count_parameters
from zoo.tasks.base import TaskInfo
from zoo.training.build import model_maker
from zoo.training.recipe import Recipe

BASE = "softmax"
MOST = 1.10


@dataclasses.dataclass(frozen=True)
class Budget:
    """The parameters of a recipe's model beside those of the Transformer in the same recipe.

    LRA's table is of models that keep the recipe's settings and have at most 10 % more parameters than its Transformer
    (Tay et al. 2020, arXiv:2011.04006; README of google-research/long-range-arena at cd31e5c); larger ones are not to
    be ranked with it.

    Attributes:
      parameters: of the model.
      base: of the model with softmax attention in the same `model` section.
    """

    parameters: int
    base: int

    @property
    def ratio(self) -> float:
        """Parameters by those of the base."""
        return self.parameters / self.base

    @property
    def within(self) -> bool:
        """Whether the rule holds."""
        return self.ratio <= MOST

    def text(self) -> str:
        """For people: the ratio, and what it means where the rule does not hold."""
        shown = f"{self.ratio:.2f} x the {self.base:,} of {BASE} in this recipe"
        return shown if self.within else f"{shown}: beyond LRA's 10 %, not to be ranked with its table"

    def to_dict(self) -> dict[str, Any]:
        """What a result keeps."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "within": self.within}


def budget(recipe: Recipe, info: TaskInfo, parameters: int) -> Budget | None:
    """The budget of a recipe's model, from shapes alone; None for tasks that are not of the Long Range Arena.

    Args:
      recipe: of the run.
      info: of its task.
      parameters: of its model.
    """
    if not recipe.task.name.startswith("lra/"):
        return None
    base = dataclasses.replace(recipe, variant=BASE, options={})
    return Budget(parameters, count_parameters(Functional(model_maker(base, info)).abstract_params))
