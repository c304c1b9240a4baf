"""Chunks made by several processes: complete, atomic, and honest about failure."""

import errno
import os
import subprocess
import sys

import pytest

from zoo.data.chunks import chunk_path, make_chunks, read_chunk
from zoo.data.manifest import DataError

FUNCTION = "zoo.data.listops_draw:make_chunk"
ARGUMENTS = {
    "law": {"max_depth": 3, "max_args": 3, "min_length": 3, "max_length": 30, "p_operator": 0.25},
    "seed": 0,
    "count": 20,
}


def test_any_number_of_processes_makes_the_same_chunks(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for workers, folder in enumerate(folders, 1):
        folder.mkdir()
        done = []
        make_chunks(FUNCTION, ARGUMENTS, range(2, 7), folder, workers=workers, on_done=done.append)
        assert sorted(done) == [2, 3, 4, 5, 6]
        assert {path.name for path in folder.iterdir()} == {chunk_path(folder, i).name for i in range(2, 7)}
    for chunk in range(2, 7):
        assert read_chunk(folders[0], chunk) == read_chunk(folders[1], chunk) is not None
    assert read_chunk(folders[0], 2) != read_chunk(folders[0], 3)


def test_missing_and_damaged_chunks_read_as_none(tmp_path):
    assert read_chunk(tmp_path, 0) is None
    make_chunks(FUNCTION, ARGUMENTS, [0], tmp_path)
    whole = chunk_path(tmp_path, 0).read_bytes()
    for damaged in (whole[:-1], whole[:10], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        chunk_path(tmp_path, 0).write_bytes(damaged)
        assert read_chunk(tmp_path, 0) is None


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_reach_the_caller(tmp_path, workers):
    impossible = {**ARGUMENTS, "law": {**ARGUMENTS["law"], "max_depth": 0}}
    with pytest.raises(ValueError, match="max_depth must be"):
        make_chunks(FUNCTION, impossible, range(4), tmp_path, workers=workers)
    with pytest.raises(OSError) as error:  # noqa: PT011
        make_chunks(FUNCTION, ARGUMENTS, range(4), tmp_path / "missing", workers=workers)
    assert error.value.errno == errno.ENOENT


def test_a_dead_process_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"ended unexpectedly \(exit code"):
        make_chunks("os:_exit", {}, range(4), tmp_path, workers=2)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        make_chunks(FUNCTION, ARGUMENTS, [0], tmp_path, workers=0)


def test_workers_import_neither_jax_nor_tensorflow_datasets():
    code = (
        "import sys, zoo.data.chunks, zoo.data.listops_draw\n"
        "print([name for name in sys.modules if name in {'jax', 'tensorflow_datasets'}])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
