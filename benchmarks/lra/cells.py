"""Cells of a matrix: what is asked for, which recipes that means, and what is known of each run."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from zoo import registry
from zoo.functional import count_parameters
from zoo.training.folder import RunError, check_same, has_begun, read_recipe, read_result
from zoo.training.recipe import Recipe, RecipeError, load_recipe
from zoo.training.run import check

FORMAT = 1
State = Literal["waiting", "running", "done", "failed"]


class MatrixError(ValueError):
    """A matrix cannot be run as asked; nothing has been trained."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a matrix is made of.

    Attributes:
      variants: registered names, or paths of .py files that register one.
      tasks, protocols: `RECIPES/PROTOCOL/TASK` are the recipes.
      seeds: values of `train.seed`.
      overrides: "key=value" of all recipes.
      grid: values of keys, of which every combination is run.
      recipes: where the recipes are: a part of the shipped ones, or a folder.
    """

    variants: tuple[str, ...]
    tasks: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    overrides: tuple[str, ...] = ()
    grid: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    recipes: str = "lra"

    def __post_init__(self):
        lists = {"variants": self.variants, "tasks": self.tasks, "protocols": self.protocols, "seeds": self.seeds}
        for name, values in (lists | {f"values of {key}": values for key, values in self.grid.items()}).items():
            if not values:
                raise MatrixError(f"a matrix needs at least one of {name}.")
            if len(set(values)) < len(values):
                raise MatrixError(f"{name} must differ from one another: {', '.join(map(str, values))}.")
        if "train.seed" in self.grid:
            raise MatrixError("train.seed is no axis of a grid: give --seeds.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = dataclasses.asdict(self)
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, **lists, "grid": {key: list(given) for key, given in self.grid.items()}}

    def points(self) -> list[tuple[str, ...]]:
        """The combinations of the grid as overrides; one empty one where there is no grid."""
        axes = [[f"{key}={value}" for value in values] for key, values in self.grid.items()]
        return list(itertools.product(*axes))

    def recipe_name(self, protocol: str, task: str) -> str:
        """What `load_recipe` finds the recipe by."""
        name = f"{self.recipes}/{protocol}/{task}"
        return f"{name}.yaml" if Path(self.recipes).is_dir() else name


@dataclasses.dataclass
class Cell:
    """One run of a matrix.

    Attributes:
      id: names its record, its recipe and its log.
      protocol, task, variant, seed, overrides: what it is; `overrides` hold the point of a grid too.
      recipe_hash: see `recipe_hash`; None where there can be no such recipe.
      state: "failed" runs are tried again by the next command.
      reason: why it failed.
      folder: its run directory, below the matrix's folder.
      recipe: resolved; None where it cannot be had, or was not asked for.
      parameters: of its model; None where unknown.
    """

    id: str
    protocol: str
    task: str
    variant: str
    seed: int
    overrides: list[str]
    recipe_hash: str | None
    state: State
    reason: str | None
    folder: str
    recipe: Recipe | None = dataclasses.field(default=None, repr=False)
    parameters: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """What matrix.json holds of it."""
        kept = [field.name for field in dataclasses.fields(self) if field.name not in ("recipe", "parameters")]
        return {name: getattr(self, name) for name in kept}


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe's YAML, the first 16 hex digits; without its name and the figures of others."""
    text = dataclasses.replace(recipe, name="", published={}).to_yaml()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_grid(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """ "key=value,value" strings as a grid; commas within brackets belong to a value.

    Raises:
      MatrixError: one is not of that form, or a key comes twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        given = tuple(value.strip() for value in re.split(r",(?![^\[{]*[\]}])", values))
        if not equals or not key.strip() or not all(given):
            raise MatrixError(f"an axis is written key.path=value,value, for example train.lr=1e-3,3e-3; got {text!r}.")
        if key.strip() in grid:
            raise MatrixError(f"the axis {key.strip()} is given twice; write its values with commas between.")
        grid[key.strip()] = given
    return grid


def plan(request: Request, data_dir: Path | None = None) -> list[Cell]:
    """The cells of a request, in the order in which they are to be run; nothing is read of their runs.

    The first seed of everything comes first, so that a matrix that is stopped early has a whole first seed, and later
    seeds find the programs of the first compiled. Each recipe's model is built once, from shapes: a cell that cannot be
    is "failed", with the reason.

    Args:
      request: what is asked for.
      data_dir: where data lives; None for the default.

    Raises:
      RegistryError: no such variant.
      MatrixError: no cell can be, or no recipe has such a task or protocol.
    """
    names = {variant: _spec(variant) for variant in request.variants}
    built: dict[tuple[str, ...], int | str] = {}
    cells = []
    for seed, protocol, task, (given, name), point in itertools.product(
        request.seeds, request.protocols, request.tasks, names.items(), request.points()
    ):
        cell = _cell(protocol, task, name, seed, [*request.overrides, *point], point)
        group = (protocol, task, name, *point)
        try:
            recipe = load_recipe(
                request.recipe_name(protocol, task), [*cell.overrides, f"train.seed={seed}"], variant=given
            )
            cell.recipe, cell.recipe_hash = recipe, recipe_hash(recipe)
            if group not in built:
                built[group] = _parameters(recipe, data_dir)
        except (ValueError, TypeError, RuntimeError) as error:  # what recipes, registry and models raise
            built[group] = str(error)
        found = built[group]
        cell.state, cell.reason = ("waiting", None) if isinstance(found, int) else ("failed", found)
        cell.parameters = found if isinstance(found, int) else None
        cells.append(cell)
    _check_request(request, cells)
    return cells


def _spec(variant: str) -> str:
    """The name of a variant, which may be a file."""
    found = registry.load_file(variant) if variant.endswith(".py") else registry.spec(variant)
    if found.kind == "task":
        raise registry.RegistryError(f"{variant!r} is a task; a variant is a mixer or a model (`zoo list`).")
    return found.name


def _parameters(recipe: Recipe, data_dir: Path | None) -> int:
    return count_parameters(check(recipe, data_dir=data_dir).functional.abstract_params)


def _cell(protocol: str, task: str, variant: str, seed: int, overrides: list[str], point: Sequence[str]) -> Cell:
    run = f"{variant}-s{seed}" + "".join(f"-{_slug(text)}" for text in point)
    return Cell(
        id=f"{protocol}-{task.replace('/', '_')}-{run}",
        protocol=protocol,
        task=task,
        variant=variant,
        seed=seed,
        overrides=overrides,
        recipe_hash=None,
        state="waiting",
        reason=None,
        folder=f"cells/{protocol}/{task}/{run}",
    )


def _slug(override: str) -> str:
    """An override as a part of a file name: "train.lr=1e-3" is "lr_1e-3"."""
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.+-]+", "_", f"{key.rpartition('.')[2]}_{value}").strip("_")


def _check_request(request: Request, cells: Sequence[Cell]) -> None:
    if len({cell.folder for cell in cells}) < len(cells):
        raise MatrixError("two points of the grid, or two variants, would share a folder; name them differently.")
    for kind, values in (("protocol", request.protocols), ("task", request.tasks)):
        for value in values:
            mine = [cell for cell in cells if getattr(cell, kind) == value]
            if all(cell.recipe is None for cell in mine):
                raise MatrixError(f"no cell of the {kind} {value!r} can be: {mine[0].reason}")
    if all(cell.state == "failed" for cell in cells):
        raise MatrixError(f"no cell can be; the first one, {cells[0].id}: {cells[0].reason}")


def look_at_runs(cells: Iterable[Cell], out: Path) -> None:
    """Marks the cells whose runs are done, and those whose files are damaged as failed.

    Args:
      cells: from `plan`.
      out: the matrix's folder, which need not be there.

    Raises:
      MatrixError: it holds runs of other recipes.
    """
    others = []
    for cell in cells:
        folder = out / cell.folder
        if cell.recipe is None or cell.state == "failed" or not has_begun(folder):
            continue
        try:
            held = read_recipe(folder) if (folder / "recipe.yaml").exists() else None
        except (RunError, RecipeError) as error:
            cell.state, cell.reason = "failed", str(error)
            continue
        try:
            if held is not None:
                check_same(cell.recipe, held.to_dict(), folder)
                cell.recipe_hash = recipe_hash(held)  # what decides nothing may differ
        except RunError as error:
            others.append(str(error))
            continue
        try:
            cell.state = "waiting" if read_result(folder) is None else "done"
        except RunError as error:
            cell.state, cell.reason = "failed", str(error)
    if others:
        more = f" So do {len(others) - 1} more." if len(others) > 1 else ""
        raise MatrixError(f"{others[0].replace('--run-dir', '--out')}{more}")
