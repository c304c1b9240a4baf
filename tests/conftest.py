"""Settings for every test: CPU, and the shared reference data where it is at hand."""

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test fetches by surprise, nor do the processes that tests start.
os.environ["ZOO_OFFLINE"] = "1"
# Most of the time goes into compiling small programs; this halves it, in processes that tests start as well. What is
# tested is our code, not XLA's optimisations. Tests that ask the compiler for its plans turn them on again.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import pytest

REPO = Path(__file__).resolve().parents[1]
TOY: dict[str, Any] = {}
XLA_CACHE = os.environ.get("ZOO_XLA_CACHE", str(Path.home() / ".cache" / "zoo" / "xla_tests"))
GOLDEN = REPO / "tests" / "golden"


# Every compiled program takes some mappings of memory; a process that has 65,530 of them (Linux) ends in a segmentation
# fault, and is slow long before.
_MOST_MAPPINGS = 20_000
_TESTS_BETWEEN = 10
_done = 0


def pytest_runtest_logfinish():
    """Drops compiled programs where a process has come to hold very many."""
    global _done
    _done += 1
    maps = Path("/proc/self/maps")
    if _done % _TESTS_BETWEEN or "jax" not in sys.modules or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


def shared_path(*parts: str) -> Path:
    """A file of the reference data beside the checkout (`$ZOO_SHARED`, or `../shared`); skips the test without it."""
    path = Path(os.environ.get("ZOO_SHARED", REPO.parent / "shared")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the reference data {'/'.join(parts)} beside the checkout (../shared or $ZOO_SHARED)")
    return path


@pytest.fixture(name="shared_path")
def shared_path_fixture():
    """The function `shared_path`."""
    return shared_path


@pytest.fixture(name="golden_dir")
def golden_dir_fixture() -> Path:
    """The folder of reference arrays that tests carry with them."""
    return GOLDEN


def install_outside(folder: Path, **modules: str) -> Path:
    """Lays out a package as pip would: modules given by source text, named in the entry point group `zoo.variants`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    info = folder / f"{'_'.join(modules)}-0.1.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {'-'.join(modules)}\nVersion: 0.1\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    entries = "".join(f"{name} = {name}\n" for name in modules)
    (info / "entry_points.txt").write_text(f"[zoo.variants]\n{entries}", encoding="utf-8")
    return folder


@pytest.fixture(name="install_outside")
def install_outside_fixture():
    """The function `install_outside`."""
    return install_outside


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH: an installed package that brings the task `toy` (tests/helpers/zoo_toy.py)."""
    text = (REPO / "tests" / "helpers" / "zoo_toy.py").read_text(encoding="utf-8")
    return install_outside(tmp_path_factory.mktemp("toy") / "site", zoo_toy=text)


@pytest.fixture(scope="module")
def toy(toy_path):
    """Registers the task `toy` and the mixer `toy_mean` while a module's tests run; the class of the task."""
    from zoo import registry

    if "zoo_toy" not in sys.modules:
        found: Any = importlib.util.spec_from_file_location("zoo_toy", toy_path / "zoo_toy.py")
        sys.modules["zoo_toy"] = module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        TOY.update({name: registry._registered[name] for name in ("toy", "toy_mean")})
    registry._registered.update(TOY)
    yield TOY["toy"][1]
    for name in TOY:
        del registry._registered[name]


@pytest.fixture
def run_python(toy_path, tmp_path):
    """`run(*arguments, **environment)` runs Python in an empty folder, with the task `toy` at hand; checks the exit."""

    def run(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(toy_path), str(REPO)]))
        cache = {"JAX_COMPILATION_CACHE_DIR": XLA_CACHE, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **cache, "PYTHONPATH": path, **environment}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def compilation_cache():
    """Turns on JAX's persistent compilation cache ($ZOO_XLA_CACHE; empty for none) for the tests that ask for it."""
    import jax

    options = {
        "jax_compilation_cache_dir": XLA_CACHE,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items() if XLA_CACHE else ():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def compiled_for_tpu(monkeypatch):
    """`compiled(function, arguments, kind)` compiles for a TPU that is not here: by `libtpu`, which skips without it.

    The arguments are trees of shapes and dtypes; a kind is a topology's name, "v5e:2x2".
    """
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("needs the package libtpu, the compiler for TPUs")
    import jax
    from jax.experimental import topologies
    from jax.experimental.compilation_cache import compilation_cache

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # else it asks a server about the machine
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may compile, too
    # Programs for TPUs cannot be read back from a cache without one.
    options = {"jax_compilation_cache_dir": None, "jax_disable_most_optimizations": False}
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()

    def compiled(function, arguments, kind):
        place = jax.sharding.SingleDeviceSharding(topologies.get_topology_desc(kind, "tpu").devices[0])
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
        return jax.jit(function).lower(*arguments).compile()

    yield compiled
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
