"""Times the training step of the zoo's iTransformer against the same model in PyTorch, in one run.

    python -m benchmarks.forecasting.itransformer_step

Run it from the checkout, in an environment that has torch as well. Each number of threads gets a process of its own,
in which all are timed in turns, after the forecasts and the gradients of the same weights were found equal. README.md
says what is measured.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.forecasting.sizes import TINY, Sizes, make_batch

RESULTS = Path(__file__).parent / "results"
OURS = "zoo"
TOLERANCE = 1e-5
THREADS = {"one": "one thread", "all": "all threads"}


def difference(a: Any, b: Any) -> float:
    """The largest max|a - b| / max(1, max|b|) of two trees of arrays."""
    import jax
    import numpy as np

    def one(a, b):
        return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))

    return max(jax.tree.leaves(jax.tree.map(one, a, b)))


def measure(threads: str, sizes: Sizes, repeats: int, *, compile_torch: bool, sample_seconds: float) -> dict[str, Any]:
    """One record a peer: seconds and processor's seconds of a step, compile time, agreement with ours.

    Args:
      threads: "one" or "all", for the records; setting them is the process's affair.
      sizes: of the model and the batch.
      repeats: rounds of timing.
      compile_torch: time `torch.compile` too.
      sample_seconds: the least length of a sample.

    Raises:
      RuntimeError: a peer's forecast or gradients differ from ours by more than `TOLERANCE`.
    """
    from benchmarks.forecasting import ours, peer_torch
    from benchmarks.kernels.timing import interleave

    batch = make_batch(sizes)
    mine = ours.Trainer(sizes, batch)
    tuned = {"torch": False, "torch tuned": True}
    peers = {name: peer_torch.Trainer(sizes, batch, tuned=value) for name, value in tuned.items()}
    records: dict[str, Any] = {OURS: {"compile_seconds": mine.compile_seconds}}
    for name, peer in peers.items():
        y, gradients = peer.check()
        forecast, expected = mine.check(peer_torch.as_zoo(dict(peer.model.named_parameters())))
        records[name] = {"error": difference(y, forecast), "gradient_error": difference(gradients, expected)}
        if not max(records[name].values()) <= TOLERANCE:
            raise RuntimeError(f"{name} is another function: {records[name]}")
    if compile_torch:
        name = "torch.compile"
        peers[name] = peer_torch.Trainer(sizes, batch, tuned=True)
        peers[name].compile()
        began = time.perf_counter()
        peers[name].step()
        records[name] = {"compile_seconds": time.perf_counter() - began}
    calls = {OURS: mine.step} | {name: peer.step for name, peer in peers.items()}
    for name, timing in interleave(calls, repeats, sample_seconds=sample_seconds).items():
        seconds, busy = statistics.median(timing.samples), statistics.median(timing.cpu_samples)
        records[name] |= {"seconds": seconds, "cpu_seconds": busy, "samples": list(timing.samples)}
    for name, record in records.items():
        record |= {"threads": threads, "peer": name, "speedup_of_ours": record["seconds"] / records[OURS]["seconds"]}
        saved = record["seconds"] - records[OURS]["seconds"]
        extra = mine.compile_seconds - record.get("compile_seconds", 0.0)
        paid = name != OURS and saved > 0
        record["steps_until_ours_has_paid"] = max(0, math.ceil(extra / saved)) if paid else None
    return records


def to_markdown(about: dict[str, Any], sizes: Sizes, records: list[dict[str, Any]]) -> str:
    """The setting and one table."""
    torch = about["packages"]["torch"]
    lines = [
        "# The training step of iTransformer",
        "",
        f"B {sizes.batch}, L {sizes.lookback}, H {sizes.horizon}, N {sizes.num_variates}, M {sizes.num_marks}, "
        f"D {sizes.d_model}, F {sizes.d_ff}, {sizes.num_layers} layers, {sizes.num_heads} heads, dropout "
        f"{sizes.dropout}, Adam, MSE, float32. On {about['device']} ({about['processor']}), {about['cores']} cores, "
        f"load {about['load_before']} before and {about['load_after']} after. Commit {about['commit']}, "
        f"{about['date']}; Python {about['python']}, jax {about['jax']}, flax {about['flax']}, torch {torch}. "
        f"Medians of {about['repeats']} rounds, all in each round.",
        "",
        "| threads | | step (ms) | processor (ms) | speed of zoo against it | compile (s) | steps until zoo has paid |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        compile_seconds, steps = record.get("compile_seconds"), record["steps_until_ours_has_paid"]
        lines.append(
            f"| {THREADS[record['threads']]} | {record['peer']} | {1e3 * record['seconds']:.1f} "
            f"| {1e3 * record['cpu_seconds']:.1f} | {record['speedup_of_ours']:.2f}x "
            f"| {'-' if compile_seconds is None else f'{compile_seconds:.1f}'} | {'-' if steps is None else steps} |"
        )
    return "\n".join(lines) + "\n"


def child(request: dict[str, Any]) -> Any:
    """The answer of a process of its own, in which threads are set before JAX and torch are imported."""
    from benchmarks.kernels.worker import environment

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "benchmarks.forecasting.itransformer_step", "--worker", json.dumps(request)]
        subprocess.run([*command, "--output", str(out)], env=environment(request["threads"]), check=True)
        return json.loads(out.read_text())


def work(request: dict[str, Any]) -> Any:
    """What a process of its own does."""
    from benchmarks.kernels.worker import about, configure

    if request.get("about"):
        return about()
    configure(request["threads"])
    return measure(**{**request, "sizes": Sizes(**request["sizes"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=lambda text: text.split(","), default=["one", "all"])
    parser.add_argument("--repeats", type=int, default=9, help="rounds of timing")
    parser.add_argument(
        "--compile-torch", action="store_true", help="time torch.compile as well (needs a C++ compiler)"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: to see that it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        options.output.write_text(json.dumps(work(json.loads(options.worker))))
        return
    sizes = TINY if options.tiny else Sizes()
    request = {
        "sizes": dataclasses.asdict(sizes),
        "repeats": options.repeats,
        "compile_torch": options.compile_torch,
        "sample_seconds": 0.0 if options.tiny else 0.3,
    }
    load = os.getloadavg()[0]
    about = child({"about": True, "threads": "all"})
    records = [record for threads in options.threads for record in child({**request, "threads": threads}).values()]
    about |= {
        "repeats": options.repeats,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"itransformer_step_{about['platform']}"
    found = {"about": about, "sizes": dataclasses.asdict(sizes), "tolerance": TOLERANCE, "records": records}
    stem.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    stem.with_suffix(".md").write_text(to_markdown(about, sizes, records))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
