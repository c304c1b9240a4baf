"""A web server on this machine that serves bytes, and misbehaves as it is told."""

import contextlib
import dataclasses
import http.server
import threading
import time
from collections.abc import Iterator

import pytest


@dataclasses.dataclass
class Served:
    """A file of the server.

    Attributes:
      data: what is in it.
      tag, modified: its ETag and Last-Modified, None for none.
      ranges, if_range: whether the server knows these headers.
      length: whether it says how long the file is.
      breaks: after how many bytes the connection breaks, at one request after the other; then no more.
      answers: status codes without a file, at one request after the other; then no more.
      to: where it is redirected to.
      kind: its Content-Type.
      seconds: how long the server takes to answer.
    """

    data: bytes
    tag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    if_range: bool = True
    length: bool = True
    breaks: list[int] = dataclasses.field(default_factory=list)
    answers: list[int] = dataclasses.field(default_factory=list)
    to: str = ""
    kind: str = "application/octet-stream"
    seconds: float = 0.0


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; `asked` has path and Range header of every request."""

    daemon_threads = False
    block_on_close = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, request, client_address):
        """A client that leaves midway is what these tests are about: nothing to print."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.asked.append((path, self.headers["Range"]))
        file = self.server.files.get(path)
        if file is None:
            return self.send_error(404)
        if file.to:
            self.send_response(302)
            self.send_header("Location", file.to)
            return self.end_headers()
        if file.answers:
            return self.send_error(file.answers.pop(0))
        self._send(file)

    def _send(self, file: Served) -> None:
        time.sleep(file.seconds)
        start = self._start(file)
        if start is not None and start >= len(file.data):
            return self.send_error(416)
        body = file.data[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(file.data) - 1}/{len(file.data)}")
        sent = {"ETag": file.tag, "Last-Modified": file.modified, "Content-Type": file.kind}
        if file.length:
            sent["Content-Length"] = str(len(body))
        for name, value in sent.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: file.breaks.pop(0)] if file.breaks else body)

    def _start(self, file: Served) -> int | None:
        asked = self.headers["Range"]
        if asked is None or not file.ranges:
            return None
        if file.if_range and self.headers["If-Range"] not in (None, file.tag, file.modified):
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextlib.contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and the leave to fetch from it."""
    patch.delenv("ZOO_OFFLINE", raising=False)
    patch.delenv("ZOO_MIRROR", raising=False)
    patch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
