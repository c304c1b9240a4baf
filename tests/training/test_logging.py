"""metrics.jsonl, the mirrors, the console."""

import json
import re
import sys

import pytest

from zoo.training import logging
from zoo.training.logging import Console, MetricLog, write_json, write_text
from zoo.training.recipe import load_recipe

QUIET = load_recipe("lra/smoke/listops", ["train.tensorboard=false"])


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_and_nulls(tmp_path):
    log = MetricLog(tmp_path, QUIET)
    log.write(3, "train", {"loss": 0.1 + 0.2, "lr": float("nan")})
    assert lines(tmp_path) == [{"step": 3, "split": "train", "loss": 0.1 + 0.2, "lr": None}]
    log.close()


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    log = MetricLog(tmp_path, QUIET)
    log.write(1, "train", {"loss": 1})
    position = log.position()
    assert position == (tmp_path / "metrics.jsonl").stat().st_size
    log.write(2, "train", {"loss": 2})
    log.close()
    log = MetricLog(tmp_path, QUIET, position=position)
    log.write(2, "train", {"loss": 3})
    log.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 3]
    MetricLog(tmp_path, QUIET).close()
    assert lines(tmp_path) == []


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricLog(tmp_path, load_recipe("lra/smoke/listops", ["train.tensorboard=true"]))
    log.write(1, "validation", {"accuracy": 0.5})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"validation/accuracy" in events.read_bytes()


@pytest.mark.parametrize(("option", "package"), [("tensorboard=true", "tensorboardX"), ("wandb=mine", "wandb")])
def test_a_missing_logger_is_named_with_its_extra(option, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    recipe = load_recipe("lra/smoke/listops", ["train.tensorboard=false", f"train.{option}"])
    with pytest.raises(ModuleNotFoundError, match=rf"needs {package}: pip install 'seqzoo\[{package.lower()[:5]}"):
        MetricLog(tmp_path, recipe)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_by_default_where_it_is_installed(tmp_path, monkeypatch):
    recipe = load_recipe("lra/smoke/listops")
    assert recipe.train.tensorboard is None
    monkeypatch.setattr(logging.importlib.util, "find_spec", lambda name: None)
    MetricLog(tmp_path, recipe).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(logging.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_log_file_gets_plain_lines(capsys):
    console = Console(10, start=2)
    console.step(4)
    console.metrics(4, "train", {"loss": 1.23456, "examples": 5})
    console.line("hello")
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("step 4/10 train loss 1.235, ")
    assert first.endswith(" s left")
    assert second == "hello"


def test_a_silent_console(capsys):
    console = Console(10, enabled=False)
    console.step(1)
    console.metrics(1, "train", {"loss": 1.0})
    console.line("hello")
    console.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console(10)
    console.step(4)
    console.metrics(4, "train", {"loss": 1.0})
    console.metrics(4, "validation", {"accuracy": 0.5})
    console.line("hello")
    console.close()
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "step 4 validation accuracy 0.5" in err
    assert "hello" in err
    assert "4/10" in err
