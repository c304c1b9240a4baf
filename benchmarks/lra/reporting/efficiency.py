"""Efficiency results: checked, and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lra.reporting.records import RecordError, is_number
from benchmarks.lra.reporting.tables import NO_CELL, Cell, Row, Table

_FACTS = ("commit", "jax", "flax", "device", "processor", "date")
_NUMBERS = (
    "tokens_per_second",
    "step_bytes",
    "device_peak",
    "compile_seconds",
    "flops",
    "ratio",
    "d_model",
    "parameters",
)


def check_efficiency(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a file of `benchmarks.lra.efficiency`.

    Raises:
      RecordError: it does not say what it was measured on, or a row is not whole.
    """
    environment = content.get("environment")
    if not isinstance(environment, Mapping):
        raise RecordError("it has no environment: not a whole record.")
    missing = [name for name in _FACTS if not isinstance(environment.get(name), str)]
    if missing:
        raise RecordError(f"its environment lacks {', '.join(missing)}: not a whole record.")
    for number, row in enumerate(content["rows"]):
        where = f"row {number}"
        if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in ("variant", "kind")):
            raise RecordError(f"{where} must name its variant and kind.")
        for name in ("length", "batch_size"):
            if not _is_positive(row.get(name)):
                raise RecordError(f"{where}: {name} must be a number above 0, got {row.get(name)!r}.")
        if row.get("seconds") is None and not row.get("reason"):
            raise RecordError(f"{where} has neither seconds nor a reason.")
        for name in ("seconds", *_NUMBERS):
            if row.get(name) is not None and not _is_positive(row[name], name != "seconds"):
                raise RecordError(f"{where}: {name} must be a number, got {row[name]!r}.")
    return list(content["rows"])


def _is_positive(value: Any, zero: bool = False) -> bool:
    return is_number(value) and (value >= 0 if zero else value > 0)


def efficiency_table(number: int, rows: Sequence[Mapping[str, Any]], link: str) -> Table:
    """One row a measurement, with its ratio to softmax of the same run."""
    columns = ("Variant", "Kind", "Length", "Batch", "Width", "Seconds", "Tokens/s", "Softmax's time by ours",
               "Planned (MB)", "Device peak (MB)", "Compile (s)", "GFLOP")  # fmt: skip
    made = []
    for row in rows:
        cells = [Cell(row["variant"], row["variant"]), Cell(row["kind"], row["kind"])]
        cells += [_number(row[name], "{:,.0f}") for name in ("length", "batch_size")]
        cells += [_number(row.get("d_model"), "{:,.0f}")]
        seconds = row.get("seconds")
        if seconds is None:
            cells.append(Cell("did not run", None, link, str(row["reason"])))
        else:
            cells.append(Cell(f"{seconds:.4g}", seconds, link, f"{row['variant']}, {row['kind']} at {row['length']}"))
        cells += [_number(row.get("tokens_per_second"), "{:,.0f}"), _number(row.get("ratio"), "{:.2f} x")]
        cells += [_number(row.get(name), "{:,.1f}", 1e6) for name in ("step_bytes", "device_peak")]
        cells += [_number(row.get("compile_seconds"), "{:.1f}"), _number(row.get("flops"), "{:,.2f}", 1e9)]
        made.append(Row("ours", tuple(cells)))
    return Table(f"efficiency-{number}", "Time and memory by length", columns, tuple(made), frozenset(range(2, 12)))


def _number(value: float | None, form: str, scale: float = 1.0) -> Cell:
    return NO_CELL if value is None else Cell(form.format(value / scale), float(value))
