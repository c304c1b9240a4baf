"""Progress: plain lines with rate and time left without a terminal, a bar with one."""

import io

import pytest

from zoo.data.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines():
    stream = io.StringIO()
    with Progress("set", 4000, "rows", every=0, stream=stream) as bar:
        bar.advance(1000)
        bar.advance(3000)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "set: starting"
    assert lines[1].startswith("set: 1,000 of 4,000 rows, ")
    assert "/s, " in lines[1]
    assert lines[1].endswith(" s left")
    assert lines[-1].startswith("set: done, 4,000 of 4,000 rows in ")


def test_a_total_that_is_not_known(monkeypatch):
    stream = io.StringIO()
    with Progress("set", None, "rows", every=0, stream=stream) as bar:
        bar.advance(1000)
    lines = stream.getvalue().splitlines()
    assert lines[1].startswith("set: 1,000 rows, ")
    assert lines[1].endswith("/s")
    assert lines[-1].startswith("set: done, 1,000 rows in ")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress("set", None, "rows", stream=terminal) as bar:
        bar.advance(10)
    assert "10/?" in terminal.getvalue()


def test_lines_are_rare_and_silence_is_silent():
    stream = io.StringIO()
    with Progress("set", 100, "rows", every=60, stream=stream) as bar:
        for _ in range(100):
            bar.advance(1)
    assert len(stream.getvalue().splitlines()) == 2
    silent = io.StringIO()
    with Progress("set", 100, "rows", every=0, stream=silent, enabled=False) as bar:
        bar.advance(100)
    assert silent.getvalue() == ""


def test_what_was_done_before_counts_in_the_total_but_not_in_the_rate():
    stream = io.StringIO()
    with Progress("set", 100, "rows", done=90, every=0, stream=stream) as bar:
        bar.advance(0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "set: 90 of 100 rows were finished before"
    assert "90 of 100 rows, 0/s" in lines[1]


def test_a_failure_is_not_called_done():
    stream = io.StringIO()
    bar = Progress("set", 100, "rows", done=10, stream=stream)
    with pytest.raises(KeyError), bar:
        raise KeyError
    assert stream.getvalue().splitlines()[-1].startswith("set: stopped, 10 of 100 rows")


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress("set", 10, "rows", stream=stream) as bar:
        bar.advance(10)
    assert "10/10" in stream.getvalue()
    assert "rows/s" in stream.getvalue()
