"""What is registered, found by reading files; no JAX, no lists."""

import json
import sys
from pathlib import Path

import pytest

from zoo import registry
from zoo.registry import RegistryError, did_you_mean, get, list_specs, load_file, register_mixer, spec

ROOT = Path(registry.__file__).parent
MIXER = """
from zoo.registry import register_mixer

@register_mixer({name!r}, title="Outside", time="O(T)", memory="O(1)", causal=True, test_args={{"width": 3}})
class Outside:
    '''A class.'''
"""


@pytest.fixture
def fresh(monkeypatch):
    """A registry to spoil: what a test registers or discovers is forgotten after it."""
    before = set(registry._registered)
    registry._discovered.cache_clear()
    yield monkeypatch
    registry._discovered.cache_clear()
    for name in set(registry._registered) - before:
        if not registry._registered[name][0].module.startswith("zoo."):
            del registry._registered[name]


def write(folder: Path, stem: str, text: str) -> Path:
    path = folder / f"{stem}.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_listing_needs_no_jax(run_python):
    code = """
import sys
from zoo import cli, registry
assert registry.list_specs() and registry.spec("softmax").causal
for arguments in (["list"], ["list", "--json"], ["list", "--kind", "task"], ["list", "--kind", "recipe"],
                  ["describe", "softmax"], ["--help"], ["train", "--help"], ["--version"]):
    try:
        cli.main(arguments)
    except SystemExit as exit:
        assert not exit.code, arguments
heavy = {"jax", "flax", "numpy", "yaml", "draccus", "tensorflow_datasets", "grain", "orbax", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    run_python("-c", code)


@pytest.mark.parametrize("found", list_specs(), ids=lambda found: found.name)
def test_every_file_registers_its_own_name_and_the_facts_that_are_read_from_it(found):
    if found.module.startswith("zoo."):
        folder = {kind: folder for folder, kind in registry._FOLDERS.items()}[found.kind]
        assert found.name == Path(found.path).relative_to(ROOT / folder).with_suffix("").as_posix()
    cls = get(found.name, found.kind)
    assert registry._registered[found.name] == (found, cls)
    assert cls.__name__.lower() == found.name.rpartition("/")[2].replace("_", "")
    assert json.loads(json.dumps(found.to_dict()))["name"] == found.name
    assert found.title
    trained = "nothing to train" not in found.notes
    assert found.kind == "task" or (found.time and found.memory and (found.paper or not trained))


def test_every_source_file_of_the_three_folders_registers_something():
    silent = {
        path.relative_to(ROOT).as_posix()
        for folder in registry._FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and str(path) not in {found.path for found in list_specs()}
    }
    shared = {
        f"tasks/{name}.py"
        for name in ("archives", "base", "generated", "images", "packing", "prepared", "series", "shortcuts", "standin")
    }
    around_mixers = {"causal_lm", "encoder_forecaster", "pair_classifier", "sequence_classifier"}
    around_mixers.add("nystromformer_encoder")  # of published weights, for no task
    assert silent == shared | {f"models/{name}.py" for name in around_mixers}


def test_filters():
    names = [found.name for found in list_specs(kind="mixer")]
    assert names == sorted(names)
    assert {"softmax", "nystromformer"} <= set(names)
    assert [found.name for found in list_specs("soft*")] == ["softmax"]
    assert "nystromformer" not in [found.name for found in list_specs(kind="mixer", causal=True)]
    assert "softmax" not in [found.name for found in list_specs(kind="mixer", decode=False)]
    assert "lra/listops" in [found.name for found in list_specs(inputs="tokens")]
    assert list_specs("no such name") == []
    kinds = [found.kind for found in list_specs()]
    assert kinds == sorted(kinds)
    with pytest.raises(RegistryError, match=r"'causl' is not a fact to filter by\. Did you mean causal"):
        list_specs(causl=True)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("sofmax", None, r"There is no mixer, model or task named 'sofmax'\. Did you mean softmax\?"),
        ("sofmax", "mixer", r"There is no mixer named 'sofmax'\. Did you mean softmax\?"),
        ("softmax", "task", r"There is no task named 'softmax'\. There (is|are) .*lra/listops"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, kind, message):
    for function in (spec, get):
        with pytest.raises(RegistryError, match=message):
            function(name, kind)


def test_did_you_mean():
    assert did_you_mean("nystrom", ["softmax", "nystromformer"]) == "Did you mean nystromformer?"
    assert did_you_mean("zzz", ["b", "a"]) == "There are a, b."
    assert did_you_mean("zzz", ["a"]) == "There is a."
    assert did_you_mean("zzz", []) == "There are none."


def test_an_entry_point_adds_a_variant(fresh, tmp_path, install_outside):
    fresh.syspath_prepend(install_outside(tmp_path / "site", far_mixer=MIXER.format(name="far")))
    found = spec("far", "mixer")
    assert "far_mixer" not in sys.modules
    assert (found.module, found.causal, dict(found.test_args)) == ("far_mixer", True, {"width": 3})
    assert found in list_specs(kind="mixer")
    assert get("far").__module__ == "far_mixer"
    del sys.modules["far_mixer"]


@pytest.mark.parametrize("module", ["not_there", "not_there.inside"])
def test_an_entry_point_to_nowhere_is_named(module, fresh, tmp_path, install_outside):
    site = install_outside(tmp_path / "site", far_mixer=MIXER.format(name="far"))
    (site / "far_mixer-0.1.dist-info" / "entry_points.txt").write_text(f"[zoo.variants]\nmine = {module}\n")
    fresh.syspath_prepend(site)
    with pytest.raises(RegistryError, match=rf"entry point 'mine' \(zoo.variants\): there is no module '{module}'"):
        list_specs()


def test_one_name_in_two_files_is_refused(fresh, tmp_path, install_outside):
    text = MIXER.format(name="far")
    fresh.syspath_prepend(install_outside(tmp_path / "site", one_far=text, two_far=text))
    with pytest.raises(RegistryError, match=r"'far' is registered twice: in .*one_far.py and in .*two_far.py"):
        list_specs()


def test_the_name_of_a_shipped_variant_is_taken(fresh, tmp_path):
    with pytest.raises(RegistryError, match=r"'softmax' is registered twice: in .*mixers/softmax.py and in"):
        register_mixer("softmax", title="Mine")(type("Mine", (), {}))
    path = write(tmp_path, "mine", MIXER.format(name="softmax"))
    with pytest.raises(RegistryError, match="'softmax' is registered twice"):
        load_file(path)
    assert "zoo_variant_mine" not in sys.modules
    assert get("softmax").__module__ == "zoo.mixers.softmax"


def test_two_classes_cannot_share_a_name_but_a_file_may_be_loaded_again(fresh, tmp_path):
    one, two = (write(tmp_path, stem, MIXER.format(name="far")) for stem in ("one", "two"))
    found = load_file(one)
    assert load_file(one) == found
    assert get("far").__module__ == "zoo_variant_one"
    with pytest.raises(RegistryError, match=r"'far' is registered twice: in .*one.py and in .*two.py"):
        load_file(two)


def test_a_notebook_can_register_and_register_again(fresh):
    cls = type("Cell", (), {"__module__": "no_file_here"})
    register_mixer("cell", title="first")(cls)
    register_mixer("cell", title="second")(cls)
    assert spec("cell").title == "second"
    assert get("cell") is cls


@pytest.mark.parametrize(
    "decorator",
    [
        "@register_mixer(NAME, title='x')",
        "@register_mixer('far', title=f'x{NAME}')",
        "@register_mixer('far', title='a'.upper())",
        "@register_mixer('far', **FACTS)",
        "@register_mixer(*FACTS)",
        "@register_mixer('far', test_args={[]: 1})",
    ],
)
def test_facts_must_be_literals(decorator, tmp_path):
    path = write(tmp_path, "far", f"from zoo.registry import register_mixer\n\n{decorator}\nclass Far: ...\n")
    with pytest.raises(RegistryError, match=r"far\.py:3: the arguments of @register_mixer must be literals"):
        load_file(path)


@pytest.mark.parametrize("arguments", ["", "title='x'", "'far', 'x'", "3, title='x'"])
def test_a_registration_has_one_positional_argument(arguments, tmp_path):
    path = write(tmp_path, "far", f"@registry.register_mixer({arguments})\nclass Far: ...\n")
    with pytest.raises(RegistryError, match=r"far\.py:1: @register_mixer takes one positional argument, the name"):
        load_file(path)


def test_unknown_and_missing_facts_are_named(fresh, tmp_path):
    with pytest.raises(RegistryError, match=r"mixer 'far' states unknown facts \['colour'\]; known are .*'causal'"):
        register_mixer("far", title="x", colour="red")
    path = write(tmp_path, "far", "@register_mixer('far', title='x', colour='red')\nclass Far: ...\n")
    with pytest.raises(RegistryError, match=r"mixer 'far' in .*far\.py: .*colour"):
        load_file(path)
    with pytest.raises(RegistryError, match=r"mixer 'far' in .*title"):
        register_mixer("far")(type("Far", (), {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("register_mixer(", r"far\.py cannot be read as Python"),
        ("x = 1\n", "must register exactly one variant; it registers 0"),
        (MIXER.format(name="a") + MIXER.format(name="b"), "it registers 2"),
        (MIXER.format(name="a").replace("mixer", "task"), "it registers 0"),
    ],
)
def test_a_file_registers_exactly_one_variant(text, message, tmp_path):
    with pytest.raises(RegistryError, match=message):
        load_file(write(tmp_path, "far", text))


def test_a_file_that_is_not_there_and_one_that_breaks(fresh, tmp_path):
    with pytest.raises(RegistryError, match=r"There is no file .*far\.py"):
        load_file(tmp_path / "far.py")
    path = write(tmp_path, "far", MIXER.format(name="far") + "raise OSError('broken')\n")
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            load_file(path)


def test_a_module_must_register_what_its_text_says(fresh, tmp_path, install_outside):
    text = "from zoo.registry import register_mixer\nregister_mixer = lambda *a, **k: lambda cls: cls\n"
    site = install_outside(tmp_path / "site", far_mixer=text + MIXER.format(name="far").split("\n\n", 1)[1])
    fresh.syspath_prepend(site)
    with pytest.raises(RegistryError, match="far_mixer was imported but did not register 'far'"):
        get("far")
    del sys.modules["far_mixer"]
