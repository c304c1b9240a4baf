"""Files fetched over the network: gone on with where they broke off, and checked before they get their name.

Two environment variables are read. ZOO_MIRROR holds addresses of folders, with blanks between, in which files are
looked for by their names before anywhere else. ZOO_OFFLINE=1 forbids all of it. The proxies of the usual variables
(https_proxy, no_proxy) are used.
"""

import contextlib
import contextvars
import dataclasses
import errno
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zoo
from zoo.data.manifest import DataError, clear_disk_errors, exclusive, file_sha256
from zoo.data.progress import Progress
from zoo.files import write_json

TIMEOUT = 30.0
"""Seconds without an answer, or without a byte, after which a connection counts as broken."""
PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each new try of an address; the tries begin anew whenever more of the file has come."""

_BLOCK = 1 << 17
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may answer otherwise soon
_forbidden: contextvars.ContextVar[str] = contextvars.ContextVar("zoo_forbidden", default="")


class FetchError(DataError):
    """A file cannot be fetched; the message says which addresses were tried, and what came of each."""


class _Passing(Exception):
    """An address failed in a way that may pass."""


class _Final(Exception):
    """An address does not have the file."""


class _Unreachable(_Final):
    """There is no way to an address; that may pass where there was one before."""


def is_address(place: object) -> bool:
    """Whether it is a text that begins like an address of the web, not a path."""
    return isinstance(place, str) and place.startswith(("http://", "https://"))


def mirrors(name: str) -> list[str]:
    """The addresses of a file below those of ZOO_MIRROR.

    Raises:
      DataError: it holds something else than addresses.
    """
    bases = os.environ.get("ZOO_MIRROR", "").split()
    for base in bases:
        if not is_address(base):
            raise DataError(f"ZOO_MIRROR must hold addresses with http:// or https://, blanks between, got {base!r}.")
    return [f"{base.rstrip('/')}/{urllib.parse.quote(name)}" for base in bases]


@contextlib.contextmanager
def nothing_fetched(reason: str) -> Iterator[None]:
    """Inside, nothing is fetched, and messages say the reason."""
    token = _forbidden.set(reason)
    try:
        yield
    finally:
        _forbidden.reset(token)


def forbidden() -> str:
    """Why nothing may be fetched now, a sentence; empty where it may."""
    if os.environ.get("ZOO_OFFLINE", "") not in ("", "0"):
        return "ZOO_OFFLINE is set, so it is not fetched."
    return _forbidden.get()


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
    timeout: float = TIMEOUT,
    pauses: Sequence[float] = PAUSES,
) -> Path:
    """Fetches a file from the first address that has it, unless it is there. May be interrupted and called again.

    What has come of a file is kept in `path` with ".part" behind its name; the next call asks for the rest (HTTP
    Range), unless the server says that the file is another by now (ETag or Last-Modified, by If-Range). The file gets
    its name when it is whole and checked. Several processes may call this at once: one fetches, the others wait.

    Args:
      urls: addresses, the best first; that of which a part is there comes before all others.
      path: where to; its folder is made.
      size, sha256: what the file must have, in bytes and hex; None where that is not known.
      progress: whether to report progress on standard error.
      timeout: seconds without a byte after which a connection counts as broken.
      pauses: seconds before each new try where a connection broke.

    Returns:
      `path`.

    Raises:
      FetchError: no address has it, or fetching is forbidden; says what was tried.
      DataError: there is no room on the disk, or it cannot be written.
      ValueError: an address does not begin with http:// or https://.
    """
    for url in urls:
        if not is_address(url):
            raise ValueError(f"urls must begin with http:// or https://, got {url!r}.")
    if path.exists():
        return path
    if reason := forbidden():
        raise FetchError(reason)
    wanted = _Wanted(path.name, size, sha256, progress, timeout, tuple(pauses))
    part = _Part(path.with_name(f"{path.name}.part"))
    lock = path.with_name(f".{path.name}.lock")
    with clear_disk_errors(path.parent), exclusive(lock):
        if not path.exists():  # or another process has fetched it meanwhile
            try:
                _from_any(urls, wanted, part)
            except KeyboardInterrupt:
                if part.size:
                    print(f"{path.name}: what has come is kept in {part.path} and gone on with.", file=sys.stderr)
                raise
            os.replace(part.path, path)
            part.remove()
    # Whoever waits for it, or makes it anew, finds the file.
    lock.unlink(missing_ok=True)
    return path


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is to be fetched, and how."""

    name: str
    size: int | None
    sha256: str | None
    progress: bool
    timeout: float
    pauses: tuple[float, ...]

    def fault(self, path: Path) -> str:
        """What is wrong with a file that has come; empty for nothing."""
        found = path.stat().st_size
        if self.size is not None and found != self.size:
            return f"what came has {found:,} bytes instead of {self.size:,}"
        if self.sha256 is not None and (digest := file_sha256(path)) != self.sha256:
            return f"what came is another file: its SHA-256 is {digest} instead of {self.sha256}"
        return ""

    def say(self, text: str) -> None:
        if self.progress:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The beginning of a file, and beside it what is known of the whole: address, version and number of bytes."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        """The number of bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def known(self, url: str) -> dict[str, Any]:
        """Keys "version" (as If-Range takes it) and "bytes"; empty where it cannot be gone on with from there."""
        try:
            note = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            return {}
        usable = isinstance(note, dict) and note.get("url") == url and note.get("version") and self.size
        return note if usable else {}

    def size_of(self, url: str) -> int:
        """The number of bytes that need not be fetched again from there."""
        return self.size if self.known(url) else 0

    def begin(self, **note: Any) -> None:
        """Empties the file and notes what will be in it, in an order in which no crash mixes two files."""
        self.remove()
        write_json(self._note, note)
        self.path.touch()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _from_any(urls: Sequence[str], wanted: _Wanted, part: _Part) -> None:
    """Leaves the whole file in `part`.

    Raises:
      FetchError: no address has it.
    """
    failures = []
    for url in sorted(dict.fromkeys(urls), key=lambda url: not part.known(url)):
        if failures:
            wanted.say(f"not from {failures[-1]}")
        try:
            return _from_one(url, wanted, part)
        except _Final as error:
            failures.append(f"{url}: {error}")
    kept = f" What has come of it is kept in {part.path} and gone on with." if part.size else ""
    raise FetchError(f"{wanted.name} could not be fetched. {'. '.join(failures)}.{kept}")


def _from_one(url: str, wanted: _Wanted, part: _Part) -> None:
    """Leaves the whole file in `part`, after as many tries as it is worth.

    Raises:
      _Final: it cannot be had from there.
    """
    most, failed, reached, anew = part.size_of(url), 0, False, False
    while True:
        try:
            went_on = _attempt(url, wanted, part)
            fault = wanted.fault(part.path)
            if not fault:
                return
            part.remove()
            if not went_on or anew:
                raise _Final(fault)
            anew = True  # the beginning may have been what was wrong
            wanted.say(f"{fault}; once more from the beginning")
            continue
        except _Unreachable as error:
            if not reached:
                raise
            reason = str(error)
        except _Passing as error:
            reason, reached = str(error), True
        size = part.size_of(url)
        failed = 1 if size > most else failed + 1
        most = max(most, size)
        if failed > len(wanted.pauses):
            raise _Final(f"{reason}, after {failed} tries")
        pause = wanted.pauses[failed - 1]
        wanted.say(f"{reason}; again in {pause:g} s")
        time.sleep(pause)


def _attempt(url: str, wanted: _Wanted, part: _Part) -> bool:
    """One connection; whether it went on with what was there.

    Raises:
      _Passing, _Final: it did not come to the end of the file.
    """
    known = part.known(url)
    if known and part.size == known["bytes"]:
        return True  # ended before it was checked
    with _open(url, known, wanted, part) as response:
        start, total = _place(response, known, part)
        if wanted.size is not None and total not in (None, wanted.size):
            raise _Final(f"the file there has {total:,} bytes instead of {wanted.size:,}")
        if response.headers.get_content_type() == "text/html":
            raise _Final("there is a web page, not the file")
        total = wanted.size if total is None else total
        _check_room(part.path.parent, (total or 0) - start)
        if not start:
            part.begin(url=url, version=_version(response), bytes=total)
        title = f"{wanted.name} from {urllib.parse.urlsplit(url).hostname}"
        thousands = None if total is None else -(-total // 1000)
        with Progress(title, thousands, "kB", done=start // 1000, enabled=wanted.progress) as bar:
            _receive(response, part, total, bar)
    return bool(start)


def _open(url: str, known: dict[str, Any], wanted: _Wanted, part: _Part) -> http.client.HTTPResponse:
    """An answer of a server that has the file, or the rest of it."""
    headers = {"User-Agent": f"zoo/{zoo.__version__}", "Accept-Encoding": "identity"}
    if known:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": known["version"]}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=wanted.timeout)
    except urllib.error.HTTPError as error:
        with error:
            text = f"the server answers {error.code} {error.reason}".rstrip()
        if error.code == 416 and known:
            part.remove()
            raise _Passing("the server has no more of it than is here, which does not fit") from None
        raise (_Passing if error.code in _PASSING else _Final)(text) from None
    except urllib.error.URLError as error:
        raise _Unreachable(_reason(error.reason)) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise _Final(f"this is no address: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(_reason(error)) from None


def _place(response: http.client.HTTPResponse, known: dict[str, Any], part: _Part) -> tuple[int, int | None]:
    """From which byte on the server sends, and the number of bytes of the whole file, None where it is not said.

    A server that does not know Range, or has another file by now, sends all of it with status 200.
    """
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status != 206 or not known or span is None:
        raise _Final(f"the server answers {response.status} {response.reason}, which was not asked for")
    start, total = int(span[1]), int(span[2])
    # For servers that know Range and not If-Range. The version need not be said again.
    same = _version(response) in (None, known["version"]) and known["bytes"] in (None, total)
    if start != part.size or not same:
        part.remove()
        raise _Passing("the file there has changed since its beginning was fetched")
    return start, total


def _version(response: http.client.HTTPResponse) -> str | None:
    """What If-Range takes; a weak ETag does not tell whether two files are the same to the byte."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        # `clear_disk_errors` says what to do.
        raise OSError(errno.ENOSPC, f"{free / 2**20:,.1f} MB are free, {needed / 2**20:,.1f} MB are needed")


def _receive(response: http.client.HTTPResponse, part: _Part, total: int | None, bar: Progress) -> None:
    """Writes what comes behind what is there."""
    size = part.size
    with part.path.open("ab") as file:
        for block in _blocks(response):
            file.write(block)
            size += len(block)
            bar.advance(size // 1000 - bar.done)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and size != total:
        raise _Passing(f"the connection ended after {size:,} of {total:,} bytes")
    bar.advance((bar.total or bar.done) - bar.done)


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_reason(error)) from None
        if not block:
            return
        yield block


def _reason(error: Any) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
