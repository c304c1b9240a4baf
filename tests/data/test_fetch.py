"""Fetching from a server on this machine that breaks off, changes, lies and answers nonsense."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from tiny_server import Served, serving

from zoo.data import fetch as module
from zoo.data.archives import Archive
from zoo.data.fetch import FetchError, fetch, forbidden, mirrors, nothing_fetched
from zoo.data.manifest import DataError

DATA = np.random.default_rng(0).bytes(700_000)
OTHER = np.random.default_rng(1).bytes(700_000)
SUM = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(name="server")
def server_fixture(monkeypatch):
    with serving(monkeypatch) as server:
        yield server


@pytest.fixture(name="path")
def path_fixture(tmp_path):
    """Where the file goes."""
    return tmp_path / "downloads" / "file.gz"


def get(server, path, *names, **options):
    checks = {"size": len(DATA), "sha256": SUM, "progress": False, "pauses": (0.0, 0.0), "timeout": 5.0}
    return fetch([server.url(name) for name in names or ("file.gz",)], path, **{**checks, **options})


def whole(path, data=DATA):
    """The file is there, and nothing else."""
    assert path.read_bytes() == data
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    return True


def left(path):
    return path.with_name(path.name + ".part")


def break_off(server, path, after=300_000, **options):
    """Lets a first call come to `after` bytes."""
    server.files["file.gz"].breaks[:] = [after]
    with pytest.raises(FetchError, match="could not be fetched"):
        get(server, path, pauses=(), **options)
    server.asked.clear()
    assert not path.exists()


def test_a_file_is_fetched_once(server, path):
    server.files["file.gz"] = Served(DATA)
    assert get(server, path) == path
    assert whole(path)
    get(server, path)
    assert server.asked == [("file.gz", None)]


def test_a_broken_connection_goes_on_where_it_broke(server, path, capsys):
    """As often as more of the file comes, which is more often than there are pauses."""
    server.files["file.gz"] = Served(DATA, breaks=[100_000, 0, 100_000, 1, 0, 100_000])
    get(server, path, progress=True)
    assert whole(path)
    starts = [None, 100_000, 100_000, 200_000, 200_001, 200_001, 300_001]
    assert server.asked == [("file.gz", start and f"bytes={start}-") for start in starts]
    said = capsys.readouterr().err
    assert "file.gz: the connection ended after 100,000 of 700,000 bytes; again in 0 s" in said
    assert "file.gz from 127.0.0.1: 100 of 700 kB were finished before" in said
    assert "file.gz from 127.0.0.1: done, 700 of 700 kB in" in said


@pytest.mark.parametrize("version", [{}, {"tag": 'W/"weak"', "modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_later_call_goes_on(server, path, version):
    server.files["file.gz"] = Served(DATA, **version)
    break_off(server, path)
    assert left(path).read_bytes() == DATA[:300_000]
    get(server, path)
    assert whole(path)
    assert server.asked == [("file.gz", "bytes=300000-")]


@pytest.mark.parametrize("server_knows", [{}, {"if_range": False}, {"ranges": False}])
def test_a_file_that_changed_meanwhile_starts_anew(server, path, server_knows):
    server.files["file.gz"] = Served(OTHER, **server_knows)
    break_off(server, path, sha256=None)
    server.files["file.gz"] = Served(DATA, tag='"two"', **server_knows)
    get(server, path, sha256=None)
    assert whole(path)
    assert server.asked[0] == ("file.gz", "bytes=300000-")


def test_a_server_without_versions_sends_all_again(server, path):
    server.files["file.gz"] = Served(DATA, tag=None)
    break_off(server, path)
    get(server, path)
    assert whole(path)
    assert server.asked == [("file.gz", None)]


def test_a_server_that_has_no_more_than_is_here(server, path):
    """It has a shorter file under the same version, and answers 416."""
    server.files["file.gz"] = Served(OTHER)
    break_off(server, path, size=None, sha256=None)
    server.files["file.gz"] = Served(DATA[:200_000])
    get(server, path, size=None, sha256=None)
    assert whole(path, DATA[:200_000])
    assert server.asked == [("file.gz", "bytes=300000-"), ("file.gz", None)]


def test_a_part_that_was_whole_already(server, path, monkeypatch):
    """Ended between the last byte and the new name; the file is not asked for again."""
    server.files["file.gz"] = Served(DATA)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        # The note is written by a rename as well.
        patch.setattr(module, "write_json", lambda note, values: note.write_text(json.dumps(values)))
        with pytest.raises(KeyboardInterrupt):
            get(server, path)
    assert not path.exists()
    server.asked.clear()
    get(server, path)
    assert whole(path)
    assert server.asked == []


def test_a_beginning_that_was_damaged_is_fetched_again(server, path):
    server.files["file.gz"] = Served(DATA)
    break_off(server, path)
    left(path).write_bytes(bytes(300_000))
    get(server, path)
    assert whole(path)
    assert server.asked == [("file.gz", "bytes=300000-"), ("file.gz", None)]


NOTES = {
    "none": "",
    "list": "[]",
    "empty": "{}",
    "elsewhere": '{"url": "http://elsewhere/file.gz", "version": "x", "bytes": 700000}',
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
def test_a_beginning_of_unknown_origin_is_not_used(server, path, note):
    server.files["file.gz"] = Served(DATA)
    path.parent.mkdir()
    left(path).write_bytes(OTHER[:1000])
    left(path).with_name("file.gz.part.json").write_text(note)
    get(server, path)
    assert whole(path)
    assert server.asked == [("file.gz", None)]


def test_a_wrong_sum_is_removed_and_the_next_address_tried(server, path, capsys):
    server.files |= {"bad": Served(OTHER), "file.gz": Served(DATA)}
    get(server, path, "bad", "file.gz", progress=True)
    assert whole(path)
    assert (
        f"file.gz: not from {server.url('bad')}: what came is another file: its SHA-256 is" in capsys.readouterr().err
    )
    path.unlink()
    with pytest.raises(FetchError, match=f"SHA-256 is .* instead of {SUM}"):
        get(server, path, "bad")
    assert list(path.parent.glob("file*")) == []


def test_a_wrong_size_is_not_fetched(server, path):
    server.files["file.gz"] = Served(DATA + b"more")
    with pytest.raises(FetchError, match="the file there has 700,004 bytes instead of 700,000"):
        get(server, path)
    assert list(path.parent.glob("file*")) == []


def test_a_length_that_is_not_said(server, path):
    server.files["file.gz"] = Served(DATA, length=False)
    get(server, path)
    assert whole(path)
    path.unlink()
    get(server, path, size=None, sha256=None, progress=True)
    assert whole(path)
    server.files["file.gz"] = Served(DATA[:-1], length=False)
    path.unlink()
    with pytest.raises(FetchError, match="ended after 699,999 of 700,000 bytes"):
        get(server, path)


def test_addresses_in_their_order(server, path):
    """404 and a web page are not tried again, 503 is; a redirection is followed with its range."""
    server.files |= {
        "page": Served(b"<html>log in</html>", kind="text/html; charset=utf-8"),
        "busy": Served(DATA, answers=[503, 503], breaks=[5]),
        "moved": Served(b"", to=server.url("busy")),
    }
    get(server, path, "absent", "page", "moved", size=None)
    assert whole(path)
    names = ["absent", "page", "moved", "busy", "moved", "busy", "moved", "busy", "moved", "busy"]
    assert [name for name, _ in server.asked] == names
    assert server.asked[-1] == ("busy", "bytes=5-")
    path.unlink()
    with pytest.raises(FetchError) as error:
        get(server, path, "absent", "page", size=None)
    assert "absent: the server answers 404 Not Found. " in str(error.value)
    assert "page: there is a web page, not the file." in str(error.value)


def test_a_server_that_stays_broken_is_given_up(server, path):
    server.files |= {"busy": Served(DATA, answers=[500] * 9), "file.gz": Served(DATA)}
    get(server, path, "busy", "file.gz")
    assert [name for name, _ in server.asked] == ["busy"] * 3 + ["file.gz"]
    path.unlink()
    # Without ranges each try begins anew: the same bytes again are no progress.
    server.files["file.gz"] = Served(DATA, ranges=False, breaks=[1000] * 9)
    with pytest.raises(FetchError, match=r"ended after 1,000 of 700,000 bytes, after 3 tries\. What has come"):
        get(server, path)


def test_the_address_of_the_part_comes_first(server, path):
    server.files["file.gz"] = Served(DATA)
    break_off(server, path)
    server.files["mirror"] = Served(DATA)
    get(server, path, "mirror", "file.gz")
    assert whole(path)
    assert server.asked == [("file.gz", "bytes=300000-")]


def test_nobody_there(server, path):
    gone = "http://127.0.0.1:9/file.gz"
    with pytest.raises(
        FetchError, match=r"file\.gz could not be fetched\. http://127.0.0.1:9/file\.gz: Connection ref"
    ):
        fetch([gone], path, progress=False)  # at once, without the pauses
    for wrong in ("ftp://a/b", "/a/b", "file:///a"):
        with pytest.raises(ValueError, match="urls must begin with http"):
            fetch([wrong], path)
    with pytest.raises(FetchError, match="this is no address"):
        fetch(["http://127.0.0.1:port/file.gz"], path, progress=False)
    assert server.asked == []


def test_a_server_that_falls_silent(server, path):
    """It accepts and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.gz"
        with pytest.raises(FetchError, match="timed out, after 2 tries"):
            fetch([url], path, progress=False, timeout=0.1, pauses=(0.0,))


def test_no_room(server, path, monkeypatch):
    server.files["file.gz"] = Served(DATA)
    usage = shutil.disk_usage(path.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    with pytest.raises(DataError, match=r"No space left for .*downloads: 0.5 MB are free, 0.7 MB are needed.*ZOO_DATA"):
        get(server, path)
    monkeypatch.undo()
    monkeypatch.delenv("ZOO_OFFLINE")
    server.files["file.gz"] = Served(DATA)  # the first answer may still be under way, and would take the break
    break_off(server, path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500_000))
    get(server, path)  # the rest fits
    assert whole(path)


def test_a_disk_that_fills_up_keeps_the_part(server, path, monkeypatch):
    server.files["file.gz"] = Served(DATA)
    real = module._blocks

    def fill(response):
        yield next(real(response))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_blocks", fill)
    with pytest.raises(DataError, match=r"No space left for .*Free some space and run again"):
        get(server, path)
    assert left(path).stat().st_size > 0
    monkeypatch.setattr(module, "_blocks", real)
    get(server, path)
    assert whole(path)
    assert server.asked[-1][1] is not None


def test_a_stop_keeps_the_part_and_says_so(server, path, monkeypatch, capsys):
    server.files["file.gz"] = Served(DATA)
    real = module._blocks

    def stop(response):
        yield next(real(response))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_blocks", stop)
    with pytest.raises(KeyboardInterrupt):
        get(server, path)
    assert f"file.gz: what has come is kept in {left(path)} and gone on with." in capsys.readouterr().err
    monkeypatch.setattr(module, "_blocks", real)
    get(server, path)
    assert whole(path)


def test_two_at_once_fetch_once(server, path):
    server.files["file.gz"] = Served(DATA, seconds=0.5)
    code = (
        "import sys; from pathlib import Path; from zoo.data.fetch import fetch\n"
        f"fetch([sys.argv[1]], Path(sys.argv[2]), sha256={SUM!r}, progress=False)"
    )
    command = [sys.executable, "-c", code, server.url("file.gz"), str(path)]
    others = [subprocess.Popen(command) for _ in range(2)]
    threads = [threading.Thread(target=get, args=(server, path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert path.read_bytes() == DATA
    assert server.asked == [("file.gz", None)]


def test_offline(server, path, monkeypatch):
    server.files["file.gz"] = Served(DATA)
    for value in ("", "0"):
        monkeypatch.setenv("ZOO_OFFLINE", value)
        assert forbidden() == ""
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(FetchError, match="ZOO_OFFLINE is set"):
        get(server, path)
    monkeypatch.delenv("ZOO_OFFLINE")
    with nothing_fetched("Not now."), pytest.raises(FetchError, match=r"^Not now\.$"):
        get(server, path)
    assert not path.parent.exists()
    assert server.asked == []
    get(server, path)
    with nothing_fetched("Not now."):
        assert get(server, path) == path  # it is there


def test_mirrors(monkeypatch):
    assert mirrors("a b.gz") == []
    monkeypatch.setenv("ZOO_MIRROR", "http://one/x/  https://two")
    assert mirrors("a b.gz") == ["http://one/x/a%20b.gz", "https://two/a%20b.gz"]
    monkeypatch.setenv("ZOO_MIRROR", "/mnt/archives")
    with pytest.raises(
        DataError, match=r"ZOO_MIRROR must hold addresses with http:// or https://.*got '/mnt/archives'"
    ):
        mirrors("a")


def archive_at(*urls, data=DATA, sha256=SUM):
    return Archive("file.gz", "file", len(data), sha256, "Get it at home.", urls=urls)


def test_an_archive_is_fetched_where_it_is_not_there(server, tmp_path, monkeypatch):
    server.files |= {"file.gz": Served(DATA), "mirror/file.gz": Served(DATA), "bad/file.gz": Served(OTHER)}
    archive = archive_at(server.url("file.gz"))
    path = archive.get(tmp_path, progress=False)
    assert path == tmp_path / "downloads" / "file.gz"
    assert archive.find(tmp_path) == archive.get(tmp_path) == path
    assert archive.is_published(path)
    assert len(server.asked) == 1
    monkeypatch.setenv("ZOO_MIRROR", f"{server.url('bad')} {server.url('mirror/')}")
    archive.get(tmp_path / "mirrored", progress=False)
    assert [name for name, _ in server.asked[1:]] == ["bad/file.gz", "mirror/file.gz"]
    monkeypatch.delenv("ZOO_MIRROR")
    archive.get(tmp_path / "given", server.url("mirror/file.gz"), progress=False)
    assert server.asked[-1][0] == "mirror/file.gz"
    with pytest.raises(DataError, match=r"^There is no .*nowhere\. Get it at home\.$"):
        archive.get(tmp_path / "given", tmp_path / "nowhere")


def test_an_archive_that_cannot_be_fetched(server, tmp_path, monkeypatch):
    """What was tried, and what to put where."""
    what = rf"There is no file\.gz below .*Get it at home\. Put it at {tmp_path}/downloads/manual/file\.gz"
    known = rf" \(700,000 bytes, SHA-256 {SUM}\), or give its folder as --data-dir\."
    with pytest.raises(DataError, match=rf"/absent: the server answers 404 Not Found\. {what}{known}$"):
        archive_at(server.url("absent")).get(tmp_path, progress=False)
    with pytest.raises(DataError, match=rf"^{what}{known} It cannot be fetched\.$"):
        archive_at().get(tmp_path)
    with nothing_fetched("Not now."), pytest.raises(DataError, match=rf"^{what}{known} Not now\.$"):
        archive_at(server.url("file.gz")).get(tmp_path)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(DataError, match=rf"^{what}{known} ZOO_OFFLINE is set, so it is not fetched\.$"):
        archive_at(server.url("file.gz")).get(tmp_path)


def test_an_archive_without_a_checksum_is_fetched_only_when_asked(server, tmp_path):
    server.files["file.gz"] = Served(DATA)
    archive = Archive("file.gz", "file", None, None, "Get it at home.", (server.url("file.gz"),))
    with pytest.raises(DataError, match=rf"only where its address is given: archive={server.url('file.gz')} "):
        archive.get(tmp_path)
    assert server.asked == []
    archive.get(tmp_path, server.url("file.gz"), progress=False)
    assert archive.get(tmp_path) == tmp_path / "downloads" / "file.gz"
