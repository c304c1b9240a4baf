"""Traces of a few updates by JAX's profiler: `--profile steps=20:30`."""

import contextlib
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax


def parse_profile(text: str) -> tuple[int, int]:
    """Reads "steps=20:30", the updates after step 20 up to and with step 30, that is 21 to 30.

    Raises:
      ValueError: it is anything else, or holds no update.
    """
    match = re.fullmatch(r"steps=([0-9]+):([0-9]+)", text)
    window = (int(match[1]), int(match[2])) if match else (0, 0)
    if window[0] >= window[1]:
        raise ValueError(
            "--profile is written steps=FIRST:LAST with 0 <= FIRST < LAST, for example steps=20:30 for the updates "
            f"after step 20 up to step 30; got {text!r}."
        )
    return window


def check_window(window: tuple[int, int], start: int, steps: int) -> None:
    """Refuses a window of which a run from step `start` to step `steps` makes no update.

    Raises:
      ValueError: with the window and the step that it misses.
    """
    first, last = window
    if first >= steps:
        raise ValueError(f"--profile steps={first}:{last} begins after the last step, {steps}.")
    if last <= start:
        raise ValueError(f"--profile steps={first}:{last} ends before this run goes on, after step {start}.")


class Profiler:
    """Traces the updates of a window; does nothing outside it.

    An update is made as: `before(step)`; the update, under `annotate(step)`; `after(step + 1, wait)`.

    Args:
      folder: the run directory; traces go to its folder `profile`, each to one of its own.
      window: see `parse_profile`; None for no trace.
      tell: called with a text that says where a trace is and how to look at it; prints to standard error if None.
    """

    def __init__(self, folder: Path, window: tuple[int, int] | None, *, tell: Callable[[str], None] | None = None):
        self._folder, self._window = folder / "profile", window
        self._tell = tell or (lambda text: print(text, file=sys.stderr, flush=True))
        self._running = False
        self._first = self._newest = 0
        self._name = ""

    def before(self, step: int) -> None:
        """To be called before each update with the number of steps that are done."""
        # Not only at the window's begin: a run may be resumed in the middle.
        if not self._running and self._window is not None and self._window[0] <= step < self._window[1]:
            self._first, self._newest = step + 1, step
            self._name = self._free_name(f"updates-{step + 1}-{self._window[1]}")
            options = jax.profiler.ProfileOptions()
            options.session_id = self._name  # the default is the second, in which another trace may have ended
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True

    def annotate(self, step: int) -> contextlib.AbstractContextManager:
        """A context for the update after step `step`, which the trace then shows as "train" with its number."""
        if not self._running:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=step + 1)

    def after(self, step: int, wait: Callable[[], None]) -> None:
        """To be called after each update.

        Args:
          step: the number of steps that are handed to the device, this one included.
          wait: returns when the device has done them; called at the window's end only.
        """
        if self._running and self._window is not None:
            self._newest = step
            if step >= self._window[1]:
                wait()
                self._stop()

    def close(self) -> None:
        """Ends a trace that still runs, because the run ends within the window; what was traced is kept."""
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        place = self._traces / self._name
        files = sorted(place.glob("*.trace.json.gz"))
        self._tell(
            f"The trace of updates {self._first} to {self._newest} is in {place}. To look at it: pip install xprof and "
            f"xprof --logdir {self._folder} (or TensorBoard with its profile plugin), or open "
            f"{files[0] if files else 'its .trace.json.gz file'} at https://ui.perfetto.dev."
        )

    @property
    def _traces(self) -> Path:
        return self._folder / "plugins" / "profile"  # where XProf and TensorBoard look

    def _free_name(self, name: str) -> str:
        """The name, numbered where an earlier process left a trace of it."""
        names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        return next(free for free in names if not (self._traces / free).exists())
