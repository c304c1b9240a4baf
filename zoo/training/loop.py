"""The one training loop."""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data.pipeline import eval_batches, train_batches
from zoo.data.prefetch import prefetch_to_device
from zoo.functional import Functional, count_parameters
from zoo.tasks.base import Split, Task
from zoo.training import memory
from zoo.training.checkpoint import CheckpointError, Checkpoints
from zoo.training.console import Console
from zoo.training.evaluate import evaluate
from zoo.training.folder import check_same, require_room
from zoo.training.logging import MetricLog, NoLog, check_mark
from zoo.training.optimizer import learning_rate, make_optimizer
from zoo.training.processes import AnyProcess, is_main, share, together
from zoo.training.profiling import Profiler
from zoo.training.recipe import Recipe, recipe_from_dict, with_steps
from zoo.training.sharding import Layout, make_mesh, put_batch
from zoo.training.signals import Interrupted, StopRequest
from zoo.training.step import abstract_state, eval_params, init_state, make_eval_step, make_train_step

# How many of the last checkpoints stay.
_KEPT = 2
# What a checkpoint takes on a disk besides its arrays, about.
_DISK_OVERHEAD = 1 << 18


class TrainingError(RuntimeError):
    """The run cannot go on."""


class Trainer:
    """Trains one recipe in one run directory.

    Args:
      recipe: resolved.
      task: with its data prepared.
      functional: the model.
      folder: the run directory.
      layout: which devices, and how they are laid out.
      profile: updates to trace, (after, up to and with); None for none.
      progress: show progress on the console.

    Raises:
      MeshError: the devices do not divide the batch, or cannot be laid out so.
      CheckpointError: there are checkpoints, and none of them can be used.
      TrainingError: a checkpoint is of other data.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        functional: Functional,
        folder: Path,
        *,
        layout: Layout | None = None,
        profile: tuple[int, int] | None = None,
        progress: bool = True,
    ):
        self.recipe, self.task = recipe, task
        self.config = with_steps(recipe.train, 0 if recipe.train.epochs is None else len(task.split("train")))
        self.functional = functional
        self.mesh = make_mesh(layout or Layout(), self.config.batch_size, self.config.accumulate)
        self.put = put_batch(self.mesh)
        self.optimizer = make_optimizer(self.config)
        self.train_step = make_train_step(functional, task, self.optimizer, self.config, self.mesh)
        self.eval_step = make_eval_step(functional, task, self.mesh)
        self.learning_rate = learning_rate(self.config)
        self.key = jax.random.fold_in(jax.random.key(self.config.seed), 1)
        self.parameters = count_parameters(functional.abstract_params)
        self.compiled: dict[tuple[int, ...], Any] = {}
        self.compile_seconds = 0.0
        self.step_bytes = 0
        self.stop = StopRequest()
        self.stopping = AnyProcess(self.mesh) if jax.process_count() > 1 else None
        # Bookkeeping that a resumed run must continue; it is saved in every checkpoint.
        self.meta: dict[str, Any] = {
            "window": {},
            "best": None,
            "stale": 0,  # evaluations since the best one
            "validated": 0,  # the last step that was evaluated
            "validation": {},
            "log": None,
            "clock": {"seconds": 0.0, "steps": 0},
        }
        self.named_best: dict[str, Any] | None = None  # in the newest checkpoint that is whole
        self.told = False  # whether a process got a signal, as all of them know
        facts = {"recipe": recipe.to_dict(), "data": task.fingerprint(), "task": task.facts()}
        self.last = Checkpoints(folder / "checkpoints" / "last", keep=_KEPT, facts=facts)
        self.best = Checkpoints(folder / "checkpoints" / "best", keep=None, facts=facts)
        self.batches = self._make_batches()
        self.rejected: list[str] = []  # checkpoints that could not be used, and why
        self.step = self.start = self._choose(folder / "metrics.jsonl")
        self.state = self._restore(self.step) if self.step else init_state(*self._state_settings())
        # Those of steps that are about to be repeated: on another device they may come out otherwise, and a process
        # that was killed while it deleted one left half of it.
        self._prune_best()
        self.finished = self._is_finished()
        with together():
            require_room(folder, self._bytes_to_write())
            kept = (self.meta["log"] or {"bytes": 0})["bytes"]
            self.log = MetricLog(folder, recipe, position=kept, step=self.step) if is_main() else NoLog()
        self.console = Console(self.config.steps, start=self.step, enabled=progress and is_main())
        self.profiler = Profiler(folder, profile if is_main() else None, tell=self.console.line)

    def run(self) -> None:
        """Trains to the last step, evaluating and saving on the way.

        Raises:
          TrainingError: the loss is not finite; the last good checkpoint stays.
          OutOfMemory: one update does not fit; says what would.
          CheckpointError: a checkpoint cannot be written.
          Interrupted: the process was told to end; where it stood is saved.
        """
        with contextlib.closing(self.log), contextlib.closing(self.console), contextlib.closing(self.profiler):
            for text in self.rejected:
                self.console.line(text)
            if self.start:
                self.console.line(f"going on from step {self.start}")
            with self.stop:
                try:
                    self._steps()
                    self._wait()
                    self._leave_if_told()
                except Interrupted as stopped:
                    self.console.status("saving")
                    self._save(self.step)
                    self._wait()
                    stopped.saved = f"step {self.step} is saved"
                    raise

    def _steps(self) -> None:
        pending = None
        self._after_step()  # what an interrupted process did not come to
        while not self.finished:
            began = time.perf_counter()
            batch = next(self.batches)
            run_step, compiling = self._compiled(batch)
            with self._memory_explained(batch):
                sums = self._update(run_step, batch)
                if pending is not None:
                    self._take(*pending)
                pending = (self.step, sums)
                # At these steps the host waits for the device: what is written must include this step.
                if self._told() or self._due(self.config.log_every) or self._saves() or self._evaluates():
                    self._take(*pending)
                    pending = None
            self.meta["clock"]["seconds"] += time.perf_counter() - began - compiling
            self.meta["clock"]["steps"] += 1
            self.console.step(self.step)
            if pending is None:
                self._after_step()
                self._leave_if_told()

    def _update(self, run_step: Any, batch: Any) -> dict[str, Any]:
        """Begins one update and returns its sums, for which nobody has waited yet."""
        self.profiler.before(self.step)
        with self.profiler.annotate(self.step):
            self.state, sums = run_step(self.state, batch, self.key)
        self.step += 1
        self.profiler.after(self.step, lambda: jax.block_until_ready(self.state))
        if self.stopping is None:
            return sums
        return {**sums, "stop": self.stopping.ask(self.stop.signum is not None)}

    def _told(self) -> bool:
        """Whether this run is to end: all its processes, of which one or more got a signal."""
        return self.told or (self.stop.signum is not None and jax.process_count() == 1)

    def _leave_if_told(self) -> None:
        if self._told():
            raise Interrupted(self.stop.signum or signal.SIGTERM)

    def _after_step(self) -> None:
        """Evaluates and saves where it is time; a step that has been evaluated is not evaluated again."""
        if self.step == 0:
            return
        if self._evaluates() and self.meta["validated"] != self.step:
            self._validate(self.step)
        self.finished = self._is_finished()
        if self.finished and self.meta["window"]:
            self._write_window(self.step)
        if self._saves() or self.finished:
            self._save(self.step)

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
        return evaluate(self.eval_step, eval_params(state), state["rest"], self._watched(batches), self.put)

    def best_state(self) -> Any:
        """The state (params and rest) that did best on validation."""
        like = {"params": self.state["params"], "rest": self.state["rest"]}
        return self.best.restore(like, self.meta["best"]["step"])

    def close(self) -> None:
        """Ends reading threads and background writers."""
        self.batches.close()
        self.last.close()
        self.best.close()

    def _state_settings(self) -> tuple[Any, ...]:
        return self.functional, self.optimizer, self.config, self.mesh

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

    def _watched(self, batches: Any) -> Iterator[Any]:
        """The batches of an evaluation, with progress, and an end where the process is told to end."""
        for number, batch in enumerate(batches):
            # With several processes all walk to the end: each of them waits for the others in every batch.
            if self.stop.signum is not None and jax.process_count() == 1:
                raise Interrupted(self.stop.signum)
            yield batch
            self.console.evaluation(number + 1, len(batches))

    def _compiled(self, batch: Any) -> tuple[Any, float]:
        """The compiled step for the batch's shape, and the seconds that compiling took just now."""
        began = time.perf_counter()
        if not self.compiled:
            # The longest first: if it does not fit the memory, better now than when it comes.
            self._compile(self._longest(batch))
        if batch["inputs"].shape not in self.compiled:
            self._compile(batch)
        else:
            began = time.perf_counter()
        return self.compiled[batch["inputs"].shape], time.perf_counter() - began

    def _longest(self, batch: Any) -> Any:
        """Shapes and places of a batch of the greatest length."""
        length, longest = batch["inputs"].shape[1], self.task.info.max_len
        return {
            name: memory.placed(memory.resized(rows, self.config.batch_size, length, longest), rows.sharding)
            for name, rows in batch.items()
        }

    def _compile(self, batch: Any) -> None:
        self.console.status("compiling")
        began = time.perf_counter()
        with self._memory_explained(batch):
            compiled = self.train_step.lower(self.state, batch, self.key).compile()
        self.compile_seconds += time.perf_counter() - began
        with together():
            memory.require_memory(compiled, self._plan(batch), **self._sizes())
        self.step_bytes = max(self.step_bytes, memory.planned_bytes(compiled))
        self.compiled[batch["inputs"].shape] = compiled
        self.console.status("")

    @contextlib.contextmanager
    def _memory_explained(self, batch: Any) -> Iterator[None]:
        """Says what would fit where XLA says that something does not."""
        try:
            yield
        except Exception as error:
            explained = memory.out_of_memory(error, self._plan(batch), **self._sizes())
            if explained is None:
                raise
            raise explained from error

    def _plan(self, batch: Any) -> memory.Plan:
        return memory.plan_step(self.recipe, batch, length=batch["inputs"].shape[1], mesh=self.mesh)

    def _take(self, step: int, sums: dict[str, Any]) -> None:
        """Reads the sums of a finished step into the log's window."""
        values = {name: float(np.float64(value)) for name, value in sums.items()}
        self.told = self.told or values.pop("stop", 0) > 0
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise TrainingError(
                f"the {'loss' if not math.isfinite(values['loss']) else 'gradient'} of step {step} is not finite "
                f"(loss {values['loss']}, gradient norm {values['grad_norm']}). {self._advice()}"
            )
        window = self.meta["window"]
        for name, value in values.items():
            window[name] = window.get(name, 0.0) + value
        window["steps"] = window.get("steps", 0) + 1
        if step == self.config.steps or step % self.config.log_every == 0:
            self._write_window(step)

    def _write_window(self, step: int) -> None:
        """Writes the means over the updates since the last line of the log."""
        window, self.meta["window"] = self.meta["window"], {}
        weight, steps = window.pop("weight"), window.pop("steps")
        grad_norm = window.pop("grad_norm") / steps
        metrics = {name: total / weight for name, total in window.items()}
        metrics |= {"grad_norm": grad_norm, "lr": float(jnp.asarray(self.learning_rate(step - 1)))}
        with self._logging():
            self.log.write(step, "train", metrics)
        self.last.raise_errors()
        self.best.raise_errors()
        self.console.metrics(step, "train", metrics)

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """Says of a log that cannot be written what is not lost."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"metrics.jsonl in {self.last.folder.parents[1]} cannot be written: {error.strerror or error}. "
                f"{self._last_good()} Mend the disk, then the same command goes on."
            ) from error

    def _last_good(self) -> str:
        good = self.last.latest()
        return f"The last good checkpoint is step {good}." if good else "There is no checkpoint yet."

    def _advice(self) -> str:
        return f"{self._last_good()} Try a smaller train.lr, train.clip=1.0 or model.dtype=float32."

    def _validate(self, step: int) -> None:
        self.console.status("evaluating")
        metrics = self.evaluate("validation", self.state)
        self.console.status("")
        if not all(map(math.isfinite, metrics.values())):
            raise TrainingError(f"validation at step {step} is not finite ({metrics}). {self._advice()}")
        self.meta |= {"validation": metrics, "validated": step, "stale": self.meta["stale"] + 1}
        with self._logging():
            self.log.write(step, "validation", metrics)
        self.console.metrics(step, "validation", metrics)
        score = metrics[self.task.metric]
        if self.meta["best"] is None or self.task.is_better(score, self.meta["best"]["score"]):
            self.meta |= {"best": {"step": step, "score": score}, "stale": 0}
            state = {"params": eval_params(self.state), "rest": self.state["rest"]}
            self.best.save(step, state, {"validation": metrics})

    def _save(self, step: int) -> None:
        # The best one first, and older ones go last: bookkeeping never names a checkpoint that is not on disk.
        self.best.wait()
        self.last.wait()
        self._prune_best(self.named_best)
        with self._logging():
            self.meta["log"] = self.log.mark()
        self.last.save(step, self.state, {**self.meta, "data": self.batches.get_state()})
        self.named_best = self.meta["best"]

    def _wait(self) -> None:
        """Returns when everything is on disk, and what is not needed any more is gone."""
        self.last.wait()
        self.last.keep_only(self.last.steps()[-_KEPT:])  # Orbax does that only as it saves
        self._prune_best()

    def _prune_best(self, *others: dict[str, Any] | None) -> None:
        """Deletes all best checkpoints but the current one and `others`."""
        self.best.wait()
        self.best.keep_only({best["step"] for best in (self.meta["best"], *others) if best is not None})

    def _choose(self, log: Path) -> int:
        """The newest step that a run can go on from, 0 where none was saved; the same in every process.

        Newer ones that cannot be used are set aside.
        """
        found: dict[str, Any] = {"step": 0, "bad": []}
        with together():
            if is_main():
                found = self._find(log)
        found = json.loads(share(json.dumps(found))[0])
        for step in found["bad"]:
            place = self.last.set_aside(step)
            self.rejected.append(f"step {step} was set aside to {place}; an earlier one is used, step {found['step']}.")
        return found["step"]

    def _find(self, log: Path) -> dict[str, Any]:
        reasons: dict[int, str] = {}
        for step in reversed(self.last.steps()):
            try:
                self._check_usable(step, log)
            except CheckpointError as error:
                reasons[step] = str(error)
            else:
                self.rejected += reasons.values()
                return {"step": step, "bad": list(reasons)}
        if not reasons:
            return {"step": 0, "bad": []}
        raise CheckpointError(
            f"no checkpoint in {self.last.folder} can be used. {' '.join(reasons.values())} "
            "Put whole ones there, or train again in another --run-dir."
        )

    def _check_usable(self, step: int, log: Path) -> None:
        """Raises CheckpointError where a step is not whole, or what it speaks of is not."""
        manifest = self.last.check(step)
        # Through a recipe, so that what this version has more has its default.
        held = recipe_from_dict(manifest["recipe"], f"the manifest of {self.last.path(step)}")
        check_same(self.recipe, held.to_dict(), self.last.folder.parents[1])
        if manifest["data"] != self.task.fingerprint():
            raise TrainingError(
                f"{self.last.path(step)} was trained on other data of the same name (fingerprint {manifest['data']}, "
                f"here {self.task.fingerprint()}): it was prepared by another version, or from other files. Use the "
                "data that the run began with, or another --run-dir."
            )
        meta = manifest["meta"]
        if complaint := check_mark(log, meta["log"]):
            raise CheckpointError(f"{self.last.path(step)} cannot be gone on from: {complaint}.")
        if meta["best"] is not None:
            self.best.check(meta["best"]["step"])

    def _restore(self, step: int) -> Any:
        meta = self.last.meta(step)[1]
        state = self.last.restore(abstract_state(*self._state_settings()), step)
        self.batches.set_state(meta.pop("data"))
        self.meta = meta
        self.named_best = meta["best"]
        return state

    def _bytes_to_write(self) -> int:
        """Bytes of checkpoints that may come to lie on the disk besides those that are there."""
        one = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in self.state.items()}
        whole, best = sum(one.values()) + _DISK_OVERHEAD, one["params"] + one["rest"] + _DISK_OVERHEAD
        return whole + best if self.step else 3 * whole + 2 * best

    def _due(self, every: int) -> bool:
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    def _evaluates(self) -> bool:
        return self._due(self.config.eval_every)

    def _saves(self) -> bool:
        return self._due(self.config.checkpoint_every or self.config.eval_every)

    def _is_finished(self) -> bool:
        patience = self.config.patience
        return self.step == self.config.steps or (patience is not None and self.meta["stale"] >= patience)

    def _sizes(self) -> dict[str, int]:
        sizes = {"batch_size": self.config.batch_size, "accumulate": self.config.accumulate}
        return {**sizes, "max_len": self.task.info.max_len, "rows": self.mesh.size}
