"""The times against T: one panel per op and pass, both axes logarithmic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.kernels.cases import OURS, PEERS
from benchmarks.kernels.measure import Record
from benchmarks.kernels.prepare import PASSES
from benchmarks.kernels.report import THREADS, TITLES


def draw(records: Sequence[Record], path: Path, title: str) -> None:
    """Writes a PNG; full lines are all threads, dashed ones one thread.

    Raises:
      ImportError: matplotlib is not installed (the extra `plot`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    ops = list(dict.fromkeys(record.op for record in records))
    threads = list(dict.fromkeys(record.threads for record in records))
    lengths = sorted({record.length for record in records})
    figure = Figure(figsize=(10, 3.3 * len(ops) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(ops), len(PASSES), squeeze=False, sharex=True, sharey="row")
    colors = _colors()
    for row, op in enumerate(ops):
        for column, which in enumerate(PASSES):
            axis = axes[row, column]
            found = [record for record in records if record.op == op and record.which == which]
            for peer in dict.fromkeys(record.peer for record in found):
                for count in threads:
                    line = sorted(
                        (record.length, record.seconds * 1e3)
                        for record in found
                        if record.peer == peer and record.threads == count and record.seconds is not None
                    )
                    if line:
                        axis.plot(*zip(*line, strict=True), **_style(peer, count, threads, colors))
            axis.set(xscale="log", yscale="log", title=f"{op}, {TITLES[which]}")
            axis.set_xticks(lengths, [str(length) for length in lengths])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if row == len(ops) - 1:
                axis.set_xlabel("T")
        axes[row, 0].set_ylabel("ms")
        axes[row, -1].legend(*_legend(axes[row]), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    if len(threads) > 1:
        handles = [Line2D([], [], color="0.3", linestyle=_dash(count, threads)) for count in threads]
        figure.legend(handles, [THREADS[count] for count in threads], loc="outside lower center", ncols=2)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _colors() -> dict[str, str]:
    """Ours is black; a peer has the same colour in all panels, and no two of a panel share one."""
    names = [name for name in dict.fromkeys(peer.name for peer in PEERS) if name != OURS]
    return {OURS: "black"} | {name: f"C{i % 10}" for i, name in enumerate(names)}


def _dash(count: str, threads: Sequence[str]) -> Literal["-", "--"]:
    return "--" if count == "one" and len(threads) > 1 else "-"


def _style(peer: str, count: str, threads: Sequence[str], colors: dict[str, str]) -> dict:
    ours = peer.startswith(OURS)
    label = peer if count == threads[-1] else "_"
    width, front = (2.4, 3) if ours else (1.4, 2)
    style = {"color": colors.get(peer, "0.6"), "linestyle": _dash(count, threads), "linewidth": width, "zorder": front}
    return {**style, "marker": "o", "markersize": 3.5, "label": label}


def _legend(axes) -> tuple[list, list[str]]:
    """The handles and labels of a row of panels, each once."""
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
