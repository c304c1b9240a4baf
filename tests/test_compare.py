"""Several variants side by side."""

import json
import os
import sys
from pathlib import Path

import pytest

from zoo import compare as module
from zoo.compare import compare, published_text, summarise, to_markdown
from zoo.registry import RegistryError
from zoo.training.recipe import RecipeError

RECIPE = """
protocol: toy
task: {name: toy, source: last}
model: {d_model: 4, num_layers: 1, num_heads: 1, ffn: none, positions: none, pooling: last}
train: {steps: 2, batch_size: 16, lr: 0.02, tensorboard: false}
variants:
  softmax: {options: {num_heads: 2}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def subprocesses_know_the_toy(toy, toy_path, monkeypatch):
    """The runs of a comparison are processes of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toy_path), str(Path(module.__file__).parents[1])]))


@pytest.mark.usefixtures("subprocesses_know_the_toy")
def test_two_variants_give_a_table_a_file_and_a_plot(recipe, tmp_path, capfd):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    said = compare(recipe, ["softmax", "toy_mean"], [3], out, overrides=["train.log_every=1"])
    err = capfd.readouterr().err
    assert "[1/2] softmax, seed 3" in err
    assert "[2/2] toy_mean, seed 3" in err
    written = json.loads((out / "compare.json").read_text())
    table = (out / "compare.md").read_text()
    assert said == f"{table}\nPlot: {out / 'compare.png'}"
    assert (out / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [row["variant"] for row in written["rows"]] == ["softmax", "toy_mean"]
    for row, result in zip(written["rows"], written["results"], strict=True):
        held = json.loads((out / f"{row['variant']}-s3" / "result.json").read_text())
        assert held == result
        assert row["test_accuracy"] == [held["best"]["test"]["accuracy"]] == [row["mean"]]
        percent = f"{100 * row['mean']:.2f}"
        assert f"| {row['variant']} | {percent} | 3: {percent} | {row['parameters']:,} |" in table
    assert written["rows"][0]["parameters"] > written["rows"][1]["parameters"]
    assert "| *majority* |" in table
    # What is finished is kept.
    before = (out / "toy_mean-s3" / "result.json").stat().st_mtime_ns
    compare(recipe, ["toy_mean"], [3], out, overrides=["train.log_every=1"])
    assert (out / "toy_mean-s3" / "result.json").stat().st_mtime_ns == before
    assert len(json.loads((out / "compare.json").read_text())["rows"]) == 1


def result(variant, seed, accuracy, speed: float | None = 10.0, select="best"):
    split = {"accuracy": accuracy, "loss": 1.0, "examples": 29.0}
    return {
        "task": "toy", "source": "last", "protocol": "", "variant": variant, "seed": seed, "select": select,
        "steps": 2, "batch_size": 16, "max_len": 12, "parameters": 1234, "steps_per_second": speed,
        "compile_seconds": 1.0 + seed, "memory": {"step": 5_000_000 + seed, "device_peak": None, "host_peak": 10**9},
        "best": {"step": 1, "test": split, "validation": split},
        "last": {"step": 2, "test": {**split, "accuracy": 0.0}, "validation": split},
        "baselines": {"test": {"majority": 0.4, "root_operator": 0.36}, "validation": {}}, "published": {},
        "environment": {"device": "1 x cpu", "processor": "p", "jax": "0", "flax": "0", "zoo": "0", "commit": None},
    }  # fmt: skip


def test_rows_are_means_over_seeds():
    results = [result("a", 0, 0.4, 10.0), result("b", 0, 0.5), result("a", 1, 0.6, 30.0), result("a", 2, 0.5, None)]
    a, b = summarise(results)
    assert (a["variant"], a["seeds"], a["test_accuracy"]) == ("a", [0, 1, 2], [0.4, 0.6, 0.5])
    assert (a["mean"], a["std"]) == (pytest.approx(0.5), pytest.approx(0.1))
    assert (a["steps_per_second"], a["compile_seconds"], a["step_bytes"]) == (20.0, 2.0, 5_000_002)
    assert (b["mean"], b["std"], a["device_peak_bytes"]) == (0.5, None, None)
    (last,) = summarise([result("a", 0, 0.4, select="last")])
    assert last["mean"] == 0.0
    table = to_markdown([a, b], results[0])
    assert "| a | 50.00 ± 10.00 | 0: 40.00, 1: 60.00, 2: 50.00 | 1,234 | 20.00 | 5.0 | 1000 | 2.0 |" in table
    assert "| *root operator* | 36.00 | no model |" in table
    assert "toy/last, protocol -, 2 steps of 16 x 12, test accuracy of the best parameters over 29 examples." in table
    assert all(line.count("|") == 9 for line in table.splitlines() if line.startswith("|"))


def test_a_metric_that_is_no_accuracy_is_shown_as_it_is():
    def bits(variant, seed, bpb):
        made = result(variant, seed, 0.3)
        for which in ("best", "last"):
            for split in ("test", "validation"):
                made[which][split] = {**made[which][split], "bpb": bpb}
        return {**made, "metric": "bpb", "baselines": {"test": {"unigram": 4.9}}}

    rows = summarise([bits("a", 0, 2.25), bits("a", 1, 2.5)])
    assert rows[0]["test_bpb"] == [2.25, 2.5]
    assert rows[0]["validation_bpb"] == [2.25, 2.5]
    table = to_markdown(rows, bits("a", 0, 2.25))
    assert "| variant | test bpb | by seed |" in table
    assert "| a | 2.3750 ± 0.1768 | 0: 2.2500, 1: 2.5000 |" in table
    assert "| *unigram* | 4.9000 | no model |" in table
    assert "test bpb of the best parameters over 29 examples." in table
    assert "ublished" not in table


def test_what_is_to_be_read_with_a_result_stands_below():
    one = {**result("a", 0, 0.4), "cautions": ["unverified data: it has another checksum"]}
    assert "\nNote: unverified data: it has another checksum.\n" in to_markdown(summarise([one]), one)
    assert "Note:" not in to_markdown(summarise([result("a", 0, 0.4)]), result("a", 0, 0.4))


def test_published_figures_stand_below():
    published = {"a": {"mse": 0.386, "mae": 0.405}, "b": 37.1, "source": "a paper"}
    assert published_text(published, ["a", "c"]) == "published: a mse 0.386, mae 0.405 (a paper)"
    assert published_text(published, ["b"]) == "published: b 37.1 (a paper)"
    assert published_text(published, ["c"]) == ""


def test_every_request_is_checked_before_anything_is_trained(recipe, tmp_path, toy, monkeypatch):
    monkeypatch.setattr(module, "wait_for", lambda _: pytest.fail("trained"))
    out = tmp_path / "out"
    with pytest.raises(RegistryError, match="Did you mean softmax"):
        compare(recipe, ["toy_mean", "sofmax"], [0], out)
    with pytest.raises(RecipeError, match=r"options\.num_heads: toy_mean has no such option"):
        compare(recipe, ["softmax", "toy_mean"], [0], out, overrides=["options.num_heads=2"])
    with pytest.raises(ValueError, match="must differ from one another"):
        compare(recipe, ["toy_mean"], [1, 1], out)
    with pytest.raises(ValueError, match="at least one variant and one seed"):
        compare(recipe, ["toy_mean"], [], out)
    assert not out.exists()


def test_a_failed_run_says_which(recipe, tmp_path, toy, monkeypatch):
    monkeypatch.setattr(module, "wait_for", lambda _: 1)
    with pytest.raises(
        RuntimeError, match=r"the run in .*out.toy_mean-s0 failed \(exit code 1\).*The same command goes"
    ):
        compare(recipe, ["toy_mean"], [0], tmp_path / "out")


def test_without_matplotlib_there_is_a_hint(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    results = [result("a", 0, 0.4)]
    said = module._plot(summarise(results), results, tmp_path / "compare.png")
    assert "pip install 'seqzoo[plot]'" in said
    assert not list(tmp_path.iterdir())
