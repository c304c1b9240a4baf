"""Figures of `benchmarks.lra.efficiency` as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lra.efficiency_points import BASE

# The lengths of table 2 of the LRA paper (Tay et al. 2020, arXiv:2011.04006).
LRA_LENGTHS = (1024, 2048, 3072, 4096)
_TITLES = {
    "train": "Training step",
    "infer": "Inference",
    "decode": "One decoding step after so many tokens",
}


def to_markdown(held: Mapping[str, Any]) -> str:
    """All tables of a file, and why some figures are missing.

    Args:
      held: what the file holds: "environment", "setting" and "rows".
    """
    about, setting, rows = held["environment"], held["setting"], held["rows"]
    alike = (
        "width and depth"
        if setting["equal"] == "width"
        else "depth, and with such a width that their layers have as many parameters as softmax's,"
    )
    overrides = "".join(f" {text}" for text in setting["overrides"])
    parts = [
        f"On {about['device']} ({about['processor']}), jax {about['jax']}, flax {about['flax']}, zoo {about['zoo']} at "
        f"{about['commit'] or 'no commit'}, {about['date']}. All variants with the {alike} of "
        f"`{setting['recipe']}`{overrides}, batch {setting['batch_size']}; medians of {setting['repeats']} samples, "
        "the variants of one length in turns; in brackets the speed by that of softmax in the same process. A dash: it "
        "did not run, see below."
    ]
    if any(row["kind"] == "train" and row["length"] in LRA_LENGTHS for row in rows):
        parts.append(lra_table(rows))
    for kind, title in _TITLES.items():
        mine = [row for row in rows if row["kind"] == kind]
        if mine:
            parts += [f"### {title}", _times(mine), _memory(mine), _compile(mine)]
    parts.append(_flops(rows))
    failed = [f"* {row['variant']}, {row['kind']}, {row['length']:,}: {row['reason']}" for row in rows if row["reason"]]
    if failed:
        parts.append("### What did not run\n\n" + "\n".join(failed))
    return "\n\n".join(part for part in parts if part)


def lra_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Steps per second (times softmax's) and peak memory in GB at 1K to 4K, as the LRA paper has them."""
    train = [row for row in rows if row["kind"] == "train" and row["length"] in LRA_LENGTHS]
    names = [f"{length // 1024}K" for length in LRA_LENGTHS]
    measured = all(row["device_peak"] for row in train if row["seconds"])
    what = "peak memory of the device" if measured else "memory as the compiler plans it"
    lines = [
        f"### In the form of LRA's own table: training steps per second (times softmax) and {what} in GB",
        "",
        "| variant | " + " | ".join([f"steps/s {name}" for name in names] + [f"GB {name}" for name in names]) + " |",
        "|---|" + "---:|" * (2 * len(names)),
    ]
    for variant, cells in _by_variant(train).items():
        found = [cells.get(length) for length in LRA_LENGTHS]
        steps = [_steps(row) for row in found]
        size = "device_peak" if measured else "step_bytes"
        sizes = ["-" if row is None or not row["seconds"] else f"{row[size] / 1e9:.2f}" for row in found]
        lines.append(f"| {variant} | {' | '.join([*steps, *sizes])} |")
    return "\n".join(lines)


def _steps(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["seconds"]:
        return "-"
    ratio = f" ({row['ratio']:.1f})" if row["ratio"] and row["variant"] != BASE else ""
    return f"{1 / row['seconds']:.2f}{ratio}"


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    def shown(row: Mapping[str, Any]) -> str:
        ratio = "" if row["ratio"] is None else f" ({row['ratio']:.2f}x)"
        return f"{1e3 * row['seconds']:,.1f}; {row['tokens_per_second']:,.0f}{ratio}"

    return "Milliseconds; tokens/s (speed by softmax's):\n\n" + _table(rows, "seconds", shown)


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    def shown(row: Mapping[str, Any]) -> str:
        peak = f" ({row['device_peak'] / 1e6:,.0f})" if row["device_peak"] else ""
        return f"{row['step_bytes'] / 1e6:,.1f}{peak}"

    return "MB that the compiler plans for one call (the device's peak, where it is the call's):\n\n" + _table(
        rows, "step_bytes", shown
    )


def _compile(rows: Sequence[Mapping[str, Any]]) -> str:
    return "Seconds to compile:\n\n" + _table(rows, "compile_seconds", lambda row: f"{row['compile_seconds']:.1f}")


def _flops(rows: Sequence[Mapping[str, Any]]) -> str:
    """Billions of operations a sequence, by formulas; see `benchmarks.lra.flops`."""
    mine = [row for row in rows if row["kind"] == "infer" and row["flops"]]
    if not mine:
        return ""
    shown = lambda row: f"{row['flops'] / row['batch_size'] / 1e9:.3f}"  # noqa: E731
    return (
        "### FLOPs\n\nBillions for one sequence forward, by the papers' equations (`benchmarks/lra/flops.py`); a "
        f"training step takes three times as many:\n\n{_table(mine, 'flops', shown)}"
    )


def _table(rows: Sequence[Mapping[str, Any]], needed: str, shown: Any) -> str:
    lengths = sorted({row["length"] for row in rows})
    lines = ["| variant | " + " | ".join(f"{length:,}" for length in lengths) + " |", "|---|" + "---:|" * len(lengths)]
    for variant, cells in _by_variant(rows).items():
        found = [cells.get(length) for length in lengths]
        texts = ["-" if row is None or row[needed] is None else shown(row) for row in found]
        lines.append(f"| {variant} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _by_variant(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["variant"] != BASE, row["variant"])):
        found.setdefault(row["variant"], {})[row["length"]] = row
    return found
