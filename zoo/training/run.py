"""A run directory: recipe.yaml, metrics.jsonl, checkpoints/{last,best}, tensorboard/ and, at the end, result.json."""

import contextlib
import dataclasses
import datetime
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax

import zoo
from zoo.data.chunks import available_cores
from zoo.data.fetch import nothing_fetched
from zoo.data.pipeline import eval_batches
from zoo.functional import Functional
from zoo.tasks.base import Split
from zoo.training.budget import budget
from zoo.training.build import make_task, model_maker, variant_spec
from zoo.training.checkpoint import Checkpoints
from zoo.training.evaluate import evaluate
from zoo.training.folder import (
    RunError,
    check_same,
    has_begun,
    hold,
    read_recipe,
    read_result,
    write_recipe,
    write_result,
)
from zoo.training.loop import Trainer
from zoo.training.optimizer import make_optimizer
from zoo.training.processes import is_main, share, together
from zoo.training.profiling import check_window
from zoo.training.recipe import Recipe
from zoo.training.sharding import Layout, describe, make_mesh, put_batch
from zoo.training.step import abstract_state, eval_params, make_eval_step


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = True,
    data_dir: Path | None = None,
    layout: Layout | None = None,
    profile: tuple[int, int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a recipe to the end and returns what result.json holds.

    Args:
      recipe: see `zoo.training.recipe.load_recipe`.
      folder: the run directory; made if missing.
      resume: go on where an earlier process in the same directory was stopped, which ends in the same parameters as if
        it had not been; a finished run just answers. False refuses a directory that holds a run.
      data_dir: where data lives; None for the default.
      layout: which devices, and how they are laid out; None for all of them, with a copy of the state on each.
      profile: updates to trace into `folder`/profile: those after the first number, up to and with the second.
      progress: show progress on the console.

    Raises:
      RunError: the directory holds a run and `resume` is off, or a run of another recipe; another process writes there;
        it cannot be written, or its disk is full.
      RecipeError, MeshError: the recipe, or the devices, do not fit; nothing is written.
      CheckpointError: no checkpoint that is there can be used, or one cannot be written.
      OutOfMemory: an update does not fit; says what would.
      TrainingError: the loss is not finite, or the data is not that of the checkpoint.
    """
    folder = Path(folder)
    recipe = _with_absolute_variant(recipe)
    with contextlib.ExitStack() as held:
        if _is_finished(folder, recipe, resume):
            return _finished(folder)
        plan = check(recipe, data_dir=data_dir, layout=layout, profile=profile)
        with together():
            plan.task.prepare(progress=progress and is_main())
        # Only now, so that a recipe that cannot run takes no directory.
        with together():
            if is_main():
                held.enter_context(hold(folder))
        if _is_finished(folder, recipe, resume):  # by the process that held it until now
            return _finished(folder)
        trainer = Trainer(recipe, plan.task, plan.functional, folder, layout=layout, profile=profile, progress=progress)
        try:
            with together():
                if is_main():
                    write_recipe(folder, recipe)
            trainer.run()
            result = _result(recipe, plan.spec.name, trainer)
        finally:
            trainer.close()
        with together():
            return write_result(folder, result) if is_main() else result


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe that has been checked; see `check`.

    Attributes:
      spec: facts of the variant.
      task: not prepared yet.
      functional: the model; no array of it exists yet.
      state: shapes and places of the arrays that training keeps.
      mesh: of the devices.
    """

    spec: zoo.Spec
    task: Any
    functional: Functional
    state: Any
    mesh: jax.sharding.Mesh


def check(
    recipe: Recipe,
    *,
    data_dir: Path | None = None,
    layout: Layout | None = None,
    profile: tuple[int, int] | None = None,
) -> Plan:
    """Finds what is wrong with a request before anything is computed or written.

    Raises:
      RegistryError, RecipeError, ValueError: see `zoo.training.build`.
      MeshError: see `zoo.training.sharding`.
    """
    if profile is not None:
        # How many steps the epochs are is not known before the data is read.
        check_window(profile, 0, recipe.train.steps if recipe.train.epochs is None else 2**31)
    spec = variant_spec(recipe)
    task = make_task(recipe, data_dir)
    functional = Functional(model_maker(recipe, task.info))
    mesh = make_mesh(layout or Layout(), recipe.train.batch_size, recipe.train.accumulate)
    state = abstract_state(functional, make_optimizer(recipe.train), recipe.train, mesh)
    return Plan(spec, task, functional, state, mesh)


def finished_result(recipe: Recipe, folder: str | Path) -> dict[str, Any] | None:
    """The result of this recipe's run in a directory, or None where it is not finished.

    Raises:
      RunError: the directory holds a run of another recipe, or a damaged file.
    """
    _look(Path(folder), _with_absolute_variant(recipe), resume=True)
    return read_result(folder)


def _with_absolute_variant(recipe: Recipe) -> Recipe:
    """The recipe, a variant that is a file named by its absolute path, so that it is found from anywhere."""
    if not recipe.variant.endswith(".py"):
        return recipe
    return dataclasses.replace(recipe, variant=str(Path(recipe.variant).expanduser().resolve()))


def _is_finished(folder: Path, recipe: Recipe, resume: bool) -> bool:
    """Whether the directory holds this recipe's result, as process 0 sees it."""
    finished = False
    with together():
        if is_main():
            _look(folder, recipe, resume)
            finished = read_result(folder) is not None
    return bool(share("finished" if finished else "")[0])


def _finished(folder: Path) -> dict[str, Any]:
    result = read_result(folder)
    if result is None:
        raise RunError(f"{folder} is finished as process 0 sees it, and not here: all must see one directory.")
    return result


def _look(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Says why the run directory cannot be this recipe's, if it holds a run that began."""
    if not has_begun(folder):
        return
    if not resume:
        raise RunError(f"{folder} holds a run; leave out --no-resume to go on with it, or choose another --run-dir.")
    if (folder / "recipe.yaml").exists():  # else the checkpoints are asked
        check_same(recipe, read_recipe(folder).to_dict(), folder)


def _result(recipe: Recipe, variant: str, trainer: Trainer) -> dict[str, Any]:
    steps = {"last": trainer.step, "best": trainer.meta["best"]["step"]}
    clock = trainer.meta["clock"]
    size = budget(recipe, trainer.task.info, trainer.parameters)
    tests = {"last": trainer.test(trainer.state)}
    tests["best"] = tests["last"] if steps["best"] == steps["last"] else trainer.test(trainer.best_state())
    return {
        "task": recipe.task.name,
        "source": recipe.task.source,
        "protocol": recipe.protocol,
        "recipe": recipe.name,
        "variant": variant,
        "seed": recipe.train.seed,
        "parameters": trainer.parameters,
        "budget": size.to_dict() if size else None,
        "select": recipe.train.select,
        "metric": trainer.task.metric,
        **{which: {"step": steps[which], **tests[which]} for which in ("best", "last")},
        "baselines": {split: trainer.task.baselines(split) for split in ("validation", "test")},
        "published": recipe.published,
        "steps": trainer.step,
        "stopped_early": trainer.step < trainer.config.steps,
        "batch_size": recipe.train.batch_size,
        "max_len": trainer.task.info.max_len,
        "data": trainer.task.fingerprint(),
        "cautions": trainer.task.cautions(),
        "mesh": describe(trainer.mesh),
        "processes": jax.process_count(),
        "steps_per_second": clock["steps"] / clock["seconds"] if clock["steps"] else None,
        "compile_seconds": trainer.compile_seconds,
        "memory": _memory(trainer),
        "environment": environment(),
    }


def _memory(trainer: Trainer) -> dict[str, int | None]:
    """Bytes: what the compiler plans for one step, the device's own peak where it tells, and this process's peak."""
    stats = jax.local_devices()[0].memory_stats() or {}
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "step": trainer.step_bytes,
        "device_peak": stats.get("peak_bytes_in_use"),
        "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
    }


def environment() -> dict[str, Any]:
    """Versions, device and commit: what a figure must be read with."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "zoo": zoo.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "device": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "processor": _processor(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        if Path(run("rev-parse", "--show-toplevel")).resolve() != folder.parents[1]:
            return None
        return run("rev-parse", "--short=12", "HEAD") + ("+" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if not names:
        return platform.machine()
    share = f"{available_cores()} of " if available_cores() < len(names) else ""
    return f"{share}{len(names)} x {names[0]}"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with what made it; see `load_run`.

    Attributes:
      folder: the run directory.
      recipe: resolved.
      task: the data set; reading a split needs its data to be prepared.
      model: the module, in evaluation mode: `model(inputs, mask=...)` gives logits [B, C].
      step: the update that its parameters are from.
      result: what result.json holds, or None where the run is not finished.
    """

    folder: Path
    recipe: Recipe
    task: Any
    model: Any
    step: int
    result: dict[str, Any] | None


def load_run(folder: str | Path, which: Literal["best", "last"] = "best", *, data_dir: Path | None = None) -> Run:
    """Loads a run for inference.

    Args:
      folder: a run directory.
      which: the parameters that did best on validation, or the last ones saved.
      data_dir: where data lives; None for the default.

    Raises:
      RunError: no run there.
      CheckpointError: no checkpoint, or it does not fit.
    """
    loaded = _load(Path(folder), which, data_dir)
    model = loaded.functional.module(loaded.params, loaded.rest)
    model.eval()
    return Run(Path(folder), loaded.recipe, loaded.task, model, loaded.step, read_result(folder))


@dataclasses.dataclass(frozen=True)
class _Loaded:
    recipe: Recipe
    task: Any
    functional: Functional
    params: Any
    rest: Any
    step: int
    mesh: jax.sharding.Mesh | None


def _load(
    folder: Path,
    which: str,
    data_dir: Path | None,
    layout: Layout | None = None,
    options: Mapping[str, Any] | None = None,
) -> _Loaded:
    """The evaluated parameters of a run, on the default device or laid out over several."""
    if which not in ("best", "last"):
        raise ValueError(f"which must be 'best' or 'last', got {which!r}.")
    recipe = read_recipe(folder)
    if options:
        changed = dataclasses.replace(recipe.task, options={**recipe.task.options, **options})
        recipe = dataclasses.replace(recipe, task=changed)
    task = make_task(recipe, data_dir)
    mesh = None if layout is None else make_mesh(layout, recipe.train.batch_size)
    checkpoints = folder / "checkpoints" / which
    if not checkpoints.is_dir():
        raise RunError(f"{folder} has no checkpoint yet.")
    with Checkpoints(checkpoints, keep=None, write=False) as saved:
        step, _ = saved.meta()
        if facts := saved.check(step).get("task"):
            task.recall(facts)
        functional = Functional(model_maker(recipe, task.info))
        like = abstract_state(functional, make_optimizer(recipe.train), recipe.train, mesh)
        if which == "best":
            like = {"params": like["params"], "rest": like["rest"]}
        state = saved.restore(like, step)
    return _Loaded(recipe, task, functional, eval_params(state), state["rest"], step, mesh)


def evaluate_run(
    folder: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    split: Split = "test",
    options: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Evaluates a run's parameters on one split, every example once.

    Args:
      folder: a run directory.
      which: the parameters that did best on validation, or the last ones saved.
      split: of the task.
      options: of the task, over those of the recipe: `{"units": "original"}` for a forecast.
      data_dir: where data lives; None for the default.
      layout: which devices; None for all.

    Raises:
      RunError, CheckpointError: see `load_run`.
      MeshError: the devices do not divide the batch.
      DataError: the data is damaged, or missing and would have to be fetched, which an evaluation does not.
    """
    (found,) = evaluate_splits(folder, [split], which=which, options=options, data_dir=data_dir, layout=layout)
    return found


def evaluate_splits(
    folder: str | Path,
    splits: Sequence[Split],
    *,
    which: Literal["best", "last"] = "best",
    options: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    layout: Layout | None = None,
) -> list[dict[str, Any]]:
    """`evaluate_run` of several splits, for which the parameters are loaded, and the model is compiled, once."""
    loaded = _load(Path(folder), which, data_dir, layout or Layout(), options)
    assert loaded.mesh is not None
    with together(), nothing_fetched("An evaluation fetches nothing; run `zoo data prepare`."):
        loaded.task.prepare(progress=False)
    eval_step = make_eval_step(loaded.functional, loaded.task, loaded.mesh)
    return [_evaluated(loaded, eval_step, Path(folder), which, split) for split in splits]


def _evaluated(loaded: _Loaded, eval_step: Any, folder: Path, which: str, split: Split) -> dict[str, Any]:
    assert loaded.mesh is not None
    batches = eval_batches(
        loaded.task.split(split),
        batch_size=loaded.recipe.train.batch_size,
        max_len=loaded.task.info.max_len,
        buckets=loaded.recipe.train.buckets,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    metrics = evaluate(eval_step, loaded.params, loaded.rest, batches, put_batch(loaded.mesh))
    found = {"run": str(folder), "which": which, "step": loaded.step, "split": split, **metrics}
    cautions = loaded.task.cautions()
    return {**found, "cautions": cautions} if cautions else found
