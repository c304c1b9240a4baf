"""Examples per second of the data pipeline on ListOps: 96,000 rows of 500 to 2,000 tokens, padded to 2,000, batch 32.

    python benchmarks/lra/loader.py                 # every way of reading, a table and JSON
    python benchmarks/lra/loader.py --json out.json
    python benchmarks/lra/loader.py --task lra/text # another task, at its own length; it must be prepared

It reads the prepared ListOps data where they are, and otherwise rows of the same lengths with random tokens; the output
says which. One repeat is one epoch; the number of a way is the median over repeats. The aim is 10,000 examples/s on two
cores. "per CPU s" counts the CPU time of all threads, so it depends less on what else the machine is doing.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from zoo import registry
from zoo.data.pipeline import eval_batches, train_batches
from zoo.data.prefetch import prefetch_to_device
from zoo.data.source import RaggedSource

MAX_LEN = 2000
WARM_UP = 20
WAYS: dict[str, dict[str, Any]] = {
    "no thread": {"threads": 0},
    "one thread (default)": {},
    "three buckets": {"buckets": (0.375, 0.625)},  # of the length
    "to the device": {"device": True},
    "two workers": {"workers": 2},
    "evaluation": {"evaluate": True},
}


def look_alike(num_rows: int, seed: int = 0) -> RaggedSource:
    """Rows with the lengths of ListOps (mean 1,036, standard deviation 394, 501 to 1,999) and random tokens."""
    rng = np.random.default_rng(seed)
    lengths = 501 + (1499 * rng.beta(0.83, 1.49, num_rows)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, 16, offsets[-1], dtype=np.uint8)
    return RaggedSource(tokens, offsets, rng.integers(0, 10, num_rows), num_classes=10)


def load(synthetic: bool, name: str | None = None) -> tuple[str, Any, int]:
    """Returns a description of the data, the data and the length."""
    if name is not None:
        task = registry.get(name, "task")()
        return f"{name}/{task.source}, train", task.split("train"), task.info.max_len
    if not synthetic:
        try:
            from zoo.tasks.lra.listops import ListOps
        except ImportError:
            synthetic = True
        else:
            task = ListOps(source="full")
            if task.is_prepared():
                return "ListOps full, train", task.split("train"), MAX_LEN
    return "synthetic: lengths of ListOps, random tokens", look_alike(96_000), MAX_LEN


def measure(
    source: Any, batch_size: int, repeats: int, max_len: int, *, device=False, evaluate=False, **options
) -> dict:
    """Times `repeats` epochs of one way of reading, each after a warm-up of 20 batches.

    Returns:
      Examples per second of wall time (median and range) and of CPU time of this process, all its threads (median).
    """
    wall, cpu = [], []
    steps = len(source) // batch_size - WARM_UP
    for repeat in range(repeats):
        buckets = tuple(int(share * max_len) for share in options.get("buckets", ()))
        common = {"batch_size": batch_size, "max_len": max_len, **options, "buckets": buckets}
        batches = eval_batches(source, **common) if evaluate else train_batches(source, seed=repeat, **common)
        stream = prefetch_to_device(batches) if device else iter(batches)
        for _ in range(WARM_UP):
            next(stream)
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            batch = next(stream)
        if device:
            batch["inputs"].block_until_ready()
        wall.append(steps * batch_size / (time.perf_counter() - start))
        cpu.append(steps * batch_size / (time.process_time() - start_cpu))
        stream.close()
    return {
        "examples_per_s": round(statistics.median(wall)),
        "range": [round(min(wall)), round(max(wall))],
        "examples_per_cpu_s": None if options.get("workers") else round(statistics.median(cpu)),
    }


def machine() -> dict:
    """Returns what the numbers depend on: processor, cores, load, device and versions."""
    import jax

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cores,
        "load_1min": round(os.getloadavg()[0], 2),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("numpy", "grain", "jax")},
    }


def main() -> None:
    """Measures every way and prints the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--synthetic", action="store_true", help="random tokens even where ListOps is prepared")
    parser.add_argument("--task", help="another task than ListOps, prepared in $ZOO_DATA")
    parser.add_argument("--json", type=Path, help="write the JSON here as well")
    arguments = parser.parse_args()

    data, source, max_len = load(arguments.synthetic, arguments.task)
    shape = [arguments.batch_size, max_len]
    result = {"data": data, "rows": len(source), "batch": shape, "repeats": arguments.repeats, **machine()}
    result["mean_length"] = round(float(source.lengths.mean()), 1)
    print(f"{data}; {len(source)} rows, mean length {result['mean_length']}, batch {shape}; {result['cpu']}")
    print(f"{'way':<22}{'examples/s':>12}{'range':>22}{'per CPU s':>12}")
    result["ways"] = {}
    for name, options in WAYS.items():
        row = result["ways"][name] = measure(source, arguments.batch_size, arguments.repeats, max_len, **options)
        low, high = row["range"]
        spread, per_cpu = f"{low}..{high}", row["examples_per_cpu_s"] or "-"
        print(f"{name:<22}{row['examples_per_s']:>12}{spread:>22}{per_cpu:>12}", flush=True)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
