"""Every variant by every recipe of the Long Range Arena: does it build, how large is it, and does it take steps?

    python benchmarks/lra/recipes.py --json benchmarks/lra/results/recipes_cpu.json

For each cell: the parameters, from shapes alone; the bytes that the compiler plans for one update at the recipe's own
batch and length, which compiles it and runs nothing; and 20 updates of a few rows at a reduced length, with two layers
at most, on random inputs of the task's form, whose losses must be finite. A cell that is in the file already is
kept, so that the command may be interrupted.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo import registry
from zoo.files import write_json, write_text
from zoo.functional import Functional, count_parameters
from zoo.tasks.base import TaskInfo
from zoo.training.budget import budget
from zoo.training.build import make_task, model_maker
from zoo.training.memory import plan_step
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import Recipe, load_recipe
from zoo.training.run import environment
from zoo.training.step import init_state, make_train_step

PROTOCOLS = ("original", "small", "ssm")
TASKS = ("listops", "text", "retrieval", "image")
ROWS, LENGTH, LAYERS, STEPS = 2, 128, 2, 20
DEVICE_BYTES = 24 * 2**30


def variants() -> list[str]:
    """All mixers, and the models that classify tokens."""
    models = [spec.name for spec in registry.list_specs(kind="model", inputs="tokens")]
    return [spec.name for spec in registry.list_specs(kind="mixer")] + models


def random_batch(info: TaskInfo, rows: int, length: int) -> dict[str, np.ndarray]:
    """Inputs of a task's form, full length."""
    rng = np.random.default_rng(0)
    shape = (rows, length, 2) if info.pairs else (rows, length)
    if info.inputs == "tokens":
        inputs = rng.integers(1, info.vocab_size or 2, shape).astype(np.int32)
    else:
        inputs = rng.normal(size=shape).astype(np.float32)
    label = rng.integers(0, info.num_classes, rows).astype(np.int32)
    return {"inputs": inputs, "mask": np.ones(shape, bool), "label": label, "weight": np.ones(rows, np.float32)}


def cell(protocol: str, task: str, variant: str) -> dict[str, Any]:
    """What there is to say of a variant by a recipe; "failed" with the reason where it cannot be built."""
    row: dict[str, Any] = {"protocol": protocol, "task": task, "variant": variant}
    try:
        recipe = load_recipe(f"lra/{protocol}/{task}", variant=variant)
        info = make_task(recipe).info
        functional = Functional(model_maker(recipe, info))
    except ValueError as error:  # what recipes and registry raise
        return {**row, "failed": str(error)}
    parameters = count_parameters(functional.abstract_params)
    size = budget(recipe, info, parameters)
    row |= {"parameters": parameters, "budget": size.to_dict() if size else None}
    row |= {"batch_size": recipe.train.batch_size, "max_len": info.max_len}
    began = time.perf_counter()
    row["step_bytes"] = step_bytes(recipe, info)
    row["compile_seconds"] = time.perf_counter() - began
    return row | {"steps": take_steps(recipe)}


def with_layers(recipe: Recipe, layers: int) -> Recipe:
    """The recipe with at most so many layers."""
    model = dataclasses.replace(recipe.model, num_layers=min(layers, recipe.model.num_layers))
    return dataclasses.replace(recipe, model=model)


def step_bytes(recipe: Recipe, info: TaskInfo) -> int:
    """Bytes of one update: planned with two and three layers, and from there by a line where there are more."""

    def planned(layers: int) -> int:
        plan = plan_step(with_layers(recipe, layers), random_batch(info, 1, info.max_len), length=info.max_len)
        return plan(recipe.train.batch_size, recipe.train.accumulate, info.max_len)

    layers = recipe.model.num_layers
    if layers <= 3:
        return planned(layers)
    two, three = planned(2), planned(3)
    return two + (three - two) * (layers - 2)


def take_steps(recipe: Recipe) -> dict[str, Any]:
    """The first and the last loss of some updates of a few rows at a reduced length."""
    config = dataclasses.replace(recipe.train, batch_size=ROWS, accumulate=1)
    recipe = with_layers(recipe, LAYERS)
    length = LENGTH
    if recipe.task.name != "lra/image":  # whose models are of one length; they read less
        recipe = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, max_len=LENGTH))
    elif recipe.variant == "axial":  # which wants its whole grid
        length = make_task(recipe).info.max_len
    task = make_task(recipe)
    functional = Functional(model_maker(recipe, task.info))
    optimizer = make_optimizer(config)
    state = init_state(functional, optimizer, config)
    step = make_train_step(functional, task, optimizer, config)
    batch = jax.device_put(random_batch(task.info, ROWS, length))
    losses = []
    for _ in range(STEPS):
        state, sums = step(state, batch, jax.random.key(0))
        losses.append(float(sums["loss"]) / ROWS)
    return {"rows": ROWS, "length": length, "count": STEPS, "first": losses[0], "last": losses[-1],
            "finite": bool(np.isfinite(losses).all())}  # fmt: skip


def to_markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """A table for each task: by protocol and variant parameters, their ratio to softmax, and memory."""
    lines = [
        f"On {about['device']} ({about['processor']}), jax {about['jax']}, flax {about['flax']}, zoo {about['zoo']} at "
        f"{about['commit']}, {about['date']}. Parameters in thousands and by those of softmax in the same recipe; "
        "memory is what XLA plans on this device for one update of the recipe's batch at its length, in float32, "
        "without accumulation or recomputation (bold: more than 24 GiB), and of more than three layers by a line "
        f"through two and three. Each also took {STEPS} updates of {ROWS} rows at {LENGTH} tokens (axial on Image: "
        "1,024), with two layers at most, and finite losses, but where a reason is named.",
    ]
    for task in TASKS:
        mine = {(row["variant"], row["protocol"]): row for row in rows if row["task"] == task}
        shapes = {
            protocol: next((f"{row['batch_size']} x {row['max_len']:,}" for (_, name), row in mine.items()
                            if name == protocol and "failed" not in row), "-")
            for protocol in PROTOCOLS
        }  # fmt: skip
        lines += ["", f"### {task}", ""]
        lines.append("| variant | " + " | ".join(f"{name} ({shapes[name]})" for name in PROTOCOLS) + " |")
        lines.append("|---|" + "---:|" * len(PROTOCOLS))
        for variant in dict.fromkeys(name for name, _ in mine):
            cells = [_shown(mine.get((variant, protocol))) for protocol in PROTOCOLS]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    failed = [row for row in rows if "failed" in row or not row["steps"]["finite"]]
    lines += ["", *(f"* {row['variant']}, lra/{row['protocol']}/{row['task']}: {_reason(row)}" for row in failed)]
    return "\n".join(lines).rstrip()


def _shown(row: dict[str, Any] | None) -> str:
    if row is None or "failed" in row:
        return "-"
    ratio = f" ({row['budget']['ratio']:.2f} x)" if row["budget"] else ""
    memory = f"{row['step_bytes'] / 2**30:.1f} GiB"
    return f"{row['parameters'] / 1e3:,.0f}{ratio}, {f'**{memory}**' if row['step_bytes'] > DEVICE_BYTES else memory}"


def _reason(row: dict[str, Any]) -> str:
    return row.get("failed") or "a loss was not finite"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="write the figures here, and a .md beside it")
    parser.add_argument("--variants", help="comma separated (default: all that classify)")
    args = parser.parse_args()
    held = json.loads(args.json.read_text()) if args.json.exists() else {"rows": [], "environment": None}
    found = {(row["protocol"], row["task"], row["variant"]): row for row in held["rows"]}
    about = held["environment"]
    for variant in args.variants.split(",") if args.variants else variants():
        for task in TASKS:
            for protocol in PROTOCOLS:
                if (protocol, task, variant) in found:
                    continue
                about = environment()  # of the newest cell
                began = time.perf_counter()
                row = found[protocol, task, variant] = cell(protocol, task, variant)
                said = row.get("failed") or f"{row['parameters']:,} parameters, {row['step_bytes'] / 1e9:.1f} GB"
                print(f"{variant} lra/{protocol}/{task}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
                write_json(args.json, {"environment": about, "rows": list(found.values())})
                jax.clear_caches()
    write_text(args.json.with_suffix(".md"), to_markdown(list(found.values()), about) + "\n")
    print(to_markdown(list(found.values()), about))


if __name__ == "__main__":
    main()
