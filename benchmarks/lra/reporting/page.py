"""The report as one HTML page that needs nothing else: no network, no other file."""

import base64
import hashlib
from html import escape
from pathlib import Path

from benchmarks.lra.reporting.contents import TITLE, Contents, Part
from benchmarks.lra.reporting.html import card_html, figure_html, records_html, source_html, table_html

_FILES = Path(__file__).parent


def to_html(contents: Contents) -> str:
    """The page; equal contents give equal bytes."""
    style, script = _style(), _file("page.js")
    parts = [_part_html(part) for part in contents.parts]
    links = [(part.key, part.title) for part in contents.parts]
    if contents.cards:
        cards = "".join(map(card_html, contents.cards))
        parts.append(f'<section id="variants"><h2>Variants</h2><div class="cards">{cards}</div></section>')
        links.append(("variants", "Variants"))
    if contents.left_out:
        rows = "".join(f"<li>{escape(what)}: {escape(why)}</li>" for what, why in contents.left_out)
        parts.append(f'<section id="left-out"><h2>What is not here</h2><ul class="warn">{rows}</ul></section>')
        links.append(("left-out", "What is not here"))
    panels = records_html(contents.groups) + "".join(source_html(*source) for source in contents.sources)
    parts.append(f'<section id="details"><h2>What each number rests on</h2>{panels or "<p>No records.</p>"}</section>')
    links.append(("details", "Details"))
    values = {
        "TITLE": escape(TITLE),
        "SUMMARY": escape(contents.summary),
        "NAVIGATION": "".join(f'<a href="#{escape(key)}">{escape(title)}</a>' for key, title in links),
        "CONTENT": "\n".join(parts),
        "STYLE": style,
        "SCRIPT": script,
        "STYLE_HASH": _hash(style),
        "SCRIPT_HASH": _hash(script),
    }
    # Split before anything is filled in, so that a record that holds "@SCRIPT@" stays a text.
    pieces = _file("page.html").split("@")
    return "".join(values.get(piece, piece) for piece in pieces)


def _part_html(part: Part) -> str:
    note = f'<p class="note">{escape(part.note)}</p>' if part.note else ""
    tables = "".join(map(table_html, part.tables))
    figures = "".join(map(figure_html, part.figures))
    figures = f'<div class="figures">{figures}</div>' if figures else ""
    shown = figures + tables if part.figures_first else tables + figures
    folded = "".join(map(figure_html, part.folded))
    if folded:
        count = len(part.folded)
        folded = f'<details><summary>Learning curves ({count})</summary><div class="figures">{folded}</div></details>'
    return f'<section id="{escape(part.key)}"><h2>{escape(part.title)}</h2>{note}{shown}{folded}</section>'


def _style() -> str:
    """The style sheet; the dark colours stand in it twice, for the system's wish and for the switch's."""
    dark = _file("dark.css")
    rules = (
        "@media screen and (prefers-color-scheme: dark) { :root:not([data-theme=light]) {\n" + dark + "} }\n"
        "@media screen { :root[data-theme=dark] {\n" + dark + "} }"
    )
    sheet = _file("page.css").replace("@LIGHT@", _file("light.css")).replace("@PLOTS@", _file("plots.css"))
    return sheet.replace("@DARK@", rules)


def _file(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
