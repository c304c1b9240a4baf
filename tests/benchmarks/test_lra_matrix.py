"""The matrix of runs: what is run, what is kept, what is told. Most runs are those of tests/helpers/fake_train.py."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zoo.data.chunks import available_cores
from zoo.training.folder import hold
from zoo.training.recipe import load_recipe

REPO = Path(__file__).resolve().parents[2]
RECIPE = """
protocol: {protocol}
task: {{name: toy, source: {source}}}
model: {{d_model: 4, num_layers: 1, num_heads: 1, ffn: none, positions: none, pooling: last}}
train: {{steps: 2, batch_size: 16, lr: 0.02, tensorboard: false}}
"""
CPU = {"device": "1 x cpu", "processor": "p", "platform": "cpu"}


@pytest.fixture
def recipes(tmp_path):
    """A folder of recipes: protocols fast and other, tasks last and chance."""
    for protocol in ("fast", "other"):
        for source in ("last", "chance"):
            path = tmp_path / "recipes" / protocol / f"{source}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(RECIPE.format(protocol=protocol, source=source))
    return tmp_path / "recipes"


@pytest.fixture
def run(recipes, processes_know_the_toy, monkeypatch, tmp_path):
    """`run(*arguments)` is the command `run` in this process, with quick stand-ins for training; the exit code."""
    from benchmarks.lra import matrix, runner

    command = runner.train_command
    fake = str(REPO / "tests" / "helpers" / "fake_train.py")
    monkeypatch.setattr(runner, "train_command", lambda *args: [sys.executable, fake, *command(*args)[4:]])
    monkeypatch.setattr(runner, "device_facts", lambda cores=(): (CPU, 1))
    common = ["run", "--recipes", str(recipes), "--out", str(tmp_path / "out")]
    defaults = {"--variants": "toy_mean", "--tasks": "last", "--protocols": "fast"}

    def call(*arguments: str) -> int:
        given = [text for name, value in defaults.items() if name not in arguments for text in (name, value)]
        return matrix.main([*common, *given, *arguments])

    return call


def matrix_of(out: Path) -> dict:
    return json.loads((out / "matrix.json").read_text())


def starts(out: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in sorted(out.rglob("starts"))}


def test_a_matrix_runs_each_cell_once(run, tmp_path, capfd):
    out = tmp_path / "out"
    arguments = ["--variants", "toy_mean,softmax", "--protocols", "fast,other"]
    assert run(*arguments, "--seeds", "0,3", "train.lr=0.01") == 0
    said = capfd.readouterr()
    held = matrix_of(out)
    assert held["format"] == 1
    assert held["environment"] == CPU
    assert held["spec"]["seeds"] == [0, 3]
    assert held["spec"]["overrides"] == ["train.lr=0.01"]
    assert len(held["cells"]) == 8
    assert {cell["state"] for cell in held["cells"]} == {"done"}
    # The first seed of everything comes first.
    assert [cell["seed"] for cell in held["cells"]] == [0] * 4 + [3] * 4
    first = held["cells"][0]
    assert first["id"] == "fast-last-toy_mean-s0"
    assert first["folder"] == "cells/fast/last/toy_mean-s0"
    recipe = load_recipe(out / first["folder"] / "recipe.yaml")
    assert (recipe.train.lr, recipe.train.seed, recipe.variant, recipe.protocol) == (0.01, 0, "toy_mean", "fast")
    assert len({cell["recipe_hash"] for cell in held["cells"]}) == 8
    assert all(len(cell["recipe_hash"]) == 16 for cell in held["cells"])
    assert "[8/8] other-last-softmax-s3: done, test accuracy 35.94 %" in said.err
    assert "## fast/last" in said.out
    assert "| toy_mean | 33.59 ± 3.31 | 0: 31.25, 3: 35.94 | 99 |" in (out / "matrix.md").read_text()
    # What is done is kept, and a wider request keeps what the earlier one had.
    assert run("--seeds", "0,4", "train.lr=0.01") == 0
    held = matrix_of(out)
    assert len(held["cells"]) == 9
    assert [path.read_text() for path in out.rglob("starts")] == ["x"] * 9
    assert "softmax" in (out / "matrix.md").read_text()


def test_a_hash_is_that_of_what_is_in_the_recipe(recipes, toy):
    from benchmarks.lra.cells import recipe_hash

    path = recipes / "fast" / "last.yaml"
    one = recipe_hash(load_recipe(path, variant="toy_mean"))
    (recipes / "copy.yaml").write_text(path.read_text())
    assert recipe_hash(load_recipe(recipes / "copy.yaml", variant="toy_mean")) == one
    assert recipe_hash(load_recipe(path, ["train.lr=0.02"], variant="toy_mean")) == one
    # Others' figures change nothing of a run.
    assert recipe_hash(load_recipe(path, ["published.softmax=50.0"], variant="toy_mean")) == one
    assert recipe_hash(load_recipe(path, ["train.seed=1"], variant="toy_mean")) != one
    assert recipe_hash(load_recipe(path, variant="softmax")) != one


def test_a_failed_cell_is_told_and_the_rest_goes_on(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_TRAIN", "1:fail")
    assert run("--seeds", "0,1,2") == 1
    states = {cell["seed"]: (cell["state"], cell["reason"]) for cell in matrix_of(tmp_path / "out")["cells"]}
    reason = "exit code 1: zoo: the loss of step 3 is not finite.\nsecond line"
    assert states == {0: ("done", None), 1: ("failed", reason), 2: ("done", None)}
    assert "* fast-last-toy_mean-s1: exit code 1: zoo: the loss" in capfd.readouterr().out
    # The next command tries it again, and it alone.
    monkeypatch.delenv("FAKE_TRAIN")
    assert run("--seeds", "0,1,2") == 0
    assert starts(tmp_path / "out") == {"toy_mean-s0": 1, "toy_mean-s1": 2, "toy_mean-s2": 1}


def test_a_cell_that_cannot_be_is_known_before_anything_runs(run, tmp_path, capfd):
    out = tmp_path / "out"
    assert run("--variants", "mamba,toy_mean", "model.d_model=6", "options.no_such=1", "--dry-run") == 2
    assert "no cell can be" in capfd.readouterr().err
    assert run("--variants", "toy_mean,softmax", "options.num_heads=2") == 1
    cells = matrix_of(out)["cells"]
    assert [(cell["variant"], cell["state"]) for cell in cells] == [("toy_mean", "failed"), ("softmax", "done")]
    assert cells[0]["reason"].startswith("options.num_heads: toy_mean has no such option.")
    assert starts(out) == {"softmax-s0": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "sofmax"], "Did you mean softmax"),
        (["--variants", "toy"], "'toy' is a task"),
        (["--tasks", "last,lst"], "no cell of the task 'lst' can be: There is no recipe file"),
        (["--protocols", "fst"], "no cell of the protocol 'fst' can be"),
        (["--seeds", "0,0"], "seeds must differ from one another: 0, 0"),
        (["--seeds", "a"], "--seeds takes whole numbers"),
        (["--variants", ","], "at least one of variants"),
        (["--grid", "train.lr"], "an axis is written key.path=value,value"),
        (["--grid", "train.seed=1,2"], "give --seeds"),
        (["--grid", "train.lr=1,2", "--grid", "train.lr=3"], "is given twice"),
        (["--grid", "train.lr=1e-3,0.001,1e-3"], "values of train.lr must differ"),
        (["train.lrate=1"], "no cell of the protocol 'fast' can be: There is no key 'train.lrate'"),
        (["--devices", "2"], "--devices is for GPUs"),
        (["--workers", "0"], "--workers must be from 1 to"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_made(run, tmp_path, capfd, arguments, message):
    assert run(*arguments) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_runs_of_another_recipe_is_refused(run, tmp_path, capfd):
    assert run() == 0
    assert run("train.lr=0.5") == 2
    assert "holds a run of another recipe; these differ: train.lr (0.02 there, 0.5 here). Choose another --out." in (
        capfd.readouterr().err
    )
    assert run("train.tensorboard=true") == 0  # which decides nothing
    assert starts(tmp_path / "out") == {"toy_mean-s0": 1}


def test_a_damaged_result_is_not_taken_for_done(run, tmp_path):
    out = tmp_path / "out"
    assert run() == 0
    path = out / "cells/fast/last/toy_mean-s0/result.json"
    path.write_text(path.read_text().replace('"parameters": 99', '"parameters": 98'))
    assert run() == 1
    (cell,) = matrix_of(out)["cells"]
    assert cell["state"] == "failed"
    assert "its digest does not fit" in cell["reason"]


def test_data_that_is_missing_fails_its_cells_only(run, toy, tmp_path, monkeypatch):
    def prepare(self, **options):
        if self.source == "chance":
            raise FileNotFoundError("no archive; fetch it")

    monkeypatch.setattr(toy, "prepare", prepare)
    assert run("--tasks", "last,chance") == 1
    cells = {cell["task"]: (cell["state"], cell["reason"]) for cell in matrix_of(tmp_path / "out")["cells"]}
    assert cells == {"last": ("done", None), "chance": ("failed", "no archive; fetch it")}
    assert starts(tmp_path / "out") == {"toy_mean-s0": 1}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_tells_the_runs_and_leaves(run, tmp_path, monkeypatch, capfd, number):
    out = tmp_path / "out"
    monkeypatch.setenv("FAKE_TRAIN", "1:slow")

    def tell():
        ready = out / "cells/fast/last/toy_mean-s1/ready"
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    # A stand-in knows SIGTERM only; that each signal is handed on is tested with `zoo.training.launch`.
    if number == signal.SIGINT:
        from benchmarks.lra import runner

        stop = runner.stop
        monkeypatch.setattr(runner, "stop", lambda processes, signum: stop(processes, signal.SIGTERM))
    thread = threading.Thread(target=tell)
    thread.start()
    assert run("--seeds", "0,1,2") == 128 + number
    thread.join()
    assert (out / "cells/fast/last/toy_mean-s1/saved").exists()
    states = [(cell["seed"], cell["state"], cell["reason"]) for cell in matrix_of(out)["cells"]]
    assert states == [(0, "done", None), (1, "waiting", None), (2, "waiting", None)]
    assert "the same command goes on" in capfd.readouterr().err
    monkeypatch.delenv("FAKE_TRAIN")
    assert run("--seeds", "0,1,2") == 0
    assert starts(out) == {"toy_mean-s0": 1, "toy_mean-s1": 2, "toy_mean-s2": 1}


def test_a_run_that_a_killed_matrix_left_is_waited_for(run, tmp_path, capfd):
    folder = tmp_path / "out" / "cells/fast/last/toy_mean-s0"
    code = f"""
import sys, time
from pathlib import Path
from zoo.training.folder import hold
with hold(Path({str(folder)!r})):
    print("held", flush=True)
    time.sleep(1)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert run("--seeds", "0,1") == 0
        assert process.wait(30) == 0
    assert f"fast-last-toy_mean-s0 waits for process {process.pid}" in capfd.readouterr().err
    assert starts(tmp_path / "out") == {"toy_mean-s0": 1, "toy_mean-s1": 1}


def test_two_matrices_do_not_share_a_folder(run, tmp_path, capfd):
    with hold(tmp_path / "out"):
        assert run() == 2
    assert "Wait for it, stop it, or choose another --out." in capfd.readouterr().err


def test_runs_share_compiled_programs_within_bounds(run, tmp_path, monkeypatch):
    from benchmarks.lra import runner

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    seen = []
    start = runner.start
    monkeypatch.setattr(
        runner, "start", lambda command, **options: seen.append(options["environment"]) or start(command, **options)
    )
    assert run("--seeds", "0,1", "--workers", str(min(2, available_cores()))) == 0
    assert {values["JAX_COMPILATION_CACHE_DIR"] for values in seen} == {str(tmp_path / "out" / "cache")}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert runner.cache_settings(tmp_path) == {}
    for age, size in enumerate((30, 20, 10)):
        path = tmp_path / "cache" / str(age)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (1e9 - age, 1e9 - age))
    runner.bound_cache(tmp_path / "cache", 50)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["0", "1"]


def test_one_run_at_a_time_on_each_device(monkeypatch):
    from benchmarks.lra import runner
    from benchmarks.lra.cells import MatrixError
    from benchmarks.lra.runner import Place, slots

    monkeypatch.setattr(runner, "available_cores", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 3, 4, 6}, raising=False)
    assert slots("cpu", 1) == [Place()]
    assert slots("cpu", 1, workers=1) == [Place()]
    assert slots("cpu", 1, workers=2) == [Place(cores=(0, 1)), Place(cores=(3, 4))]
    assert slots("tpu", 8) == [Place()]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots("gpu", 2) == [Place({"CUDA_VISIBLE_DEVICES": "0"}), Place({"CUDA_VISIBLE_DEVICES": "1"})]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert slots("gpu", 3, devices=2) == [Place({"CUDA_VISIBLE_DEVICES": "4"}), Place({"CUDA_VISIBLE_DEVICES": "6"})]
    for workers in (0, 6):
        with pytest.raises(MatrixError, match=f"--workers must be from 1 to the 5 cores that there are, got {workers}"):
            slots("cpu", 1, workers=workers)
    with pytest.raises(MatrixError, match="--workers is for CPUs, got 2 on tpu"):
        slots("tpu", 8, workers=2)
    with pytest.raises(MatrixError, match="--devices must be from 1 to 2, got 3"):
        slots("gpu", 2, devices=3)
    with pytest.raises(MatrixError, match="--workers is for CPUs"):
        slots("gpu", 2, workers=3)


def test_a_dry_run_shows_what_it_would_cost(run, tmp_path, capfd, monkeypatch):
    from benchmarks.lra import dry_run

    monkeypatch.setattr(dry_run, "RECORDS", tmp_path / "none")
    assert run("--seeds", "0") == 0
    assert run("--variants", "toy_mean,softmax", "--seeds", "0,1", "--dry-run", "--memory") == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if line.startswith("fast-")]
    by_name = {line[0]: line[1:] for line in lines}
    assert by_name["fast-last-toy_mean-s0"][0] == "done"
    # By the result of the other seed: 2 updates at 0.5 a second and 1 s to compile.
    other = by_name["fast-last-toy_mean-s1"]
    assert [other[0], *other[2:]] == ["waiting", "2.0", "MB", "5", "s"]
    softmax = by_name["fast-last-softmax-s0"]
    assert softmax[0] == "waiting"
    assert int(softmax[1].replace(",", "")) > int(other[1].replace(",", ""))
    assert softmax[3] == "kB"  # compiled for it
    assert softmax[-1] == "-"
    assert run("--variants", "softmax", "--dry-run") == 0
    assert [line.split()[-2:] for line in capfd.readouterr().out.splitlines() if "waiting" in line] == [["-", "-"]]
    assert starts(tmp_path / "out") == {"toy_mean-s0": 1}


def test_a_grid_is_summed_up(run, tmp_path, capfd):
    from benchmarks.lra import matrix

    out = tmp_path / "out"
    grid = ["--grid", "model.num_layers=1,2", "--grid", "train.lr=1e-2,3e-2"]
    assert run(*grid, "--seeds", "0,1") == 0
    assert {path.name for path in (out / "cells/fast/last").iterdir()} == {
        f"toy_mean-s{seed}-num_layers_{layers}-lr_{lr}"
        for seed in (0, 1)
        for layers in (1, 2)
        for lr in ("1e-2", "3e-2")
    }
    capfd.readouterr()
    assert matrix.main(["sensitivity", str(out)]) == 0
    said = capfd.readouterr().out
    assert said == (out / "sensitivity.md").read_text()
    assert "### fast/last, toy_mean" in said
    # 1 layer: 0.375, 2 layers: 0.5, and seed 1 has 1/64 more.
    assert "Best of 4 points on validation: model.num_layers=2, train.lr=1e-2, accuracy 50.78 % ± 1.10 %" in said
    assert "(test 44.53 % ± 1.10 %). Between the best and the worst point lie 12.50 %" in said
    assert "| 1 | 3e-2 | 38.28 % ± 1.10 % | 32.03 % ± 1.10 % | 2 |" in said
    assert "`model.num_layers`, mean over the rest: 1: 38.28 %, 2: 50.78 %; apart by 12.50 %." in said
    assert "`train.lr`, mean over the rest: 1e-2: 44.53 %, 3e-2: 44.53 %; apart by 0.00 %." in said


def test_a_sweep_with_gaps_and_a_metric_that_falls():
    from benchmarks.lra.sensitivity import Point, Sweep, to_markdown

    points = (Point({"a": "1"}, (2.5,), (2.6,)), Point({"a": "2"}, (2.25,), (2.75,)), Point({"a": "3"}, (), (), 2))
    said = to_markdown(Sweep("t", "bpb", True, points))
    assert "Best of 2 points on validation: a=2, bpb 2.2500 (test 2.7500)." in said
    assert "2 runs of this sweep have no result." in said
    assert "No run is finished." in to_markdown(Sweep("t", "bpb", True, points[2:]))


def test_values_with_commas_stay_whole():
    from benchmarks.lra.cells import parse_grid

    assert parse_grid(["train.buckets=[1,2],[3, 4],[]"]) == {"train.buckets": ("[1,2]", "[3, 4]", "[]")}


def test_records_are_kept_or_refused(run, tmp_path, monkeypatch, capfd):
    from benchmarks.lra import matrix
    from benchmarks.lra.records import RecordError, read_record, read_records

    out, into = tmp_path / "out", tmp_path / "records"
    keep = ["records", str(out), "--into", str(into)]
    monkeypatch.setenv("FAKE_TRAIN", "1:fail")
    assert run("--seeds", "0,1") == 1
    assert matrix.main(keep) == 0
    (path,) = into.iterdir()
    assert path.name == "fast-last-toy_mean-s0.json"
    record = read_record(path)
    result = json.loads((out / "cells/fast/last/toy_mean-s0/result.json").read_text())
    added = {"recipe_hash", "overrides", "curve", "id"}
    assert {name: record[name] for name in record.keys() - added - {"digest"}} == {
        name: result[name] for name in result.keys() - {"digest"}
    }
    assert record["curve"] == [[1, 0.1875], [2, 0.375]]
    assert record["id"] == "fast-last-toy_mean-s0"
    assert record["recipe_hash"] == matrix_of(out)["cells"][0]["recipe_hash"]
    assert read_records(into) == [record]
    # A changed record, a changed checkout, another recipe.
    path.write_text(path.read_text().replace("0.3125", "0.9125"))
    with pytest.raises(RecordError, match="its digest does not fit"):
        read_record(path)
    monkeypatch.setenv("FAKE_TRAIN", "")
    monkeypatch.setenv("FAKE_COMMIT", "abc+")
    assert run("--seeds", "0,1") == 0
    assert matrix.main(keep) == 1
    assert "fast-last-toy_mean-s1: it was made by a changed checkout (abc+)" in capfd.readouterr().err
    assert len(list(into.iterdir())) == 1
    assert matrix.main([*keep, "--force"]) == 0
    assert len(list(into.iterdir())) == 2
    held = matrix_of(out)
    held["cells"][1]["recipe_hash"] = "0" * 16
    (out / "matrix.json").write_text(json.dumps(held))
    assert matrix.main([*keep, "--force"]) == 1
    assert "and matrix.json says 0000000000000000." in capfd.readouterr().err
    assert matrix.main(["records", str(tmp_path)]) == 2


def test_the_board_of_a_terminal(run, tmp_path, monkeypatch):
    """The table has what is known of each cell."""
    import io

    from rich.console import Console

    from benchmarks.lra.board import Board
    from benchmarks.lra.cells import Cell

    assert run("--seeds", "0") == 0
    out = tmp_path / "out"
    cells = [Cell(**cell) for cell in matrix_of(out)["cells"]]
    for seed, state in ((1, "running"), (2, "failed"), (3, "waiting")):
        cells.append(Cell("x", "fast", "last", "toy_mean", seed, [], None, state, None, f"cells/x/toy_mean-s{seed}"))
    folder = out / "cells/x/toy_mean-s1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 7, "split": "train"}\n')
    screen = io.StringIO()
    Console(file=screen, width=120).print(Board(cells, out)._table())
    text = screen.getvalue()
    assert "1 of 4 done, 1 failed" in text
    assert "31.25  step 7  failed  ·" in text


def test_the_time_left_is_that_of_as_many_runs_at_a_time_as_there_were(tmp_path, monkeypatch, capsys):
    from benchmarks.lra import board
    from benchmarks.lra.cells import Cell

    now = [0.0]
    monkeypatch.setattr(board.time, "monotonic", lambda: now[0])
    cells = [Cell(f"c{n}", "x", "last", "toy_mean", n, [], None, "waiting", "why", f"cells/{n}") for n in range(4)]
    with board.Board(cells, tmp_path) as shown:
        for cell in cells[:2]:
            cell.state = "running"
            shown.started(cell)
        now[0] = 600.0
        cells[0].state = "failed"
        shown.ended(cells[0], {"select": "best", "best": {"test": {"accuracy": 0.5}}})
    # Three are left, two at a time.
    assert "c0: done, test accuracy 50.00 % (10 min; about 15 min left)" in capsys.readouterr().err


@pytest.mark.slow
def test_real_runs_killed_once_and_resumed(recipes, run_python, tmp_path):
    """The whole command with real training, killed without warning in the second cell, then run again."""
    arguments = ["-m", "benchmarks.lra.matrix", "run", "--variants", "toy_mean,softmax", "--tasks", "last"]
    arguments += ["--protocols", "fast", "--seeds", "0,1", "--recipes", str(recipes), "--out", "out"]
    arguments += ["train.steps=300", "train.checkpoint_every=20"]
    out = tmp_path / "out"
    environment = {"JAX_COMPILATION_CACHE_DIR": ""}

    def kill():
        ready = out / "cells/fast/last/softmax-s0/metrics.jsonl"
        while not ready.exists():
            time.sleep(0.05)
        os.kill(int((out / ".lock").read_text().split()[1]), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    done = run_python(*arguments, check=False, **environment)
    thread.join()
    assert done.returncode == -signal.SIGKILL
    assert matrix_of(out)["cells"][1]["state"] == "running"
    done = run_python(*arguments, **environment)
    assert {cell["state"] for cell in matrix_of(out)["cells"]} == {"done"}
    assert any((out / "cache").iterdir())
    assert "[4/4] fast-last-softmax-s1: done, test accuracy" in done.stderr
