"""docs/parity.md."""

import platform
from pathlib import Path

import jax

from goldens import Arrays, Comparison, Measured

PAGE = Path(__file__).resolve().parents[3] / "docs" / "parity.md"
COLUMNS = ("array", "ours", "case", "outputs", "gradients", "bound")
TEXT = """# Parity

How far this package is from its sources, as max|a - b| / max(1, max|b|) over all outputs and over all gradients that
an array has, in float32. The arrays lie in [tests/golden](../tests/golden/README.md), which says where each comes from;
the comparisons in `tests/helpers/goldens`. `tests/test_parity.py` holds every one of them to its bound, and
`python tests/parity.py` writes this page.

## Sources

{sources}

## Errors

{measured}

{table}
"""


def page(measured: list[tuple[Comparison, str, Measured | None]]) -> str:
    """The page, with one row for each case of each comparison."""
    names = dict.fromkeys(entry.array for entry, _, _ in measured)
    sources = [
        "| array | made with |",
        "|---|---|",
        *(f"| `{name}` | {Arrays(name).meta['source']} |" for name in names),
    ]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|--:|--:|--:|"]
    for entry, case, found in measured:
        outputs, gradients = (None, None) if found is None else found[:2]
        cells = (f"`{entry.array}`", entry.what, case, _number(outputs), _number(gradients), f"{entry.bound:.0e}")
        lines.append("| " + " | ".join(cells) + " |")
    where = f"JAX {jax.__version__}, {jax.default_backend()}, {platform.machine()}"
    return TEXT.format(sources="\n".join(sources), measured=f"Measured with {where}.", table="\n".join(lines))


def rows(text: str) -> list[dict[str, str]]:
    """What a page's table says."""
    lines = [line for line in text.split("## Errors")[1].splitlines() if line.startswith("| `")]
    return [dict(zip(COLUMNS, (cell.strip() for cell in line.strip("|").split("|")), strict=True)) for line in lines]


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:.1e}" if x else "0"
