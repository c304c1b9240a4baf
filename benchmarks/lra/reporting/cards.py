"""A card for each variant: what it is, its size by recipe, and its results."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.lra.reporting.groups import Group, Section
from benchmarks.lra.reporting.plots import data_name
from benchmarks.lra.reporting.tables import Cell, score_cell
from zoo import registry

_FLAGS = {
    "causal": "causal",
    "bidirectional": "bidirectional",
    "padding_mask": "padding mask",
    "decode": "decodes",
    "fixed_length": "one length only",
}


@dataclasses.dataclass(frozen=True)
class Card:
    """One variant.

    Attributes:
      name, title, paper, notes: as registered; only the name for what is not registered here.
      address: of the paper, or "".
      facts: (name, value) of complexity and flags.
      sizes: (recipe, parameters).
      results: (section and data, cell).
    """

    name: str
    title: str
    paper: str
    address: str
    notes: str
    facts: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[str, str], ...]
    results: tuple[tuple[str, Cell], ...]


def make_cards(
    groups: Mapping[Section, Sequence[Group]], sizes: Iterable[Mapping[str, Any]], also: Iterable[str] = ()
) -> list[Card]:
    """Cards of all variants that have a result or were measured, by name.

    Args:
      groups: results.
      sizes: rows of {"protocol", "task", "variant", "parameters"}.
      also: variants with other measurements.
    """
    sizes = list(sizes)
    held = {one.first.variant for some in groups.values() for one in some} | set(also)
    return [_card(name, groups, sizes) for name in sorted(held)]


def _card(name: str, groups: Mapping[Section, Sequence[Group]], sizes: Sequence[Mapping[str, Any]]) -> Card:
    known = next((spec for spec in registry.list_specs() if spec.name == name and spec.kind != "task"), None)
    mine = [(section, one) for section, some in groups.items() for one in some if one.first.variant == name]
    counts = {f"lra/{row['protocol']}/{row['task']}": row["parameters"] for row in sizes if row["variant"] == name}
    counts |= {one.first.recipe: one.first.parameters for _, one in mine if not one.changes()}
    results = tuple((f"{section.title}: {_what(section, one)}", score_cell(one)) for section, one in mine)
    sizes_text = tuple((recipe, f"{count:,}") for recipe, count in sorted(counts.items()))
    if known is None:
        return Card(name, "not registered in this version", "", "", "", (), sizes_text, results)
    flags = [text for flag, text in _FLAGS.items() if getattr(known, flag)]
    facts = (("time", known.time), ("memory", known.memory), ("kind", known.kind), ("runs", ", ".join(flags)))
    return Card(name, known.title, known.paper, _address(known.paper), known.notes, facts, sizes_text, results)


def _what(section: Section, one: Group) -> str:
    text = one.first.recipe.removeprefix("forecasting/") if section.key == "forecasting" else data_name(one)
    return f"{text}, {one.first.metric}" + (f" (changed: {one.changes()})" if one.changes() else "")


def _address(paper: str) -> str:
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", paper)
    return f"https://arxiv.org/abs/{found[1]}" if found else ""
