"""Several variants, one recipe, several seeds, side by side: a table, a JSON file and a plot.

Each run is a process of its own, one after another, so that memory, compilation and caches are the same for all. A
finished run of the same recipe is kept, an interrupted one goes on.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.files import write_json, write_text
from zoo.training.budget import MOST
from zoo.training.build import make_task, model_maker, variant_spec
from zoo.training.folder import read_result
from zoo.training.launch import train_command, wait_for
from zoo.training.recipe import Recipe, load_recipe
from zoo.training.run import finished_result


def compare(
    recipe: str,
    variants: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    data_dir: Path | None = None,
) -> str:
    """Trains every variant with every seed and returns the table, which is also in `out`/compare.md.

    Args:
      recipe: name or path of a recipe.
      variants: registered variants, or .py files that register one.
      seeds: values of `train.seed`.
      out: folder for the runs, compare.md, compare.json and compare.png.
      overrides: "key=value" of the recipe, the same for all runs.
      data_dir: where data lives; None for the default.

    Raises:
      RecipeError, RegistryError: before anything is trained.
      RuntimeError: a run failed; the finished ones are kept.
    """
    if not variants or not seeds:
        raise ValueError("compare needs at least one variant and one seed.")
    if len(set(variants)) < len(variants) or len(set(seeds)) < len(seeds):
        raise ValueError(f"variants and seeds must differ from one another: {', '.join(variants)}; {list(seeds)}.")
    plans = _plan(recipe, variants, seeds, out, overrides)
    task = make_task(plans[0][0], data_dir)
    for planned, _ in plans:
        model_maker(planned, task.info)
    task.prepare()
    results = []
    for number, (planned, folder) in enumerate(plans, start=1):
        print(f"[{number}/{len(plans)}] {planned.variant}, seed {planned.train.seed}", file=sys.stderr, flush=True)
        results.append(_run(planned, folder, data_dir))
    rows = summarise(results)
    table = to_markdown(rows, results[0])
    write_json(out / "compare.json", {"rows": rows, "results": results})
    write_text(out / "compare.md", table + "\n")
    return table + "\n\n" + _plot(rows, results, out / "compare.png")


def _plan(recipe: str, variants: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]):
    plans: list[tuple[Recipe, Path]] = []
    for variant in variants:
        for seed in seeds:
            planned = load_recipe(recipe, [*overrides, f"train.seed={seed}"], variant=variant)
            plans.append((planned, out / f"{variant_spec(planned).name}-s{seed}"))
    return plans


def _run(recipe: Recipe, folder: Path, data_dir: Path | None) -> dict[str, Any]:
    finished = finished_result(recipe, folder)
    if finished is not None:
        return finished
    code = wait_for(train_command(recipe, folder.parent / "recipes" / f"{folder.name}.yaml", folder, data_dir))
    result = read_result(folder)
    if code or result is None:
        raise RuntimeError(
            f"the run in {folder} failed (exit code {code}); its message is above. The same command goes on "
            "with the runs that are not finished."
        )
    return result


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a variant: the task's metric for its seeds, their mean and spread, median speed, and sizes."""
    rows = []
    for variant in dict.fromkeys(result["variant"] for result in results):
        mine = [result for result in results if result["variant"] == variant]
        metric = _metric(mine[0])
        scores = [result[result["select"]]["test"][metric] for result in mine]
        speeds = [result["steps_per_second"] for result in mine if result["steps_per_second"]]
        rows.append(
            {
                "variant": variant,
                "seeds": [result["seed"] for result in mine],
                f"test_{metric}": scores,
                "mean": statistics.fmean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                f"validation_{metric}": [result[result["select"]]["validation"][metric] for result in mine],
                "parameters": mine[0]["parameters"],
                "size": (mine[0].get("budget") or {}).get("ratio"),
                "steps_per_second": statistics.median(speeds) if speeds else None,
                "step_bytes": max(result["memory"]["step"] for result in mine),
                "host_peak_bytes": max(result["memory"]["host_peak"] for result in mine),
                "device_peak_bytes": max(result["memory"]["device_peak"] or 0 for result in mine) or None,
                "compile_seconds": statistics.median(result["compile_seconds"] for result in mine),
            }
        )
    return rows


def _metric(result: dict[str, Any]) -> str:
    return result.get("metric", "accuracy")  # which results written before there was another do not name


def _shown(metric: str) -> tuple[str, float, int]:
    """How a metric is called in tables and plots, the factor that it is shown by, and decimals: shares in percent."""
    return ("accuracy (%)", 100, 2) if metric == "accuracy" else (metric, 1, 4)


def published_text(published: Mapping[str, Any], variants: Sequence[str]) -> str:
    """The published figures of some variants and their source in a line; "" where there are none."""
    found = []
    for variant in variants:
        figures = published.get(variant)
        if isinstance(figures, Mapping):
            found.append(f"{variant} " + ", ".join(f"{name} {value}" for name, value in figures.items()))
        elif figures is not None:
            found.append(f"{variant} {figures}")
    source = f" ({published['source']})" if found and "source" in published else ""
    return f"published: {'; '.join(found)}{source}" if found else ""


def to_markdown(rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> str:
    """The comparison as Markdown; `result` is any of the runs, for what they have in common."""
    environment, metric = result["environment"], _metric(result)
    title, scale, digits = _shown(metric)
    lines = [
        f"{result['task']}/{result['source']}, protocol {result['protocol'] or '-'}, {result['steps']} steps of "
        f"{result['batch_size']} x {result['max_len']}, test {metric} of the {result['select']} parameters over "
        f"{result[result['select']]['test']['examples']:.0f} examples.",
        "",
        f"| variant | test {title} | by seed | parameters | steps/s | step memory (MB) | peak (MB) | compile (s) |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = "" if row["std"] is None else f" ± {scale * row['std']:.{digits}f}"
        scores = zip(row["seeds"], row[f"test_{metric}"], strict=True)
        seeds = ", ".join(f"{seed}: {scale * score:.{digits}f}" for seed, score in scores)
        speed = "-" if row["steps_per_second"] is None else f"{row['steps_per_second']:.2f}"
        peak = row["device_peak_bytes"] or row["host_peak_bytes"]
        lines.append(
            f"| {row['variant']} | {scale * row['mean']:.{digits}f}{spread} | {seeds} | {row['parameters']:,} "
            f"| {speed} | {row['step_bytes'] / 1e6:.1f} | {peak / 1e6:.0f} | {row['compile_seconds']:.1f} |"
        )
    for name, value in result["baselines"]["test"].items():
        lines.append(f"| *{name.replace('_', ' ')}* | {scale * value:.{digits}f} | no model | | | | | |")
    if text := published_text(result["published"], [row["variant"] for row in rows]):
        lines += ["", text[0].upper() + text[1:] + "."]
    for caution in result.get("cautions", ()):
        lines += ["", f"Note: {caution}."]
    if large := [f"{row['variant']} ({row['size']:.2f} x)" for row in rows if (row["size"] or 0) > MOST]:
        lines += ["", f"Note: beyond LRA's rule of at most 10 % more parameters than softmax: {', '.join(large)}."]
    where = "the device's" if rows[0]["device_peak_bytes"] else "the process's"
    lines += [
        "",
        f"Step memory is what the compiler plans for one update; peak is {where}. On {environment['device']} "
        f"({environment['processor']}), jax {environment['jax']}, flax {environment['flax']}, "
        f"zoo {environment['zoo']} at {environment['commit'] or 'no commit'}.",
    ]
    return "\n".join(lines)


def _plot(rows: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], path: Path) -> str:
    """Draws the plot and says where it is, or what to install."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return "No plot: it needs matplotlib (pip install 'seqzoo[plot]'); the same command then draws it."
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [row["variant"] for row in rows]
    many = len(rows) > 5  # side by side they would become a ribbon
    size = (3 + 0.8 * len(rows), 11) if many else (4 + 2.4 * len(rows), 4.2)
    figure, axes = plt.subplots(3 if many else 1, 1 if many else 3, figsize=size, layout="constrained")
    colors = [f"C{index}" for index in range(len(rows))]
    metric = _metric(results[0])
    title, scale, _ = _shown(metric)
    axes[0].bar(names, [scale * row["mean"] for row in rows], color=colors, alpha=0.7)
    for index, row in enumerate(rows):
        scores = [scale * score for score in row[f"test_{metric}"]]
        axes[0].plot([index] * len(scores), scores, "k_", ms=14)
    for index, (name, value) in enumerate(results[0]["baselines"]["test"].items()):
        style = ["--", ":", "-."][index % 3]
        axes[0].axhline(scale * value, color="0.35", linestyle=style, linewidth=1)
        right = {"transform": axes[0].get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": "x-small"}
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
        axes[0].text(0.995, scale * value, name.replace("_", " "), **right, bbox=box)
    axes[0].set_ylabel(f"test {title}")
    axes[0].set_title(f"{metric} (marks: seeds; lines: no model)")
    axes[0].set_ylim(0, None)
    axes[0].margins(x=0.2)
    axes[1].bar(names, [row["steps_per_second"] or 0 for row in rows], color=colors, alpha=0.7)
    axes[1].set_ylabel("training steps / s")
    axes[1].set_title("speed")
    axes[2].bar(names, [row["step_bytes"] / 1e6 for row in rows], color=colors, alpha=0.7)
    axes[2].set_ylabel("MB planned for one update")
    axes[2].set_title("memory")
    for axis in axes:
        axis.tick_params(axis="x", labelrotation=20)
        axis.spines[["top", "right"]].set_visible(False)
    first = results[0]
    figure.suptitle(
        f"{first['task']}/{first['source']}, {first['protocol'] or 'no'} protocol, {first['batch_size']} x "
        f"{first['max_len']}, {first['environment']['device']}"
    )
    temporary = path.with_name("partial-" + path.name)
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    temporary.replace(path)
    return f"Plot: {path}"
