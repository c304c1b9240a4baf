"""Times the recurrent ops against their peers and writes tables, JSON and a plot.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --lengths 256 --ops causal_conv1d --threads one

Run it from the checkout. Each op and number of threads gets a process of its own; README.md says what is measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kernels import plot, report
from benchmarks.kernels.cases import LARGE, OPS, TINY, Sizes, peers_of
from benchmarks.kernels.measure import FAILED, TIMED, Record
from benchmarks.kernels.prepare import PASSES
from benchmarks.kernels.worker import environment

CHECKOUT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
GROWTH = "growth of the process's peak memory"


def child(module: str, request: dict[str, Any], threads: str = "all") -> tuple[int, str]:
    """Runs `python -m benchmarks.kernels.MODULE` and returns its exit status and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", f"{__package__}.{module}", json.dumps(request), str(out)]
        done = subprocess.run(command, cwd=CHECKOUT, env=environment(threads), check=False)
        return done.returncode, out.read_text() if out.exists() else ""


def time_op(op: str, threads: str, options: argparse.Namespace, sizes: Sizes) -> list[Record]:
    """The records of one op; where its process ended early, the lengths that are missing are said to have failed."""
    request = {
        "op": op,
        "threads": threads,
        "lengths": options.lengths,
        "sizes": asdict(sizes),
        "repeats": options.repeats,
        "implementations": options.implementations,
    }
    status, text = child("worker", request, threads)
    records = [Record(**json.loads(line)) for line in text.splitlines()]
    missing = [length for length in options.lengths if length not in {record.length for record in records}]
    return records + [
        Record(
            op, length, threads, which, peer.name, peer.framework, peer.dtype, FAILED, f"process ended with {status}"
        )
        for length in missing
        for which in PASSES
        for peer in peers_of(op, options.implementations)
    ]


def add_torch_memory(records: Sequence[Record], sizes: Sizes) -> None:
    """Measures each torch peer that was timed in a process of its own, once for every number of threads."""
    due: dict[tuple[str, str], set[int]] = {}
    for record in records:
        if _is_torch(record):
            due.setdefault((record.op, record.peer), set()).add(record.length)
    for (op, peer), lengths in due.items():
        request = {"op": op, "peer": peer, "lengths": sorted(lengths), "sizes": asdict(sizes)}
        status, text = child("memory", request)
        if status != 0:
            print(f"{op} {peer}: the process that measures memory ended with {status}", flush=True)
        for line in text.splitlines():
            found = json.loads(line)
            megabytes = ", ".join(f"{n / 1e6:.0f} MB {which}" for which, n in found["bytes"].items())
            print(f"{op} T={found['length']} {peer}: {megabytes}", flush=True)
            for record in records:
                if _is_torch(record) and (record.op, record.peer, record.length) == (op, peer, found["length"]):
                    record.memory_bytes, record.memory_of = found["bytes"].get(record.which), GROWTH


def _is_torch(record: Record) -> bool:
    return record.framework == "torch" and record.status == TIMED


def write(folder: Path, about: dict[str, Any], sizes: Sizes, records: Sequence[Record]) -> Path:
    """Writes kernels_DEVICE.json, .md and, where matplotlib is installed, .png; returns the path without its ending.

    Large shapes have files of their own, kernels_DEVICE_large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"kernels_{device_name(about)}{'_large' if sizes == LARGE else ''}"
    stem.with_suffix(".json").write_text(report.to_json(about, sizes, records))
    picture = stem.with_suffix(".png")
    try:
        plot.draw(records, picture, f"{about['device']}, float32, commit {about['commit']}")
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[plot]')")
    name = picture.name if picture.exists() else ""
    stem.with_suffix(".md").write_text(report.to_markdown(about, sizes, records, name))
    return stem


def device_name(about: dict[str, Any]) -> str:
    """For the files' names: "cpu", or the accelerator's."""
    if about["platform"] == "cpu":
        return "cpu"
    return "-".join("".join(c if c.isalnum() else " " for c in about["device"].lower()).split())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a wrong one ends the process."""

    def some(names: Iterable[str]):
        def names_of(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = set(chosen) - set(names)
            if unknown:
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; choose {', '.join(names)}")
            return chosen

        return names_of

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    lengths = lambda text: sorted(int(part) for part in text.split(","))  # noqa: E731
    parser.add_argument("--lengths", type=lengths, default=[256, 1024, 4096], help="T, comma separated")
    parser.add_argument("--ops", type=some(OPS), default=list(OPS), help=f"of {', '.join(OPS)}")
    parser.add_argument("--threads", type=some(("one", "all")), help="one, all or both (default: both on a CPU)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing")
    parser.add_argument(
        "--implementations",
        type=lambda text: text.split(","),
        default=[],
        help="time these implementations of ours as well, e.g. xla_sequential,xla_chunked",
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--tiny", action="store_true", help="tiny shapes: to see that it works")
    shapes.add_argument("--large", action="store_true", help="the shapes that kernels for GPUs are compared at")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of the torch peers")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    sizes = TINY if options.tiny else LARGE if options.large else Sizes()
    began, load = time.perf_counter(), os.getloadavg()[0]
    status, text = child("worker", {"about": True})
    if status != 0:
        sys.exit(f"the first process ended with status {status}")
    about = json.loads(text)
    counts = options.threads or (["one", "all"] if about["platform"] == "cpu" else ["all"])
    records = [record for op in options.ops for threads in counts for record in time_op(op, threads, options, sizes)]
    if not options.no_memory:
        add_torch_memory(records, sizes)
    about |= {
        "repeats": options.repeats,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "minutes": round((time.perf_counter() - began) / 60, 1),
    }
    stem = write(options.output, about, sizes, records)
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
