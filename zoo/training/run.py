"""A run directory: recipe.yaml, metrics.jsonl, checkpoints/{last,best}, tensorboard/ and, at the end, result.json."""

import dataclasses
import datetime
import json
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx

import zoo
from zoo.data.pipeline import eval_batches
from zoo.functional import Functional, pure_dict
from zoo.tasks.base import Split
from zoo.training.build import make_task, model_maker, variant_spec
from zoo.training.checkpoint import Checkpoints
from zoo.training.evaluate import evaluate
from zoo.training.logging import write_json, write_text
from zoo.training.loop import Trainer
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import Recipe, load_recipe
from zoo.training.step import eval_params, init_state, make_eval_step


class RunError(RuntimeError):
    """A run directory is taken, missing or not what it should be."""


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    data_dir: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains a recipe to the end and returns what result.json holds.

    Args:
      recipe: see `zoo.training.recipe.load_recipe`.
      folder: the run directory; made if missing.
      resume: go on where an earlier process in the same directory was stopped; a finished run just answers.
      data_dir: where data lives; None for the default.
      progress: show progress on the console.

    Raises:
      RunError: the directory holds a run and `resume` is off, or a run of another recipe.
      TrainingError: the loss is not finite.
    """
    folder = Path(folder)
    recipe = _with_absolute_variant(recipe)
    _check_free(folder, recipe, resume)
    finished = read_result(folder)
    if finished is not None:
        return finished
    spec = variant_spec(recipe)
    task = make_task(recipe, data_dir)
    functional = Functional(model_maker(recipe, task.info))
    task.prepare(progress=progress)
    # Only now, so that a recipe that cannot run takes no directory.
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    trainer = Trainer(recipe, task, functional, folder, resume=resume, progress=progress)
    try:
        trainer.run()
        result = _result(recipe, spec.name, trainer)
    finally:
        trainer.close()
    write_json(folder / "result.json", result)
    return result


def finished_result(recipe: Recipe, folder: str | Path) -> dict[str, Any] | None:
    """The result of this recipe's run in a directory, or None where it is not finished.

    Raises:
      RunError: the directory holds a run of another recipe.
    """
    _check_free(Path(folder), _with_absolute_variant(recipe), resume=True)
    return read_result(folder)


def _with_absolute_variant(recipe: Recipe) -> Recipe:
    """The recipe, a variant that is a file named by its absolute path, so that it is found from anywhere."""
    if not recipe.variant.endswith(".py"):
        return recipe
    return dataclasses.replace(recipe, variant=str(Path(recipe.variant).expanduser().resolve()))


def _check_free(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Says why the run directory cannot be this recipe's, if it holds a run that began."""
    path = folder / "recipe.yaml"
    began = (folder / "metrics.jsonl").exists() or any((folder / "checkpoints").glob("*/[0-9]*"))
    if not (began and path.exists()):
        return
    if not resume:
        raise RunError(f"{folder} holds a run already; add --resume to go on with it, or choose another --run-dir.")
    held = load_recipe(path)
    ours, theirs = recipe.to_dict(), held.to_dict()
    for values in (ours, theirs):
        for ignored in ("name", "published"):
            values.pop(ignored)
        for ignored in ("workers", "tensorboard", "wandb"):  # they decide nothing of the result
            values["train"].pop(ignored)
    if ours != theirs:
        differing = sorted(_differences(theirs, ours))
        raise RunError(f"{folder} holds a run of another recipe; these differ: {', '.join(differing)}.")


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys()
        return [text for key in keys for text in _differences(old.get(key), new.get(key), f"{prefix}{key}.")]
    return [] if old == new else [f"{prefix.rstrip('.')} ({old!r} there, {new!r} here)"]


def read_result(folder: str | Path) -> dict[str, Any] | None:
    """The result of a finished run, or None."""
    path = Path(folder) / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _result(recipe: Recipe, variant: str, trainer: Trainer) -> dict[str, Any]:
    steps = {"last": recipe.train.steps, "best": trainer.meta["best"]["step"]}
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
        "select": recipe.train.select,
        **{which: {"step": steps[which], **tests[which]} for which in ("best", "last")},
        "baselines": {split: trainer.task.baselines(split) for split in ("validation", "test")},
        "published": recipe.published,
        "steps": recipe.train.steps,
        "batch_size": recipe.train.batch_size,
        "max_len": trainer.task.info.max_len,
        "steps_per_second": trainer.timed_steps / trainer.train_seconds if trainer.timed_steps else None,
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
    return f"{len(names)} x {names[0]}" if names else platform.machine()


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
    folder = Path(folder)
    if which not in ("best", "last"):
        raise ValueError(f"which must be 'best' or 'last', got {which!r}.")
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is not a run directory: it has no recipe.yaml.")
    recipe = load_recipe(folder / "recipe.yaml")
    task = make_task(recipe, data_dir)
    functional = Functional(model_maker(recipe, task.info))
    checkpoints = folder / "checkpoints" / which
    if not checkpoints.is_dir():
        raise RunError(f"{folder} has no checkpoint yet.")
    with Checkpoints(checkpoints, keep=2) as saved:
        step, _ = saved.meta()
        like = jax.eval_shape(lambda: init_state(functional, make_optimizer(recipe.train), recipe.train))
        if which == "best":
            like = {"params": like["params"], "rest": like["rest"]}
        state = saved.restore(like, step)
    model = functional.module(eval_params(state), state["rest"])
    model.eval()
    return Run(folder, recipe, task, model, step, read_result(folder))


def evaluate_run(
    folder: str | Path,
    *,
    which: Literal["best", "last"] = "best",
    split: Split = "test",
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a run's parameters on one split, every example once.

    Raises:
      RunError, CheckpointError: see `load_run`.
    """
    run = load_run(folder, which, data_dir=data_dir)
    run.task.prepare(progress=False)
    train_config = run.recipe.train
    batches = eval_batches(
        run.task.split(split),
        batch_size=train_config.batch_size,
        max_len=run.task.info.max_len,
        buckets=train_config.buckets,
    )
    functional = Functional(model_maker(run.recipe, run.task.info))
    _, params, rest = nnx.split(run.model, nnx.Param, ...)
    metrics = evaluate(make_eval_step(functional, run.task), pure_dict(params), pure_dict(rest), batches)
    return {"run": str(folder), "which": which, "step": run.step, "split": split, **metrics}


def default_run_dir(recipe: Recipe) -> Path:
    """runs/RECIPE/VARIANT-sSEED, below the working directory."""
    return Path("runs", recipe_path(recipe.name), f"{Path(recipe.variant).stem}-s{recipe.train.seed}")


def recipe_path(name: str) -> Path:
    """A recipe's name as a folder below runs/: that of a file elsewhere is the file's name alone."""
    path = Path(name or "recipe")
    path = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    return Path(path.name) if path.is_absolute() or ".." in path.parts else path
