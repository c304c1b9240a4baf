"""The README and the pages of docs are true of the code."""

import ast
import re
from pathlib import Path

import pytest

from zoo import registry
from zoo.training.build import make_task
from zoo.training.recipe import list_recipes, load_recipe

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


def lra_recipes() -> list[str]:
    """LRA's recipes, protocol by protocol."""
    order = ("original", "small", "ssm", "smoke")
    found = [name for name in list_recipes() if name.startswith("lra/")]
    return sorted(found, key=lambda name: order.index(name.split("/")[1]))


def lra_models_table() -> str:
    """What LRA's recipes read and build, in docs/lra.md."""
    pooled = {"cls": "CLS vector", "mean": "mean of real", "mean_padded": "sum of real / length"}
    lines = ["| recipe | reads | blocks | positions | pooled | head |", "|---|---|---|---|---|---|"]
    for name in lra_recipes():
        recipe = load_recipe(name)
        task, model = make_task(recipe), recipe.model
        info, pairs = task.info, task.info.pairs
        reads = f"{'2 x ' * pairs}{info.max_len:,} " + (f"of {info.vocab_size} ids" if info.vocab_size else "numbers")
        reads += ", black is padding" if recipe.task.options.get("black_is_padding") else ""
        blocks = f"{model.num_layers} of {model.d_model}, {model.num_heads} heads, {model.ffn} {model.d_ff}"
        pool = "first position" if pairs and model.pooling == "cls" else pooled[model.pooling]
        widths = [model.head_dim // 2**layer for layer in range(model.head_layers)] if model.head_dim else []
        features = {"nli": "[a, b, a * b, a - b]: ", "concat": "[a, b]: "}[model.pair_features] if pairs else ""
        head = features + ", ".join(map(str, [*widths, info.num_classes]))
        lines.append(f"| `{name}` | {reads} | {blocks} | {model.positions} | {pool} | {head} |")
    return "\n".join(lines)


def lra_training_table() -> str:
    """How LRA's recipes train, in docs/lra.md."""
    lines = [
        "| recipe | batch | updates | Adam | rate | warm-up | decay | tested |",
        "|---|--:|--:|---|---|--:|---|---|",
    ]
    for name in lra_recipes():
        train = load_recipe(name).train
        updates = f"{train.steps:,}" if train.epochs is None else f"{train.epochs} epochs"
        adam = f"{'cycled' if train.cycle_beta1 else train.beta1}, {train.beta2}, {train.eps:.0e}"
        rate = f"{train.lr:g} {train.schedule}" + (f", state {train.state_lr:g}" if train.state_lr else "")
        decay = f"{train.weight_decay:g} {train.decay}" if train.weight_decay else "none"
        cells = [str(train.batch_size), updates, adam, rate, f"{train.warmup_steps:,}", decay, train.select]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


# Page, mark, and what stands between <!-- mark --> and <!-- /mark -->.
TABLES = [
    ("README.md", "variants", variants_table),
    ("docs/importing.md", "formats", formats_table),
    ("docs/lra.md", "lra_models", lra_models_table),
    ("docs/lra.md", "lra_training", lra_training_table),
]


@pytest.mark.parametrize(("page", "mark", "table"), TABLES)
def test_tables_are_of_the_code(page, mark, table):
    text = (REPO / page).read_text(encoding="utf-8")
    written = text.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0].strip()
    assert written == table(), f"python tests/test_docs.py writes this into {page}:\n{table()}"


@pytest.mark.parametrize("page", ["README.md", "docs/lra.md"])
def test_a_page_names_recipes_that_exist(page):
    text = (REPO / page).read_text(encoding="utf-8")
    named = set(re.findall(r"zoo (?:train|compare) (\S+)", text)) - {"RECIPE"}
    assert named
    assert named <= set(list_recipes())


def test_every_trap_of_lra_is_listed_with_tests_that_exist():
    text = (REPO / "docs" / "lra.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if re.match(r"\| T\d", line)]
    assert [row[0] for row in rows] == [f"| T{number}" for number in range(1, 29)]
    held = {}
    for number, trap, here, tests in rows:
        assert trap.endswith(".")
        assert here.endswith(".")
        held[number] = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", tests)
        assert held[number], f"{number} names no test"
    for file, name in {place for places in held.values() for place in places}:
        body = ast.parse((REPO / file).read_text(encoding="utf-8")).body
        assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"


def test_every_test_of_the_file_of_traps_is_on_the_page():
    text = (REPO / "docs" / "lra.md").read_text(encoding="utf-8")
    file = "tests/tasks/test_lra_traps.py"
    for node in ast.parse((REPO / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            row = re.search(rf"^\| (T\d+) .*{file}::{node.name}`", text, flags=re.MULTILINE)
            assert row, f"{node.name} is not on the page"
            assert row.group(1) in re.findall(r"T\d+", ast.get_docstring(node) or ""), node.name


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
