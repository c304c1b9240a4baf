"""Re-evaluates a run's checkpoints, and confirms or refuses what its result.json, or a record of it, says.

    python -m benchmarks.lra.verify RUN [--record FILE] [--tolerance X]

Every figure of both checkpoints on both splits is computed anew, and so are the baselines, the number of parameters,
the data's fingerprint and the recipe's hash. On the device and versions that the result was made with, figures must be
equal to the last bit; elsewhere sums are rounded otherwise, and a figure may differ by 0.2 % of the larger one, and a
share (accuracy) by two examples besides, whose answers a rounding may turn.

Exit codes: 0 confirmed, 1 refused, 2 there is nothing to verify.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.cells import recipe_hash
from benchmarks.lra.records import RecordError
from zoo.data.fetch import nothing_fetched
from zoo.files import unseal
from zoo.functional import Functional, count_parameters
from zoo.tasks.base import Split
from zoo.training.build import make_task, model_maker
from zoo.training.checkpoint import CheckpointError, Checkpoints
from zoo.training.folder import RunError, check_same, read_recipe
from zoo.training.recipe import recipe_from_dict
from zoo.training.run import environment, evaluate_splits

RELATIVE, EXAMPLES = 2e-3, 2
# What decides how sums are rounded.
_VERSIONS = ("device", "jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes:
      name: what.
      recorded: as the result has it.
      found: as it was computed or read now.
      holds: whether they agree.
    """

    name: str
    recorded: Any
    found: Any
    holds: bool

    def text(self) -> str:
        """One line for people; both values where they do not agree."""
        if self.holds:
            same = self.recorded == self.found
            return f"ok       {self.name}: {self.found}" + ("" if same else f" (recorded {self.recorded})")
        return f"REFUSED  {self.name}: recorded {self.recorded}, found {self.found}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
      checks: all comparisons.
      exact: whether figures had to be equal to the last bit.
      differing: what differs from the environment of the result, as (recorded, now) by name.
    """

    checks: tuple[Check, ...]
    exact: bool
    differing: Mapping[str, tuple[Any, Any]]

    @property
    def confirmed(self) -> bool:
        """Whether everything holds."""
        return all(check.holds for check in self.checks)

    def text(self) -> str:
        """For people: every check, by which rule, and the verdict."""
        lines = [check.text() for check in self.checks]
        lines += [f"note     {name}: recorded {old}, now {new}" for name, (old, new) in self.differing.items()]
        rule = "to the last bit" if self.exact else "within the tolerance for another device or other versions"
        refused = sum(not check.holds for check in self.checks)
        said = f"refused: {refused} of {len(self.checks)} checks" if refused else "confirmed"
        return "\n".join([*lines, f"{said} ({rule})"])


def verify(
    folder: Path, *, record: Path | None = None, tolerance: float | None = None, data_dir: Path | None = None
) -> Verdict:
    """Evaluates a run again and compares.

    Args:
      folder: the run directory, with its checkpoints.
      record: a record of it, which is compared instead of its result.json.
      tolerance: relative difference that figures may have; None for 0 in the same environment and else 0.002.
      data_dir: where data lives; None for the default.

    Raises:
      RunError: there is no finished run, or its recipe is damaged.
      CheckpointError: a checkpoint is missing or damaged.
      RecordError: there is no such record.
      DataError: the data is missing or damaged.
    """
    claimed, checks = _claimed(folder, record)
    recipe = read_recipe(folder)
    differing = _differing(claimed["environment"])
    exact = tolerance == 0 or (tolerance is None and not differing.keys() & {*_VERSIONS, "processor"})
    allowed = 0.0 if exact else RELATIVE if tolerance is None else tolerance
    checks += _recipe_checks(folder, claimed)
    task = make_task(recipe, data_dir)
    with nothing_fetched("A verification fetches nothing; run `zoo data prepare`."):
        task.prepare(progress=False)
    checks.append(_same("data", claimed["data"], task.fingerprint()))
    parameters = count_parameters(Functional(model_maker(recipe, task.info)).abstract_params)
    checks.append(_same("parameters", claimed["parameters"], parameters))
    for which in ("best", "last"):
        checks += _figures(folder, which, claimed[which], allowed, data_dir)
    for split in ("validation", "test"):
        found = task.baselines(split)
        for name, value in claimed["baselines"][split].items():
            checks.append(_close(f"baseline {name} on {split}", value, found.get(name), 0.0 if exact else allowed, 0.0))
    return Verdict(tuple(checks), exact, differing)


def _claimed(folder: Path, record: Path | None) -> tuple[dict[str, Any], list[Check]]:
    """What is to be verified, whole or not: a figure that was changed is to be told with the true one beside it."""
    path = folder / "result.json" if record is None else record
    if not path.is_file():
        raise (
            RunError(f"{folder} is not finished: it has no result.json.")
            if record is None
            else RecordError(f"there is no record {record}.")
        )
    data = path.read_bytes()
    try:
        claimed = json.loads(data)
    except ValueError as error:
        raise RunError(f"{path} is no JSON: {error}.") from error
    try:
        unseal(data)
    except ValueError as error:
        return claimed, [Check(f"digest of {path.name}", "whole", str(error), False)]
    return claimed, [Check(f"digest of {path.name}", "whole", "whole", True)]


def _differing(claimed: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What this process has otherwise. The processor rounds on a CPU only; the code should not, and is told of."""
    now = environment()
    names = [*_VERSIONS, "zoo", "commit", *(["processor"] if now["platform"] == "cpu" else [])]
    return {name: (claimed.get(name), now[name]) for name in names if claimed.get(name) != now[name]}


def _recipe_checks(folder: Path, claimed: Mapping[str, Any]) -> list[Check]:
    recipe = read_recipe(folder)
    said = {
        "task": recipe.task.name,
        "source": recipe.task.source,
        "protocol": recipe.protocol,
        "seed": recipe.train.seed,
        "select": recipe.train.select,
        "batch_size": recipe.train.batch_size,
    }
    checks = [_same(name, claimed[name], value) for name, value in said.items()]
    found = recipe_hash(recipe)
    hashes = {"record": claimed.get("recipe_hash"), "matrix.json": _hash_in_matrix(folder)}
    checks += [_same(f"recipe hash ({where})", value, found) for where, value in hashes.items() if value is not None]
    # The checkpoints know with which recipe they were made, whatever stands in recipe.yaml.
    for which in ("best", "last"):
        with Checkpoints(folder / "checkpoints" / which, keep=None, write=False) as saved:
            step, _ = saved.meta()
            held = recipe_from_dict(saved.check(step)["recipe"], f"the manifest of checkpoints/{which}")
        checks.append(_same(f"step of {which}", claimed[which]["step"], step))
        try:
            check_same(recipe, held.to_dict(), folder)
            checks.append(Check(f"recipe of checkpoints/{which}", found, found, True))
        except RunError as error:
            checks.append(Check(f"recipe of checkpoints/{which}", "recipe.yaml", str(error), False))
    return checks


def _hash_in_matrix(folder: Path) -> str | None:
    """The hash that the matrix which a run belongs to has for it."""
    folder = folder.resolve()
    for parent in folder.parents:
        if (parent / "matrix.json").is_file():
            cells = json.loads((parent / "matrix.json").read_text(encoding="utf-8"))["cells"]
            mine = [cell["recipe_hash"] for cell in cells if parent / cell["folder"] == folder]
            return mine[0] if mine else None
    return None


def _figures(
    folder: Path, which: Any, claimed: Mapping[str, Any], allowed: float, data_dir: Path | None
) -> list[Check]:
    checks = []
    splits: tuple[Split, ...] = ("validation", "test")
    for split, found in zip(splits, evaluate_splits(folder, splits, which=which, data_dir=data_dir), strict=True):
        examples = found["examples"]
        for name, value in claimed[split].items():
            # A rounding may turn the answer of an example or two, which is all that a share can differ by.
            room = EXAMPLES / examples if allowed and name == "accuracy" else 0.0
            exactly = name == "examples"
            checks.append(
                _close(f"{name} of {which} on {split}", value, found.get(name), 0.0 if exactly else allowed, room)
            )
    return checks


def _same(name: str, recorded: Any, found: Any) -> Check:
    return Check(name, recorded, found, recorded == found)


def _close(name: str, recorded: Any, found: Any, relative: float, absolute: float) -> Check:
    if not isinstance(recorded, int | float) or not isinstance(found, int | float):
        return _same(name, recorded, found)
    room = relative * max(abs(recorded), abs(found)) + absolute
    return Check(name, recorded, found, recorded == found or abs(recorded - found) <= room)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run directory, with its checkpoints")
    parser.add_argument("--record", type=Path, help="verify this record of the run instead of its result.json")
    parser.add_argument("--tolerance", type=float, help="relative difference that figures may have")
    parser.add_argument("--data-dir", type=Path, help="where data lives (default: $ZOO_DATA or ~/.cache/zoo)")
    args = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells how each folder is opened
    try:
        verdict = verify(args.run, record=args.record, tolerance=args.tolerance, data_dir=args.data_dir)
    except (RunError, CheckpointError, RecordError, ValueError, OSError, RuntimeError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    print(verdict.text())
    return 0 if verdict.confirmed else 1


if __name__ == "__main__":
    sys.exit(main())
