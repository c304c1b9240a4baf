"""The one training loop."""

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data.pipeline import eval_batches, train_batches
from zoo.data.prefetch import prefetch_to_device
from zoo.functional import Functional, count_parameters
from zoo.tasks.base import Split, Task
from zoo.training.checkpoint import Checkpoints
from zoo.training.evaluate import evaluate
from zoo.training.logging import Console, MetricLog
from zoo.training.optimizer import learning_rate, make_optimizer
from zoo.training.recipe import Recipe
from zoo.training.sharding import make_mesh, put_batch, replicated
from zoo.training.step import eval_params, init_state, make_eval_step, make_train_step


class TrainingError(RuntimeError):
    """The run cannot go on."""


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that the compiler plans for one call: arguments, results and temporaries, donated memory counted once."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(used - memory.alias_size_in_bytes)


class Trainer:
    """Trains one recipe in one run directory.

    Args:
      recipe: resolved.
      task: with its data prepared.
      functional: the model.
      folder: the run directory.
      resume: go on from the newest checkpoint, if there is one.
      progress: show progress on the console.
    """

    def __init__(
        self, recipe: Recipe, task: Task, functional: Functional, folder: Path, *, resume: bool, progress: bool
    ):
        self.recipe, self.task, self.config = recipe, task, recipe.train
        self.functional = functional
        self.mesh = make_mesh(self.config.batch_size)
        self.put = put_batch(self.mesh)
        self.optimizer = make_optimizer(self.config)
        self.train_step = make_train_step(functional, task, self.optimizer, self.config)
        self.eval_step = make_eval_step(functional, task)
        self.learning_rate = learning_rate(self.config)
        self.key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        state = init_state(functional, self.optimizer, self.config)
        self.state = jax.device_put(state, replicated(self.mesh))
        self.parameters = count_parameters(functional.abstract_params)
        self.compiled: dict[tuple[int, ...], Any] = {}
        self.compile_seconds = 0.0
        self.step_bytes = 0
        self.train_seconds = 0.0
        self.timed_steps = 0
        # Bookkeeping that a resumed run must continue; it is saved in every checkpoint.
        self.meta: dict[str, Any] = {"window": {}, "best": None, "validation": {}, "log_bytes": 0}
        self.named_best: dict[str, Any] | None = None  # in the newest checkpoint that is whole
        self.last = Checkpoints(folder / "checkpoints" / "last", keep=2)
        self.best = Checkpoints(folder / "checkpoints" / "best", keep=None)
        self.batches = self._make_batches()
        if resume and self.last.latest() is not None:
            self._restore()
        self.start = int(self.state["step"])
        self.log = MetricLog(folder, recipe, position=self.meta["log_bytes"])
        self.console = Console(self.config.steps, start=self.start, enabled=progress)

    def run(self) -> None:
        """Trains to the last step, evaluating and saving on the way.

        Raises:
          TrainingError: the loss is not finite; the last good checkpoint stays.
        """
        pending = None
        step = self.start
        with contextlib.closing(self.log), contextlib.closing(self.console):
            while step < self.config.steps:
                began = time.perf_counter()
                batch = next(self.batches)
                run_step, compiling = self._compiled(batch)
                self.state, sums = run_step(self.state, batch, self.key)
                step += 1
                if pending is not None:
                    self._take(*pending)
                pending = (step, sums)
                # At these steps the host waits for the device: what is written must include this step.
                if self._due(step, self.config.log_every) or self._saves(step) or self._evaluates(step):
                    self._take(*pending)
                    pending = None
                self.train_seconds += time.perf_counter() - began - compiling
                self.timed_steps += 1
                self.console.step(step)
                if self._evaluates(step):
                    self._validate(step)
                if self._saves(step):
                    self._save(step)
            self.last.wait()
            self._prune_best()

    def test(self, state: Any) -> dict[str, dict[str, float]]:
        """Validation and test metrics of the evaluated parameters in `state`."""
        return {split: self.evaluate(split, state) for split in ("validation", "test")}

    def evaluate(self, split: Split, state: Any) -> dict[str, float]:
        """Metrics of `state` over one split, every example once."""
        batches = eval_batches(
            self.task.split(split),
            batch_size=self.config.batch_size,
            max_len=self.task.info.max_len,
            buckets=self.config.buckets,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return evaluate(self.eval_step, eval_params(state), state["rest"], batches, self.put)

    def best_state(self) -> Any:
        """The state (params and rest) that did best on validation."""
        like = {"params": self.state["params"], "rest": self.state["rest"]}
        return self.best.restore(like, self.meta["best"]["step"])

    def close(self) -> None:
        """Ends reading threads and background writers."""
        self.batches.close()
        self.last.__exit__()
        self.best.__exit__()

    def _make_batches(self):
        batches = train_batches(
            self.task.split("train"),
            batch_size=self.config.batch_size,
            max_len=self.task.info.max_len,
            seed=self.config.seed,
            buckets=self.config.buckets,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=self.config.workers,
        )
        return prefetch_to_device(batches, self.put)

    def _compiled(self, batch):
        """The compiled step for the batch's shape, and the seconds that compiling took just now."""
        shape = batch["inputs"].shape
        if shape in self.compiled:
            return self.compiled[shape], 0.0
        began = time.perf_counter()
        compiled = self.compiled[shape] = self.train_step.lower(self.state, batch, self.key).compile()
        seconds = time.perf_counter() - began
        self.compile_seconds += seconds
        self.step_bytes = max(self.step_bytes, planned_bytes(compiled))
        return compiled, seconds

    def _take(self, step: int, sums: dict[str, jax.Array]) -> None:
        """Reads the sums of a finished step into the log's window."""
        values = {name: float(np.float64(value)) for name, value in sums.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise TrainingError(
                f"the {'loss' if not math.isfinite(values['loss']) else 'gradient'} of step {step} is not finite "
                f"(loss {values['loss']}, gradient norm {values['grad_norm']}). {self._advice()}"
            )
        window = self.meta["window"]
        for name, value in values.items():
            window[name] = window.get(name, 0.0) + value
        window["steps"] = window.get("steps", 0) + 1
        if self._due(step, self.config.log_every):
            weight, steps = window.pop("weight"), window.pop("steps")
            grad_norm = window.pop("grad_norm") / steps
            metrics = {name: total / weight for name, total in window.items()}
            metrics |= {"grad_norm": grad_norm, "lr": float(jnp.asarray(self.learning_rate(step - 1)))}
            self.meta["window"] = {}
            self.log.write(step, "train", metrics)
            self.console.metrics(step, "train", metrics)

    def _advice(self) -> str:
        good = self.last.latest()
        where = f"The last good checkpoint is step {good}." if good else "There is no checkpoint yet."
        return f"{where} Try a smaller train.lr, train.clip=1.0 or model.dtype=float32."

    def _validate(self, step: int) -> None:
        metrics = self.evaluate("validation", self.state)
        if not all(map(math.isfinite, metrics.values())):
            raise TrainingError(f"validation at step {step} is not finite ({metrics}). {self._advice()}")
        self.meta["validation"] = metrics
        self.log.write(step, "validation", metrics)
        self.console.metrics(step, "validation", metrics)
        score = metrics[self.task.metric]
        if self.meta["best"] is None or score > self.meta["best"]["score"]:
            self.meta["best"] = {"step": step, "score": score}
            state = {"params": eval_params(self.state), "rest": self.state["rest"]}
            self.best.save(step, state, {"validation": metrics})

    def _save(self, step: int) -> None:
        # The best one first, and older ones go last: bookkeeping never names a checkpoint that is not on disk.
        self.best.wait()
        self.last.wait()
        self._prune_best(self.named_best)
        self.meta["log_bytes"] = self.log.position()
        self.last.save(step, self.state, {**self.meta, "data": self.batches.get_state()})
        self.named_best = self.meta["best"]

    def _restore(self) -> None:
        step, meta = self.last.meta()
        self.state = self.last.restore(self.state, step)
        self.batches.set_state(meta.pop("data"))
        self.meta = meta
        self.named_best = meta["best"]
        # Those of steps that are about to be repeated: on another device they may come out otherwise.
        self._prune_best()

    def _prune_best(self, *others: dict[str, Any] | None) -> None:
        """Deletes all best checkpoints but the current one and `others`."""
        self.best.wait()
        self.best.keep_only({best["step"] for best in (self.meta["best"], *others) if best is not None})

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _evaluates(self, step: int) -> bool:
        return self._due(step, self.config.eval_every)

    def _saves(self, step: int) -> bool:
        return self._due(step, self.config.checkpoint_every or self.config.eval_every)
