"""What a person sees of a matrix that runs: a table on a terminal, plain lines in a log."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lra.cells import Cell
from zoo.training.console import duration_text

_MOST_ROWS = 30


class Board:
    """Progress of a matrix on standard error.

    Args:
      cells: all of them; what they hold is read whenever the board is shown.
      out: the matrix's folder.
    """

    refresh_seconds = 1.0

    def __init__(self, cells: Sequence[Cell], out: Path):
        self._cells, self._out = cells, out
        self._scores: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._seconds: list[float] = []
        self._together = 1  # runs at a time, the most that there have been
        self._shown = 0.0
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """Prints a line, above the table where there is one."""
        if self._live is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def started(self, cell: Cell) -> None:
        """A cell's process has begun."""
        self._began[cell.id] = time.monotonic()
        self._together = max(self._together, len(self._began))
        if self._live is None:
            self.line(f"[{self._number(cell)}/{len(self._cells)}] {cell.id}")

    def ended(self, cell: Cell, result: dict[str, Any] | None) -> None:
        """A cell's process has ended, with a result or with the cell's reason."""
        seconds = time.monotonic() - self._began.pop(cell.id)
        if result is not None:
            self._seconds.append(seconds)
        said = cell.reason if result is None else score_text(result)
        state = "done" if result is not None else cell.state
        number = f"[{self._number(cell)}/{len(self._cells)}]"
        self.line(f"{number} {cell.id}: {state}, {said} ({duration_text(seconds)}{self._left_text()})")

    def tick(self) -> None:
        """Shows the table anew, where there is one and it is time."""
        if self._live is not None and time.monotonic() - self._shown >= self.refresh_seconds:
            self._shown = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _number(self, cell: Cell) -> int:
        return self._cells.index(cell) + 1

    def _left_text(self) -> str:
        waiting = sum(cell.state in ("waiting", "running") for cell in self._cells)
        if not self._seconds or not waiting:
            return ""
        return f"; about {duration_text(statistics.fmean(self._seconds) * waiting / self._together)} left"

    def _table(self) -> Any:
        from rich.table import Table

        counts = {state: sum(cell.state == state for cell in self._cells) for state in ("done", "failed", "waiting")}
        title = f"{counts['done']} of {len(self._cells)} done, {counts['failed']} failed{self._left_text()}"
        table = Table(title=title, title_justify="left")
        groups = list(dict.fromkeys((cell.protocol, cell.task) for cell in self._cells))
        table.add_column("variant")
        for protocol, task in groups:
            table.add_column(f"{protocol} {task}")
        rows: dict[tuple[str, ...], dict[tuple[str, str], list[Cell]]] = {}
        for cell in self._cells:
            row = rows.setdefault((cell.variant, cell.folder.partition(f"-s{cell.seed}")[2]), {})
            row.setdefault((cell.protocol, cell.task), []).append(cell)
        # A terminal has so many lines: what runs or failed is what one looks for.
        busy = sorted(rows.items(), key=lambda row: not any(_busy(cell) for mine in row[1].values() for cell in mine))
        for (variant, point), row in rows.items() if len(rows) <= _MOST_ROWS else busy[:_MOST_ROWS]:
            table.add_row(variant + point, *("  ".join(map(self._mark, row.get(group, ()))) for group in groups))
        return table

    def _mark(self, cell: Cell) -> str:
        if cell.state == "done":
            if cell.id not in self._scores:
                self._scores[cell.id] = _score(self._out / cell.folder)
            return self._scores[cell.id]
        if cell.state == "running":
            return f"[cyan]{_progress(self._out / cell.folder, cell)}[/]"
        return "[red]failed[/]" if cell.state == "failed" else "[dim]·[/]"


def _busy(cell: Cell) -> bool:
    return cell.state in ("running", "failed")


def score_text(result: dict[str, Any]) -> str:
    """The headline figure of a result: "test accuracy 36.20 %"."""
    metric = result.get("metric", "accuracy")
    score = result[result["select"]]["test"][metric]
    return f"test {metric} " + (f"{100 * score:.2f} %" if metric == "accuracy" else f"{score:.4f}")


def _score(folder: Path) -> str:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return score_text(result).split(" ", 2)[2].removesuffix(" %")


def _progress(folder: Path, cell: Cell) -> str:
    """How far a run is, by the last line of its log."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 2000))
            lines = file.read().splitlines()
        step = json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError, KeyError):
        return "begins"
    if cell.recipe is None or cell.recipe.train.epochs is not None:
        return f"step {step}"
    return f"{step}/{cell.recipe.train.steps}"
