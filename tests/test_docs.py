"""The README and the contributing guide are true of the code."""

import re
from pathlib import Path

import pytest

from zoo import registry
from zoo.training.recipe import list_recipes

REPO = Path(__file__).resolve().parents[1]


def variants_table() -> str:
    """The README's table, from the registry."""
    yes = {True: "yes", False: "–"}
    lines = [
        "| name | what | time | memory | causal | bidirectional | padding mask | decode | source |",
        "|---|---|---|---|:-:|:-:|:-:|:-:|---|",
    ]
    for spec in registry.list_specs():
        if spec.kind != "task" and spec.module.startswith("zoo."):
            flags = [spec.causal, spec.bidirectional, spec.padding_mask, spec.decode]
            cells = [f"`{spec.name}`", spec.title, spec.time, spec.memory, *(yes[flag] for flag in flags), spec.paper]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def formats_table() -> str:
    """The table of published formats in docs/importing.md."""
    from zoo.weights import formats

    lines = ["| format | whose names | of | config |", "|---|---|---|:-:|"]
    for name, found in formats().items():
        lines.append(f"| `{name}` | {found.source} | {found.holds} | {'–' if found.config is None else 'yes'} |")
    return "\n".join(lines)


# Page, mark, and what stands between <!-- mark --> and <!-- /mark -->.
TABLES = [("README.md", "variants", variants_table), ("docs/importing.md", "formats", formats_table)]


@pytest.mark.parametrize(("page", "mark", "table"), TABLES)
def test_tables_are_of_the_code(page, mark, table):
    text = (REPO / page).read_text(encoding="utf-8")
    written = text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0].strip()
    assert written == table(), f"python tests/test_docs.py writes this into {page}:\n{table()}"


def test_the_readme_names_recipes_that_exist():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"zoo (?:train|compare) (\S+)", text)) - {"RECIPE"}
    assert named
    assert named <= set(list_recipes())


@pytest.mark.usefixtures("compilation_cache")
@pytest.mark.parametrize(
    ("page", "number", "block"),
    [
        pytest.param(page, number, block, id=f"{page}-{number}")
        for page in ("README.md", "docs/importing.md", "docs/files.md")
        for number, block in enumerate(
            re.findall(r"```python\n(.*?)```", (REPO / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        )
    ],
)
def test_python_on_pages_runs(page, number, block, tmp_path, monkeypatch):
    if "import equinox" in block:
        pytest.importorskip("equinox")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"{page}, block {number}", "exec"), {})


@pytest.mark.parametrize("mark", ["main", "test"])
def test_the_readme_commands_are_where_ci_looks(mark):
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert f"<!-- {mark} -->\n```bash\n" in text
    assert f"readme_command {mark}" in (REPO / ".ci" / "run").read_text(encoding="utf-8")


if __name__ == "__main__":
    for page, mark, table in TABLES:
        before, rest = (REPO / page).read_text(encoding="utf-8").split(f"<!-- {mark} -->")
        after = rest.split(f"<!-- /{mark} -->")[1]
        text = f"{before}<!-- {mark} -->\n{table()}\n<!-- /{mark} -->{after}"
        (REPO / page).write_text(text, encoding="utf-8")
