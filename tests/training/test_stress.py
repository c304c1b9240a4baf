"""Runs that are killed again and again, and what single kills were found to leave: the end is that of a whole run."""

import shutil
from pathlib import Path

import pytest
from toy_runs import assert_same_run, interrupt, recipe, run

STRESS = str(Path(__file__).resolve().parents[1] / "stress.py")
SAME = "the two runs are the same to the bit, and nothing is left over"


@pytest.mark.slow
def test_a_few_kills(run_python, tmp_path):
    done = run_python(STRESS, "--kills", "3", "--steps", "12", "--keep", str(tmp_path / "runs"), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 3; " in done.stdout
    assert done.stdout.splitlines()[-1] == SAME


@pytest.mark.slow
def test_forty_kills(run_python, tmp_path):
    done = run_python(STRESS, "--kills", "40", "--keep", str(tmp_path / "runs"), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 40; " in done.stdout
    assert "SIGTERM: 3; second processes refused: 1; " in done.stdout
    assert done.stdout.splitlines()[-1] == SAME


def test_a_best_checkpoint_half_deleted_before_the_first_save(toy, compilation_cache, tmp_path, monkeypatch):
    late = recipe(checkpoint_every=60)
    run(tmp_path / "unbroken", late)
    interrupt(tmp_path / "killed", late, 43, monkeypatch)
    checkpoints = tmp_path / "killed" / "checkpoints"
    assert not any((checkpoints / "last").iterdir()), "the case shows nothing"
    (checkpoints / "best" / "10" / "manifest.json").unlink()
    shutil.rmtree(checkpoints / "best" / "20" / "state")
    run(tmp_path / "killed", late)
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.parametrize("at", [53, 60])
def test_leftovers_go(at, toy, compilation_cache, tmp_path, monkeypatch):
    """Half a file, half a checkpoint, and an old one that nobody came to delete."""
    run(tmp_path / "unbroken", recipe())
    killed = tmp_path / "killed"
    interrupt(killed, recipe(), at, monkeypatch)
    if at == 60:
        run(killed, recipe())
        (killed / "result.json").unlink()
    last = killed / "checkpoints" / "last"
    newest = max(last.iterdir(), key=lambda path: int(path.name))
    leftovers = [killed / "recipe.yaml.123.tmp", newest / "manifest.json.123.tmp"]
    for path in leftovers:
        path.write_text("half")
    leftovers += [last / "99.orbax-checkpoint-tmp", last / "5"]
    for path in leftovers[2:]:
        (path / "state").mkdir(parents=True)
    run(killed, recipe())
    assert [path for path in leftovers if path.exists()] == []
    assert sorted(path.name for path in last.iterdir()) == ["40", "60"]
    assert_same_run(killed, tmp_path / "unbroken")
