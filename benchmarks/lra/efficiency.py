"""Time, memory and FLOPs of a training step, of inference and of one decoding step against length, for every variant.

    python -m benchmarks.lra.efficiency --json results/efficiency_cpu.json --lengths 1024,2048,3072,4096,8192

All variants have the width and depth of one recipe, or with `--equal parameters` such a width that their layers have as
many parameters as softmax's. Those of one length are measured in one process and in turns, so
that their ratios to softmax are of the same minutes; compilation is timed apart, without a cache. Memory is what the
compiler plans for one call, and where the device counts, its peak. A variant goes on to longer lengths until it does
not run: for want of memory, or because it takes longer than --limit. Each length is in the file as soon as it is
measured, and the same command goes on with what is missing. Beside the file goes a .md, with the table in the form of
LRA's own.

Exit codes: 0 done, 1 a process could not be run, 2 it cannot be measured as asked, 130 or 143 told to end.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.cells import MatrixError
from benchmarks.lra.efficiency_points import BASE, EQUAL, KINDS, Setting, blank_row, recipe_of
from benchmarks.lra.efficiency_table import to_markdown
from benchmarks.lra.recipes import variants as all_variants
from benchmarks.lra.runner import device_facts
from zoo import registry
from zoo.files import write_json, write_text
from zoo.training.launch import start, stop
from zoo.training.signals import Interrupted, signals_raise

LENGTHS = (1024, 2048, 3072, 4096, 8192, 16384)
# What figures of one file must have in common.
_SAME = ("device", "processor", "commit", "jax", "jaxlib", "flax")
_POLL_SECONDS = 0.1
# For JAX to start, and to leave.
_START_SECONDS = 120.0


class Measurement:
    """The rows of a file, and what is to be measured for it.

    Args:
      path: of the JSON file; made if missing.
      setting: see `benchmarks.lra.efficiency_points.Setting`.
      environment: of this machine.

    Raises:
      MatrixError: the file holds figures of another setting, device or version.
    """

    def __init__(self, path: Path, setting: Setting, environment: Mapping[str, Any]):
        self.path, self.setting, self.environment = path, setting, dict(environment)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            self._check(held)
            self.rows, self.environment = held["rows"], held["environment"]

    def _check(self, held: Mapping[str, Any]) -> None:
        if (there := held.get("setting")) != self.setting.to_dict():
            raise MatrixError(
                f"{self.path} holds figures of {there}, not of {self.setting.to_dict()}; choose another --json."
            )
        for name in _SAME:
            ours, theirs = self.environment.get(name), held["environment"].get(name)
            if ours != theirs:
                raise MatrixError(
                    f"{self.path} was measured with {name} {theirs}, and here is {ours}; choose another --json."
                )

    def missing(self, variants: Sequence[str], kind: str, length: int) -> list[str]:
        """The variants without a row."""
        there = {row["variant"] for row in self.rows if (row["kind"], row["length"]) == (kind, length)}
        return [variant for variant in variants if variant not in there]

    def stopped(self, variant: str, kind: str, length: int) -> str | None:
        """Why a variant is not tried at a length: it did not run at a shorter one."""
        for row in self.rows:
            if (row["variant"], row["kind"]) == (variant, kind) and row["length"] < length and row["reason"]:
                shorter = row["reason"].removeprefix("not tried: ")
                return f"not tried: {shorter}" + ("" if shorter != row["reason"] else f" (at {row['length']})")
        return None

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds rows that are not there yet, and writes the file and its tables."""
        for row in rows:
            if self.missing([row["variant"]], row["kind"], row["length"]):
                self.rows.append(row)
        held = {"environment": self.environment, "setting": self.setting.to_dict(), "rows": self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, held)
        write_text(self.path.with_suffix(".md"), to_markdown(held) + "\n")

    def point(self, variants: Sequence[str], kind: str, length: int) -> None:
        """Measures one length; a variant that ends the process is left out, and the others are begun anew."""
        reasons = {variant: self.stopped(variant, kind, length) for variant in variants}
        size = self.setting.batch_size
        self.add([blank_row(name, kind, length, size, why) for name, why in reasons.items() if why is not None])
        # Softmax takes part whatever there is already: ratios are within one process.
        base = [] if self.stopped(BASE, kind, length) or self._failed(BASE, kind, length) else [BASE]
        while missing := self.missing(variants, kind, length):
            _say(f"{kind}, length {length}: {', '.join(missing)}")
            together = [*(name for name in base if name not in missing), *missing]
            rows, culprit, reason = run_process(self.setting, together, kind, length)
            if reason is not None and culprit in base and culprit not in missing:
                base = []
                continue
            if reason is not None:
                named = missing if culprit is None else [culprit]
                rows = [*rows, *(blank_row(name, kind, length, size, reason) for name in named)]
            self.add(rows)
            for row in rows:
                _say(f"  {row['variant']}: " + (row["reason"] or f"{row['seconds']:.4g} s"))

    def _failed(self, variant: str, kind: str, length: int) -> bool:
        here = (variant, kind, length)
        return any((row["variant"], row["kind"], row["length"]) == here and row["reason"] for row in self.rows)


def run_process(
    setting: Setting, variants: Sequence[str], kind: str, length: int
) -> tuple[list[dict[str, Any]], str | None, str | None]:
    """Measures in a process of its own.

    Returns:
      The rows; and where the process ended before its time the variant that it was at (None while timing) and why.

    Raises:
      Interrupted: this process was told to end; the other one has ended.
    """
    request = {"setting": setting.to_dict(), "variants": list(variants), "kind": kind, "length": length}
    with tempfile.TemporaryDirectory() as folder:
        out, said = Path(folder, "events"), Path(folder, "stderr")
        command = [sys.executable, "-m", "benchmarks.lra.efficiency_points", json.dumps(request), str(out)]
        # What compiling takes is one of the figures.
        process = start(command, errors=said, environment={"JAX_ENABLE_COMPILATION_CACHE": "false"})
        try:
            late = _watch(process, out, setting)
        except Interrupted as stopped:
            stop([process], stopped.signum)
            raise
        events = _events(out)
        rows = [event["row"] for event in events if "row" in event]
        if process.returncode == 0:
            return rows, None, None
        doing = [event["doing"] for event in events if "doing" in event]
        if not doing:
            raise RuntimeError(f"the measuring process does not start: {said.read_text(errors='replace')[-500:]}")
        return rows, doing[-1], late or _ended(process.returncode, said.read_text(errors="replace"))


def _watch(process: subprocess.Popen, out: Path, setting: Setting) -> str | None:
    """Waits for a process to end, and ends it where one thing takes too long; then why."""
    seen, since = -1, time.monotonic()
    while process.poll() is None:
        if (now := len(_events(out))) != seen:
            seen, since = now, time.monotonic()
        doing = _events(out)[-1:] == [{"doing": None}]
        # Timing takes each variant's share of the limit, all else one share.
        allowed = setting.limit * (max(1, seen) if doing else 1) + _START_SECONDS
        if time.monotonic() - since > allowed:
            process.kill()
            process.wait()
            return f"time: nothing was ready after {allowed:g} s"
        time.sleep(_POLL_SECONDS)
    return None


def _events(out: Path) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    # A process that was killed may leave half a line.
    lines = out.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _ended(code: int, said: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"memory: the system ended the process ({name})" if name == "SIGKILL" else f"the process ended by {name}"
    return f"the process ended with code {code}: {(said.strip().splitlines() or ['it said nothing'])[-1]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = _parse(argv)
    try:
        with signals_raise():
            return _run(args)
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"efficiency: {stopped}; the same command goes on.", file=sys.stderr)
        return stopped.exit_code
    except (ValueError, OSError) as error:
        print(f"efficiency: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"efficiency: {error}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting()
    parser.add_argument("--json", type=Path, required=True, help="the file of figures; a .md goes beside it")
    parser.add_argument("--variants", help="comma separated (default: all that classify tokens)")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="comma separated (default: %(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of %(default)s, the default")
    parser.add_argument("--recipe", default=default.recipe, help="width, depth and inputs (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="samples a figure (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=default.limit, help="seconds a figure (default: %(default)g)")
    parser.add_argument(
        "--equal", choices=EQUAL, default=default.equal, help="what all have alike (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    variants = args.variants.split(",") if args.variants else all_variants()
    kinds = args.kinds.split(",")
    try:
        lengths = sorted(int(length) for length in args.lengths.split(","))
    except ValueError:
        raise MatrixError(f"--lengths takes whole numbers with commas between, got {args.lengths!r}.") from None
    for kind in kinds:
        if kind not in KINDS:
            raise MatrixError(f"there is no kind {kind!r}. {registry.did_you_mean(kind, KINDS)}")
    if min(lengths) < 1 or args.batch_size < 1 or args.repeats < 1 or args.limit <= 0:
        raise MatrixError("--lengths, --batch-size, --repeats and --limit must be positive.")
    setting = Setting(args.recipe, tuple(args.overrides), args.batch_size, args.repeats, args.limit, args.equal)
    for variant in variants:
        registry.spec(variant)
        recipe_of(setting, variant, lengths[0])  # a wrong recipe or override, before anything runs
    # Softmax first: where it runs, all ratios are known.
    variants = sorted(variants, key=lambda name: name != BASE)
    measurement = Measurement(args.json, setting, device_facts()[0])
    for length in lengths:
        for kind in kinds:
            measurement.point(variants, kind, length)
    print(args.json.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
