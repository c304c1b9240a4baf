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

The figures of the kernels and those of XLA's forms differ in kind. Of a kernel it is its schedule, in bundles of
instructions, followed through all loops and branches: a cycle each, as long as nothing waits. Waits for copies between
HBM and VMEM, the DMA stalls, are not in it, so a kernel that is bound by memory takes longer. Of what XLA compiles,
around the kernels and in its own forms, it is the sum of the cycles that XLA's cost model gives to each fusion and
copy: rough, and with the time for memory in mind. Instructions on arrays for which the model has no estimate,
"unpriced", count nothing; each is counted once there, however often it runs. A ratio is that of the sum to our
kernels', so of one kind to the other.

Temporary memory is what the compiler plans beside arguments and results. A training step is the output and every
gradient, for a given cotangent. Seconds to compile are those of one try, with tracing and lowering.
"""


@dataclasses.dataclass(frozen=True)
class Record(Request):
    """What was found of a program.

    Attributes:
      cycles: `estimated_cycles` and those of the kernels.
      estimated_cycles: by XLA's cost model, of all but the kernels.
      kernels: bundles that each kernel runs through, by the name of its instruction.
      unpriced: how many instructions on arrays have no estimate, by kind.
      temporary_bytes: what the compiler plans beside arguments and results.
      compile_seconds: with tracing and lowering.
    """

    cycles: int = dataclasses.field(kw_only=True)
    estimated_cycles: int = dataclasses.field(kw_only=True)
    kernels: dict[str, int] = dataclasses.field(kw_only=True)
    unpriced: dict[str, int] = dataclasses.field(kw_only=True)
    temporary_bytes: int = dataclasses.field(kw_only=True)
    compile_seconds: float = dataclasses.field(kw_only=True)


def line(record: Record) -> str:
    """For who waits."""
    return f"{record}: {_millions(record.cycles)} M cycles, {record.compile_seconds:.0f} s to compile"


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
    columns = ["kernels, schedule", "the rest, cost model", "sum", "ratio", "unpriced", "temporary MB", "compile s"]
    lines = [f"{_shapes(records[0])} Millions of cycles.", "", *header("", columns)]
    for record in records:
        name = f"{record.device}, {record.dtype}, {TITLES[record.which]}: `{record.implementation}`"
        base = ours[_case(record)]
        cells = [
            _millions(sum(record.kernels.values())) if record.kernels else EMPTY,
            _millions(record.estimated_cycles),
            _millions(record.cycles),
            EMPTY if record is base else f"{record.cycles / base.cycles:.1f}",
            str(sum(record.unpriced.values())),
            f"{record.temporary_bytes / 1e6:,.1f}",
            f"{record.compile_seconds:.0f}",
        ]
        lines.append(row(name, cells))
    return lines


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
