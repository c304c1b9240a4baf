"""A fourth mixer, from one file outside the package, trains on ListOps; nothing else is edited."""

import json
import sys

import jax.numpy as jnp
import pytest

from zoo import cli, registry
from zoo.registry import RegistryError
from zoo.tasks.lra.listops import ListOps
from zoo.training.run import evaluate_run, load_run

FILE = '''
"""Each token gets a learned share of the mean of what came before it."""

import jax.numpy as jnp
from flax import nnx

from zoo.registry import register_mixer


@register_mixer(
    {name!r},
    title="Running mean",
    paper="none",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=False,
    notes="Written for a test.",
)
class RunningMean(nnx.Module):
    def __init__(self, d_model, *, share=0.5, causal=True, dropout=0.0, dtype=None, param_dtype=jnp.float32, rngs):
        if not causal:
            raise ValueError("the running mean is causal.")
        self.share = nnx.Param(jnp.full((d_model,), share, param_dtype))

    def __call__(self, x, *, mask=None, deterministic=None, rngs=None):
        real = jnp.ones(x.shape[:2], bool) if mask is None else mask
        total = jnp.cumsum(jnp.where(real[..., None], x, 0), axis=1)
        count = jnp.maximum(jnp.cumsum(real, axis=1), 1)[..., None]
        return (self.share[...] * total / count).astype(x.dtype)
'''
OVERRIDES = [
    "model.d_model=8", "model.num_layers=1", "model.d_ff=8", "model.causal=true", "model.pooling=last",
    "train.steps=3", "train.warmup_steps=1", "train.eval_every=0", "train.buckets=[]", "train.tensorboard=false",
    "options.share=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The smoke set of ListOps."""
    folder = tmp_path_factory.mktemp("data")
    ListOps(source="smoke", data_dir=folder).prepare(progress=False, workers=1)
    return folder


@pytest.fixture
def clean():
    """Forgets what a test registers."""
    before = set(registry._registered)
    registry._discovered.cache_clear()
    yield
    for name in set(registry._registered) - before:
        if not registry._registered[name][0].module.startswith("zoo."):
            del registry._registered[name]
    registry._discovered.cache_clear()


def check_run(folder, data, variant):
    """The run is complete, and its model can be had again."""
    result = json.loads((folder / "result.json").read_text())
    assert (result["variant"], result["task"], result["last"]["step"]) == (variant, "lra/listops", 3)
    assert result["last"]["test"]["examples"] == 500
    assert {"majority", "root_operator"} <= result["baselines"]["test"].keys()
    assert evaluate_run(folder, data_dir=data)["accuracy"] == result["best"]["test"]["accuracy"]
    run = load_run(folder, "last", data_dir=data)
    (block,) = run.model.encoder.layers
    assert type(block.mixer).__name__ == "RunningMean"
    assert 0 < float(abs(block.mixer.share[...] - 0.25).max()) < 0.1
    batch = run.task.split("test").gather(jnp.arange(4), 100)
    assert run.model(batch["inputs"], mask=batch["mask"]).shape == (4, 10)


@pytest.mark.usefixtures("clean", "compilation_cache")
def test_through_the_entry_point(data, tmp_path, run_python, install_outside, monkeypatch):
    site = install_outside(tmp_path / "site", my_mixer=FILE.format(name="running_mean"))
    found = run_python("-m", "zoo", "describe", "running_mean", "--json", PYTHONPATH=str(site))
    assert json.loads(found.stdout)["notes"] == "Written for a test."
    arguments = ["train", "lra/smoke/listops", "--variant", "running_mean", "--data-dir", str(data), "--run-dir", "run"]
    done = run_python("-m", "zoo", *arguments, *OVERRIDES, PYTHONPATH=str(site))
    assert "running_mean on lra/listops/smoke (smoke), seed 0: test accuracy" in done.stdout
    # Where the package is not installed, the run cannot be loaded, and says why.
    with pytest.raises(RegistryError, match="no mixer, model or task named 'running_mean'"):
        load_run(tmp_path / "run", data_dir=data)
    monkeypatch.syspath_prepend(site)
    registry._discovered.cache_clear()
    check_run(tmp_path / "run", data, "running_mean")
    del sys.modules["my_mixer"]


@pytest.mark.usefixtures("clean", "compilation_cache")
def test_through_a_path(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_mixer.py"
    path.write_text(FILE.format(name="mean_so_far"))
    arguments = ["train", "lra/smoke/listops", "--variant", "./my_mixer.py", "--data-dir", str(data), *OVERRIDES]
    cli.main(arguments)
    assert capsys.readouterr().out.startswith("mean_so_far on lra/listops/smoke")
    folder = tmp_path / "runs" / "lra" / "smoke" / "listops" / "my_mixer-s0"
    monkeypatch.chdir("/")
    check_run(folder, data, "mean_so_far")
    with pytest.raises(SystemExit) as exit:
        cli.main([*arguments, "model.causal=false", "--run-dir", str(tmp_path / "other")])
    assert exit.value.code == 2
    path.unlink()
    with pytest.raises(RegistryError, match=r"There is no file .*my_mixer\.py to load a variant from"):
        load_run(folder, data_dir=data)


@pytest.mark.usefixtures("clean")
def test_what_it_cannot_do_is_said_before_training(data, tmp_path, capsys):
    path = tmp_path / "my_mixer.py"
    path.write_text(FILE.format(name="mean_so_far"))
    for override, message in (
        ("model.causal=false", "model.causal=false: mean_so_far runs forward only; set model.causal=true."),
        ("options.shar=1", "options.shar: mean_so_far has no such option. Did you mean share?"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["train", "lra/smoke/listops", "--variant", str(path), *OVERRIDES, override])
        assert message in capsys.readouterr().err
