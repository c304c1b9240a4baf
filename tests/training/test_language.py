"""A language model through the one loop: trained on a text, chosen by bits per byte, evaluated, and made to write."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import assert_same_run, interrupt, metrics, run

import zoo
from zoo.data.pipeline import eval_batches
from zoo.generation import generate, generate_text
from zoo.models.causal_lm import CausalLM
from zoo.tasks.base import TaskInfo
from zoo.training.build import model_maker
from zoo.training.recipe import RecipeError, recipe_from_dict
from zoo.training.run import evaluate_run

TEXT = "the cat sat on the mat. " * 120


def values(path):
    return {
        "protocol": "toy",
        "variant": "softmax",
        "task": {"name": "lm/bytes", "source": str(path), "max_len": 24},
        "model": {
            "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "causal": True, "positions": "learned",
            "norm_kind": "rms", "embedding_std": 0.1, "tie_embeddings": True,
        },
        "train": {
            "steps": 60, "batch_size": 8, "accumulate": 2, "lr": 0.02, "warmup_steps": 5, "eval_every": 20,
            "checkpoint_every": 10, "log_every": 20, "tensorboard": False,
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "cat.txt"
    path.write_text(TEXT)
    return recipe_from_dict(values(path))


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run(folder, recipe)
    return folder


def test_it_learns_and_the_best_has_the_fewest_bits(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["metric"] == "bpb"
    assert result["last"]["test"]["bpb"] < result["baselines"]["test"]["unigram"] - 1
    scores = {line["step"]: line["bpb"] for line in metrics(folder, "validation")}
    assert list(scores) == [20, 40, 60]
    assert result["best"]["step"] == min(scores, key=scores.__getitem__)
    assert result["best"]["validation"]["bpb"] == min(scores.values())
    # As many as there are bytes.
    assert result["best"]["test"]["examples"] == len(TEXT) - len(TEXT) * 95 // 100


def test_the_figure_is_that_of_every_byte_by_hand(folder):
    loaded = zoo.load_run(folder, "last")
    found = evaluate_run(folder, which="last", split="validation")
    task, bits, count = loaded.task, 0.0, 0
    for batch in eval_batches(task.split("validation"), batch_size=8, max_len=24):
        log_p = np.asarray(jax.nn.log_softmax(loaded.model(batch["inputs"], mask=batch["mask"])), np.float64)
        for row, place in zip(*np.nonzero(batch["label"] >= 0), strict=True):
            if batch["weight"][row]:
                bits -= log_p[row, place, batch["label"][row, place]] / math.log(2)
                count += 1
    assert count == found["examples"] == len(TEXT) * 95 // 100 - len(TEXT) * 90 // 100
    assert found["bpb"] == pytest.approx(bits / count, rel=1e-5)
    assert found["loss"] == pytest.approx(bits / count * math.log(2), rel=1e-5)


def test_an_interrupted_run_ends_the_same(recipe, folder, tmp_path, monkeypatch):
    interrupt(tmp_path / "run", recipe, 33, monkeypatch)
    run(tmp_path / "run", recipe)
    assert_same_run(folder, tmp_path / "run")


def test_the_run_writes_text(folder):
    text = generate_text(folder, "the cat", tokens=17, temperature=0)
    assert text.startswith(" sat on the")
    loaded = zoo.load_run(folder)
    assert isinstance(loaded.model, CausalLM)
    new = generate(loaded.model, jnp.asarray(loaded.task.encode("the cat"))[None], max_new_tokens=17)
    assert loaded.task.decode(new[0]) == text
    drawn = [generate_text(folder, "t", tokens=12, temperature=2.0, top_p=0.95, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(generate_text(folder, tokens=5, temperature=0)) == 5
    with pytest.raises(ValueError, match=r"take 26 positions, and this model has 24"):
        generate_text(folder, "the cat", tokens=19)
    with pytest.raises(ValueError, match="top_p must be above 0"):
        generate_text(folder, top_p=2.0)


def test_a_classifier_writes_no_text(toy, tmp_path):
    from toy_runs import recipe as toy_recipe

    run(tmp_path / "run", toy_recipe(steps=5, warmup_steps=1, eval_every=0, checkpoint_every=0))
    with pytest.raises(ValueError, match="is a run of toy, which is no task of text to go on with; lm/bytes is one"):
        generate_text(tmp_path / "run", "a")


INFO = TaskInfo("tokens", vocab_size=9, num_classes=9, max_len=8, output="token")


@pytest.mark.parametrize(
    ("change", "info", "message"),
    [
        ({"causal": False}, INFO, r"model\.causal=false: lm/bytes asks for the token that comes next.*causal=true"),
        ({"pooling": "last"}, INFO, r"model\.pooling=last is for classifiers; lm/bytes trains language models"),
        ({"head_dim": 3}, INFO, r"model\.head_dim=3 is for classifiers"),
        ({}, dataclasses.replace(INFO, output="label"), r"model\.tie_embeddings=True is for language models; lm/bytes"),
    ],
)
def test_settings_of_another_kind_of_model_are_refused(change, info, message):
    made = values("x.txt")
    with pytest.raises(RecipeError, match=message):
        model_maker(recipe_from_dict({**made, "model": {**made["model"], **change}}), info)


def test_a_mixer_that_cannot_be_causal_is_refused():
    with pytest.raises(RecipeError, match=r"model\.causal=true: nystromformer cannot be causal"):
        model_maker(recipe_from_dict({**values("x.txt"), "variant": "nystromformer"}), INFO)
