"""Trains forecasters by their recipes with several seeds, and sets the errors beside the published ones.

    python -m benchmarks.forecasting.suite --data-dir DIR [--only etth1] [--table]

Each record is written as soon as its run ends, so an interrupted suite goes on where it was. Records are in
`results/<recipe>/<variant>-s<seed>.json`, the validation errors of each epoch beside them in `...-epochs.jsonl`, the
table in `results/suite.md`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.training.recipe import load_recipe

RESULTS = Path(__file__).parent / "results"
HORIZONS = (96, 192, 336, 720)
SEEDS = (2023, 2024, 2025)
VARIANTS = ("itransformer_forecaster", "dlinear")
# Recipe below configs/forecasting, variant, seeds, overrides.
PLAN = [
    *(
        (f"lookback96/{data}_{horizon}", variant, SEEDS, ())
        for variant in VARIANTS
        for data in ("etth1", "etth2")
        for horizon in HORIZONS
    ),
    *((f"lookback96/{data}_96", variant, SEEDS[:1], ()) for data in ("ettm1", "weather") for variant in VARIANTS),
    ("informer/etth1_24", "informer_forecaster", (0,), ()),
    ("informer/etth1_24", "dlinear", (0,), ("train.lr=1e-3",)),
]


def main() -> None:
    """Runs what has no record yet, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, help="the folder of the csv files")
    parser.add_argument("--runs", type=Path, default=Path("runs/forecasting"), help="folder for the run directories")
    parser.add_argument("--only", default="", help="only recipes, or variants, whose name has this in it")
    parser.add_argument("--table", action="store_true", help="write the table and train nothing")
    args = parser.parse_args()
    if not args.table:
        for name, variant, seeds, overrides in PLAN:
            for seed in seeds:
                if args.only in name or args.only in variant:
                    train(name, variant, seed, overrides, args.runs, args.data_dir)
    (RESULTS / "suite.md").write_text(table(records()) + "\n", encoding="utf-8")


def record_path(name: str, variant: str, seed: int) -> Path:
    """Where the record of a run lies."""
    return RESULTS / name.removeprefix("lookback96/").replace("/", "_") / f"{variant}-s{seed}.json"


def train(name: str, variant: str, seed: int, overrides: Sequence[str], runs: Path, data_dir: Path | None) -> None:
    """One run, if it has no record, and its record."""
    record = record_path(name, variant, seed)
    if record.exists():
        return
    folder = runs / record.parent.name / record.stem
    command = [sys.executable, "-m", "zoo", "train", f"forecasting/{name}", f"train.seed={seed}", *overrides]
    command += ["train.tensorboard=false", "--variant", variant, "--run-dir", str(folder)]
    command += [] if data_dir is None else ["--data-dir", str(data_dir)]
    print(f"{name}, {variant}, seed {seed}", flush=True)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    record.parent.mkdir(parents=True, exist_ok=True)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    epochs = [{key: line[key] for key in ("step", "mse", "mae")} for line in log if line.get("split") == "validation"]
    record.with_name(f"{record.stem}-epochs.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in epochs))
    partial = record.with_suffix(".partial")
    partial.write_text((folder / "result.json").read_text(encoding="utf-8"), encoding="utf-8")
    partial.replace(record)


def records() -> list[dict[str, Any]]:
    """All results, in the order of the plan."""
    paths = [record_path(name, variant, seed) for name, variant, seeds, _ in PLAN for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def table(results: list[dict[str, Any]]) -> str:
    """MSE and MAE on the test split by recipe, beside the published figures, and DLinear's and the naive ones."""
    lines = [
        "Every test window, mean over seeds (in brackets: each seed); `by` is ours less the published. The lookback is "
        "96, for Informer, whose own protocol it is, 48.",
        "",
        "| data, horizon | variant | MSE | MAE | published | by | repeat last / season | updates | seeds |",
        "|---|---|---|---|---|---|---|---:|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["recipe"].removeprefix("forecasting/"), result["variant"]), []).append(result)
    for (recipe, variant), mine in sorted(groups.items(), key=lambda item: _order(*item[0])):
        mse, mae = ([result["best"]["test"][name] for result in mine] for name in ("mse", "mae"))
        published = load_recipe(f"forecasting/{recipe}").published.get(variant)
        naive = mine[0]["baselines"]["test"]
        season = f"{naive['repeat_season']:.3f}" if "repeat_season" in naive else "–"
        shown, by = "–", "–"
        if published:
            shown = f"{published['mse']:.3f} / {published['mae']:.3f}"
            by = f"{statistics.fmean(mse) - published['mse']:+.4f} / {statistics.fmean(mae) - published['mae']:+.4f}"
        name = recipe.split("/")[-1].replace("_", ", ")
        lines.append(
            f"| {name} | {variant.removesuffix('_forecaster')} | {_mean(mse)} | {_mean(mae)} "
            f"| {shown} | {by} | {naive['repeat_last']:.3f} / {season} "
            f"| {_listed(mine, 'steps')} | {_listed(mine, 'seed')} |"
        )
    if results:
        environment = results[-1]["environment"]
        device = f"{environment['device']} ({environment['processor']})"
        lines += ["", f"{device}, jax {environment['jax']}, flax {environment['flax']}."]
    return "\n".join(lines)


def _order(recipe: str, variant: str) -> tuple[str, str, int, str]:
    data, _, horizon = recipe.rpartition("_")
    protocol, _, data = data.partition("/")
    return "" if protocol == "lookback96" else protocol, data, int(horizon), "" if variant == VARIANTS[0] else variant


def _listed(results: list[dict[str, Any]], key: str) -> str:
    return ", ".join(str(result[key]) for result in results)


def _mean(values: list[float]) -> str:
    each = f" ({', '.join(f'{value:.4f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{each}"


if __name__ == "__main__":
    main()
