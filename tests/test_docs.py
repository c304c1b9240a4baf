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


def test_the_readme_has_the_registry_table():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    written = text.split("<!-- variants -->")[1].split("<!-- /variants -->")[0].strip()
    assert written == variants_table(), "write this into README.md:\n" + variants_table()


def test_the_readme_names_recipes_that_exist():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"zoo (?:train|compare) (\S+)", text)) - {"RECIPE"}
    assert named
    assert named <= set(list_recipes())


def test_the_readme_python_runs():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("mark", ["main", "test"])
def test_the_readme_commands_are_where_ci_looks(mark):
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert f"<!-- {mark} -->\n```bash\n" in text
    assert f"readme_command {mark}" in (REPO / ".ci" / "run").read_text(encoding="utf-8")


if __name__ == "__main__":
    readme = REPO / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- variants -->")
    after = rest.split("<!-- /variants -->")[1]
    readme.write_text(f"{before}<!-- variants -->\n{variants_table()}\n<!-- /variants -->{after}", encoding="utf-8")
