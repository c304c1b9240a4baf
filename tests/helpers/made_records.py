"""Records of runs that never were, in the form of real ones, for tests of the report."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from zoo.files import seal

VARIANTS = ("axial", "deltanet", "flowformer", "gated_deltanet", "gla", "informer", "itransformer", "linear_attention",
            "mamba", "mamba2", "nystromformer", "retnet", "softmax")  # fmt: skip
SOURCES = {"listops": "full", "text": "original", "retrieval": "original", "image": "original", "pathfinder": "full",
           "pathx": "full"}  # fmt: skip


def made_record(
    task: str = "lra/listops", variant: str = "softmax", seed: int = 0, *, protocol: str = "small", value: float = 0.4,
    source: str | None = None, metric: str = "accuracy", extras: dict[str, Any] | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A sealed record.

    Args:
      task, variant, seed, protocol, source, metric: of the run.
      value: its score on test.
      extras: what a record has beyond a run's result; None for the usual ones.
      **changes: other values of the result.
    """
    name = task.partition("/")[2]
    drawn = random.Random(f"{task} {variant} {protocol}")
    speed, memory = 10 ** drawn.uniform(0, 1.6), int(10 ** drawn.uniform(7.5, 9.8))
    points = [[step, value - 0.3 * 0.6 ** (step / 500) + 0.004 * drawn.random()] for step in range(250, 5001, 250)]
    figures = {metric: value, "loss": 1.5, "examples": 2000.0}
    result = {
        "task": task, "source": source or SOURCES.get(name, "made"), "protocol": protocol,
        "recipe": f"lra/{protocol}/{name}" if task.startswith("lra/") else task, "variant": variant, "seed": seed,
        "parameters": 100_000 + 1000 * drawn.randrange(200), "budget": None, "select": "best", "metric": metric,
        "best": {"step": 4000, "validation": figures, "test": figures},
        "last": {"step": 5000, "validation": figures, "test": figures},
        "baselines": {"validation": {"majority": 0.17}, "test": {"majority": 0.171, "root_operator": 0.364}},
        "published": {}, "steps": 5000, "stopped_early": False, "batch_size": 32, "max_len": 2048,
        "data": f"{random.Random(task).getrandbits(64):016x}", "cautions": [], "mesh": "data=1,fsdp=1", "processes": 1,
        "steps_per_second": speed, "compile_seconds": 7.0,
        "memory": {"step": memory, "device_peak": None, "host_peak": 2 * memory}, "environment": made_environment(),
        **changes,
    }  # fmt: skip
    usual = {
        "id": f"{protocol}/{name}/{variant}-s{seed}",
        "recipe_hash": "0123456789abcdef",
        "overrides": [],
        "curve": points,
    }
    return seal({**result, **(usual if extras is None else extras)})


def made_environment() -> dict[str, str]:
    """Versions and device of nowhere."""
    return {
        "zoo": "0.1.0", "commit": "0123456789ab", "python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2",
        "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8", "grain": "0.2.18", "numpy": "2.4.6",
        "device": "1 x made up", "platform": "cpu", "processor": "2 x made up", "date": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def made_matrix(
    tasks: Sequence[str] = ("listops", "text"), variants: Sequence[str] = VARIANTS, seeds: Sequence[int] = (0, 1),
    protocol: str = "small", hashes: Callable[[str, str, int], str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record for each variant, task and seed, with scores that differ; `hashes` tells a recipe's for its seed."""
    records = []
    for task in tasks:
        for variant in variants:
            for seed in seeds:
                value = random.Random(f"{task} {variant}").uniform(0.3, 0.8)
                value += random.Random(f"{variant} {seed} {task}").uniform(0, 0.02)
                name = f"lra/{protocol}/{task}"
                record = made_record(f"lra/{task}", variant, seed, protocol=protocol, value=round(value, 4))
                if hashes is not None:
                    record.pop("digest")
                    record = seal({**record, "recipe_hash": hashes(name, variant, seed)})
                records.append(record)
    return records


def made_efficiency(variants: Sequence[str] = VARIANTS) -> dict[str, Any]:
    """An efficiency result: softmax is quadratic, the others are not; one row did not run."""
    rows = []
    for kind in ("train", "infer", "decode"):
        for variant in variants:
            drawn = random.Random(variant).uniform(1, 4)
            for length in (1024, 2048, 4096, 8192):
                power = 2 if variant == "softmax" else 1
                seconds = 1e-3 * drawn * (length / 1024) ** (0 if kind == "decode" else power)
                rows.append({"variant": variant, "kind": kind, "length": length, "batch_size": 4, "d_model": 128,
                             "parameters": 200_000, "seconds": seconds, "tokens_per_second": 4 * length / seconds,
                             "step_bytes": int(1e6 * drawn * (length / 1024) ** power), "device_peak": None,
                             "compile_seconds": 5.0, "flops": 1e9 * length, "ratio": 1.0, "reason": None})  # fmt: skip
    rows.append({"variant": "softmax", "kind": "train", "length": 16384, "batch_size": 4, "seconds": None,
                 "reason": "out of memory"})  # fmt: skip
    return {"environment": made_environment(), "rows": rows}
