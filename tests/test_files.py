"""Files that are whole or not there, that tell when they were changed, and that one process holds."""

import json
import os
import subprocess
import sys

import pytest

from zoo import files
from zoo.files import lock_file, seal, unseal, write_json, write_text


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_seal_is_broken_by_any_change():
    values = {"a": 1, "b": [0.1 + 0.2, None, "x"]}
    data = json.dumps(seal(values)).encode()
    assert unseal(data) == seal(values)
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1
        if json_or_none(changed) != seal(values):  # a space may become another
            with pytest.raises(ValueError):  # noqa: PT011 - json's own, or ours
                unseal(bytes(changed))
    for wrong in (data[:-1], b"", b"[]", b"{}", b"null"):
        with pytest.raises(ValueError):  # noqa: PT011
            unseal(wrong)


def json_or_none(data):
    try:
        return json.loads(bytes(data))
    except ValueError:
        return None


def test_one_process_holds_a_lock_until_it_ends(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys\nfrom zoo.files import lock_file\nfile = open(sys.argv[1], 'ab')\n"
        "print(lock_file(file, wait=False), flush=True)\nsys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder, path.open("ab") as file:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not lock_file(file, wait=False)
        holder.kill()
        holder.wait()
        assert lock_file(file, wait=True)
