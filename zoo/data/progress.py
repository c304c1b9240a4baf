"""How far a long job is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, TextIO


class Progress:
    """Reports progress to standard error, with the rate and the time left; used as a context manager.

    Args:
      title: what is being made.
      total: how many units make the whole; None where that is not known.
      unit: name of a unit, in the plural.
      done: units that an earlier run left finished; they do not count in the rate.
      enabled: False for silence.
      every: seconds between plain lines.
      stream: where to write; standard error if None.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        enabled: bool = True,
        every: float = 5.0,
        stream: TextIO | None = None,
    ):
        self.title, self.total, self.unit, self.done = title, total, unit, done
        self._before, self._enabled, self._every = done, enabled, every
        self._stream = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._start = self._printed = time.monotonic()
        if self._enabled and self._stream.isatty():
            self._bar, self._task = self._make_bar()
            self._bar.start()
        elif self._enabled:
            self._line(f"{self._state()} were finished before" if self.done else "starting")
        return self

    def advance(self, count: int) -> None:
        """Adds finished units."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self._rate())
        elif self._enabled and time.monotonic() - self._printed >= self._every:
            line = f"{self._state()}, {self._rate():,.0f}/s"
            if self.total is not None:
                line += f", {(self.total - self.done) / max(self._rate(), 1e-9):,.0f} s left"
            self._line(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._enabled:
            seconds = time.monotonic() - self._start
            state = "done" if kind is None else "stopped"
            self._line(f"{state}, {self._state()} in {seconds:,.1f} s")

    def _state(self) -> str:
        whole = "" if self.total is None else f" of {self.total:,}"
        return f"{self.done:,}{whole} {self.unit}"

    def _rate(self) -> float:
        return (self.done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def _line(self, text: str) -> None:
        self._printed = time.monotonic()
        print(f"{self.title}: {text}", file=self._stream, flush=True)

    def _make_bar(self) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} {task.fields[unit]}/s"),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
        )
        return bar, bar.add_task(self.title, total=self.total, completed=self.done, rate=0.0, unit=self.unit)
