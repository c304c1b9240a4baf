"""One device, eight simulated ones in several meshes and two processes train alike, and take over from one another."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from toy_runs import VALUES, interrupt, metrics, run

from zoo import registry
from zoo.training.processes import share, start, together
from zoo.training.recipe import recipe_from_dict
from zoo.training.run import evaluate_run, load_run
from zoo.training.sharding import Layout, MeshError, make_mesh, parse_mesh, state_shardings

MESHES = ("data=8", "data=4,fsdp=2", "fsdp=8")
# The losses of these runs are around 0.1 to 1; what differs is the order of float32 sums, through 24 updates of Adam.
TOLERANCE = 1e-5
SMALL = {
    **VALUES,
    "model": {"d_model": 64, "num_layers": 1, "num_heads": 2, "d_ff": 64, "pooling": "last"},
    "train": {**VALUES["train"], "steps": 24, "lr": 2e-3, "eval_every": 8, "checkpoint_every": 8, "log_every": 4},
}
VARIANTS = [spec.name for spec in registry.list_specs(kind="mixer")]


def make(variant="toy_mean", **options):
    values = {**SMALL, "variant": variant, "train": {**SMALL["train"], "buckets": [], **options}}
    return recipe_from_dict(values)


def assert_equal_losses(folder, other, tolerance=TOLERANCE):
    for ours, theirs in zip(metrics(folder), metrics(other), strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance, abs=tolerance)
        assert ours.get("grad_norm", 0) == pytest.approx(theirs.get("grad_norm", 0), rel=10 * tolerance, abs=tolerance)


EIGHT = """
import json, sys
import jax
from zoo.training.loop import Trainer
from zoo.training.recipe import load_recipe
from zoo.training.run import train
from zoo.training.sharding import Layout, parse_mesh

assert jax.device_count() == 8
for recipe, folder, mesh, stop in json.loads(sys.argv[1]):
    take = Trainer._take

    def end(self, step, sums):
        take(self, step, sums)
        if step == stop:
            kernel = self.state["params"]["encoder"]["layers"]["0"]["ffn"]["up"]["kernel"]
            print(mesh, len({str(shard.index) for shard in kernel.addressable_shards}))
            raise KeyboardInterrupt

    Trainer._take = end
    try:
        result = train(load_recipe(recipe), folder, layout=Layout(mesh=parse_mesh(mesh)), progress=False)
        assert result["environment"]["device"] == "8 x cpu"
    except KeyboardInterrupt:
        pass
    Trainer._take = take
"""


def on_eight(run_python, jobs):
    """Runs (recipe file, folder, mesh, step to stop at or None) in one process with eight simulated devices."""
    flags = "--xla_force_host_platform_device_count=8"
    return run_python("-c", EIGHT, json.dumps(jobs), XLA_FLAGS=flags, JAX_DEFAULT_PRNG_IMPL="unsafe_rbg").stdout


@pytest.fixture(scope="module")
def one(toy, compilation_cache, tmp_path_factory):
    """The folder of a run on one device; read only."""
    folder = tmp_path_factory.mktemp("devices") / "one"
    run(folder, make())
    return folder


def test_eight_devices_and_accumulation_compute_what_one_does(one, tmp_path, run_python):
    whole, parts = tmp_path / "whole.yaml", tmp_path / "parts.yaml"
    whole.write_text(make().to_yaml())
    parts.write_text(make(batch_size=16, accumulate=2).to_yaml())
    jobs = [(str(whole), str(tmp_path / mesh), mesh, 24) for mesh in MESHES]
    jobs += [(str(parts), str(tmp_path / "parts"), "data=4,fsdp=2", None)]
    # What is on disk when the last step is read is step 16; then the same mesh, another one and one device go on.
    jobs += [(str(whole), str(tmp_path / "fsdp=8"), "fsdp=8", None)]
    jobs += [(str(whole), str(tmp_path / "data=8"), "data=2,fsdp=4", None)]
    said = on_eight(run_python, jobs)
    assert [line.split() for line in said.splitlines()] == [["data=8", "1"], ["data=4,fsdp=2", "2"], ["fsdp=8", "8"]]
    run(tmp_path / "data=4,fsdp=2", make())
    for name in (*MESHES, "parts"):
        assert_equal_losses(tmp_path / name, one)
        assert load_run(tmp_path / name, "last").step == 24
    held = json.loads((tmp_path / "data=8" / "result.json").read_text())
    assert held["mesh"] == "data=2,fsdp=4"


def test_eight_devices_go_on_from_one(one, tmp_path, run_python, monkeypatch):
    interrupt(tmp_path / "run", make(), 18, monkeypatch)
    (tmp_path / "recipe.yaml").write_text(make().to_yaml())
    on_eight(run_python, [(str(tmp_path / "recipe.yaml"), str(tmp_path / "run"), "data=2,fsdp=4", None)])
    assert_equal_losses(tmp_path / "run", one)
    on_one = evaluate_run(tmp_path / "run", layout=Layout(devices=1))
    assert on_one["loss"] == pytest.approx(
        json.loads((tmp_path / "run/result.json").read_text())["best"]["test"]["loss"]
    )


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulation_changes_the_loss_by_rounding(accumulate, one, tmp_path):
    run(tmp_path, make(accumulate=accumulate))
    assert_equal_losses(tmp_path, one)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_on_every_mesh(variant, toy, tmp_path, run_python):
    plain = make(variant)
    run(tmp_path / "one", plain)
    (tmp_path / "recipe.yaml").write_text(plain.to_yaml())
    (tmp_path / "parts.yaml").write_text(make(variant, accumulate=2).to_yaml())
    jobs = [(str(tmp_path / "recipe.yaml"), str(tmp_path / mesh), mesh, None) for mesh in MESHES]
    on_eight(run_python, [*jobs, (str(tmp_path / "parts.yaml"), str(tmp_path / "parts"), "data=4,fsdp=2", None)])
    run(tmp_path / "four", make(variant, accumulate=4))
    for name in (*MESHES, "parts", "four"):
        assert_equal_losses(tmp_path / name, tmp_path / "one")


@pytest.mark.parametrize(
    ("section", "options", "tolerance"),
    [
        ("model", {"remat": "full"}, 1e-6),
        ("model", {"remat": "dots"}, 1e-6),
        ("model", {"scan_layers": True}, 1e-5),
        ("model", {"dtype": "bfloat16"}, 0.05),
    ],
    ids=lambda value: str(value),
)
def test_remat_scan_and_bfloat16_change_the_loss_by_rounding(section, options, tolerance, one, toy, tmp_path):
    values = make().to_dict()
    values[section] = {**values[section], **options}
    changed = recipe_from_dict(values)
    run(tmp_path, changed)
    if options == {"scan_layers": True}:  # parameters are drawn in another order
        assert len(metrics(tmp_path)) == len(metrics(one))
    else:
        assert_equal_losses(tmp_path, one, tolerance)
    loaded = load_run(tmp_path, "last")
    dtypes = {
        leaf.dtype for leaf in jax.tree.leaves(jax.tree.map(jnp.asarray, __import__("flax").nnx.state(loaded.model)))
    }
    assert dtypes == {jnp.dtype("float32")}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(folder, toy_path, *arguments, processes=2, code="from zoo.cli import main\nmain()"):
    """That many processes of one run, as the documentation says to start them."""
    environment = {**os.environ, "PYTHONPATH": str(toy_path), "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg"}
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(processes):
        command = [sys.executable, "-c", code, "train", "recipe.yaml", "--run-dir", "run", *arguments]
        command += ["--coordinator", address, "--num-processes", str(processes), "--process-id", str(index)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    return started


def finish(processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], outputs


def test_two_processes_compute_what_one_does(one, tmp_path, toy_path):
    (tmp_path / "recipe.yaml").write_text(make().to_yaml())
    codes, outputs = finish(launch(tmp_path, toy_path, "--devices", "2", "--mesh", "fsdp=4"))
    assert codes == [0, 0], outputs
    assert_equal_losses(tmp_path / "run", one)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["processes"], result["mesh"], result["environment"]["device"]) == (2, "data=1,fsdp=4", "4 x cpu")
    assert result["last"]["test"]["examples"] == 29
    assert outputs[0][0].splitlines()[-1].startswith("toy_mean on toy/last")  # after what Gloo says
    assert "step 24/24 validation" in outputs[0][1]
    assert "step 24/24" not in outputs[1][1]
    assert "toy_mean" not in outputs[1][0]
    assert load_run(tmp_path / "run", "last").step == 24


def test_two_processes_stop_together_and_one_goes_on(one, tmp_path, toy_path):
    """Only one of them gets the signal, at a moment of its own; the step is the same in both."""
    (tmp_path / "recipe.yaml").write_text(make().to_yaml())
    code = """
import os, signal, sys
from zoo.training.loop import Trainer
take = Trainer._take
def act(self, step, sums):
    take(self, step, sums)
    if step == 11 and sys.argv[-1] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
Trainer._take = act
from zoo.cli import main
main()
"""
    codes, outputs = finish(launch(tmp_path, toy_path, code=code))
    assert codes == [143, 143], outputs
    saved = load_run(tmp_path / "run", "last").step
    assert saved in (13, 14)
    for _, err in outputs:
        assert f"zoo: stopped by SIGTERM; step {saved} is saved; the same command goes on." in err
    run(tmp_path / "run", make())
    assert_equal_losses(tmp_path / "run", one)


def test_what_fails_in_one_process_fails_in_all(toy, tmp_path, toy_path):
    (tmp_path / "recipe.yaml").write_text(make().to_yaml())
    (tmp_path / "run").mkdir()
    code = """
import sys
from zoo.files import lock_file
import zoo.training.folder as folder
if sys.argv[-1] == "0":
    folder.lock_file = lambda file, wait: False
from zoo.cli import main
main()
"""
    codes, outputs = finish(launch(tmp_path, toy_path, code=code))
    assert codes == [1, 1], outputs
    assert "zoo: run is being written by another process" in outputs[0][1]
    assert "zoo: process 0 failed: run is being written by another process" in outputs[1][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--mesh is written as in data=4,fsdp=2"),
        ("data", "each axis is named once with its size from 1"),
        ("data=0", "each axis is named once"),
        ("data=2,data=4", "each axis is named once"),
        ("fdsp=2", r"there is no axis 'fdsp'\. Did you mean fsdp"),
        ("data=x", "each axis is named once"),
        ("4,2", "there is no axis '4'. There are data, fsdp"),
    ],
)
def test_a_mesh_that_is_not_written_right(text, message):
    with pytest.raises(MeshError, match=message):
        parse_mesh(text)


def test_meshes_are_read_and_completed():
    assert parse_mesh(" data=4, fsdp=2") == {"data": 4, "fsdp": 2}
    for mesh in ({}, {"data": 1}, {"fsdp": 1}, {"data": 1, "fsdp": 1}):
        assert dict(make_mesh(Layout(mesh=mesh), 16).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(
    ("layout", "batch", "accumulate", "message"),
    [
        (Layout(), 12, 1, r"train\.batch_size=12 is not a multiple of the number of devices, 8; 8 or 16 would be"),
        (Layout(), 24, 2, r"batch_size=24 .*number of devices, 8 times train\.accumulate=2; 16 or 32 would be"),
        (Layout(), 4, 1, r"number of devices, 8; 8 would be"),
        (Layout(mesh={"fsdp": 3}), 24, 1, r"mesh fsdp=3 does not divide the 8 devices"),
        (Layout(mesh={"data": 3, "fsdp": 2}), 24, 1, r"mesh data=3,fsdp=2 is for 6 devices, and there are 8: "
         r"data=8,fsdp=1 or data=4,fsdp=2 or data=2,fsdp=4 or data=1,fsdp=8 would be right, or --devices for fewer"),
        (Layout(devices=9), 18, 1, r"--devices 9: process 0 has 8 \(cpu\)"),
    ],
)  # fmt: skip
def test_devices_that_do_not_fit(layout, batch, accumulate, message, monkeypatch):
    class Device:
        process_index, device_kind = 0, "cpu"

    monkeypatch.setattr(jax, "devices", lambda: [Device() for _ in range(8)])
    with pytest.raises(MeshError, match=message):
        make_mesh(layout, batch, accumulate)


STATE = {
    "params": {"table": np.zeros((100, 64)), "up": {"kernel": np.zeros((64, 256)), "bias": np.zeros(256)}},
    "opt": [{"count": np.zeros(()), "mu": {"table": np.zeros((100, 64)), "up": {"kernel": np.zeros((64, 256))}}}],
}


@pytest.fixture
def eight():
    """A mesh data=2, fsdp=4 without devices."""
    return jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))


def specs(mesh, rules=None):
    found = state_shardings(mesh, STATE, rules)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): place.spec
        for path, place in jax.tree.leaves_with_path(found)
    }


def test_the_largest_axis_that_divides_is_split_and_moments_follow(eight):
    assert specs(eight) == {
        "params/table": PartitionSpec("fsdp"),
        "params/up/kernel": PartitionSpec(None, "fsdp"),
        "params/up/bias": PartitionSpec(),
        "opt/0/count": PartitionSpec(),
        "opt/0/mu/table": PartitionSpec("fsdp"),
        "opt/0/mu/up/kernel": PartitionSpec(None, "fsdp"),
    }


def test_rules_go_by_path_and_the_first_wins(eight):
    rules = {"table$": [None, "fsdp"], "params/up/kernel": [], "kernel": ["data", "fsdp"]}
    placed = specs(eight, rules)
    assert placed["params/table"] == placed["opt/0/mu/table"] == PartitionSpec(None, "fsdp")
    assert placed["params/up/kernel"] == PartitionSpec()
    assert placed["opt/0/mu/up/kernel"] == PartitionSpec("data", "fsdp")
    assert specs(eight, {"opt": ["fsdp"]})["opt/0/count"] == PartitionSpec()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"(": ["fsdp"]}, "'\\(' is no regular expression"),
        ({"tabel": ["fsdp"]}, "no array has 'tabel' in its path; paths are, for example, params/table, params/up"),
        ({"table": ["fdsp"]}, "there is no mesh axis 'fdsp'. Did you mean fsdp"),
        ({"table": [None, None, "fsdp"]}, r"\[None, None, fsdp\] does not fit .*table \[100, 64\]: it has 2 axes"),
        ({"table": ["fsdp", "fsdp"]}, "fsdp is named twice"),
        ({"up/kernel": ["data"], "table": [None, "fsdp"], "bias": ["x"]}, "no mesh axis 'x'"),
    ],
)
def test_rules_that_do_not_fit(rules, message, eight):
    with pytest.raises(MeshError, match=message):
        specs(eight, rules)


def test_a_rule_that_does_not_divide(eight):
    with pytest.raises(MeshError, match=r"axis 0 is 6, which fsdp=4 does not divide"):
        state_shardings(eight, {"w": np.zeros((6, 1000))}, {"w": ["fsdp"]})


def test_rules_come_from_the_recipe_and_are_checked_before_anything(toy, tmp_path):
    wrong = make(sharding={"no/such": ["fsdp"]})
    with pytest.raises(MeshError, match="no array has 'no/such' in its path"):
        run(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"train\.sharding\.kernel must be a list such as \[fsdp, null\], got 'fsdp'"):
        make(sharding={"kernel": "fsdp"})
    right = make(sharding={"ffn/up/kernel": [None, "fsdp"]}, steps=8)
    run(tmp_path / "run", right)
    # It decides nothing of the result.
    assert run(tmp_path / "run", make(steps=8))["steps"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "--devices must be at least 1, got 0"),
        ({"coordinator": "localhost:1"}, "--coordinator, --num-processes and --process-id go together"),
        ({"num_processes": 2, "process_id": 0}, "go together"),
        (
            {"coordinator": "localhost:1", "num_processes": 2, "process_id": 2},
            "--process-id must be from 0 to 1, got 2",
        ),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 1}, "--coordinator is host:port"),
    ],
)
def test_processes_that_are_not_named_right(options, message):
    with pytest.raises(ValueError, match=message):
        start(**options)


def test_alone_everything_is_together():
    start()
    assert share("x") == ["x"]
    with pytest.raises(KeyError), together():
        raise KeyError
    with pytest.raises(ValueError, match="at most 2048 bytes, got 3000"):
        share("x" * 3000)
