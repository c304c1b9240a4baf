"""Runs in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from zoo.training.launch import start, train_command
from zoo.training.recipe import load_recipe, recipe_from_dict


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_tells_the_run_once_and_waits_for_it(number, tmp_path):
    """The run may need a while to save; a second signal would end it unsaved."""
    child = """
import signal, sys, time
from zoo.training.signals import StopRequest
with StopRequest() as stop:
    open(sys.argv[1], "w").close()
    while stop.signum is None:
        time.sleep(0.01)
    time.sleep(0.5)
    open(sys.argv[1] + ".saved", "w").close()
"""
    parent = """
import sys
from zoo.training.launch import wait_for
from zoo.training.signals import Interrupted, signals_raise
try:
    with signals_raise():
        wait_for([sys.executable, "-c", sys.argv[2], sys.argv[1]])
except Interrupted as stopped:
    sys.exit(stopped.exit_code)
"""
    ready = tmp_path / "ready"
    with subprocess.Popen([sys.executable, "-c", parent, str(ready), child]) as process:
        while not ready.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert (tmp_path / "ready.saved").exists()


def test_a_command_trains_what_it_was_given(tmp_path):
    recipe = recipe_from_dict({"name": "lra/smoke/listops", "train": {"seed": 7, "lr": 1e-5}})
    command = train_command(recipe, tmp_path / "deep" / "r.yaml", tmp_path / "run", tmp_path / "data")
    assert command[1:4] == ["-m", "zoo", "train"]
    assert command[5:] == ["--run-dir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "data")]
    assert load_recipe(command[4]) == recipe


def test_errors_go_to_a_file_and_variables_to_the_process(tmp_path):
    said = tmp_path / "logs" / "one.log"
    said.parent.mkdir()
    said.write_text("old")
    code = "import os, sys; print('dropped'); print(os.environ['ONE'], file=sys.stderr); sys.exit(3)"
    with start([sys.executable, "-c", code], errors=said, environment={"ONE": "two"}) as process:
        assert process.wait(60) == 3
    assert said.read_text() == "two\n"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are given out on Linux only")
def test_a_process_keeps_to_the_cores_that_it_was_given(tmp_path):
    core = min(os.sched_getaffinity(0))
    code = "import sys; from zoo.data.chunks import available_cores; print(available_cores(), file=sys.stderr)"
    with start([sys.executable, "-c", code], errors=tmp_path / "said", cores=(core,)) as process:
        assert process.wait() == 0
    assert (tmp_path / "said").read_text() == "1\n"
