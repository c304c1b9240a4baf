"""Recipes: layers of values, and what is said of wrong ones."""

import dataclasses
import re
from typing import Any

import pytest
import yaml
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import registry
from zoo.registry import RegistryError
from zoo.tasks.base import TaskInfo
from zoo.training.build import make_task, model_maker, variant_spec
from zoo.training.recipe import Recipe, RecipeError, list_recipes, load_recipe, recipe_from_dict

SMOKE = "lra/smoke/listops"
PROTOCOLS = ("original", "small", "smoke")
KEYS = [
    f"{section}.{field.name}"
    for section in ("task", "model", "train")
    for field in dataclasses.fields(getattr(Recipe(), section))
] + ["name", "protocol", "variant", "options", "options.num_heads", "published", "task", "model", "train", "variants"]


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_there_are_recipes_for_three_protocols():
    wanted = {f"lra/{protocol}/{task}" for protocol in PROTOCOLS for task in ("listops", "text", "image")}
    assert wanted <= set(list_recipes())


def task_of(recipe):
    """The recipe's task; of what is not at hand, a series or files, only what models must know is told."""
    task = make_task(recipe)
    if recipe.task.name == "classify/files":
        task.recall({"kind": "text", "pairs": False, "classes": ["a", "b"], "max_len": 64, "vocab_size": 257})
    if recipe.task.name.startswith("forecasting/"):
        told = {"columns": ["a", "b"], "mean": [0, 0], "std": [1, 1], "step_seconds": 3600}
        task.recall({**told, "time_features": "hour", "num_marks": 4})
    return task


# Recipes of forecasting are many and alike; a mixer, and what their own sections name, is enough for each.
MIXERS = [spec.name for spec in registry.list_specs(kind="mixer")]
PAIRS = [
    (name, variant)
    for name in list_recipes()
    for variant in (
        ["softmax", "itransformer_forecaster", "informer_forecaster", "dlinear", "nlinear", "repeat_last"]
        if name.startswith("forecasting/")
        else [spec.name for spec in registry.list_specs(kind="model", inputs="image")]
        if name.startswith("density/")
        else MIXERS
    )
]


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_every_recipe_loads_for_every_variant(name, variant):
    recipe = load_recipe(name, variant=variant)
    assert (recipe.variant, recipe.name) == (variant, name)
    assert recipe.protocol == name.split("/")[1] if name.startswith("lra/") else recipe.protocol
    assert recipe.train.select in ("best", "last")
    task = task_of(recipe)
    spec = registry.spec(variant)
    if spec.kind == "model" or (spec.causal if recipe.model.causal else spec.bidirectional):
        model_maker(recipe, task.info)
    else:
        with pytest.raises(RecipeError, match=rf"model\.causal=\w+: {variant} "):
            variant_spec(recipe)


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_whose_task_asks_for_what_comes_next_are_causal(name):
    recipe = load_recipe(name)
    assert recipe.model.causal == (task_of(recipe).info.output in ("token", "image"))


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_says_how_it_is_run(name):
    from zoo.training.shipped import recipe_folder

    head = (recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8").split("protocol:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert re.search(rf"Command: +zoo (train|compare) {name} ", head)


def test_layers_go_over_one_another(file):
    path = file("""
protocol: mine
variant: nystromformer
options: {conv_kernel_size: 3}
model: {d_model: 32, num_layers: 1}
train: {steps: 10, lr: 0.1}
variants:
  nystromformer: {options: {num_landmarks: 8}, train: {lr: 0.2}, model: {num_layers: 2}}
  softmax: {train: {steps: 7}}
""")
    recipe = load_recipe(path)
    assert (recipe.model.d_model, recipe.model.num_layers, recipe.model.num_heads) == (32, 2, 4)
    assert (recipe.train.lr, recipe.train.steps, recipe.options) == (
        0.2,
        10,
        {"conv_kernel_size": 3, "num_landmarks": 8},
    )
    recipe = load_recipe(path, ["train.lr=0.3", "train.lr=0.4"], variant="softmax")
    assert (recipe.train.lr, recipe.train.steps, recipe.model.num_layers) == (0.4, 7, 1)
    assert load_recipe(path, ["variant=softmax"]).train.steps == 7
    assert load_recipe(path, ["variant=nystromformer"], variant="softmax").variant == "softmax"


def test_the_section_of_the_default_variant_counts_where_none_is_named(file):
    assert load_recipe(file("{train: {steps: 10}, variants: {softmax: {train: {steps: 7}}}}")).train.steps == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.lr=3e-3", 3e-3),
        ("train.lr=1", 1.0),
        ("train.lr=.5", 0.5),
        ("train.steps=1_000", 1000),
        ("train.buckets=[32, 64]", (32, 64)),
        ("train.clip=null", None),
        ("train.tensorboard=false", False),
        ("train.wandb=project=one", "project=one"),
        ("model.d_ff=null", None),
        ("options.eps=1e-6", 1e-6),
        ("options.steps=[1, {a: 2}]", [1, {"a": 2}]),
        ("options.table={1: a}", {"1": "a"}),
        ("task.source=published", "published"),
    ],
)
def test_overrides_are_yaml(text, value):
    found = load_recipe(SMOKE, [text])
    for part in text.partition("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lrr=1", r"no key 'train\.lrr' \(from override 'train\.lrr=1'\)\. Did you mean train\.lr"),
        ("lr=1", r"no key 'lr' \(from override 'lr=1'\)\. Did you mean train\.lr\?"),
        ("dropout=1", r"Did you mean model\.dropout\?"),
        ("model.num_layer=3", r"Did you mean model\.num_layers"),
        ("modle.num_layers=3", r"no key 'modle'.* Did you mean model\?"),
        ("variants.softmax={}", r"no key 'variants'.* Did you mean variant\?"),
        ("train.lr=fast", r"train\.lr \(from override 'train\.lr=fast'\): Couldn't parse 'fast' into a float"),
        ("train.steps=1.5", r"train\.steps \(from override .*Couldn't parse '1\.5' into an int"),
        ("train.steps=true", r"train\.steps \(from override .*must not be a boolean, got True"),
        ("train.steps=null", r"train\.steps \(from override .*must not be null"),
        ("model.norm=Pre", r"model\.norm \(from override .*'Pre'.*pre, post"),
        ("model.norm=no", r"model\.norm \(from override .*must not be a boolean, got False"),
        ("train.buckets=64", r"train\.buckets \(from override .*must be a list, as in \[1, 2\], got 64"),
        ("train.buckets=[a]", r"train\.buckets\.0 \(from override .*Couldn't parse 'a' into an int"),
        ("train.buckets=[64, 32]", r"train\.buckets must be ascending lengths.*from override"),
        ("train=3", r"train \(from override 'train=3'\) is a section of keys, got 3"),
        ("train.lr.peak=1", r"train\.lr \(from override .*must not be a mapping"),
        ("options.a=2000-01-01", r"options \(from .*must hold numbers, texts, booleans and nulls only"),
        ("options.a=[{b: 2000-01-01}]", r"options \(from .*must hold numbers, texts, booleans and nulls only"),
        ("options=3", r"options \(from override 'options=3'\) must be a mapping"),
        ("task.source=[a]", r"task\.source \(from override .*must not be a list"),
        ("train.lr=-1", r"train\.lr must be positive, got -1\.0\. \(train\.lr is from override 'train\.lr=-1'\)"),
        ("train.lr=.nan", r"train\.lr must be positive, got nan.*from override"),
        ("train.weight_decay=.inf", r"train\.weight_decay must not be negative, got inf"),
        ("train.ema=1", r"train\.ema must be in \[0, 1\).*from override"),
        ("train.clip=0", r"train\.clip must be positive, or null"),
        ("train.seed=-1", r"train\.seed must be from 0 to 2\*\*32 - 1, got -1"),
        ("train.log_every=0", r"train\.log_every must be from 1 to 2147483647, got 0"),
        ("train.accumulate=5", r"train\.accumulate=5 does not divide train\.batch_size=32.*batch_size is from .*smoke"),
        ("train.warmup_steps=400", r"train\.warmup_steps=400 must be below train\.steps=400"),
        ("train.cycle_beta1=true", r"train\.cycle_beta1 belongs to train\.schedule=onecycle"),
        ("model.d_model=0", r"d_model must be from 1 to 1048576, got 0\. \(model\.d_model is from override"),
        ("model.dropout=1", r"dropout must be in \[0, 1\), got 1\.0\. \(model\.dropout is from override"),
        ("train.lr", r"An override is written key\.path=value, for example train\.lr=3e-3; got 'train\.lr'"),
        ("train..lr=1", r"An override is written key\.path=value"),
        ("train.lr=[", r"The value of override 'train\.lr=\[' is not valid YAML"),
    ],
)
def test_wrong_overrides_name_their_origin_and_what_is_near(text, message):
    with pytest.raises(RecipeError, match=re.compile(message, re.DOTALL)):
        load_recipe(SMOKE, [text])


def test_rsqrt_and_onecycle_need_a_warm_up():
    for schedule in ("rsqrt", "onecycle"):
        with pytest.raises(RecipeError, match=f"train.schedule={schedule} needs train.warmup_steps of at least 1"):
            load_recipe(SMOKE, [f"train.schedule={schedule}", "train.warmup_steps=0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"mine\.yaml is empty or not a mapping of keys to values; is it cut short\?"),
        ("# nothing\n", r"mine\.yaml is empty"),
        ("- a\n- b\n", r"mine\.yaml is empty or not a mapping"),
        ("train: {lr: 1", r"mine\.yaml is not valid YAML"),
        ("train: !!python/object:os.system {}", r"mine\.yaml is not valid YAML"),
        ("\tx", r"mine\.yaml is not valid YAML"),
        ("train: {lrr: 1}", r"no key 'train\.lrr' \(from .*mine\.yaml\)\. Did you mean train\.lr"),
        ("train: {steps: many}", r"train\.steps \(from .*mine\.yaml\): Couldn't parse 'many' into an int"),
        ("variants: 3", r"variants \(from .*mine\.yaml\) must map names of variants to sections, got 3"),
        ("variants: {softmax: {trian: {}}}", r"no key 'trian' \(from .*mine\.yaml, variants\.softmax\).*train"),
        ("variants: {softmax: {train: {steps: x}}}", r"train\.steps \(from .*mine\.yaml, variants\.softmax\)"),
        ("variants: {informer: {train: {stpes: 3}}}", r"no key 'train\.stpes' \(from .*mine\.yaml, variants\.informer"),
        ("variants: {softmax: 3}", r"variants\.softmax \(from .*mine\.yaml\) is a section of keys, got 3"),
        ("3: 4", r"no key '3' \(from .*mine\.yaml\)"),
    ],
)
def test_wrong_files_are_named(text, message, file):
    with pytest.raises(RecipeError, match=re.compile(message, re.DOTALL)):
        load_recipe(file(text))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00protocol")
    with pytest.raises(RecipeError, match=r"mine\.yaml is not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lra/smoke/listop", r"no recipe 'lra/smoke/listop'\. Did you mean lra/smoke/listops"),
        ("lra/listops", r"Did you mean lra/original/listops or lra/small/listops or lra/smoke/listops or "),
        ("nowhere.yaml", r"There is no recipe file nowhere\.yaml"),
    ],
)
def test_unknown_recipes(name, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(name)


@pytest.mark.parametrize("name", list_recipes())
def test_the_resolved_recipe_is_a_recipe(name, tmp_path):
    recipe = load_recipe(name, ["train.lr=1e-4", "options.note='1e-4'", "train.wandb='on'"], variant="nystromformer")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert recipe_from_dict(recipe.to_dict()) == recipe
    assert recipe.options["note"] == "1e-4"


def test_what_a_variant_cannot_do():
    info = TaskInfo(inputs="tokens", vocab_size=5, num_classes=2, max_len=8)

    def make(*overrides, variant="softmax"):
        return model_maker(load_recipe(SMOKE, overrides, variant=variant), info)

    with pytest.raises(RegistryError, match=r"no mixer, model or task named 'sofmax'. Did you mean softmax"):
        make(variant="sofmax")
    with pytest.raises(RegistryError, match="'lra/listops' is a task; a variant is a mixer or a model"):
        make(variant="lra/listops")
    with pytest.raises(RecipeError, match=r"model\.causal=true: nystromformer cannot be causal"):
        make("model.causal=true", variant="nystromformer")
    with pytest.raises(
        RecipeError, match=r"options\.num_landmark: nystromformer has no such option. Did you mean num_landmarks"
    ):
        make("options.num_landmark=3", variant="nystromformer")
    with pytest.raises(RecipeError, match=r"options\.d_model: softmax has no such option"):
        make("options.d_model=3")
    with pytest.raises(RegistryError, match=r"There is no file .*gone\.py"):
        make(variant="gone.py")


class Whole(nnx.Module):
    """A registered model: it gets what it names of the recipe's model section and of the task."""

    def __init__(self, d_model, vocab_size, num_classes, *, max_len, dropout, depth=1, rngs):
        self.made_with = (d_model, vocab_size, num_classes, max_len, dropout, depth)


@pytest.fixture
def whole():
    registry.register_model("whole", title="Whole", inputs=("tokens",), causal=True)(Whole)
    yield "whole"
    del registry._registered["whole"]


def test_a_whole_model_gets_what_it_names(whole):
    info = TaskInfo(inputs="tokens", vocab_size=5, num_classes=2, max_len=8)
    recipe = load_recipe(SMOKE, ["model.d_model=24", "model.dropout=0.2", "options.depth=3"], variant=whole)
    model: Any = model_maker(recipe, info)(nnx.Rngs(0))
    assert model.made_with == (24, 5, 2, 8, 0.2, 3)
    with pytest.raises(RecipeError, match=r"whole reads tokens; lra/listops has scalars"):
        model_maker(recipe, dataclasses.replace(info, inputs="scalars"))
    with pytest.raises(RecipeError, match=r"options\.deep: whole has no such option\. Did you mean depth"):
        model_maker(load_recipe(SMOKE, ["options.deep=3"], variant=whole), info)


def test_a_task_or_source_that_is_not_there():
    with pytest.raises(RegistryError, match=r"no task named 'lra/listop'. Did you mean lra/listops"):
        make_task(load_recipe(SMOKE, ["task.name=lra/listop"]))
    with pytest.raises(ValueError, match="no source 'smok'"):
        make_task(load_recipe(SMOKE, ["task.source=smok"]))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=3)
)
TREES = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner)
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), TREES | st.none()), min_size=1, max_size=3))
def test_no_override_crashes(pairs):
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1e9)}" for key, value in pairs]
    check(overrides)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), st.text(max_size=8)).map("=".join), max_size=3))
def test_no_text_crashes(overrides):
    check(overrides)


def check(overrides):
    """A recipe or a RecipeError; and the recipe survives being written and read."""
    try:
        recipe = load_recipe(SMOKE, overrides)
    except RecipeError:
        pass
    else:
        values = yaml.safe_load(recipe.to_yaml())
        again = recipe_from_dict(values)
        assert again == recipe or "nan" in repr(recipe)
