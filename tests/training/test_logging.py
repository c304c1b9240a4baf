"""metrics.jsonl, the mirrors, the console."""

import contextlib
import hashlib
import json
import re
import resource
import struct
import sys
from types import SimpleNamespace

import pytest

from zoo.training import logging
from zoo.training.logging import (
    MetricLog,
    NoLog,
    check_mark,
)
from zoo.training.recipe import load_recipe

QUIET = load_recipe("lra/smoke/listops", ["train.tensorboard=false"])
TENSORBOARD = load_recipe("lra/smoke/listops", ["train.tensorboard=true"])
WANDB = load_recipe("lra/smoke/listops", ["train.tensorboard=false", "train.wandb=mine"])
NUMBERS = {"loss": 1.234, "accuracy": 0.567, "grad_norm": 0.89, "lr": 1e-3}


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
    mark = log.mark()
    assert mark["bytes"] == (tmp_path / "metrics.jsonl").stat().st_size
    log.write(2, "train", {"loss": 2})
    log.close()
    log = MetricLog(tmp_path, QUIET, position=mark["bytes"], step=1)
    log.write(2, "train", {"loss": 3})
    log.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 3]
    MetricLog(tmp_path, QUIET).close()
    assert lines(tmp_path) == []


def test_a_mark_is_the_checksum_of_the_file_also_after_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with contextlib.closing(MetricLog(tmp_path, QUIET)) as log:
        assert log.mark() == {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        log.write(1, "train", {"loss": 1})
        first = log.mark()
        assert first["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        log.write(2, "train", {"loss": 2})
    with contextlib.closing(MetricLog(tmp_path, QUIET, position=first["bytes"])) as log:
        assert log.mark() == first
        log.write(2, "train", {"loss": 3})
        second = log.mark()
    assert second == {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert check_mark(path, first) is None
    assert check_mark(path, second) is None


def test_a_mark_is_on_disk(tmp_path, monkeypatch):
    def full(_):
        raise OSError("no space left on device")

    with contextlib.closing(MetricLog(tmp_path, QUIET)) as log:
        monkeypatch.setattr(logging.os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            log.mark()


def test_a_file_that_is_not_what_was_marked(tmp_path):
    path = tmp_path / "metrics.jsonl"
    empty, mark = NoLog().mark(), {"bytes": 6, "sha256": hashlib.sha256(b"abcdef").hexdigest()}
    assert check_mark(path, empty) is None
    assert check_mark(path, mark) == "metrics.jsonl is missing"
    path.write_bytes(b"abc")
    assert check_mark(path, mark) == "metrics.jsonl has 3 bytes instead of 6"
    path.write_bytes(b"abcdeF and more")
    wrong = "the first 6 bytes of metrics.jsonl are not those that were written (checksum)"
    assert check_mark(path, mark) == wrong
    path.write_bytes(b"abcdef and more")
    assert check_mark(path, mark) is None
    assert check_mark(path, empty) is None


def test_a_log_is_never_padded(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 3 bytes instead of 6"):
        MetricLog(tmp_path, QUIET, position=6)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"abc"


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with contextlib.closing(MetricLog(tmp_path, QUIET)) as log:
        log.write(1, "train", {"loss": 1})
        mark, before = log.mark(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (mark["bytes"] + 10, before[1]))  # room for a part of a line
        try:
            with pytest.raises(OSError, match="File too large"):
                log.write(2, "train", {"loss": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert log.mark() == mark
        log.write(3, "train", {"loss": 3})
        assert check_mark(path, log.mark()) is None
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_a_process_that_logs_nothing(tmp_path):
    log = NoLog()
    log.write(1, "train", {"loss": 1})
    log.close()
    assert log.mark() == {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}


def events(folder):
    """The events of all files in the order in which TensorBoard reads them; each file is a sequence of TFRecords."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").glob("*tfevents*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (size,) = struct.unpack_from("<Q", data, start)  # then 4 bytes of checksum, the event, 4 of checksum
            found.append(Event.FromString(data[start + 12 : start + 12 + size]))
            start += size + 16
    return found


def shown(folder):
    """What TensorBoard shows: a START event takes away what was read before of its step and of later ones."""
    from tensorboardX.proto.event_pb2 import SessionLog

    points = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return points


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricLog(tmp_path, TENSORBOARD)
    log.write(1, "validation", {"accuracy": 0.5})
    log.close()
    assert shown(tmp_path) == [(1, "validation/accuracy", 0.5)]


@pytest.mark.parametrize("kept", [2, 0])
def test_tensorboard_shows_no_step_twice_after_a_resume(kept, tmp_path):
    pytest.importorskip("tensorboardX")
    for start, stop, loss in ((0, 4, 1.0), (kept, 5, 2.0)):
        log = MetricLog(tmp_path, TENSORBOARD, step=start)
        for step in range(start + 1, stop + 1):
            log.write(step, "train", {"loss": loss})
        log.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # the first one was not overwritten
    expected = [(step, "train/loss", 1.0 if step <= kept else 2.0) for step in range(1, 6)]
    assert shown(tmp_path) == expected


def test_all_is_closed_where_one_cannot_be_opened(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    closed = []
    monkeypatch.setattr(logging._TensorBoard, "close", lambda self: closed.append(self._writer.close()))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError):
        MetricLog(tmp_path, load_recipe("lra/smoke/listops", ["train.tensorboard=true", "train.wandb=mine"]))
    assert closed == [None]


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the module: what runs were begun with, the lines they were given, and the step they go on from."""
    module = SimpleNamespace(begun=[], lines=[], finished=0, step=0)

    def finish():
        module.finished += 1

    def init(**arguments):
        module.begun.append(arguments)
        log = lambda values, step: module.lines.append((step, values))  # noqa: E731
        return SimpleNamespace(log=log, finish=finish, step=module.step)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_has_one_run_for_one_directory(wandb, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for folder in (tmp_path, tmp_path, other):
        MetricLog(folder, WANDB).close()
    first, second, third = wandb.begun
    assert first == second
    assert first["id"] == (tmp_path / "wandb-id").read_text().strip() != third["id"]
    assert re.fullmatch("[0-9a-f]{16}", first["id"])
    assert (first["project"], first["resume"], first["dir"]) == ("mine", "allow", str(tmp_path))
    assert first["config"] == WANDB.to_dict()
    assert wandb.finished == 3


def test_wandb_is_not_given_steps_that_it_has(wandb, tmp_path):
    log = MetricLog(tmp_path, WANDB)
    log.write(1, "train", {"loss": 1})
    log.write(2, "train", {"loss": 2})
    mark = log.mark()
    log.close()
    wandb.step = 3  # it goes on after the last that it has
    log = MetricLog(tmp_path, WANDB, position=mark["bytes"], step=1)
    log.write(2, "train", {"loss": 2})
    log.write(3, "train", {"loss": 3})
    log.write(3, "validation", {"loss": 4})
    log.close()
    expected = [(1, "train", 1.0), (2, "train", 2.0), (3, "train", 3.0), (3, "validation", 4.0)]
    assert wandb.lines == [(step, {f"{split}/loss": loss}) for step, split, loss in expected]


def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 2):
        log = MetricLog(tmp_path, WANDB, step=start)
        log.write(start + 1, "train", {"loss": 1.0})
        log.close()
    name = (tmp_path / "wandb-id").read_text().strip()
    files = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert set(files) == {f"run-{name}.wandb"}  # W&B gives one folder to both within a second


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
