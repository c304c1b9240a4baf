"""A report's plots as files of their own."""

import re
from html import escape
from pathlib import Path

from benchmarks.lra.reporting.charts import WIDTHS
from benchmarks.lra.reporting.contents import Contents
from benchmarks.lra.reporting.plots import Figure
from zoo.files import write_text

_FILES = Path(__file__).parent
_TITLE = 34


def to_svg(figure: Figure) -> str:
    """The wide form of a plot in light colours, with its title, as an SVG document that needs nothing else."""
    inner = figure.svg.partition('<div class="plot wide">')[2].partition("</div>")[0]
    inner = re.sub(r'<a href="#[^"]*"[^>]*>|</a>', "", inner)  # the page's records are not here
    start, _, shapes = inner.removesuffix("</svg>").partition(">")
    width = WIDTHS["wide"]
    height = _TITLE + int(start.partition('height="')[2].partition('"')[0])
    name = start.partition('aria-label="')[2].partition('"')[0]
    style = "".join((_FILES / file).read_text(encoding="utf-8") for file in ("light.css", "plots.css"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-_TITLE} {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{name}">'
        f"<style>{style}svg {{ font-family: system-ui, 'Liberation Sans', Arial, sans-serif; }} "
        f"svg .title {{ font-size: 14px; font-weight: 600; }}</style>"
        f'<rect x="0" y="{-_TITLE}" width="{width}" height="{height}" fill="#ffffff"/>'
        f'<text class="title" x="12" y="-12">{escape(figure.title)}</text>{shapes}</svg>\n'
    )


def write_pictures(contents: Contents, folder: Path) -> list[Path]:
    """Writes every plot as FOLDER/KEY.svg; the files, those of learning curves too."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for part in contents.parts:
        for figure in (*part.figures, *part.folded):
            written.append(folder / f"{figure.key}.svg")
            write_text(written[-1], to_svg(figure))
    return written
