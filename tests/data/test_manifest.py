"""Manifests: any damage is found, named, and comes with its remedy; disk trouble is told plainly."""

import errno
import json
import os
import subprocess
import sys

import pytest

from zoo.data.manifest import NAME, DataError, clear_disk_errors, exclusive, read_manifest, write_manifest

MEND = "zoo data prepare that"


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    (folder / "small").write_bytes(b"abc")
    (folder / "sub" / "large").write_bytes(bytes(2**20 + 1))
    write_manifest(folder, {"rows": 3})
    return folder


def test_whole_data_passes_and_keeps_its_facts(folder):
    manifest = read_manifest(folder, mend=MEND, verify=True)
    assert manifest["rows"] == 3
    assert set(manifest["files"]) == {"small", "sub/large"}
    before = (folder / NAME).read_bytes()
    assert write_manifest(folder, {"rows": 3}) == manifest
    assert (folder / NAME).read_bytes() == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damaged(folder, name, *, verify=False):
    with pytest.raises(DataError, match=name) as error:
        read_manifest(folder, mend=MEND, verify=verify)
    assert f"Delete the folder {folder} and run `{MEND}`." in str(error.value)


def test_truncated_file(folder):
    path = folder / "sub" / "large"
    path.write_bytes(path.read_bytes()[:-1])
    damaged(folder, "sub/large is damaged: it has 1,048,576 bytes instead of 1,048,577")


def test_missing_file(folder):
    (folder / "small").unlink()
    damaged(folder, "small is missing")


def test_flipped_bit_in_a_small_file(folder):
    flip(folder / "small")
    damaged(folder, "small is damaged: its SHA-256")


def test_flipped_bit_in_a_large_file_is_found_by_verify(folder):
    flip(folder / "sub" / "large")
    read_manifest(folder, mend=MEND)
    damaged(folder, "sub/large is damaged: its SHA-256", verify=True)


def test_damaged_manifest(folder):
    for text in ("", "{", "[]", "{}", json.dumps({**json.loads((folder / NAME).read_text()), "rows": 4})):
        (folder / NAME).write_text(text)
        damaged(folder, "manifest.json is damaged")


def test_absent_data(folder, tmp_path):
    (folder / NAME).unlink()
    damaged(folder, "is not complete")
    damaged(tmp_path / "nothing", "does not exist")


def test_full_disk(tmp_path):
    with (
        pytest.raises(DataError, match=r"No space left for .*MB are needed.*ZOO_DATA"),
        clear_disk_errors(tmp_path, 2**62),
    ):
        pass
    for error in (OSError(errno.ENOSPC, "full"), RuntimeError("write() failed: No space left on device; writing x")):
        with (
            pytest.raises(DataError, match=r"No space left for .*finished parts are kept"),
            clear_disk_errors(tmp_path),
        ):
            raise error


def test_unwritable_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="Cannot write to"), clear_disk_errors(tmp_path / "file"):
        pass
    with pytest.raises(DataError, match="Cannot write to"), clear_disk_errors(tmp_path / "file" / "below"):
        pass
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(DataError, match=r"Cannot write to .*not writable.*ZOO_DATA"), clear_disk_errors(tmp_path):
        pass


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), clear_disk_errors(tmp_path):
        raise RuntimeError("something else")


@pytest.mark.skipif(os.name == "nt", reason="no advisory locks there")
def test_a_second_process_waits(tmp_path):
    code = "import sys; from zoo.data.manifest import exclusive\nwith exclusive(sys.argv[1]): print('in')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as free:
        assert free.communicate(timeout=30)[0] == "in\n"
    with exclusive(tmp_path / "lock"):
        waiting = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1.0)
    assert waiting.communicate(timeout=30)[0] == "in\n"
