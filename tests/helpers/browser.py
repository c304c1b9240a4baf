"""Drives a headless Chromium by the DevTools protocol, over two pipes."""

import base64
import contextlib
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"),
    *("--no-first-run", "--hide-scrollbars", "--disable-background-networking", "--remote-debugging-pipe"),
)


class BrowserError(RuntimeError):
    """The browser ended, took too long, or refused a command."""


def find_browser() -> str | None:
    """The command of a Chromium that is installed, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
    return next(filter(None, map(shutil.which, names)), None)


class Page:
    """One tab; see `open_page`.

    Attributes:
      said: what went to the console, errors and exceptions among it, in order.
      asked: addresses that the page asked for.
    """

    def __init__(self, send: int, receive: int, seconds: float):
        self.said: list[str] = []
        self.asked: list[str] = []
        self._send, self._receive, self._seconds = send, receive, seconds
        self._number, self._buffer, self._session = 0, b"", ""
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[str] = []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the DevTools protocol and waits for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        self._wait(lambda: self._number in self._answers, method)
        answer = self._answers.pop(self._number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        return answer["result"]

    def load(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, hash: str = "") -> None:
        """Opens a file at a size in pixels and with a colour scheme, and waits until it is loaded."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        for address in ("about:blank", path.resolve().as_uri() + hash):  # else a new hash alone loads nothing
            self._events.clear()
            self.command("Page.navigate", url=address)
            self._wait(lambda: "Page.loadEventFired" in self._events, f"loading {address}")
        self.asked[:] = [address for address in self.asked if address != "about:blank"]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A press of a key, as a person's."""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Writes a PNG of the page, all of it or what fits."""
        found = self.command("Page.captureScreenshot", captureBeyondViewport=whole, **(self._clip() if whole else {}))
        path.write_bytes(base64.b64decode(found["data"]))

    def _clip(self) -> dict[str, Any]:
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}}

    def _wait(self, done: Any, what: str) -> None:
        limit = time.monotonic() + self._seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._receive, selectors.EVENT_READ)
            while not done():
                if not selector.select(max(0.0, limit - time.monotonic())):
                    raise BrowserError(f"{what}: no answer in {self._seconds} s")
                data = os.read(self._receive, 1 << 16)
                if not data:
                    raise BrowserError(f"{what}: the browser ended")
                *messages, self._buffer = (self._buffer + data).split(b"\0")
                for message in messages:
                    self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, found = message["method"], message.get("params", {})
        self._events.append(method)
        if method == "Runtime.consoleAPICalled":
            self.said.append(f"{found['type']}: {[each.get('value') for each in found['args']]}")
        elif method == "Runtime.exceptionThrown":
            self.said.append(f"exception: {found['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.said.append(f"{found['entry']['level']}: {found['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(found["request"]["url"])


@contextlib.contextmanager
def open_page(command: str, profile: Path, seconds: float = 120.0) -> Iterator[Page]:
    """Starts a browser with a profile of its own in a folder, and ends it.

    Args:
      command: see `find_browser`.
      profile: an empty folder.
      seconds: how long any one command may take.
    """
    to_browser, ours = os.pipe()
    receive, write = os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to 4.
    script = f'exec "$@" 3<&{to_browser} 4>&{write}'
    arguments = [command, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        ["bash", "-c", script, "bash", *arguments],
        pass_fds=(to_browser, write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as process:
        os.close(to_browser)
        os.close(write)
        try:
            yield Page(ours, receive, seconds)
        finally:
            os.close(ours)
            os.close(receive)
            try:
                process.wait(10)  # it ends with its pipes
            except subprocess.TimeoutExpired:
                process.kill()
