"""Runs that are interrupted, killed or damaged go on to the same end, to the bit, or say why they cannot."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from toy_runs import VALUES, arrays, assert_same_run, interrupt, metrics, recipe, run

from zoo.files import seal
from zoo.training.checkpoint import CheckpointError
from zoo.training.folder import RunError, hold
from zoo.training.loop import Trainer, TrainingError
from zoo.training.recipe import recipe_from_dict
from zoo.training.run import load_run
from zoo.training.signals import Interrupted


@pytest.fixture(scope="module")
def unbroken(toy, compilation_cache, tmp_path_factory):
    """The folder of a run that nothing disturbed; read only."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run(folder, recipe())
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def data_file(folder, which, step):
    """The largest file of a checkpoint."""
    files = [path for path in (folder / "checkpoints" / which / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock" and path.is_file()}


def start(folder, toy_path, code="", **environment):
    """A process of its own that trains the recipe in `folder`/recipe.yaml into `folder`/run."""
    (folder / "recipe.yaml").write_text(recipe().to_yaml())
    code += "\nfrom zoo.cli import main\nmain(['train', 'recipe.yaml', '--run-dir', 'run'])\n"
    environment = {**os.environ, "PYTHONPATH": str(toy_path), "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


AT_STEP = """
import os, signal
from zoo.training.loop import Trainer

take = Trainer._take

def act(self, step, sums):
    take(self, step, sums)
    if step == {step}:
        {action}

Trainer._take = act
"""


def test_a_killed_process_can_go_on(unbroken, tmp_path, toy_path):
    # The checkpoint of step 40 may be half written.
    process = start(tmp_path, toy_path, AT_STEP.format(step=41, action="os.kill(os.getpid(), signal.SIGKILL)"))
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert not (tmp_path / "run" / "result.json").exists()
    run(tmp_path / "run", recipe())
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_leaves_with_a_code_of_its_own(name, unbroken, tmp_path, toy_path):
    process = start(tmp_path, toy_path, AT_STEP.format(step=33, action=f"os.kill(os.getpid(), signal.{name})"))
    _, err = process.communicate()
    number = signal.Signals[name]
    assert process.returncode == 128 + number, err
    # One step is under way when the signal comes.
    assert err.splitlines()[-1] == f"zoo: stopped by {name}; step 34 is saved; the same command goes on."
    assert load_run(tmp_path / "run", "last").step == 34
    run(tmp_path / "run", recipe())
    assert_same_run(tmp_path / "run", unbroken)


def test_a_second_signal_does_not_wait(tmp_path, toy_path):
    code = AT_STEP.format(step=33, action="os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)")
    process = start(tmp_path, toy_path, code)
    process.communicate()
    assert process.returncode == -signal.SIGINT


def test_a_signal_before_the_first_step(tmp_path, toy_path):
    code = "import os, signal, zoo.training.run as r\nr.check = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM)"
    process = start(tmp_path, toy_path, code)
    _, err = process.communicate()
    assert (process.returncode, err) == (143, "zoo: stopped by SIGTERM; the same command goes on.\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("at", [20, 30, 60])
def test_a_signal_in_an_evaluation(at, unbroken, tmp_path, monkeypatch):
    """The step is saved, and evaluated when the run goes on: once."""
    evaluate = Trainer.evaluate

    def told(self, split, state):
        if self.step == at:
            self.stop.signum = signal.SIGTERM
        return evaluate(self, split, state)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", told)
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM; step {at} is saved"):
            run(tmp_path, recipe())
    assert load_run(tmp_path, "last").step == at
    assert at not in [line["step"] for line in metrics(tmp_path, "validation")]
    run(tmp_path, recipe())
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-5]), lambda path: path.unlink()]
)
def test_a_damaged_checkpoint_is_named_set_aside_and_an_older_one_used(damage, unbroken, tmp_path, monkeypatch, capsys):
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    path = data_file(tmp_path, "last", 40)
    damage(path)
    from zoo.training.run import train

    train(recipe(), tmp_path)
    said = capsys.readouterr().err
    assert str(path) in said
    assert f"step 40 was set aside to {tmp_path}/checkpoints/damaged/last-40; an earlier one is used, step 20." in said
    assert "going on from step 20" in said
    assert_same_run(tmp_path, unbroken)
    assert (tmp_path / "checkpoints" / "damaged" / "last-40").is_dir()


def test_a_checkpoint_without_its_manifest_is_not_whole(unbroken, tmp_path, monkeypatch):
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    (tmp_path / "checkpoints" / "last" / "40" / "manifest.json").unlink()
    run(tmp_path, recipe())
    assert_same_run(tmp_path, unbroken)


def test_where_none_is_whole_nothing_is_touched(toy, tmp_path, monkeypatch):
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    for step in (20, 40):
        flip(data_file(tmp_path, "last", step))
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*last can be used\. .*last.40.*last.20.*SHA-256"):
        run(tmp_path, recipe())
    assert listing(tmp_path).keys() == before.keys()
    assert {path for path, time in listing(tmp_path).items() if time != before[path]} <= {tmp_path / "recipe.yaml"}


def test_the_log_is_checked_too(unbroken, tmp_path, monkeypatch):
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    log = tmp_path / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:7])[:-3])  # step 20 has five lines, step 40 ten
    run(tmp_path, recipe())
    assert_same_run(tmp_path, unbroken)

    interrupt(tmp_path / "two", recipe(), 53, monkeypatch)
    flip(tmp_path / "two" / "metrics.jsonl")
    whole = (tmp_path / "two" / "metrics.jsonl").read_bytes()
    (tmp_path / "two" / "metrics.jsonl").write_bytes(b"{" + whole[1:].replace(b"{", b"[", 1))
    with pytest.raises(CheckpointError, match=r"cannot be gone on from: .*metrics\.jsonl"):
        run(tmp_path / "two", recipe())


def test_a_checkpoint_whose_best_is_damaged_is_not_gone_on_from(unbroken, tmp_path, monkeypatch):
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    shutil.copytree(tmp_path, tmp_path / "two")
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints" / "best").iterdir())
    assert len(steps) > 1, "the case shows nothing"
    flip(data_file(tmp_path, "best", steps[-1]))
    with pytest.raises(CheckpointError, match=rf"The checkpoint cannot be used: .*best.{steps[-1]}.*SHA-256"):
        load_run(tmp_path, "best")
    assert load_run(tmp_path, "last").step == 40
    run(tmp_path, recipe())
    assert_same_run(tmp_path, unbroken)

    for step in steps:
        flip(data_file(tmp_path / "two", "best", step))
    with pytest.raises(CheckpointError, match=rf"no checkpoint in .*last can be used.*best.{steps[0]}.*SHA-256"):
        run(tmp_path / "two", recipe())


def test_the_recipe_is_sealed_and_the_checkpoints_know_it(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    path = tmp_path / "run" / "recipe.yaml"
    text = path.read_text()
    for damaged in (text.replace("d_model: 8", "d_model: 9"), text[:-20], text[: len(text) // 2], ""):
        path.write_text(damaged)
        for action in (lambda: run(tmp_path / "run", recipe()), lambda: load_run(tmp_path / "run")):
            with pytest.raises(RunError, match=r"recipe\.yaml is damaged or was changed: .*checkpoints hold"):
                action()
    path.unlink()
    with pytest.raises(RunError, match=r"of another recipe; these differ: train\.lr \(0\.02 there, 0\.03 here"):
        run(tmp_path / "run", recipe(lr=0.03))
    run(tmp_path / "run", recipe())
    assert path.read_text() == text
    assert_same_run(tmp_path / "run", unbroken)


def test_a_checkpoint_that_knows_fewer_settings_is_gone_on_from(unbroken, tmp_path, monkeypatch):
    """One of an earlier version, in which a setting was not there yet; its recipe.yaml was lost."""
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    (tmp_path / "recipe.yaml").unlink()
    for step in (20, 40):
        path = tmp_path / "checkpoints" / "last" / str(step) / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["digest"], manifest["recipe"]["train"]["patience"]
        path.write_text(json.dumps(seal(manifest)))
    run(tmp_path, recipe())
    assert_same_run(tmp_path, unbroken)


def test_a_damaged_result_is_named_and_can_be_made_again(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    whole = json.loads(path.read_text())
    for text in (path.read_text()[:-30], path.read_text().replace('"seed": 0', '"seed": 1'), "{}"):
        path.write_text(text)
        with pytest.raises(RunError, match=r"result\.json is damaged or was changed: .*Delete the file"):
            run(tmp_path / "run", recipe())
    path.unlink()
    again = run(tmp_path / "run", recipe())
    assert {**again, "environment": 0, "memory": 0, "compile_seconds": 0, "digest": 0} == {
        **whole, "environment": 0, "memory": 0, "compile_seconds": 0, "digest": 0
    }  # fmt: skip
    assert_same_run(tmp_path / "run", unbroken)


def test_two_processes_do_not_write_one_directory(unbroken, tmp_path, toy_path):
    with hold(tmp_path / "run"):
        process = start(tmp_path, toy_path)
        _, err = process.communicate()
        assert process.returncode == 1
        assert f"zoo: run is being written by process {os.getpid()} on " in err
        assert "choose another --run-dir" in err
        assert os.listdir(tmp_path / "run") == [".lock"]
        with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
            run(tmp_path / "run", recipe())
    run(tmp_path / "run", recipe())
    assert_same_run(tmp_path / "run", unbroken)


def test_other_data_under_the_same_name_is_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "fingerprint", lambda self: "one")
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    monkeypatch.setattr(toy, "fingerprint", lambda self: "two")
    with pytest.raises(TrainingError, match=r"last.40 was trained on other data .*fingerprint one, here two"):
        run(tmp_path, recipe())


EARLY = {**VALUES, "train": {**VALUES["train"], "patience": 2, "log_every": 7}}
EARLY["task"] = {"name": "toy", "source": "chance"}


def test_early_stopping_and_its_state(toy, compilation_cache, tmp_path, monkeypatch):
    early = recipe_from_dict(EARLY)
    result = run(tmp_path / "one", early)
    scores = [(line["step"], line["accuracy"]) for line in metrics(tmp_path / "one", "validation")]
    best = max(scores, key=lambda pair: (pair[1], -pair[0]))[0]
    assert result["steps"] == best + 20 < 60, "the case shows nothing"
    assert result["stopped_early"] is True
    assert (result["last"]["step"], result["best"]["step"]) == (best + 20, best)
    assert [line["step"] for line in metrics(tmp_path / "one")][-1] == best + 20
    assert sum("lr" in line for line in metrics(tmp_path / "one")) == -(-result["steps"] // 7)
    assert arrays(tmp_path / "one", "last")[0] == best + 20
    for at in (best + 9, best + 15, best + 20):
        interrupt(tmp_path / f"at{at}", early, at, monkeypatch)
        run(tmp_path / f"at{at}", early)
        assert_same_run(tmp_path / f"at{at}", tmp_path / "one")


@pytest.mark.parametrize("value", [0, -1])
def test_patience_is_a_count(value):
    with pytest.raises(ValueError, match=f"train.patience must be at least 1, or null for none, got {value}"):
        recipe(patience=value)


def test_speed_and_time_are_those_of_all_processes(toy, tmp_path, monkeypatch):
    interrupt(tmp_path, recipe(), 53, monkeypatch)
    time.sleep(0.3)
    run(tmp_path, recipe())
    clock = arrays_clock(tmp_path)
    assert clock["steps"] == 60


def arrays_clock(folder):
    path = folder / "checkpoints" / "last" / "60" / "manifest.json"
    return json.loads(path.read_text())["meta"]["clock"]
