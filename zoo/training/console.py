"""What a person sees of a run: a bar on a terminal, plain lines in a log."""

import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path


def memory_text() -> str:
    """The first device's memory in use and its limit ("3.1/80 GB"), or that of this process ("1.2 GB") on a CPU."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_in_use" not in stats:
        return f"{_resident_bytes() / 1e9:.1f} GB"
    limit = f"/{stats['bytes_limit'] / 1e9:.0f}" if stats.get("bytes_limit") else ""
    return f"{stats['bytes_in_use'] / 1e9:.1f}{limit} GB"


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the peak is the nearest that there is
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def duration_text(seconds: float) -> str:
    """A duration to read: "75 s", "12 min", "1 h 02 min", "3 d 04 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


class _Pace:
    """Steps a second of late, and the time left. Pauses (to compile, evaluate, save) do not slow the rate.

    Args:
      done: steps done before.
    """

    memory_seconds = 30.0

    def __init__(self, done: int):
        self._start = self._done = done
        self._steps = self._seconds = 0.0
        self._since: float | None = None  # when the step in progress began; None where that is not known
        self._doing, self._began = "", 0.0
        self._pauses: dict[str, tuple[int, float]] = {}  # by kind: how many, and their seconds for each step so far

    def step(self, done: int) -> None:
        now = time.monotonic()
        if self._doing:
            self.pause("")
        elif self._since is not None:
            seconds = now - self._since
            kept = math.exp(-seconds / self.memory_seconds)
            self._steps = kept * self._steps + done - self._done
            self._seconds = kept * self._seconds + seconds
        self._since, self._done = now, done

    def pause(self, kind: str) -> None:
        """From now on `kind` is done instead of steps; "" for steps again."""
        if kind == self._doing:
            return
        now = time.monotonic()
        # The step after a compilation is the first in the device's queue: it is handed over, not done, in no time.
        self._since = None if self._doing == "compiling" else now
        if self._doing not in ("", "compiling"):
            count = self._pauses.get(self._doing, (0, 0.0))[0] + 1
            # The newest is taken for all, because the first one compiles.
            self._pauses[self._doing] = count, count * (now - self._began) / max(self._done - self._start, 1)
        self._doing, self._began = kind, now

    def rate(self) -> float:
        """Steps a second; 0 where it is not known yet."""
        return self._steps / self._seconds if self._seconds else 0.0

    def seconds_left(self, total: int) -> float:
        """With evaluations and checkpoints as often as so far; 0 where it is not known yet."""
        seconds = 1 / self.rate() + sum(share for _, share in self._pauses.values()) if self.rate() else 0.0
        return (total - self._done) * seconds

    def texts(self, total: int, left_word: str = "") -> list[str]:
        """Rate and time left, as far as they are known."""
        rate, left = self.rate(), self.seconds_left(total)
        if not rate:
            return []
        digits = 2 if rate < 10 else 1 if rate < 100 else 0
        text = f"{rate:.{digits}f} step/s" if rate >= 0.1 else f"{1 / rate:.0f} s/step"
        return [text, duration_text(left) + left_word] if left else [text]


class Console:
    """Progress: a bar on a terminal, plain lines in a log; silent if not `enabled`.

    Args:
      total: number of steps.
      start: steps done before this process.
      enabled: print at all.
    """

    def __init__(self, total: int, *, start: int = 0, enabled: bool = True):
        self._total, self._done, self._enabled = total, start, enabled
        self._pace = _Pace(start)
        self._status = self._numbers = self._memory = ""
        self._looked = -math.inf
        self._told_compiling = False
        self._progress = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn

            # All numbers are one text, of which a narrow terminal cuts no more than the end.
            text = TextColumn("{task.fields[text]}", markup=False)
            self._progress = Progress(BarColumn(bar_width=6), text, console=RichConsole(stderr=True))
            self._bar = self._progress.add_task("train", total=total, completed=start, text="")
            self._progress.start()
            self._show()

    def step(self, done: int) -> None:
        """`done` steps are done, and what `status` said is over."""
        self._done, self._status = done, ""
        if self._enabled:
            self._pace.step(done)
            self._show()

    def status(self, text: str) -> None:
        """Shows on the bar what is done instead of steps ("compiling", "saving"), until the next step or ""."""
        self._status = text
        if not self._enabled:
            return
        kind = text.partition(" ")[0]
        self._pace.pause(kind)
        self._show()
        if self._progress is None and kind == "compiling" and not self._told_compiling:
            self._told_compiling = True
            self.line(text)

    def evaluation(self, done: int, total: int) -> None:
        """Shows on the bar how far an evaluation is, in batches."""
        self.status(f"validation {done}/{total}")

    def metrics(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Shows metrics as of `step`."""
        shown = {name: value for name, value in metrics.items() if name != "examples"}
        text = " ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if not self._enabled:
            return
        if split != "train":
            self.line(f"step {step}/{self._total} {split} {text}")
        elif self._progress is None:
            how = [*self._pace.texts(self._total, " left"), self._memory_now()]
            self.line(f"step {step}/{self._total} train {', '.join([text, *how])}")
        else:
            short = [f"{name} {_short(value)}" for name, value in shown.items() if name not in ("grad_norm", "lr")]
            self._numbers = " ".join(short)
            self._show()

    def line(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        elif self._enabled:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._progress is not None:
            self._progress.stop()

    def _show(self) -> None:
        if self._progress is not None:
            doing = [self._status] if self._status else self._pace.texts(self._total)
            parts = [f"{self._done}/{self._total}", *doing, self._memory_now(), self._numbers]
            self._progress.update(self._bar, completed=self._done, text=" ".join(parts).rstrip())

    def _memory_now(self) -> str:
        if time.monotonic() - self._looked >= 1:
            self._memory, self._looked = memory_text(), time.monotonic()
        return self._memory


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"
