"""The lines to reach, and whether a run reaches them."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.kernels.cases import DELTA_CHUNKED, LOOP, OURS, SCAN
from benchmarks.kernels.measure import TIMED, Record
from benchmarks.kernels.prepare import FORWARD, TRAINING

TIME, MEMORY, COMPILE = "time", "memory", "compile"
MET, MISSED, OPEN = "met", "missed", "not measured"


@dataclasses.dataclass(frozen=True)
class Target:
    """One line: what a peer takes over what ours takes is at least `bound`; for COMPILE, ours is at most `bound` s.

    Attributes:
      op: the op.
      which: "forward" or "training".
      quantity: TIME, MEMORY or COMPILE.
      bound: the least ratio, or the most seconds.
      peer: the other one.
      lengths: the T that it is for; () for all that were measured.
    """

    op: str
    which: str
    quantity: str
    bound: float
    peer: str = ""
    lengths: tuple[int, ...] = ()

    def __str__(self) -> str:
        step = "forward pass" if self.which == FORWARD else "training step"
        if self.quantity == COMPILE:
            return f"{self.op}, {step}: compiles in at most {self.bound:g} s"
        if self.quantity == MEMORY:
            return f"{self.op}, {step}: at most 1/{self.bound:g} of the memory of {self.peer}"
        if self.bound < 1:
            return f"{self.op}, {step}: at most {1 / self.bound:.3g}x the time of {self.peer}"
        return f"{self.op}, {step}: at least {self.bound:g}x as fast as {self.peer}"


LONG = (1024, 4096)
TARGETS = (
    Target("selective_scan", TRAINING, TIME, 3.0, LOOP, LONG),
    Target("selective_scan", TRAINING, TIME, 2.5, SCAN, LONG),
    Target("selective_scan", TRAINING, MEMORY, 8.0, SCAN, LONG),
    Target("gated_delta_rule", TRAINING, TIME, 1.7, DELTA_CHUNKED, LONG),
    Target("gated_delta_rule", TRAINING, TIME, 4.0, SCAN, LONG),
    Target("gated_delta_rule", TRAINING, MEMORY, 8.0, SCAN, LONG),
    *(
        Target(op, FORWARD, TIME, 1 / 1.1, SCAN)
        for op in ("selective_scan", "gated_delta_rule", "gated_linear_attention")
    ),
    *(
        Target(op, TRAINING, COMPILE, 10.0)
        for op in ("selective_scan", "gated_delta_rule", "gated_linear_attention", "causal_conv1d")
    ),
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target at one length and number of threads.

    Attributes:
      target: its text.
      value: the ratio, or the seconds; None where something was not measured.
      status: "met", "missed", "not measured".
      short_by: how far from the bound, as a part of it, where missed.
    """

    target: str
    length: int
    threads: str
    bound: float
    value: float | None
    status: str
    short_by: float | None = None


def judge(records: Sequence[Record], targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """Every target at every length and number of threads that the records have."""
    return [verdict for target in targets for verdict in _judge(target, records)]


def _judge(target: Target, records: Sequence[Record]) -> Iterator[Verdict]:
    found = {
        (record.length, record.threads, record.peer): record
        for record in records
        if record.op == target.op and record.which == target.which
    }
    for length, threads in dict.fromkeys((length, threads) for length, threads, _ in found):
        if target.lengths and length not in target.lengths:
            continue
        value = _value(target, found.get((length, threads, OURS)), found.get((length, threads, target.peer)))
        yield _verdict(target, length, threads, value)


def _value(target: Target, ours: Record | None, peer: Record | None) -> float | None:
    if ours is None or ours.status != TIMED:
        return None
    if target.quantity == COMPILE:
        return ours.compile_seconds
    if peer is None or peer.status != TIMED:
        return None
    if target.quantity == TIME:
        return peer.ratio
    # Figures of two kinds (a compiler's plan, a process's growth) have no ratio.
    if not ours.memory_bytes or peer.memory_bytes is None or ours.memory_of != peer.memory_of:
        return None
    return peer.memory_bytes / ours.memory_bytes


def _verdict(target: Target, length: int, threads: str, value: float | None) -> Verdict:
    make = lambda status, short_by=None: Verdict(  # noqa: E731
        str(target), length, threads, target.bound, value, status, short_by
    )
    if value is None:
        return make(OPEN)
    if target.quantity == COMPILE:
        return make(MET) if value <= target.bound else make(MISSED, value / target.bound - 1)
    return make(MET) if value >= target.bound else make(MISSED, 1 - value / target.bound)
