"""Times the training step of each variant under the ListOps protocols, on whatever device JAX finds.

    python benchmarks/lra/steps.py --json benchmarks/lra/results/listops_steps_cpu.json

One process, one variant after another, the same batch for all: real expressions where the data set is prepared,
random tokens of the same lengths otherwise (the step's time does not depend on which). The first step is a warm-up,
compilation is timed apart, the figure is the median of the others, and the ratio is to softmax in the same run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from zoo import registry
from zoo.data.pipeline import train_batches
from zoo.functional import Functional, count_parameters
from zoo.training.build import make_task, model_maker
from zoo.training.memory import planned_bytes
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import Recipe, load_recipe
from zoo.training.run import environment
from zoo.training.step import init_state, make_train_step


def batch_of(recipe: Recipe) -> tuple[dict[str, np.ndarray], str]:
    """The first training batch, and where it came from."""
    task = make_task(recipe)
    rows, length = recipe.train.batch_size, task.info.max_len
    if task.is_prepared():
        with_close = train_batches(task.split("train"), batch_size=rows, max_len=length, seed=0)
        batch = next(with_close)
        with_close.close()
        return batch, "data"
    rng = np.random.default_rng(0)
    lengths = rng.integers(501, 2000, rows)
    mask = np.arange(length) < lengths[:, None]
    inputs = np.where(mask, rng.integers(1, 16, (rows, length)), 0).astype(np.int32)
    label = rng.integers(0, task.info.num_classes, rows).astype(np.int32)
    return {"inputs": inputs, "mask": mask, "label": label, "weight": np.ones(rows, np.float32)}, "random tokens"


def time_step(recipe: Recipe, batch: dict[str, np.ndarray], repeats: int) -> dict:
    """Compile seconds, seconds of each step after the first, planned bytes and parameters."""
    task = make_task(recipe)
    functional = Functional(model_maker(recipe, task.info))
    optimizer = make_optimizer(recipe.train)
    state = init_state(functional, optimizer, recipe.train)
    batch = jax.device_put(batch)
    key = jax.random.key(0)
    began = time.perf_counter()
    step = make_train_step(functional, task, optimizer, recipe.train).lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        state, sums = step(state, batch, key)
        jax.block_until_ready((state, sums))
        seconds.append(time.perf_counter() - began)
    assert np.isfinite(float(sums["loss"]))
    return {
        "variant": recipe.variant,
        "parameters": count_parameters(functional.abstract_params),
        "shape": list(batch["inputs"].shape),
        "accumulate": recipe.train.accumulate,
        "dtype": recipe.model.dtype,
        "num_layers": recipe.model.num_layers,
        "compile_seconds": compile_seconds,
        "first_step_seconds": seconds[0],
        "step_seconds": statistics.median(seconds[1:]),
        "all_step_seconds": seconds[1:],
        "step_bytes": planned_bytes(step),
    }


def to_markdown(protocols: dict[str, list[dict]], about: dict) -> str:
    """The tables of all protocols."""
    lines = [
        f"On {about['device']} ({about['processor']}), Python {about['python']}, jax {about['jax']}, "
        f"flax {about['flax']}, zoo {about['zoo']} at {about['commit']}, {about['date']}. "
        f"Median of {about['repeats']} steps after one warm-up."
    ]
    for protocol, rows in protocols.items():
        base = next((row["step_seconds"] for row in rows if row["variant"] == "softmax"), None)
        shape = " x ".join(map(str, rows[0]["shape"]))
        parts = rows[0]["accumulate"]
        batch = f"batch {shape}" + (f" in {parts} accumulated parts" if parts > 1 else "")
        lines += [
            "",
            f"`lra/{protocol}/listops`, {batch}, {rows[0]['dtype']} ({rows[0]['batch_from']}):",
            "",
            "| variant | layers | parameters | s/step | speed against softmax | step memory (MB) | compile (s) |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows:
            ratio = "-" if base is None else f"{base / row['step_seconds']:.2f}x"
            lines.append(
                f"| {row['variant']} | {row['num_layers']} | {row['parameters']:,} | {row['step_seconds']:.3f} "
                f"| {ratio} | {row['step_bytes'] / 1e6:,.0f} | {row['compile_seconds']:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocols", default="small,original")
    parser.add_argument("--variants", help="comma separated (default: all mixers)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here, and a .md beside it")
    parser.add_argument("--same-shape", action="store_true", help="the same layers and heads for all variants")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipes, e.g. train.accumulate=8")
    args = parser.parse_args()
    variants = args.variants.split(",") if args.variants else [spec.name for spec in registry.list_specs(kind="mixer")]
    protocols: dict[str, list[dict]] = {}
    for protocol in args.protocols.split(","):
        for variant in variants:
            recipe = load_recipe(f"lra/{protocol}/listops", args.overrides, variant=variant)
            if args.same_shape:
                base = load_recipe(f"lra/{protocol}/listops").model
                keep = [f"model.{name}={getattr(base, name)}" for name in ("num_layers", "num_heads")]
                recipe = load_recipe(f"lra/{protocol}/listops", [*keep, *args.overrides], variant=variant)
            batch, origin = batch_of(recipe)
            row = {**time_step(recipe, batch, args.repeats), "batch_from": origin}
            protocols.setdefault(protocol, []).append(row)
            print(f"{protocol} {variant}: {row['step_seconds']:.3f} s/step", flush=True)
    about = {**environment(), "repeats": args.repeats}
    table = to_markdown(protocols, about)
    print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": about, "protocols": protocols}, indent=2) + "\n")
        args.json.with_suffix(".md").write_text(table + "\n")


if __name__ == "__main__":
    main()
