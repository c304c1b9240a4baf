"""Kills a run at random moments, again and again, and holds what comes of it against a run that nothing disturbed.

    python tests/stress.py [--kills 40] [--seed 0] [--steps 840] [--keep DIR]

Both are the real command line on the real task (ListOps, short expressions) and begin without data. A kill is SIGKILL
to the whole process group. Which moment comes next, and how long after it is recognised the kill comes, is drawn from
the seed; what the kill interrupted is read off the disk after it. Besides, some processes are told to end (SIGTERM),
and once a second one is started in the directory of a living one. The exit code is 0 if the two runs are the same to
the bit and nothing is left over, 1 if not.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
# Lines of the log, checkpoints and evaluations fall together and apart in every way.
EVAL_EVERY, CHECKPOINT_EVERY, LOG_EVERY = 6, 10, 3
RECIPE = f"""\
protocol: stress
variant: softmax
task: {{name: lra/listops, source: smoke}}
model: {{d_model: 16, num_layers: 1, num_heads: 2, d_ff: 32, positions: learned, embedding_std: 0.5, dropout: 0.1}}
train:
  steps: STEPS
  batch_size: 16
  accumulate: 2
  lr: 1.0e-3
  schedule: constant
  warmup_steps: 20
  weight_decay: 0.01
  ema: 0.9
  patience: 1000
  buckets: [40, 64]
  eval_every: {EVAL_EVERY}
  checkpoint_every: {CHECKPOINT_EVERY}
  log_every: {LOG_EVERY}
"""
DATA, START, BEST, LAST = "preparing data", "starting", "saving the best", "saving the last"
EVALUATING, BETWEEN, END = "evaluating", "between saves", "after the last step"
KINDS = (DATA, START, BEST, LAST, EVALUATING, BETWEEN, END)
AFTER = "after the result"  # by a process that was faster than the kill
TEMPORARY = ".orbax-checkpoint-tmp"
GOES_ON = "the same command goes on."
CHUNKS = 7  # that the data is drawn in
TIME_LIMIT = 300.0  # seconds, after which something hangs


class Failed(Exception):
    """The runs differ, or a process did what it should not."""


class Place:
    """A run directory and its data, below one folder.

    Args:
      folder: is made.
      steps: of the recipe.
    """

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps = folder, steps
        self.run, self.data = folder / "run", folder / "data"
        self.dataset = self.data / "lra_listops" / "smoke" / "1.0.0"
        self.work = self.data / "lra_listops" / ".work"
        self.checkpoints = self.run / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(RECIPE.replace("STEPS", str(steps)))

    def log(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def evaluates(self) -> bool:
        """Whether the log says that a step is done and not yet evaluated."""
        path = self.run / "metrics.jsonl"
        last = path.read_bytes().split(b"\n")[-2:-1] if path.exists() else []
        lines = [json.loads(line) for line in last]
        return any(line["split"] == "train" and line["step"] % EVAL_EVERY == 0 for line in lines)

    def half_written(self, which: str = "") -> list[str]:
        """Checkpoints that have no name of their own yet, of one kind or of both."""
        found = []
        for kind in [which] if which else ["last", "best"]:
            with contextlib.suppress(FileNotFoundError):
                found += [f"{kind}/{name}" for name in os.listdir(self.checkpoints / kind) if TEMPORARY in name]
        return found

    def saved(self, which: str) -> list[int]:
        """Steps that have a checkpoint under its own name, ascending."""
        return sorted(int(path.name) for path in self.checkpoints.glob(f"{which}/*") if path.name.isdigit())

    def prepares_since(self, began: float) -> bool:
        """Whether a process that was started then is preparing the data, or tidies up after that."""
        changed = [path.stat().st_mtime for path in (*self.work.glob("*/tfds"), self.dataset.parent) if path.exists()]
        return self.work.exists() and any(moment >= began for moment in changed)

    def chunks(self) -> int:
        """How many parts of the data are drawn."""
        return sum(re.fullmatch(r"chunk-\d+", name) is not None for name in _files(self.work))

    def has_drawn(self, chunks: int) -> bool:
        """Whether so many parts of the data are drawn; one more than all: they are being written as records."""
        drawn = self.chunks()
        return drawn >= chunks or (drawn == CHUNKS and any("array_record" in name for name in _files(self.work)))


class Attempt:
    """One process of a run.

    Args:
      place: where it runs.
      name: of the files for its output.
    """

    def __init__(self, place: Place, name: str):
        self.place, self.began = place, time.time()
        self.error = place.folder / f"{name}.err"
        with self.error.open("wb") as error, (place.folder / f"{name}.out").open("wb") as out:
            command = [sys.executable, "-m", "zoo", "train", "recipe.yaml", "--run-dir", "run", "--data-dir", "data"]
            self.process = subprocess.Popen(
                command, cwd=place.folder, env=_environment(), stdout=out, stderr=error, start_new_session=True
            )
        self._reader, self._text = self.error.open(errors="replace"), ""

    def said(self) -> str:
        """What it has written to standard error so far."""
        self._text += self._reader.read()
        return self._text

    def step(self) -> int:
        """The last step that it told of, 0 before the first."""
        told = re.findall(r"^step (\d+)/.*\n", self.said()[-500:], re.MULTILINE)
        return int(told[-1]) if told else 0

    def resumed(self) -> int:
        """The step that it went on from."""
        told = re.search(r"^going on from step (\d+)$", self.said(), re.MULTILINE)
        return int(told[1]) if told else 0

    def is_done(self) -> bool:
        """Whether it is past the last step and its evaluation; one that resumed from there tells of nothing else."""
        last = f"step {self.place.steps}/{self.place.steps} validation"
        return self.resumed() == self.place.steps or last in self.said()

    def trained(self) -> bool:
        """Whether it came to its first line of the log, or had nothing more to train."""
        return self.step() > 0 or self.is_done()

    def wait(self, condition: Callable[[], bool], pause: float = 0.0005) -> None:
        """Returns when the condition holds, or the run is finished; looks all the time with a `pause` of 0."""
        until = time.time() + TIME_LIMIT
        while not condition():
            if code := self.process.poll():
                raise Failed(f"a process ended by itself, with {code}:\n{self.said()[-2000:]}")
            if code == 0:
                return
            if time.time() > until:
                raise Failed(f"nothing happens any more:\n{self.said()[-2000:]}")
            if pause:
                time.sleep(pause)

    def kill(self) -> None:
        """Ends the process group with SIGKILL, and waits until it is gone."""
        if self.process.poll() is None:  # else its number may be that of another by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Waits for the process to end, and returns its exit code."""
        try:
            return self.process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"a process does not end:\n{self.said()[-2000:]}") from None


def _files(folder: Path) -> list[str]:
    """Names of all files below a folder that changes while it is read."""
    return [name for _, _, names in os.walk(folder) for name in names]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH", "")]))
    return {"JAX_PLATFORMS": "cpu", **os.environ, "PYTHONPATH": path}


# Waits until it has come. It gets the process, a random generator, and the step to be reached before.
Moment = Callable[[Attempt, random.Random, float], None]


def _in_data(chunks: int) -> Moment:
    def moment(attempt: Attempt, draw: random.Random, step: float) -> None:
        attempt.wait(lambda: attempt.place.prepares_since(attempt.began) or attempt.place.dataset.exists())
        attempt.wait(lambda: attempt.place.has_drawn(chunks) or attempt.place.dataset.exists())
        time.sleep(draw.uniform(0, 0.03))

    return moment


def _as_data_appears(attempt: Attempt, draw: random.Random, step: float) -> None:
    attempt.wait(attempt.place.dataset.exists, pause=0)


def _in_start(attempt: Attempt, draw: random.Random, step: float) -> None:
    time.sleep(draw.uniform(0, 2))


def _in_restore(attempt: Attempt, draw: random.Random, step: float) -> None:
    attempt.wait(lambda: "going on from step" in attempt.said() or "compiling" in attempt.said())
    time.sleep(draw.uniform(0, 0.6))


def _between(attempt: Attempt, draw: random.Random, step: float) -> None:
    place = attempt.place
    attempt.wait(lambda: attempt.step() >= step)
    time.sleep(draw.uniform(0, 0.3))
    attempt.wait(lambda: not (place.half_written() or place.evaluates()) or attempt.is_done())


def _in_evaluation(attempt: Attempt, draw: random.Random, step: float) -> None:
    place = attempt.place
    attempt.wait(lambda: attempt.step() >= step)
    attempt.wait(lambda: (place.evaluates() and not place.half_written()) or attempt.is_done())
    time.sleep(draw.uniform(0, 0.03))


def _in_save(which: str) -> Moment:
    def moment(attempt: Attempt, draw: random.Random, step: float) -> None:
        place = attempt.place
        attempt.wait(lambda: attempt.step() >= step)
        # A best one may be long in coming: then any.
        attempt.wait(lambda: bool(place.half_written(which if attempt.step() < step + 90 else "")) or attempt.is_done())
        time.sleep(draw.choice([0, draw.uniform(0, 0.02), draw.uniform(0, 0.1)]))

    return moment


def _at_end(saved: bool) -> Moment:
    def moment(attempt: Attempt, draw: random.Random, step: float) -> None:
        place = attempt.place
        attempt.wait(lambda: attempt.is_done() and (not saved or place.steps in place.saved("last")))
        time.sleep(draw.uniform(0, 0.08))

    return moment


@dataclasses.dataclass(frozen=True)
class Stop:
    """One item of the plan.

    Attributes:
      moment: when.
      action: "KILL", "TERM", or "SECOND", which is followed by a kill.
      paced: whether it waits for a step.
    """

    moment: Moment
    action: str = "KILL"
    paced: bool = False


def make_plan(kills: int, draw: random.Random) -> list[Stop]:
    """So many kills in order, with what comes between them."""
    data, end = max(1, kills // 5), max(1, kills // 10)
    last, best, start = Stop(_in_save("last"), paced=True), Stop(_in_save("best"), paced=True), Stop(_in_start)
    second = Stop(_between, "SECOND", paced=True)
    others = [Stop(_between, paced=True), Stop(_in_evaluation, paced=True), Stop(_in_restore)]
    middle = list(itertools.islice(itertools.cycle([last, best, start, last, *others]), kills - data - end))
    before = [*(Stop(_in_data(chunks)) for chunks in _ascending(data - 1, draw)), Stop(_as_data_appears)]
    if kills >= 20:
        before.insert(0, middle.pop(middle.index(start)))
        before.insert(2, Stop(_in_data(1), "TERM"))
        middle.remove(others[0])
        middle += [Stop(_between, "TERM", paced=True)] * 2 + [second]
    draw.shuffle(middle)
    # Early, since later on hardly a step is the best so far, and since a run goes on while a second is refused.
    for stop in [stop for stop in middle if stop in (best, second)]:
        middle.remove(stop)
        middle.insert(draw.randrange(len(middle) // 3 + 1), stop)
    return before + middle + [Stop(_at_end(saved=at >= end // 2)) for at in range(end)]


def _ascending(count: int, draw: random.Random) -> list[int]:
    """So many numbers of parts; ascending, because those that are drawn stay."""
    return sorted(draw.randint(1, CHUNKS + 1) for _ in range(count))


class Siege:
    """The disturbed run.

    Args:
      place: where it runs.
      draw: all that is random.
    """

    def __init__(self, place: Place, draw: random.Random):
        self.place, self.draw = place, draw
        self.kinds: collections.Counter[str] = collections.Counter()
        self.found: collections.Counter[str] = collections.Counter()
        self.terminated = self.refused = self.repeated = self.number = 0

    def run(self, plan: list[Stop], kills: int) -> None:
        """Goes through the plan, until there were so many kills, and then lets the run finish."""
        while sum(self.kinds.values()) < kills:
            # Where a process was faster than its kill, there are more kills than items.
            stop = plan.pop(0) if plan else Stop(_in_start)
            left = sum(other.paced for other in plan)
            with self._attempt() as attempt:
                done = max(self.place.saved("last"), default=0)
                # Of what is to do, the share of one of those that are left, so that the run lasts for all of them.
                step = done + self.draw.uniform(0, 2) * (self.place.steps - done) / (left + 2)
                stop.moment(attempt, self.draw, step)
                if stop.action == "TERM":
                    self._terminate(attempt)
                    continue
                if stop.action == "SECOND":
                    self._start_second(attempt)
                attempt.kill()
            self._look(attempt)
        with self._attempt() as attempt:
            if code := attempt.end():
                raise Failed(f"the last process ended with {code}:\n{attempt.said()[-2000:]}")

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[Attempt]:
        self.number += 1
        before = max((line["step"] for line in self.place.log()), default=0)
        attempt = Attempt(self.place, f"{self.number:02d}")
        try:
            yield attempt
        finally:
            attempt.kill()
        if attempt.step():
            self.repeated += max(0, before - attempt.resumed())

    def _terminate(self, attempt: Attempt) -> None:
        training = attempt.trained()
        attempt.process.send_signal(signal.SIGTERM)
        code, words = attempt.end(), attempt.said().splitlines()[-1:]
        if code == 0 and attempt.is_done():
            self.kinds[AFTER] += 1
            print("SIGTERM came after the result", flush=True)
            return
        saved = r" step \d+ is saved;" if training else ""
        if code != 143 or not words or not re.fullmatch(f"zoo: stopped by SIGTERM;{saved} {GOES_ON}", words[0]):
            raise Failed(f"SIGTERM gave exit code {code} and the words {words}.")
        self.terminated += 1
        print(f"SIGTERM: {words[0]}", flush=True)

    def _start_second(self, attempt: Attempt) -> None:
        second = Attempt(self.place, f"{self.number:02d}-second")
        code, words = second.end(), second.said()
        if code != 1 or f"is being written by process {attempt.process.pid} on" not in words:
            raise Failed(f"a second process ended with {code}: {words[-2000:]}")
        if attempt.process.poll() is not None:
            raise Failed(f"the process ended while a second one was started:\n{attempt.said()[-2000:]}")
        self.refused += 1
        print(f"second: {words.strip()}", flush=True)

    def _look(self, attempt: Attempt) -> None:
        """Takes down what is on the disk after a kill."""
        if attempt.process.returncode == 0:
            print("a process was done before it was killed", flush=True)
            return
        if attempt.process.returncode != -signal.SIGKILL:
            raise Failed(f"a process ended with {attempt.process.returncode}:\n{attempt.said()[-2000:]}")
        halves = self.place.half_written()
        broken = [name for which in ("last", "best") for name in self._broken(which)]
        chunks = self.place.chunks()
        kind = self._kind(attempt, halves)
        self.kinds[kind] += 1
        self.found["checkpoints half written"] += len(halves)
        self.found["checkpoints half deleted"] += len(broken)
        self.found["data sets half drawn"] += kind == DATA and chunks < CHUNKS
        self.found["data sets ready and not tidied up"] += kind == DATA and self.place.dataset.exists()
        step = max((line["step"] for line in self.place.log()), default=0)
        notes = [*(f"{name} half written" for name in halves), *(f"{name} half deleted" for name in broken)]
        notes += [f"{chunks} of {CHUNKS} chunks"] if kind == DATA else [f"from {attempt.resumed()}", f"at {step}"]
        seconds = time.time() - attempt.began
        print(f"kill {sum(self.kinds.values())} after {seconds:.2f} s, {kind}: {', '.join(notes)}", flush=True)

    def _kind(self, attempt: Attempt, halves: list[str]) -> str:
        if (self.place.run / "result.json").exists():
            return AFTER
        if not attempt.trained():
            return DATA if self.place.prepares_since(attempt.began) else START
        if halves:
            return BEST if any(name.startswith("best") for name in halves) else LAST
        if self.place.evaluates():
            return EVALUATING
        return END if attempt.is_done() else BETWEEN

    def _broken(self, which: str) -> list[str]:
        """Checkpoints under their own name of which files are missing or damaged."""
        from zoo.data.manifest import DataError, check_manifest

        broken = []
        for step in self.place.saved(which):
            try:
                check_manifest(self.place.checkpoints / which / str(step), verify=True)
            except DataError:
                broken.append(f"{which}/{step}")
        return broken


def check_log(place: Place) -> list[str]:
    """What is wrong with the steps of a log."""
    log, wrong = place.log(), []
    for split, every in (("train", LOG_EVERY), ("validation", EVAL_EVERY)):
        steps = [line["step"] for line in log if line["split"] == split]
        if steps != list(range(every, place.steps + 1, every)):
            wrong.append(f"the log's {split} steps are {steps}")
    return wrong


def run(folder: Path, kills: int, seed: int, steps: int) -> list[str]:
    """Runs both, prints figures, and returns what is wrong."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    began = time.time()
    unbroken = Place(folder / "unbroken", steps)
    attempt = Attempt(unbroken, "01")
    try:
        if code := attempt.end():
            return [f"the unbroken run ended with {code}:\n{attempt.said()[-2000:]}"]
    finally:
        attempt.kill()
    print(f"unbroken: {steps} steps in {time.time() - began:.0f} s", flush=True)
    draw = random.Random(seed)
    siege = Siege(Place(folder / "killed", steps), draw)
    try:
        siege.run(make_plan(kills, draw), kills)
    except Failed as failure:
        return [str(failure)]
    sys.path.insert(0, str(REPO / "tests" / "helpers"))
    from run_differences import run_differences

    differences = [*check_log(unbroken), *check_log(siege.place), *run_differences(unbroken.folder, siege.place.folder)]
    kinds = ", ".join(f"{kind} {siege.kinds[kind]}" for kind in (*KINDS, AFTER))
    print(f"kills: {sum(siege.kinds.values())}; {kinds}")
    print(f"SIGTERM: {siege.terminated}; second processes refused: {siege.refused}; processes: {siege.number}")
    print("found after kills: " + ", ".join(f"{count} {what}" for what, count in siege.found.items()))
    print(f"steps repeated: at least {siege.repeated}; seed {seed}; {time.time() - began:.0f} s in all")
    if kills >= 20:
        differences += [f"no kill fell into: {kind}" for kind in KINDS if not siege.kinds[kind]]
    return differences


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=840, help=f"a multiple of {EVAL_EVERY}")
    parser.add_argument("--keep", type=Path, help="leave both runs in this folder, which must be new")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        wrong = run(folder.resolve(), args.kills, args.seed, args.steps)
    print("\n".join(wrong) if wrong else "the two runs are the same to the bit, and nothing is left over")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
