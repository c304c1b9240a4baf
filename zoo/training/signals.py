"""SIGINT and SIGTERM: a run saves and leaves; what else is going on just leaves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The process was told to end. The exit code is 128 and the signal's number: 130 for SIGINT, 143 for SIGTERM.

    Args:
      signum: the signal.
      saved: what was saved, for the message; empty where there was nothing to save.
    """

    def __init__(self, signum: int, saved: str = ""):
        super().__init__(signum)
        self.signum, self.saved = signum, saved

    @property
    def exit_code(self) -> int:
        return 128 + self.signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{self.saved and '; ' + self.saved}"


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted`, so that what was begun is tidied up."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    with _handled(stop):
        yield


class StopRequest:
    """Inside, the first SIGINT or SIGTERM is only noted, as `signum`; a second one ends the process at once.

    Outside the main thread of a program signals cannot be caught; there it does nothing.
    """

    def __init__(self):
        self.signum: int | None = None

    def __enter__(self) -> "StopRequest":
        self._context = _handled(self._note)
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)


@contextmanager
def _handled(handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
