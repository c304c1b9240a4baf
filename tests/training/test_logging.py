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
    Console,
    MetricLog,
    NoLog,
    check_mark,
    duration_text,
    memory_text,
    write_json,
    write_text,
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


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves: `clock.now += seconds`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(logging, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(logging, "memory_text", lambda: "1.2 GB")
    return clock


def run_steps(console, clock, start, stop, seconds):
    for step in range(start + 1, stop + 1):
        clock.now += seconds
        console.step(step)


def test_a_log_file_gets_plain_lines(clock, capsys):
    console = Console(400, start=100)
    console.step(101)
    console.metrics(101, "train", {"loss": 1.23456, "examples": 5})
    run_steps(console, clock, 101, 200, 0.6)
    console.metrics(200, "train", NUMBERS)
    console.metrics(200, "validation", {"accuracy": 0.5, "examples": 5})
    console.line("hello")
    console.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 101/400 train loss 1.235, 1.2 GB",
        "step 200/400 train loss 1.234 accuracy 0.567 grad_norm 0.89 lr 0.001, 1.67 step/s, 2 min left, 1.2 GB",
        "step 200/400 validation accuracy 0.5",
        "hello",
    ]


def test_a_log_file_hears_of_compiling_once_and_of_nothing_else_that_is_done(capsys):
    console = Console(10)
    for text in ("compiling", "", "evaluating", "saving", "compiling for 2048 tokens", ""):
        console.status(text)
    console.evaluation(1, 3)
    assert capsys.readouterr().err == "compiling\n"


def test_the_rate_is_that_of_recent_steps(clock):
    pace = logging._Pace(0)
    pace.pause("compiling")
    clock.now += 60
    pace.pause("")
    clock.now += 0.01  # handed over to the device
    pace.step(1)
    assert pace.texts(1000) == []
    run_steps(pace, clock, 1, 100, 0.1)
    assert pace.rate() == pytest.approx(10)
    pace.pause("evaluating")
    clock.now += 50
    pace.pause("")
    run_steps(pace, clock, 100, 101, 0.1)
    pace.pause("saving")
    clock.now += 50
    run_steps(pace, clock, 101, 102, 0.1)  # ends the pause as well
    assert pace.rate() == pytest.approx(10)
    pace.pause("saving")
    pace.pause("")
    run_steps(pace, clock, 102, 103, 5)
    assert pace.rate() < 8
    run_steps(pace, clock, 103, 200, 1)
    assert pace.rate() == pytest.approx(1, rel=0.3)  # two minutes later the old rate is forgotten


def test_the_time_left_has_evaluations_in_it(clock):
    pace = logging._Pace(500)
    pace.step(501)
    for step, seconds in ((600, 30), (700, 5)):  # the first one compiles
        run_steps(pace, clock, step - 99, step, 0.1)
        pace.pause("validation")
        clock.now += seconds
        pace.pause("saving")
        clock.now += 1
        pace.pause("")
    assert pace.seconds_left(1000) == pytest.approx(300 * 0.1 + 3 * 5 + 3 * 1, rel=0.02)
    assert pace.texts(1000, " left") == ["10.0 step/s", "48 s left"]
    run_steps(pace, clock, 700, 1000, 0.1)
    assert pace.texts(1000) == ["10.0 step/s"]


def test_a_slow_rate(clock):
    pace = logging._Pace(0)
    run_steps(pace, clock, 0, 3, 20)
    assert pace.texts(1000, " left") == ["20 s/step", "5 h 32 min left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3569, "59 min"),
        (3571, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (47 * 3600, "47 h 00 min"),
        (171000, "2 d 00 h"),
        (76 * 3600, "3 d 04 h"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_a_silent_console(capsys):
    console = Console(10, enabled=False)
    console.status("compiling")
    console.step(1)
    console.evaluation(1, 2)
    console.metrics(1, "train", {"loss": 1.0})
    console.line("hello")
    console.close()
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(capsys, monkeypatch):
    """`terminal(...)` makes a console on a terminal of 80 columns, `terminal.shown(console)` ends it."""

    def make(*arguments):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm-256color")
        return Console(*arguments)

    def shown(console):
        console.close()
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)

    make.shown = shown
    return make


def test_a_terminal_gets_a_bar(terminal):
    console = terminal(10)
    console.step(4)
    console.metrics(4, "train", {"loss": 1.0})
    console.metrics(4, "validation", {"accuracy": 0.5})
    console.line("hello [0]")
    err = terminal.shown(console)
    assert "step 4/10 validation accuracy 0.5" in err
    assert "hello [0]" in err
    assert re.search(r"━ 4/10 [0-9.]+ GB loss 1.000\n", err)


@pytest.mark.parametrize(
    ("seconds", "pace"),
    [(0.0371, "27.0 step/s 20 min"), (0.1201, "8.33 step/s 1 h 05 min"), (9.9, "0.10 step/s 3 d 18 h")],
)
def test_all_of_it_fits_80_columns(seconds, pace, clock, terminal, monkeypatch):
    monkeypatch.setattr(logging, "memory_text", lambda: "63.1/80 GB")
    console = terminal(45_000)
    run_steps(console, clock, 12_000, 12_345, seconds)
    console.metrics(12_345, "train", NUMBERS)
    bar = terminal.shown(console).splitlines()[-1].rpartition("\r")[2]
    assert bar.partition(" ")[2] == f"12345/45000 {pace} 63.1/80 GB loss 1.234 accuracy 0.567"
    assert re.match("[━╸╺]{6} ", bar)
    assert len(bar) <= 80


@pytest.mark.parametrize(
    ("show", "text"),
    [
        (lambda console: console.status("compiling"), "12345/45000 compiling 1.2 GB"),
        (lambda console: console.evaluation(12, 63), "12345/45000 validation 12/63 1.2 GB"),
        (lambda console: console.status(""), "12345/45000 10.0 step/s 54 min 1.2 GB"),
        (lambda console: console.step(12346), "12346/45000 10.0 step/s 54 min 1.2 GB"),
    ],
)
def test_the_bar_shows_what_is_done_now(show, text, clock, terminal):
    console = terminal(45_000)
    run_steps(console, clock, 12_000, 12_345, 0.1)
    console.status("saving")
    show(console)
    assert terminal.shown(console).splitlines()[-1].endswith(f"━ {text}")


def test_memory_is_asked_for_once_a_second(clock, terminal, monkeypatch):
    asked = []
    monkeypatch.setattr(logging, "memory_text", lambda: asked.append(clock.now) or "1.2 GB")
    console = terminal(100)
    run_steps(console, clock, 0, 50, 0.05)
    terminal.shown(console)
    assert len(asked) == 3


def test_memory_of_a_device_that_tells(monkeypatch):
    import jax

    for stats, text in (
        ({"bytes_in_use": 3.12e9, "bytes_limit": 80e9}, "3.1/80 GB"),
        ({"bytes_in_use": 3.12e9}, "3.1 GB"),
    ):
        monkeypatch.setattr(jax, "local_devices", lambda stats=stats: [SimpleNamespace(memory_stats=lambda: stats)])
        assert memory_text() == text


def test_memory_of_this_process(monkeypatch):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert re.fullmatch(r"[0-9]+\.[0-9] GB", memory_text())
    assert 20e6 < logging._resident_bytes() <= 1.5 * peak

    def missing(_):
        raise FileNotFoundError

    monkeypatch.setattr(logging.Path, "read_text", missing)
    assert logging._resident_bytes() >= peak
