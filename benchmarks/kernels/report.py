"""The results as JSON and as tables in Markdown."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.kernels.cases import OURS, Sizes
from benchmarks.kernels.measure import TIMED, TOLERANCE, Record
from benchmarks.kernels.prepare import PASSES, TRAINING
from benchmarks.kernels.targets import COMPILE, MET, MISSED, OPEN, TARGETS, Verdict, judge

THREADS = {"one": "one thread", "all": "all threads"}
TITLES = {"forward": "forward", "training": "training step"}
EMPTY = "-"


def to_json(about: dict[str, Any], sizes: Sizes, records: Sequence[Record]) -> str:
    """Everything that was measured, one record a line."""
    head = {
        "about": about,
        "sizes": dataclasses.asdict(sizes),
        "tolerance": TOLERANCE,
        "targets": [dataclasses.asdict(verdict) for verdict in judge(records)],
    }
    text = json.dumps(head, indent=2)
    lines = ",\n".join("    " + json.dumps(dataclasses.asdict(record)) for record in records)
    return f'{text[:-2]},\n  "records": [\n{lines}\n  ]\n}}\n'


def from_json(text: str) -> tuple[dict[str, Any], Sizes, list[Record]]:
    """What `to_json` wrote."""
    found = json.loads(text)
    return found["about"], Sizes(**found["sizes"]), [Record(**record) for record in found["records"]]


def to_markdown(about: dict[str, Any], sizes: Sizes, records: Sequence[Record], picture: str = "") -> str:
    """The device and versions, the targets, and the tables of each op."""
    lines = [f"# The recurrent ops and their peers on {about['device']}", "", _setting(about) + _quiet(records), ""]
    if picture:
        lines += [f"![Milliseconds against T]({picture})", ""]
    lines += ["## Targets", "", *_targets(records)]
    for op in dict.fromkeys(record.op for record in records):
        lines += ["", f"## {op}", "", *_tables(op, sizes, [record for record in records if record.op == op])]
    return "\n".join(lines) + "\n"


def shapes(op: str, sizes: Sizes) -> str:
    """The shapes of an op's arrays, but for T."""
    if op == "selective_scan":
        return f"B {sizes.batch}, D {sizes.width}, N {sizes.states}; with D, z, dt_bias and softplus"
    if op == "causal_conv1d":
        return f"B {sizes.batch}, D {sizes.width}, W {sizes.taps}; with bias and SiLU"
    text = f"B {sizes.batch}, H {sizes.heads}, K {sizes.key}, V {sizes.value}"
    return text + ("; without decay" if op == "gated_delta_rule" else "; one decay per head and token")


def _setting(about: dict[str, Any]) -> str:
    versions = [f"{name} {about[name]}" for name in ("zoo", "python", "jax", "jaxlib", "numpy") if name in about]
    versions += [f"{name} {version}" for name, version in about.get("packages", {}).items()]
    return (
        f"Processor {about['processor']}, {about['cores']} cores, load {about['load_before']} before and "
        f"{about['load_after']} after. Commit {about['commit']}, {about['date']}. {', '.join(versions)}. "
        f"float32; medians of {about['repeats']} rounds, all peers in each round; in parentheses, the time over that "
        f"of `{OURS}`."
    )


def _quiet(records: Sequence[Record]) -> str:
    """How much of its core the process had in the runs with one thread: 100 % on a quiet machine."""
    parts = [
        record.cpu_seconds / record.seconds
        for record in records
        if record.threads == "one" and record.seconds and record.cpu_seconds
    ]
    if not parts:
        return ""
    return f" The runs with one thread had {100 * statistics.median(parts):.0f} % of their core's time (median)."


def _targets(records: Sequence[Record]) -> list[str]:
    """A count, and one row per target, one column per length and number of threads."""
    verdicts = judge(records)
    counts = {status: sum(verdict.status == status for verdict in verdicts) for status in (MET, MISSED, OPEN)}
    columns = sorted(
        {(verdict.threads, verdict.length) for verdict in verdicts}, key=lambda column: (column[0] != "one", column[1])
    )
    found = {(verdict.target, verdict.threads, verdict.length): verdict for verdict in verdicts}
    lines = [
        f"{counts[MET]} met, {counts[MISSED]} missed, {counts[OPEN]} not measured.",
        "",
        *header("target", [f"{THREADS[threads]}, T {length}" for threads, length in columns]),
    ]
    for target in TARGETS:
        cells = [_verdict(found.get((str(target), *column)), target.quantity) for column in columns]
        if any(cell != EMPTY for cell in cells):
            lines.append(row(str(target), cells))
    return lines


def _verdict(verdict: Verdict | None, quantity: str) -> str:
    if verdict is None:
        return EMPTY
    if verdict.value is None:
        return verdict.status
    value = f"{verdict.value:.1f} s" if quantity == COMPILE else f"{verdict.value:.2f}x"
    if verdict.status == MET:
        return f"{value}, met"
    return f"**{value}, missed by {100 * (verdict.short_by or 0):.0f} %**"


def _tables(op: str, sizes: Sizes, records: Sequence[Record]) -> list[str]:
    lengths = sorted({record.length for record in records})
    peers = [name for name in dict.fromkeys(record.peer for record in records) if _any_timed(records, name)]
    found = {(record.threads, record.which, record.length, record.peer): record for record in records}
    lines = [f"{shapes(op, sizes)}."]
    for threads in dict.fromkeys(record.threads for record in records):
        columns = [(which, length) for which in PASSES for length in lengths]
        lines += ["", f"Milliseconds, {THREADS[threads]}:", ""]
        lines += header("", [f"{TITLES[which]}, T {length}" for which, length in columns])
        lines += [row(name, [_time(found.get((threads, *column, name))) for column in columns]) for name in peers]
    threads = records[-1].threads
    lines += ["", "Training step: memory in MB, of what, seconds to compile, and the largest error of all that was "]
    lines[-1] += "checked, relative to the array's largest value:"
    columns = [*(f"MB, T {length}" for length in lengths), "of", *(f"compile, T {length}" for length in lengths)]
    lines += ["", *header("", [*columns, "error"])]
    for name in peers:
        cases = [found[threads, TRAINING, length, name] for length in lengths]
        what = next((record.memory_of for record in cases if record.memory_of), EMPTY)
        memory = [_number(record.memory_bytes, 1e6, 1) for record in cases]
        compile_seconds = [_number(record.compile_seconds, 1, 1) for record in cases]
        worst = max(max(record.error.values(), default=0.0) for record in records if record.peer == name)
        lines.append(row(name, [*memory, what, *compile_seconds, f"{worst:.1e}"]))
    return lines + _notes(records)


def _notes(records: Iterable[Record]) -> list[str]:
    """Who was not timed, where and why."""
    reasons: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.status != TIMED:
            reasons.setdefault((record.peer, record.status, record.reason), []).append(record)
    lines = []
    for (peer, status, reason), found in reasons.items():
        passes = [TITLES[which] for which in PASSES if any(record.which == which for record in found)]
        lengths = sorted({record.length for record in found})
        where = f"{' and '.join(passes)}, T {', '.join(map(str, lengths))}"
        lines.append(f"- {peer}: {status}{f' ({reason})' if reason else ''}; {where}")
    return ["", "Not timed:", "", *lines] if lines else []


def _any_timed(records: Iterable[Record], name: str) -> bool:
    return any(record.peer == name and record.status == TIMED for record in records)


def _time(record: Record | None) -> str:
    if record is None or record.seconds is None:
        return EMPTY if record is None else record.status
    text = f"{record.seconds * 1e3:.3g}" if record.seconds < 0.1 else f"{record.seconds * 1e3:,.0f}"
    return text if record.ratio is None or record.peer == OURS else f"{text} ({record.ratio:.2f}x)"


def _number(value: float | None, unit: float, digits: int) -> str:
    return EMPTY if value is None else f"{value / unit:,.{digits}f}"


def header(first: str, columns: Sequence[str]) -> list[str]:
    """The first two lines of a table in Markdown, with numbers to the right."""
    return [row(first, columns), "|---|" + "---:|" * len(columns)]


def row(first: str, cells: Sequence[str]) -> str:
    """A line of it."""
    return f"| {' | '.join([first, *cells])} |"
