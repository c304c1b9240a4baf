"""What libtpu's compiler says about the kernels for TPUs and about XLA's forms of their ops; no TPU is needed.

    pip install libtpu   # or jax[tpu]
    python -m benchmarks.kernels.tpu_compiler
    python -m benchmarks.kernels.tpu_compiler --ops selective_scan --devices v6e --output /tmp/out

Run it from the checkout. Each program is compiled in a process of its own; nothing is run. README.md says what the
figures are.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kernels import tpu_hlo, tpu_report, tpu_schedule
from benchmarks.kernels.prepare import PASSES
from benchmarks.kernels.tpu_bundles import UnknownForm
from benchmarks.kernels.tpu_report import Record
from benchmarks.kernels.tpu_worker import DEVICES, DTYPES, KERNELS, OPS, Request

CHECKOUT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
MISSING = "libtpu, the compiler for TPUs, is not installed: pip install libtpu (or jax[tpu])"
_SCHEDULE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
_TWINS = re.compile(r"^key:(\S+)$|^  (\S+)$", re.MULTILINE)


def measure(request: Request) -> Record:
    """Compiles a program and reads what the compiler left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump = folder / "dump"
        facts = child(dataclasses.asdict(request), folder, dump)
        parts = tpu_hlo.read((folder / "program.hlo").read_text(encoding="utf-8"))
        schedules = Schedules(dump)
        kernels = {part.name: part.times * schedules.cycles(part.name) for part in parts if part.kind == tpu_hlo.KERNEL}
        if bool(kernels) != (request.implementation == KERNELS):
            raise UnknownForm(f"the program has {len(kernels)} kernels")
        rest = [part for part in parts if part.kind != tpu_hlo.KERNEL]
        scheduled, unfollowed = 0, {}
        for part in rest:
            try:
                scheduled += part.times * schedules.cycles(part.name)
            except UnknownForm as error:
                unfollowed[part.name] = str(error)
    return Record(
        **dataclasses.asdict(request),
        kernels=kernels,
        scheduled=scheduled,
        unfollowed=unfollowed,
        estimated=sum(part.times * (part.estimate or 0) for part in rest),
        estimated_unfollowed=sum(part.times * (part.estimate or 0) for part in rest if part.name in unfollowed),
        unpriced=dict(collections.Counter(part.kind for part in rest if part.estimate is None)),
        **facts,
    )


class Schedules:
    """The schedules in a dump, by the names of instructions."""

    def __init__(self, dump: Path):
        self.paths = {match[1]: path for path in dump.iterdir() if (match := _SCHEDULE.fullmatch(path.name))}
        # Equal instructions share one, which is called after the first.
        self.shared: dict[str, str] = {}
        for path in dump.glob("*-deduplication-map.txt"):
            key = ""
            for match in _TWINS.finditer(path.read_text(encoding="utf-8")):
                key = match[1] or key
                if match[2]:
                    self.shared[match[2]] = key

    def cycles(self, name: str) -> int:
        """The bundles that an instruction runs through."""
        path = self.paths.get(name) or self.paths.get(self.shared.get(name, ""))
        if path is None:
            raise UnknownForm(f"the dump has no final_bundles of {name}")
        try:
            return tpu_schedule.cycles(path.read_text(encoding="utf-8"))
        except UnknownForm as error:
            raise UnknownForm(f"{path.name}: {error}") from error


def child(request: dict[str, Any], folder: Path, dump: Path | None = None) -> dict[str, Any]:
    """Runs `tpu_worker` and returns its `facts.json`; libtpu writes its schedules to `dump`."""
    command = [sys.executable, "-m", f"{__package__}.tpu_worker", json.dumps(request), str(folder)]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment(dump), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"its process ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads((folder / "facts.json").read_text(encoding="utf-8"))


def environment(dump: Path | None) -> dict[str, str]:
    """The environment variables of a process that compiles."""
    variables = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        JAX_ENABLE_COMPILATION_CACHE="false",
        JAX_DISABLE_MOST_OPTIMIZATIONS="false",
        TPU_SKIP_MDS_QUERY="1",  # else libtpu asks a server about the machine
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # another process may compile, too
    )
    if dump is not None:
        options = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        options += " --xla_jf_dump_llo_pass_label_regex=final_bundles|deduplication-map"
        variables["LIBTPU_INIT_ARGS"] = f"{variables.get('LIBTPU_INIT_ARGS', '')} {options}".strip()
    return variables


def requests(ops: Sequence[str], devices: Sequence[str], tiny: bool) -> list[Request]:
    """Everything that is compiled, in the order of the tables."""
    return [
        Request(op, implementation, dtype, which, device, tiny)
        for op in ops
        for device, dtype, which in itertools.product(devices, DTYPES, PASSES)
        for implementation in OPS[op]
    ]


def measure_all(asked: Sequence[Request], jobs: int) -> list[Record]:
    """The records, in the order of the requests; the first that fails ends the process, and says why."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(measure, request) for request in asked]
        found = []
        for request, one in zip(asked, running, strict=True):
            try:
                found.append(one.result())
            except (UnknownForm, RuntimeError) as error:
                pool.shutdown(cancel_futures=True)
                sys.exit(f"{request}: {error}")
            print(tpu_report.line(found[-1]), flush=True)
        return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a wrong one ends the process."""

    def some(names: Sequence[str]):
        def names_of(text: str) -> list[str]:
            unknown = set(text.split(",")) - set(names)
            if unknown:
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; choose {', '.join(names)}")
            return text.split(",")

        return names_of

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.tpu_compiler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ops", type=some(list(OPS)), default=list(OPS), help=f"of {', '.join(OPS)}")
    parser.add_argument("--devices", type=some(list(DEVICES)), default=list(DEVICES), help=f"of {', '.join(DEVICES)}")
    parser.add_argument("--jobs", type=int, default=1, help="programs compiled at a time; seconds are then longer")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: to see that it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        about = child({"about": True}, Path(folder))
    records = measure_all(requests(options.ops, options.devices, options.tiny), options.jobs)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "tpu_compiler"
    stem.with_suffix(".json").write_text(tpu_report.to_json(about, records), encoding="utf-8")
    stem.with_suffix(".md").write_text(tpu_report.to_markdown(about, records), encoding="utf-8")
    print(stem.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
