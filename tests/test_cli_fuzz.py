"""Whatever is asked of `zoo train`, the answer is a plan or one message with an exit code."""

import contextlib
import dataclasses
import io
import os

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zoo import cli, registry
from zoo.training.recipe import Recipe

SMOKE = "lra/smoke/listops"
SECTIONS = ("task", "model", "train")
KEYS = [
    f"{section}.{field.name}" for section in SECTIONS for field in dataclasses.fields(getattr(Recipe(), section))
] + ["variant", "options.num_heads", "options.num_landmarks", "options.d_head", "options", "model", "protocol"]
VARIANTS = [spec.name for spec in registry.list_specs(kind="mixer")]

# Sizes that a laptop can plan for, those at the edges, and those that no machine can hold.
NUMBERS = st.integers(-2, 40) | st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**63, 10**30]) | st.floats()
WORDS = st.sampled_from(
    [
        "bfloat16",
        "none",
        "full",
        "dots",
        "pre",
        "post",
        "cosine",
        "last",
        "cls",
        "mean",
        "smoke",
        "lra/listops",
        "",
        "~",
    ]
)
PLAIN = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=6)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(WORDS, PLAIN, max_size=2)
FLAGS = st.sampled_from(
    [[], ["--mesh", "data=1"], ["--mesh", "fsdp=3"], ["--mesh", "x"], ["--profile", "steps=1:2"], ["--profile", "2"]]
)


def ask(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(["train", *arguments, "--dry-run"])
        except SystemExit as left:
            return int(left.code or 0), err.getvalue()
    assert out.getvalue().startswith(("name:", "#")), out.getvalue()
    return 0, err.getvalue()


def check(*arguments: str) -> None:
    code, err = ask(*arguments)
    assert code in (0, 2), err
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("zoo")]
    assert len(said) == (code == 2), err
    assert all(len(line) < 2000 for line in said), err


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """An empty folder, which stays empty: nothing is written before everything is checked."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("nothing")
    os.chdir(folder)
    yield
    os.chdir(before)
    assert not list(folder.iterdir())


def dumped(value) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1e9).removesuffix("\n...\n").strip()


def test_a_plan_is_a_plan():
    assert ask(SMOKE) == (0, "")
    assert ask(SMOKE, "train.steps=x")[0] == 2


@settings(deadline=None, max_examples=150, derandomize=True, suppress_health_check=list(HealthCheck))
@example([("model.num_layers", 2**31)], "softmax", [])
@example([("model.d_model", 2**63)], "softmax", [])
@example([("task.max_len", 10**30)], "softmax", [])
@example([("train.batch_size", 2**63)], "softmax", [])
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=3), st.sampled_from(VARIANTS), FLAGS)
def test_typed_overrides(pairs, variant, flags):
    check(SMOKE, *[f"{key}={dumped(value)}" for key, value in pairs], "--variant", variant, *flags)


@settings(deadline=None, max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(max_size=12).filter(lambda text: not text.startswith("-")), max_size=3))
def test_any_text(words):
    check(SMOKE, *words)


TREES = st.recursive(
    VALUES, lambda inner: st.dictionaries(st.sampled_from([*SECTIONS, "variants", "x"]), inner), max_leaves=5
)


@settings(deadline=None, max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    TREES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4).map(lambda flat: nested(flat)),
    st.integers(0, 400),
)
def test_any_recipe_whole_or_cut(tmp_path_factory, values, length):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    text = yaml.safe_dump(values)
    for written in (text, text[:length]):
        path.write_text(written, encoding="utf-8")
        check(str(path))


def nested(flat: dict) -> dict:
    """{"train.lr": 1} as {"train": {"lr": 1}}."""
    tree: dict = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            tree[section] = {**(tree.get(section) if isinstance(tree.get(section), dict) else {}), name: value}
        else:
            tree[section] = value
    return tree
