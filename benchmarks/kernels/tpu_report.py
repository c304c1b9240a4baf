"""What `tpu_compiler` found, as JSON and as tables in Markdown."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.report import EMPTY, TITLES, header, row
from benchmarks.kernels.tpu_worker import KERNELS, Request

_PREFACE = """\
What the compiler for TPUs says of our kernels (`mosaic_tpu`) and of XLA's forms of the same ops. **Nothing has been
run: these are not times.** They help to choose what to measure.

A *schedule* is what is run: bundles of instructions, followed through all loops and branches, a cycle each as long as
nothing waits. Waits for copies between HBM and VMEM, the DMA stalls, are not in it, so what is bound by memory takes
longer, XLA's forms above all, which write much more than the kernels do. The *cost model* is XLA's own estimate of each
fusion and copy, rough, with the time for memory in mind; kernels have none. So the two columns differ in kind, and the
time of a run need not lie between them. The ratio by schedule leaves out memory on both sides. That by cost model sets
estimates of XLA's forms against the schedules of the kernels, with the estimates of what XLA does around these.

Under "left out" the first number says of how many instructions the schedule could not be followed ("+" stands where
that is more than none), the second how many have no estimate. They count nothing there, which favours XLA's forms; the
JSON says more.

Temporary memory is what the compiler plans beside arguments and results. A training step is the output and every
gradient, for a given cotangent. Seconds to compile are those of one try, with tracing and lowering.
"""
_COLUMNS = (
    "kernels, schedule",
    "the rest, schedule",
    "the rest, cost model",
    "ratio by schedule",
    "ratio by cost model",
    "left out",
    "temporary MB",
    "compile s",
)


@dataclasses.dataclass(frozen=True)
class Record(Request):
    """What was found of a program.

    Attributes:
      kernels: bundles that each kernel runs through, by the name of its instruction.
      scheduled: bundles that all else, which XLA made, runs through.
      unfollowed: the instructions that are not in `scheduled`, by name, and why their schedule could not be followed.
      estimated: cycles of what XLA made, by its cost model.
      estimated_unfollowed: of these, the cycles of `unfollowed`.
      unpriced: how many instructions on arrays have no estimate, by kind; they count nothing.
      temporary_bytes: what the compiler plans beside arguments and results.
      compile_seconds: with tracing and lowering.
    """

    kernels: dict[str, int] = dataclasses.field(kw_only=True)
    scheduled: int = dataclasses.field(kw_only=True)
    unfollowed: dict[str, str] = dataclasses.field(kw_only=True)
    estimated: int = dataclasses.field(kw_only=True)
    estimated_unfollowed: int = dataclasses.field(kw_only=True)
    unpriced: dict[str, int] = dataclasses.field(kw_only=True)
    temporary_bytes: int = dataclasses.field(kw_only=True)
    compile_seconds: float = dataclasses.field(kw_only=True)

    @property
    def by_schedule(self) -> int:
        """Bundles of all that could be followed."""
        return sum(self.kernels.values()) + self.scheduled

    @property
    def by_cost_model(self) -> int:
        """Bundles of the kernels, for which there is no such model, and XLA's estimate of the rest."""
        return sum(self.kernels.values()) + self.estimated


def line(record: Record) -> str:
    """For who waits."""
    scheduled, estimated = _millions(record.by_schedule), _millions(record.by_cost_model)
    return f"{record}: {scheduled} M by schedule, {estimated} M by cost model, {record.compile_seconds:.0f} s"


def to_json(about: dict[str, Any], records: Sequence[Record]) -> str:
    """Everything that was found, one record a line."""
    lines = ",\n".join("    " + json.dumps(dataclasses.asdict(record)) for record in records)
    return f'{json.dumps({"about": about}, indent=2)[:-2]},\n  "records": [\n{lines}\n  ]\n}}\n'


def to_markdown(about: dict[str, Any], records: Sequence[Record]) -> str:
    """What the figures are, and a table for each op."""
    versions = ", ".join(f"{name} {about[name]}" for name in ("libtpu", "jax", "jaxlib", "python", "zoo"))
    lines = [
        "# The kernels for TPUs by their compiler",
        "",
        _PREFACE,
        f"{versions}; commit {about['commit']}, {about['date']}, on {about['processor']}. "
        "Made by `python -m benchmarks.kernels.tpu_compiler`.",
    ]
    for op in dict.fromkeys(record.op for record in records):
        lines += ["", f"## {op}", "", *_table([record for record in records if record.op == op])]
    return "\n".join(lines) + "\n"


def _table(records: Sequence[Record]) -> list[str]:
    ours = {_case(record): record for record in records if record.implementation == KERNELS}
    lines = [f"{_shapes(records[0])} Cycles in millions.", "", *header("", _COLUMNS)]
    for record in records:
        name = f"{record.device}, {record.dtype}, {TITLES[record.which]}: `{record.implementation}`"
        base, more = ours[_case(record)], "+" if record.unfollowed else ""
        cells = [
            _millions(sum(record.kernels.values())) if record.kernels else EMPTY,
            _millions(record.scheduled) + more,
            _millions(record.estimated),
            EMPTY if record is base else f"{record.by_schedule / base.by_schedule:.1f}{more}",
            EMPTY if record is base else f"{record.by_cost_model / base.by_cost_model:.1f}",
            f"{_left_out(record)}, {sum(record.unpriced.values())}",
            f"{record.temporary_bytes / 1e6:,.1f}",
            f"{record.compile_seconds:.0f}",
        ]
        lines.append(row(name, cells))
    return lines


def _left_out(record: Record) -> str:
    """Of the schedule, and what the cost model says of that."""
    if not record.estimated_unfollowed:
        return str(len(record.unfollowed))
    return f"{len(record.unfollowed)} ({_millions(record.estimated_unfollowed)} by cost model)"


def _case(record: Record) -> tuple[str, str, str]:
    return record.device, record.dtype, record.which


def _shapes(request: Request) -> str:
    sizes = request.sizes
    if request.op == "selective_scan":
        return (
            f"B {sizes.batch}, T {request.length}, D {sizes.width}, N {sizes.states}; with D, z, dt_bias and softplus."
        )
    return (
        f"B {sizes.batch}, T {request.length}, H {sizes.heads}, K {sizes.key}, V {sizes.value}; "
        "with decays and `qk_l2norm`, arrays given as [B, T, H K]."
    )


def _millions(cycles: int) -> str:
    return f"{cycles / 1e6:.3g}" if cycles < 1e8 else f"{cycles / 1e6:.0f}"
