"""Interleaved timing: round after round, every call once, so that a busy machine slows all alike."""

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping

SAMPLE_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a call, one per round: of the clock, and of the processor, all threads together."""

    samples: tuple[float, ...]
    cpu_samples: tuple[float, ...]


def interleave(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, sample_seconds: float = SAMPLE_SECONDS
) -> dict[str, Timing]:
    """Times each call `repeats` times, in turns.

    A first round, not counted, tells how many calls make up a sample of `sample_seconds`; before each sample of a quick
    call, one more is made that does not count, since the peer before has filled the caches. Each round begins with
    another call, so that none has always the same one before it.

    Args:
      calls: by name.
      repeats: rounds.
      sample_seconds: the least length of a sample.
    """
    names = list(calls)
    counts = {}
    for name in names:
        began = time.perf_counter()
        calls[name]()
        counts[name] = max(1, math.ceil(sample_seconds / max(time.perf_counter() - began, 1e-6)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    cpu_samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_collection():
        for turn in range(repeats):
            first = turn % max(1, len(names))
            for name in names[first:] + names[:first]:
                gc.collect()
                call, count = calls[name], counts[name]
                if count > 1:
                    call()
                began, began_cpu = time.perf_counter(), time.process_time()
                for _ in range(count):
                    call()
                samples[name].append((time.perf_counter() - began) / count)
                cpu_samples[name].append((time.process_time() - began_cpu) / count)
    return {name: Timing(tuple(samples[name]), tuple(cpu_samples[name])) for name in names}


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector does not run by itself inside."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
