"""What importing costs, and which part may know of which."""

import ast
import importlib
from pathlib import Path

import pytest

import zoo

ROOT = Path(zoo.__file__).parent
MODULES = sorted(
    ".".join(("zoo", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"
)
# What a part may import of zoo, beside itself, at the top of a module or inside a function. No mixer imports another.
MAY_USE = {
    "typing": (),
    "registry": (),
    "files": (),
    "ops": ("typing",),
    "layers": ("typing", "ops"),
    "mixers": ("typing", "ops", "layers", "registry"),
    "functional": ("typing",),
    "data": ("files", "registry"),
    "tasks": ("typing", "registry", "data"),
    "encoder": ("typing", "registry", "layers", "functional"),
    "models": ("typing", "registry", "ops", "layers", "mixers", "encoder"),
    "factory": ("typing", "registry", "encoder", "models"),
    "interop": ("typing", "registry", "factory", "functional"),
}


def imports(module: str, *, every: bool = False) -> set[str]:
    """The modules (of zoo, or every) that a module names in import statements, wherever they stand."""
    path = ROOT.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} uses a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if every or name.split(".")[0] == "zoo"}


@pytest.mark.parametrize("part", MAY_USE)
def test_dependencies_point_one_way(part):
    checked = 0
    for module in MODULES:
        if (module.split(".")[1:] or [""])[0] == part:
            used = {name.split(".")[1] for name in imports(module) if name != "zoo"} - {part}
            assert used <= set(MAY_USE[part]), f"{module} imports {used - set(MAY_USE[part])}"
            checked += 1
    assert checked


def test_no_mixer_imports_another():
    for module in MODULES:
        if module.startswith("zoo.mixers."):
            assert not [name for name in imports(module) if name.startswith("zoo.mixers")], module


def test_no_other_framework_is_imported():
    for module in MODULES:
        named = {name.split(".")[0] for name in imports(module, every=True)}
        assert not {"tensorflow", "torch", "pandas", "haiku", "keras"} & named, module


def test_import_zoo_is_light_and_knows_its_names(run_python):
    code = """
import sys, zoo
assert set(zoo.__all__) <= set(dir(zoo))
loaded = {name for name in sys.modules if name.startswith("zoo.")}
assert not {"jax", "flax", "numpy"} & set(sys.modules) and not loaded, loaded
"""
    run_python("-c", code)


def test_every_public_name_is_what_its_module_has():
    assert zoo.__all__ == ["__version__", *sorted(set(zoo.__all__) - {"__version__"})]
    for name, module in zoo._EXPORTS.items():
        assert getattr(zoo, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zoo.nothing


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == zoo._EXPORTS


def test_each_module_imports_alone_and_starts_no_device(run_python):
    # Other people's packages are loaded once; then every module of zoo is the first of zoo in a process of its own.
    code = """
import os, sys, traceback, warnings
warnings.simplefilter("ignore")
import jax, flax.nnx, optax, orbax.checkpoint, grain, tensorflow_datasets, draccus, jaxtyping, yaml, rich.progress
from jax._src import xla_bridge
failed = []
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            __import__(module)
            assert not xla_bridge.backends_are_initialized(), f"{module} starts a device"
            assert not {"torch", "tensorflow"} & set(sys.modules), module
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(module)
assert not failed, failed
"""
    assert len(MODULES) > 40
    run_python("-c", code, *MODULES)


def test_ops_need_no_flax(run_python):
    code = """
import sys
sys.modules["flax"] = None
for module in sys.argv[1:]:
    __import__(module)
"""
    ops = [module for module in MODULES if module.startswith("zoo.ops")]
    assert len(ops) > 3
    run_python("-c", code, *ops)


def test_mixers_and_models_need_jax_flax_and_jaxtyping_only(run_python):
    code = """
import builtins, sys
allowed = {"zoo", "jax", "flax", "jaxtyping", "numpy", *sys.stdlib_module_names}
original = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] == "zoo" and not level and name.split(".")[0] not in allowed:
        raise ImportError(f"{importer} imports {name}")
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
import jax, flax.nnx
blocked = {"optax", "orbax", "grain", "tensorflow_datasets", "rich", "yaml", "draccus", "matplotlib", "chex",
           "safetensors", "tensorboardX"}
for name in blocked - set(sys.modules):
    sys.modules[name] = None
import jax.numpy as jnp, zoo
for spec in zoo.list_specs(kind="mixer"):
    mixer = flax.nnx.eval_shape(lambda: zoo.create_mixer(spec.name, **{"d_model": 8, **spec.test_args}))
model = lambda x: zoo.create_model("softmax", num_classes=3, vocab_size=5, d_model=8, num_heads=2, max_len=4)(x)
assert jax.eval_shape(model, jnp.ones((2, 4), int)).shape == (2, 3)
init, apply = zoo.init_apply("softmax", 8, num_heads=2)
assert zoo.to_linen("softmax", 8, num_heads=2) is not None
try:
    from zoo.training import loop
except ImportError:
    pass
else:
    raise AssertionError("the guard does not work")
"""
    run_python("-c", code)
