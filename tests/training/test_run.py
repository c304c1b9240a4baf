"""Runs: bit-exact resumption, what a run directory holds, and loading it again."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import VALUES, arrays, assert_same_run, interrupt, metrics, recipe, run

from zoo.data.fetch import forbidden
from zoo.training import loop
from zoo.training.checkpoint import CheckpointError, Checkpoints
from zoo.training.folder import RunError, default_run_dir, write_recipe
from zoo.training.loop import Trainer, TrainingError
from zoo.training.recipe import load_recipe, recipe_from_dict
from zoo.training.run import evaluate_run, load_run


@pytest.fixture(scope="module")
def unbroken(toy, compilation_cache, tmp_path_factory):
    """The folder and the result of a run that nothing disturbed; read only."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    return folder, run(folder, recipe())


def test_a_run_learns_and_logs(unbroken):
    folder, result = unbroken
    assert [line["step"] for line in metrics(folder, "train")] == [*range(7, 60, 7), 60]
    assert [line["step"] for line in metrics(folder, "validation")] == [10, 20, 30, 40, 50, 60]
    losses = [line["loss"] for line in metrics(folder, "train")]
    assert losses[-1] < losses[0] / 2
    assert result["last"]["test"]["accuracy"] > result["baselines"]["test"]["majority"] + 0.2
    expected = [0.02 * step / 5 for step in range(5)] + [
        0.01 * (1 + math.cos(math.pi * (step - 5) / 55)) for step in range(5, 60)
    ]
    for line in metrics(folder, "train"):
        assert line["lr"] == pytest.approx(expected[line["step"] - 1], rel=1e-4, abs=1e-8)
        assert line["grad_norm"] > 0


def test_result_json_is_complete_and_finite(unbroken):
    folder, result = unbroken
    text = (folder / "result.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in result.json")) == result
    said = [result[name] for name in ("task", "source", "protocol", "variant", "seed", "select")]
    assert said == ["toy", "last", "toy", "toy_mean", 0, "best"]
    assert (result["steps"], result["batch_size"], result["max_len"]) == (60, 16, 12)
    assert result["published"] == {"softmax": 50.0}
    best = arrays(folder, "best")[2]
    assert result["parameters"] == sum(leaf.size for name, leaf in best.items() if name.startswith("['params']"))
    for which in ("best", "last"):
        assert result[which]["step"] in range(10, 61, 10)
        for split, count in (("validation", 37), ("test", 29)):
            assert result[which][split]["examples"] == count
            assert 0 <= result[which][split]["accuracy"] <= 1
            assert 0 < result[which][split]["loss"] < 5
    assert result["last"]["step"] == 60
    assert result["last"]["validation"] == {
        name: value for name, value in metrics(folder, "validation")[-1].items() if name not in ("step", "split")
    }
    assert result["baselines"].keys() == {"validation", "test"}
    assert result["steps_per_second"] > 0
    assert result["compile_seconds"] > 0
    assert result["memory"]["step"] > 16 * 12 * 8 * 4
    assert result["memory"]["host_peak"] > 2**26
    environment = result["environment"]
    assert environment["device"] == f"{jax.device_count()} x cpu"
    assert environment["jax"] == jax.__version__
    assert {"zoo", "commit", "python", "flax", "optax", "platform", "processor", "date"} <= environment.keys()


@pytest.mark.parametrize("stops", [[5, 53], [41, 60]], ids=str)
def test_an_interrupted_run_repeats_the_unbroken_one_to_the_bit(stops, unbroken, tmp_path, monkeypatch):
    # Checkpoints are at 20, 40 and 60; the best so far is saved at any multiple of 10.
    for stop in stops:
        interrupt(tmp_path, recipe(), stop, monkeypatch)
        assert not (tmp_path / "result.json").exists()
    result = run(tmp_path, recipe())
    assert result["last"] == unbroken[1]["last"]
    assert_same_run(tmp_path, unbroken[0])


def test_the_written_recipe_repeats_the_run(unbroken, tmp_path):
    again = load_recipe(unbroken[0] / "recipe.yaml")
    assert again == recipe()
    run(tmp_path, again)
    assert_same_run(tmp_path, unbroken[0])


def test_a_taken_directory_is_refused_and_a_finished_run_just_answers(unbroken):
    folder, result = unbroken
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(RunError, match=r"unbroken holds a run; leave out --no-resume to go on with it, or"):
        run(folder, recipe(), resume=False)
    assert run(folder, recipe()) == result
    with pytest.raises(RunError, match="holds a run of another recipe") as error:
        run(folder, recipe(lr=0.03, seed=1))
    assert "train.lr (0.02 there, 0.03 here)" in str(error.value)
    assert "train.seed (0 there, 1 here)" in str(error.value)
    assert str(error.value).count("there") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_without_its_log_is_still_a_run(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="holds a run;"):
        run(tmp_path / "run", recipe(), resume=False)


def test_a_request_that_cannot_run_takes_no_directory(toy, tmp_path, monkeypatch):
    wrong = recipe_from_dict({**VALUES, "options": {"heads": 3}})
    with pytest.raises(ValueError, match=r"options\.heads: toy_mean has no such option"):
        run(tmp_path / "run", wrong)
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="wandb"):
        run(tmp_path / "run", recipe(wandb="mine", steps=6))
    interrupt(tmp_path / "run", recipe(), 3, monkeypatch)
    assert (tmp_path / "run" / "recipe.yaml").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(toy, tmp_path, monkeypatch):
    make_train_step = loop.make_train_step

    def poisoned(*arguments):
        step = make_train_step(*arguments)

        def run_step(state, batch, key):
            number = state["step"] + 1
            state, sums = step(state, batch, key)
            return state, {**sums, "loss": jnp.where(number == 25, jnp.nan, sums["loss"])}

        return jax.jit(run_step, donate_argnums=0)

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    message = r"the loss of step 25 is not finite \(loss nan, .*good checkpoint is step 20\. Try a smaller train\.lr"
    with pytest.raises(TrainingError, match=message):
        run(tmp_path, recipe(buckets=[]))
    assert not (tmp_path / "result.json").exists()
    assert metrics(tmp_path)[-1]["step"] == 21
    assert load_run(tmp_path, "last").step == 20


def test_exploding_parameters_are_never_called_best(toy, tmp_path):
    # The first update has a finite loss and makes parameters whose squares are not.
    with pytest.raises(TrainingError, match=r"validation at step 1 is not finite .*There is no checkpoint yet"):
        run(tmp_path, recipe(lr=1e30, schedule="constant", warmup_steps=0, eval_every=1, buckets=[]))
    assert not list((tmp_path / "checkpoints" / "best").glob("[0-9]*"))


@pytest.fixture(scope="module")
def overfitted(toy, compilation_cache, tmp_path_factory):
    """A run on labels of pure chance, whose last parameters are not its best."""
    folder = tmp_path_factory.mktemp("runs") / "overfitted"
    values = {**VALUES, "task": {"name": "toy", "source": "chance"}}
    values["train"] = {**VALUES["train"], "lr": 0.05, "ema": 0.5, "select": "last", "buckets": []}
    values["train"] |= {"schedule": "onecycle", "cycle_beta1": True}
    return folder, run(folder, recipe_from_dict(values))


def test_best_and_last_are_kept_apart(overfitted):
    folder, result = overfitted
    scores = {line["step"]: line["accuracy"] for line in metrics(folder, "validation")}
    best = min(step for step, score in scores.items() if score == max(scores.values()))
    assert best != 60, "the case shows nothing"
    assert (result["best"]["step"], result["last"]["step"]) == (best, 60)
    for which, step in (("best", best), ("last", 60)):
        loaded = load_run(folder, cast(Any, which))
        assert loaded.step == step
        assert result[which]["validation"]["accuracy"] == scores[step]
    assert result["best"]["test"] != result["last"]["test"]
    assert result["select"] == "last"


@pytest.mark.parametrize("which", ["best", "last"])
def test_loading_a_run_gives_the_model_that_was_tested(which, overfitted):
    folder, result = overfitted
    loaded = load_run(folder, which)
    assert (loaded.folder, loaded.result, loaded.task.source) == (folder, result, "chance")
    for split in ("validation", "test"):
        source = loaded.task.split(split)
        # Every example, all in one batch: no last batch, no buckets, no dropout.
        batch = source.gather(np.arange(len(source)), 12)
        logits = np.array(loaded.model(batch["inputs"], mask=batch["mask"]), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert result[which][split]["accuracy"] == (logits.argmax(-1) == batch["label"]).mean()
        loss = -log_p[np.arange(len(logits)), batch["label"]].mean()
        assert result[which][split]["loss"] == pytest.approx(loss, rel=1e-5)
        evaluated = evaluate_run(folder, which=which, split=split)
        assert evaluated == {"run": str(folder), "which": which, "step": loaded.step, "split": split} | {
            name: pytest.approx(value, rel=1e-6) for name, value in result[which][split].items()
        }
    assert evaluate_run(folder, which=which, split="train")["examples"] == 96


def test_an_evaluation_fetches_nothing(toy, unbroken, monkeypatch):
    monkeypatch.delenv("ZOO_OFFLINE")
    reasons = []
    monkeypatch.setattr(toy, "prepare", lambda self, **_: reasons.append(forbidden()))
    evaluate_run(unbroken[0])
    assert reasons == ["An evaluation fetches nothing; run `zoo data prepare`."]
    assert forbidden() == ""


def test_the_moving_average_is_what_is_saved_as_best(overfitted):
    folder, _ = overfitted
    _, _, last = arrays(folder, "last")
    names = [name for name in last if name.startswith("['ema']")]
    assert names
    loaded = load_run(folder, "last")
    table = np.array(loaded.model.encoder.embedding.table.embedding[...])
    np.testing.assert_array_equal(table, last["['ema']['encoder']['embedding']['table']['embedding']"])
    assert abs(table - last["['params']['encoder']['embedding']['table']['embedding']"]).max() > 0


def test_folders_that_are_no_runs(toy, tmp_path, unbroken):
    with pytest.raises(RunError, match=r"nothing is not a run directory: it has no recipe\.yaml"):
        load_run(tmp_path / "nothing")
    write_recipe(tmp_path, recipe())
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load_run(tmp_path)
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="which must be 'best' or 'last', got 'newest'"):
        load_run(unbroken[0], which=cast(Any, "newest"))


def test_a_checkpoint_of_another_model_is_refused(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    write_recipe(tmp_path / "run", recipe("model", d_model=16))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_run(tmp_path / "run")


def test_the_best_checkpoint_that_is_named_is_never_lost(toy, tmp_path, monkeypatch):
    """On another device steps are repeated to rounding only, and another step may turn out best."""
    scores = dict.fromkeys(range(10, 61, 10), 0.1) | {20: 0.2, 50: 0.3}
    evaluate = Trainer.evaluate

    def scored(self, split, state):
        real = evaluate(self, split, state)
        return {**real, "accuracy": scores[int(state["step"])]} if split == "validation" and "step" in state else real

    def kept():
        return sorted(path.name for path in (tmp_path / "checkpoints" / "best").iterdir())

    monkeypatch.setattr(Trainer, "evaluate", scored)
    interrupt(tmp_path, recipe(), 47, monkeypatch)
    assert kept() == ["20"]
    save = Checkpoints.save

    def full_disk(self, step, state, meta):
        if (self.folder.name, step) == ("last", 60):
            raise OSError("no space left on device")
        save(self, step, state, meta)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            run(tmp_path, recipe())
    # The newest whole checkpoint is that of step 40, which names step 20.
    assert kept() == ["20", "50"]
    scores[50] = 0.1
    result = run(tmp_path, recipe())
    assert (result["best"]["step"], load_run(tmp_path, "best").step) == (20, 20)
    assert kept() == ["20"]


def test_default_folders():
    cases = {
        "lra/smoke/listops": "runs/lra/smoke/listops/softmax-s3",
        "mine/v1.5.yaml": "runs/mine/v1.5/softmax-s3",
        "/somewhere/mine.yaml": "runs/mine/softmax-s3",
        "../mine.yaml": "runs/mine/softmax-s3",
        "": "runs/recipe/softmax-s3",
    }
    for name, folder in cases.items():
        assert default_run_dir(recipe_from_dict({"name": name, "train": {"seed": 3}})) == Path(folder)
    outside = recipe_from_dict({"variant": "/somewhere/my_mixer.py"})
    assert default_run_dir(outside) == Path("runs/recipe/my_mixer-s0")
