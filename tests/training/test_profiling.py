"""Traces of a few updates: when they begin and end, what is in them, and what is refused."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from zoo.training.profiling import Profiler, check_window, parse_profile

update = jax.jit(lambda x: x @ x / 8)


def train(profiler, start, stop):
    """Updates from step `start` to `stop` as the loop makes them; the steps at which the device was waited for."""
    x, waited = jnp.ones((8, 8)), []
    for step in range(start, stop):
        profiler.before(step)
        with profiler.annotate(step):
            x = update(x)
        profiler.after(step + 1, lambda: waited.append(step + 1) or x.block_until_ready())  # noqa: B023
    return waited


def traces(folder):
    """The updates in each trace, by the trace's name."""
    found = {}
    for path in (folder / "profile" / "plugins" / "profile").glob("*/*.trace.json.gz"):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        found[path.parent.name] = sorted(int(e["args"]["step_num"]) for e in events if e.get("name") == "train")
        assert [file.stat().st_size > 0 for file in path.parent.glob("*.xplane.pb")] == [True]
    return found


def test_a_window_is_first_and_last():
    assert parse_profile("steps=20:30") == (20, 30)
    assert parse_profile("steps=0:1") == (0, 1)


@pytest.mark.parametrize(
    "text",
    ["", "20:30", "steps=", "steps=20", "steps=30:20", "steps=20:20", "steps=-3:5", "steps=a:b", "steps=1:2:3", "on"],
)
def test_anything_else_is_told_what_would_be_right(text):
    with pytest.raises(ValueError, match=r"steps=FIRST:LAST with 0 <= FIRST < LAST, .*steps=20:30.* got '") as error:
        parse_profile(text)
    assert str(error.value).endswith(f"got {text!r}.")


def test_a_window_that_the_run_misses():
    check_window((20, 30), 0, 21)  # the trace ends with the run
    check_window((20, 30), 29, 100)
    with pytest.raises(ValueError, match=r"steps=20:30 begins after the last step, 20\."):
        check_window((20, 30), 0, 20)
    with pytest.raises(ValueError, match=r"steps=20:30 ends before this run goes on, after step 30\."):
        check_window((20, 30), 30, 100)


def test_the_window_is_traced_and_nothing_else(tmp_path):
    told = []
    profiler = Profiler(tmp_path, (2, 5), tell=told.append)
    assert train(profiler, 0, 8) == [5]
    assert traces(tmp_path) == {"updates-3-5": [3, 4, 5]}
    profiler.close()
    (text,) = told
    assert text.startswith(f"The trace of updates 3 to 5 is in {tmp_path}/profile/plugins/profile/updates-3-5. ")
    assert f"xprof --logdir {tmp_path}/profile " in text
    (file,) = tmp_path.rglob("*.trace.json.gz")
    assert f"open {file} at https://ui.perfetto.dev" in text


def test_a_run_that_ends_within_the_window(tmp_path, capsys):
    profiler = Profiler(tmp_path, (2, 50))
    assert train(profiler, 0, 4) == []
    assert traces(tmp_path) == {}
    profiler.close()
    profiler.close()
    assert traces(tmp_path) == {"updates-3-50": [3, 4]}
    assert capsys.readouterr().err.startswith("The trace of updates 3 to 4 is in ")


def test_a_device_that_fails_ends_the_trace(tmp_path):
    profiler = Profiler(tmp_path, (0, 1), tell=lambda text: None)
    profiler.before(0)

    def fail():
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        profiler.after(1, fail)
    profiler.close()
    train(Profiler(tmp_path, (0, 1), tell=lambda text: None), 0, 1)  # JAX allows one trace at a time
    assert len(traces(tmp_path)) == 2


def test_a_resumed_run_leaves_the_first_trace_alone(tmp_path):
    first = Profiler(tmp_path, (2, 4), tell=lambda text: None)
    train(first, 0, 5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before
    train(Profiler(tmp_path, (2, 4), tell=lambda text: None), 2, 5)
    train(Profiler(tmp_path, (2, 4), tell=lambda text: None), 3, 5)
    assert traces(tmp_path) == {"updates-3-4": [3, 4], "updates-3-4-2": [3, 4], "updates-4-4": [4]}
    assert {path: path.read_bytes() for path in before} == before


def test_without_a_window_nothing_is_traced(tmp_path):
    profiler = Profiler(tmp_path, None)
    assert train(profiler, 0, 3) == []
    profiler.close()
    assert list(tmp_path.iterdir()) == []
