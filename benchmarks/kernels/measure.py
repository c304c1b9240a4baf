"""One op at one length: every peer checked against the float64 reference, and those that are right timed together."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.kernels.cases import BFLOAT16, BFLOAT16_X3, OURS, Arrays, Peer, Sizes, make_inputs, reference_of
from benchmarks.kernels.prepare import PASSES, TRAINING, Call, prepare, reference
from benchmarks.kernels.timing import SAMPLE_SECONDS, interleave

TOLERANCE = {"float32": 2e-5, BFLOAT16_X3: 5e-5, BFLOAT16: 2e-2}
TIMED, WRONG, FAILED, LEFT_OUT, NOT_INSTALLED, NEEDS_DEVICE = (
    "timed",
    "wrong",
    "failed",
    "left out",
    "not installed",
    "needs another device",
)


@dataclasses.dataclass
class Record:
    """One line of the results: a peer at one op, length, pass and number of threads.

    Attributes:
      status: "timed", or why there is no time: "wrong", "failed", "left out", "not installed", "needs another device";
        `reason` says more.
      error: per array ("y", gradients "du", ...), max|a - b| / max|b| against the float64 reference.
      seconds: the median of `samples`.
      cpu_seconds: the median of the processor's seconds, all threads together. With one thread on a quiet machine they
        are the same.
      memory_bytes: of what `memory_of` says.
      ratio: `seconds` over those of ours in the same round-robin.
    """

    op: str
    length: int
    threads: str
    which: str
    peer: str
    framework: str
    dtype: str
    status: str = TIMED
    reason: str = ""
    error: dict[str, float] = dataclasses.field(default_factory=dict)
    tolerance: float | None = None
    seconds: float | None = None
    samples: tuple[float, ...] = ()
    cpu_seconds: float | None = None
    compile_seconds: float | None = None
    memory_bytes: int | None = None
    memory_of: str = ""
    ratio: float | None = None


def errors(got: Arrays, expected: Arrays) -> dict[str, float]:
    """max|a - b| / max|b| of every array of `got`; infinite where one is not finite or of another shape."""
    found = {}
    for name, a in got.items():
        b = expected[name]
        if a.shape != b.shape or not np.isfinite(a).all():
            found[name] = float("inf")
        else:
            found[name] = float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float32).tiny))
    return found


def measure(
    op: str,
    length: int,
    peers: Sequence[Peer],
    sizes: Sizes,
    *,
    threads: str,
    repeats: int,
    platform: str = "cpu",
    sample_seconds: float = SAMPLE_SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> list[Record]:
    """Both passes of every peer of one op at one length.

    Args:
      op, length, sizes: the case.
      peers: ours and the others.
      threads: "one" or "all", for the records; setting them is the process's affair.
      repeats: rounds of timing.
      platform: JAX's name of the device's kind.
      sample_seconds: the least length of a sample.
      say: takes lines of progress.
    """
    arrays, cotangent = make_inputs(op, length, sizes)
    expected = reference(op, arrays, cotangent, reference_of(op, length, sizes))
    records = []
    for which in PASSES:
        found, calls = [], {}
        for peer in peers:
            record = Record(op, length, threads, which, peer.name, peer.framework, peer.dtype)
            found.append(record)
            call = _check(peer, record, arrays, cotangent, expected, platform)
            if call is not None:
                calls[peer.name] = call.run
        for name, timing in interleave(calls, repeats, sample_seconds=sample_seconds).items():
            record = next(record for record in found if record.peer == name)
            record.samples, record.seconds = timing.samples, statistics.median(timing.samples)
            record.cpu_seconds = statistics.median(timing.cpu_samples)
        set_ratios(found)
        records += found
        say(progress(found))
    return records


def set_ratios(records: Iterable[Record]) -> None:
    """Fills in `ratio` from the seconds of ours, where it was timed."""
    records = list(records)
    ours = next((record.seconds for record in records if record.peer == OURS), None)
    for record in records:
        record.ratio = record.seconds / ours if ours and record.seconds is not None else None


def progress(records: Sequence[Record]) -> str:
    """One line on one case."""
    first = records[0]
    parts = []
    for record in records:
        if record.seconds is not None:
            ratio = "" if record.ratio is None or record.peer == OURS else f" ({record.ratio:.2f}x)"
            parts.append(f"{record.peer} {record.seconds * 1e3:.1f} ms{ratio}")
        elif record.status in (WRONG, FAILED):
            parts.append(f"{record.peer} {record.status}: {record.reason}")
    return f"{first.op} T={first.length} {first.which}, threads {first.threads}: " + "; ".join(parts)


def _check(
    peer: Peer, record: Record, arrays: Arrays, cotangent: np.ndarray, expected: Arrays, platform: str
) -> Call | None:
    """Prepares a peer and compares it with the reference; says in the record why it is not to be timed, if so."""
    record.tolerance = TOLERANCE[peer.dtype]
    why = _unavailable(peer, record.which, record.length, platform)
    if why is None:
        try:
            call = prepare(peer, record.which, arrays, cotangent)
            record.error = errors(call.fetch(), expected)
        except Exception as error:
            # Packages change their interfaces, and devices run out of memory: one peer less, said so in the table.
            why = FAILED, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        else:
            record.compile_seconds = call.compile_seconds
            if call.temporary_bytes is not None:
                record.memory_bytes, record.memory_of = call.temporary_bytes, "temporaries of the compiled program"
            worst = max(record.error, key=lambda name: record.error[name])
            if record.error[worst] <= record.tolerance:
                return call
            why = WRONG, f"{worst} is off by {record.error[worst]:.1e} of its largest value"
    record.status, record.reason = why
    return None


def _unavailable(peer: Peer, which: str, length: int, platform: str) -> tuple[str, str] | None:
    missing = peer.missing()
    if missing:
        return NOT_INSTALLED, ", ".join(missing)
    if peer.devices and platform not in peer.devices:
        return NEEDS_DEVICE, " or ".join(name.upper() for name in peer.devices)
    if which == TRAINING and peer.backward_up_to is not None and length > peer.backward_up_to:
        return LEFT_OUT, peer.reason
    return None
