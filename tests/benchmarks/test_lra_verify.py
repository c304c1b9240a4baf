"""A true result is confirmed, a doctored one is refused."""

import json
import shutil

import pytest
import toy_runs

from zoo.files import seal, write_json
from zoo.training.folder import read_recipe, write_recipe
from zoo.training.recipe import recipe_from_dict

pytestmark = pytest.mark.usefixtures("compilation_cache")


def recipe(**train):
    """Of labels that are chance, so that training longer is not better."""
    shorter = {**toy_runs.VALUES["train"], "steps": 40, "buckets": [], **train}
    return recipe_from_dict({**toy_runs.VALUES, "task": {"name": "toy", "source": "chance"}, "train": shorter})


@pytest.fixture(scope="module")
def trained(toy, compilation_cache, tmp_path_factory):
    """A finished run, whose best parameters are not the last ones."""
    folder = tmp_path_factory.mktemp("trained") / "cells/run"
    result = toy_runs.run(folder, recipe())
    assert result["best"]["step"] != result["last"]["step"]
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "cells/run")
    return tmp_path / "cells/run"


def doctor(path, change, *, sealed=True):
    """Changes a result, with a digest that fits again or not."""
    values = json.loads(path.read_text())
    change(values)
    if sealed:
        values = seal({name: value for name, value in values.items() if name != "digest"})
    write_json(path, values)


def refused(verdict):
    return {check.name: (check.recorded, check.found) for check in verdict.checks if not check.holds}


def test_a_true_result_is_confirmed(folder, capsys):
    from benchmarks.lra.verify import main, verify

    verdict = verify(folder)
    assert verdict.confirmed
    assert verdict.exact
    result = json.loads((folder / "result.json").read_text())
    found = {check.name: check.found for check in verdict.checks}
    for which in ("best", "last"):
        assert found[f"step of {which}"] == result[which]["step"]
        for split in ("validation", "test"):
            for name, value in result[which][split].items():
                assert found[f"{name} of {which} on {split}"] == value
    assert found["parameters"] == result["parameters"]
    assert found["baseline majority on test"] == result["baselines"]["test"]["majority"]
    assert main([str(folder)]) == 0
    assert "confirmed (to the last bit)" in capsys.readouterr().out


@pytest.mark.parametrize("sealed", [False, True])
def test_a_doctored_figure_is_refused_with_both_values(folder, sealed, capsys):
    from benchmarks.lra.verify import main

    true = json.loads((folder / "result.json").read_text())["best"]["test"]["accuracy"]

    def better(values):
        values["best"]["test"]["accuracy"] += 1 / 29
        values["parameters"] -= 1

    doctor(folder / "result.json", better, sealed=sealed)
    assert main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert f"REFUSED  accuracy of best on test: recorded {true + 1 / 29}, found {true}" in said
    assert f"refused: {2 if sealed else 3} of" in said
    assert ("REFUSED  digest of result.json: recorded whole, found its digest does not fit" in said) is not sealed


def test_a_result_of_another_recipe_is_refused(folder):
    """Neither the recipe nor what the result says of it can be changed unseen."""
    from benchmarks.lra.verify import verify

    doctor(folder / "result.json", lambda values: values.update(seed=5, protocol="other"))
    write_recipe(folder, recipe(lr=0.03))
    found = refused(verify(folder))
    assert found["seed"] == (5, 0)
    assert found["protocol"] == ("other", "toy")
    assert "train.lr (0.02 there, 0.03 here)" in found["recipe of checkpoints/best"][1]


def test_hashes_of_matrix_and_record_are_compared(folder, tmp_path):
    from benchmarks.lra.cells import recipe_hash
    from benchmarks.lra.records import keep_records
    from benchmarks.lra.verify import verify

    digest = recipe_hash(read_recipe(folder))
    cell = {"id": "a", "recipe_hash": digest, "state": "done", "folder": "cells/run", "overrides": []}
    write_json(tmp_path / "matrix.json", {"format": 1, "cells": [cell]})
    ((record,), _) = keep_records(tmp_path, tmp_path / "records", force=True)
    assert verify(folder, record=record).confirmed
    doctor(record, lambda values: values["last"]["validation"].update(loss=0.5))
    doctor(record, lambda values: values.update(recipe_hash="0" * 16))
    write_json(tmp_path / "matrix.json", {"format": 1, "cells": [{**cell, "recipe_hash": "1" * 16}]})
    found = refused(verify(folder, record=record))
    assert found.keys() == {"loss of last on validation", "recipe hash (record)", "recipe hash (matrix.json)"}
    assert found["recipe hash (record)"] == ("0" * 16, digest)


def test_elsewhere_there_is_a_tolerance(folder):
    from benchmarks.lra.verify import verify

    def elsewhere(values):
        values["environment"]["jaxlib"] = "0.0.1"
        values["best"]["test"]["loss"] *= 1.001
        values["best"]["test"]["accuracy"] += 2 / 29
        values["best"]["validation"]["examples"] = 38.0

    doctor(folder / "result.json", elsewhere)
    verdict = verify(folder)
    assert refused(verdict) == {"examples of best on validation": (38.0, 37.0)}
    assert not verdict.exact
    assert verdict.differing["jaxlib"][0] == "0.0.1"
    assert "note     jaxlib: recorded 0.0.1" in verdict.text()
    assert len(refused(verify(folder, tolerance=0))) == 3


def test_what_cannot_be_verified_is_told(folder, tmp_path, capsys):
    from benchmarks.lra.verify import main

    shutil.rmtree(folder / "checkpoints" / "best")
    assert main([str(folder)]) == 2
    (folder / "result.json").unlink()
    assert main([str(folder)]) == 2
    assert main([str(tmp_path), "--record", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr().err
    assert "is not finished: it has no result.json" in said
    assert "there is no record" in said
