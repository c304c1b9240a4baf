"""The console: a bar on a terminal, plain lines in a log."""

import re
import resource
import sys
from types import SimpleNamespace

import pytest

from zoo.training import console as logging
from zoo.training.console import Console, duration_text, memory_text

NUMBERS = {"loss": 1.234, "accuracy": 0.567, "grad_norm": 0.89, "lr": 1e-3}


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
