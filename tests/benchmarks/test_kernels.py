"""The benchmark of the recurrent ops at tiny shapes, and the arithmetic of its report. Speed itself is not a test."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """`benchmarks` is not installed: it is imported from the checkout."""
    monkeypatch.syspath_prepend(str(REPO))


def jax_peers(op: str):
    from benchmarks.kernels.cases import peers_of

    return [peer for peer in peers_of(op) if peer.framework == "jax" and not peer.devices]


def measured(op: str, peers=None, length: int = 5):
    from benchmarks.kernels.cases import TINY
    from benchmarks.kernels.measure import measure

    said = []
    found = measure(
        op, length, peers or jax_peers(op), TINY, threads="all", repeats=2, sample_seconds=0.0, say=said.append
    )
    assert len(said) == 2
    return found


@pytest.mark.parametrize(
    "op",
    [
        "causal_conv1d",
        *(
            pytest.param(op, marks=pytest.mark.slow)
            for op in ("selective_scan", "gated_delta_rule", "gated_linear_attention")
        ),
    ],
)
def test_peers_in_jax_are_right_and_timed(op):
    """Every peer agrees with the reference in values and in every gradient, and has its figures."""
    from benchmarks.kernels.cases import TINY, make_inputs

    names = {f"d{name}" for name in make_inputs(op, 5, TINY)[0]}
    records = measured(op)
    assert [(record.peer, record.which) for record in records] == [
        (peer.name, which) for which in ("forward", "training") for peer in jax_peers(op)
    ]
    for record in records:
        assert record.status == "timed", record
        assert set(record.error) == ({"y"} if record.which == "forward" else {"y"} | names)
        assert max(record.error.values()) < record.tolerance
        assert len(record.samples) == 2
        assert record.seconds == np.median(record.samples) > 0
        assert record.compile_seconds > 0
        assert record.memory_bytes > 0 or op == "causal_conv1d"
        ours = next(other for other in records if other.which == record.which)
        assert record.ratio == record.seconds / ours.seconds


def broken(x, w, b):
    return x


def stopped(x, w, b):
    raise MemoryError("no room\nfor this")


def test_a_wrong_and_a_failing_peer_are_not_timed(monkeypatch):
    from benchmarks.kernels import peers_jax

    ours, other = jax_peers("causal_conv1d")
    monkeypatch.setattr(peers_jax, "broken", broken, raising=False)
    monkeypatch.setattr(peers_jax, "stopped", stopped, raising=False)
    make = lambda name, **facts: dataclasses.replace(other, name=name, **facts)  # noqa: E731
    peers = [
        ours,
        make("broken", function="peers_jax:broken"),
        make("stopped", function="peers_jax:stopped"),
        make("absent", needs=("no_such_module",)),
        make("cuda", devices=("gpu",)),
        make("slow", backward_up_to=4, reason="minutes"),
    ]
    records = {(record.peer, record.which): record for record in measured("causal_conv1d", peers)}
    expected = {"broken": "wrong", "stopped": "failed", "absent": "not installed", "cuda": "needs another device"}
    for (peer, which), record in records.items():
        status = "left out" if (peer, which) == ("slow", "training") else expected.get(peer, "timed")
        assert record.status == status, record
        assert (record.seconds is None) == (record.ratio is None) == (status != "timed")
    assert records["broken", "training"].reason.startswith("d")
    assert records["stopped", "forward"].reason == "MemoryError: no room"
    assert records["absent", "forward"].reason == "no_such_module"


def test_errors_are_relative_to_the_largest_value():
    from benchmarks.kernels.measure import errors

    expected = {"y": np.array([100.0, 1.0]), "du": np.array([1e-3]), "dv": np.ones(3), "dw": np.zeros(2)}
    got = {"y": np.array([100.0, 2.0]), "du": np.array([2e-3]), "dv": np.array([1.0, np.nan, 1.0]), "dw": np.zeros(2)}
    found = errors(got, expected)
    assert found["y"] == pytest.approx(0.01)
    assert found["du"] == pytest.approx(1.0)
    assert found["dv"] == np.inf
    assert found["dw"] == 0.0
    assert errors({"y": np.zeros(3)}, expected) == {"y": np.inf}


def test_timing_takes_turns():
    """Each round begins with another call; a quick call is made several times for a sample, and once before it."""
    from benchmarks.kernels.timing import interleave

    made = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    found = interleave(calls, 3, sample_seconds=0.0)
    assert "".join(made) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(timing.samples) for name, timing in found.items()} == {"a": 3, "b": 3, "c": 3}
    made.clear()
    interleave({"a": calls["a"]}, 1, sample_seconds=1e-4)
    assert len(made) > 3


def record(peer="zoo", ms=1.0, *, op="selective_scan", length=1024, threads="one", which="training", **facts):
    from benchmarks.kernels.measure import Record

    facts = {"compile_seconds": 1.5, "memory_bytes": 10, "memory_of": "plan", "error": {"y": 1e-7}} | facts
    seconds = None if ms is None else ms / 1e3
    framework = "torch" if "torch" in peer else "jax"
    return Record(op, length, threads, which, peer, framework, "float32", seconds=seconds, cpu_seconds=seconds, **facts)


def example():
    from benchmarks.kernels.measure import set_ratios

    training = [
        record(ms=100.0),
        record("jax.lax.scan", 260.0, memory_bytes=79),
        record("torch loop", 270.0, memory_of="growth", memory_bytes=500),
        record("mambapy pscan", None, status="wrong", reason="du is off by 1.0e+00 of its largest value"),
    ]
    forward = [record(ms=10.0, which="forward"), record("jax.lax.scan", 9.5, which="forward")]
    longer = [record(ms=400.0, length=4096, compile_seconds=12.0), record("jax.lax.scan", 900.0, length=4096)]
    longer += [record("torch loop", None, length=4096, status="failed", reason="MemoryError")]
    for group in (training, forward, longer):
        set_ratios(group)
    return training + forward + longer


def test_targets_are_judged():
    from benchmarks.kernels.targets import judge

    records = example()
    assert [found.ratio for found in records[:4]] == [1.0, 2.6, 2.7, None]
    found = {(verdict.target, verdict.length): verdict for verdict in judge(records)}
    step = "selective_scan, training step: "

    def status(target, length):
        verdict = found[target, length]
        return verdict.status, verdict.value, verdict.short_by and round(verdict.short_by, 4)

    assert status(f"{step}at least 3x as fast as torch loop", 1024) == ("missed", 2.7, 0.1)
    assert status(f"{step}at least 3x as fast as torch loop", 4096) == ("not measured", None, None)
    assert status(f"{step}at least 2.5x as fast as jax.lax.scan", 1024) == ("met", 2.6, None)
    assert status(f"{step}at least 2.5x as fast as jax.lax.scan", 4096) == ("missed", 2.25, 0.1)
    assert status(f"{step}at most 1/8 of the memory of jax.lax.scan", 1024) == ("missed", 7.9, 0.0125)
    assert status(f"{step}compiles in at most 10 s", 1024) == ("met", 1.5, None)
    assert status(f"{step}compiles in at most 10 s", 4096) == ("missed", 12.0, 0.2)
    forward = "selective_scan, forward pass: at most 1.1x the time of jax.lax.scan"
    assert status(forward, 1024) == ("met", 0.95, None)
    assert len(found) == 9


def test_memory_of_two_kinds_has_no_ratio():
    from benchmarks.kernels.targets import MEMORY, Target, judge

    target = Target("selective_scan", "training", MEMORY, 8.0, "torch loop")
    assert {verdict.status for verdict in judge(example(), [target])} == {"not measured"}


ABOUT = {
    "device": "1 x cpu",
    "platform": "cpu",
    "processor": "2 x Some",
    "cores": 2,
    "commit": "abc",
    "date": "today",
    "repeats": 5,
    "load_before": 0.1,
    "load_after": 1.2,
    "packages": {"torch": "not installed"},
}


def test_report_and_its_json(tmp_path):
    """The tables say what the records say; JSON gives them back; the picture is written."""
    pytest.importorskip("matplotlib")
    from benchmarks.kernels.__main__ import write
    from benchmarks.kernels.cases import TINY
    from benchmarks.kernels.report import from_json

    stem = write(tmp_path, ABOUT, TINY, example())
    assert stem.name == "kernels_cpu"
    table = stem.with_suffix(".md").read_text()
    for line in (
        "3 met, 5 missed, 1 not measured.",
        "| target | one thread, T 1024 | one thread, T 4096 |",
        "training step: at least 3x as fast as torch loop | **2.70x, missed by 10 %** | not measured |",
        "| selective_scan, training step: compiles in at most 10 s | 1.5 s, met | **12.0 s, missed by 20 %** |",
        "| jax.lax.scan | 9.5 (0.95x) | - | 260 (2.60x) | 900 (2.25x) |",
        "- mambapy pscan: wrong (du is off by 1.0e+00 of its largest value); training step, T 1024",
        "- torch loop: failed (MemoryError); training step, T 4096",
        "torch not installed",
    ):
        assert line in table, line
    about, sizes, records = from_json(stem.with_suffix(".json").read_text())
    assert (about, sizes) == (ABOUT, TINY)
    assert [dataclasses.asdict(found) for found in records] == [
        {**dataclasses.asdict(found), "samples": []} for found in example()
    ]
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_every_op_has_ours_first_and_inputs_of_its_shapes():
    from benchmarks.kernels.cases import OPS, OURS, Sizes, make_inputs, peers_of

    for op, length in itertools.product(OPS, (1, 7)):
        ours, named, *others = peers_of(op, ["xla"])
        assert (ours.name, named.name, named.implementation) == (OURS, f"{OURS}, xla", "xla")
        assert others
        arrays, cotangent = make_inputs(op, length, Sizes())
        assert {x.dtype for x in (*arrays.values(), cotangent)} == {np.dtype(np.float32)}
        assert cotangent.shape[:2] == (4, length)
    with pytest.raises(ValueError, match="no op 'attention'"):
        make_inputs("attention", 1, Sizes())


def test_the_reference_is_left_where_it_has_no_room():
    from benchmarks.kernels.cases import LARGE, OPS, Sizes, reference_of

    assert {reference_of(op, 4096, Sizes()) for op in OPS} == {"reference"}
    assert {op: reference_of(op, 4096, LARGE) for op in OPS} == dict.fromkeys(OPS, "xla_chunked") | {
        "causal_conv1d": "reference"
    }


@pytest.mark.slow
def test_our_kernels_for_the_delta_rule_are_right():
    """Interpreted, at the narrowest shapes that they take, as they are prepared for timing: values and gradients."""
    from benchmarks.kernels.cases import PEERS, Sizes, make_inputs
    from benchmarks.kernels.measure import TOLERANCE, errors
    from benchmarks.kernels.prepare import TRAINING, prepare, reference
    from zoo.ops import mosaic_gpu

    arrays, cotangent = make_inputs("gated_delta_rule", 70, Sizes(batch=1, heads=1))
    expected = reference("gated_delta_rule", arrays, cotangent, "xla_chunked")
    peers = [peer for peer in PEERS if peer.implementation == "mosaic_gpu" and peer.op == "gated_delta_rule"]
    assert len(peers) == 2
    for peer in peers:
        with mosaic_gpu.interpreted():
            call = prepare(peer, TRAINING, arrays, cotangent)
        found = errors(call.fetch(), expected)
        assert set(found) == {"y", "dq", "dk", "dv", "dbeta"}
        assert max(found.values()) <= TOLERANCE[peer.dtype], (peer.name, found)


@pytest.mark.slow
def test_our_kernels_for_the_scan_are_right():
    """Interpreted, as they are prepared for timing, from float32 and from bfloat16 arrays."""
    from benchmarks.kernels.cases import PEERS, Sizes, make_inputs
    from benchmarks.kernels.measure import TOLERANCE, errors
    from benchmarks.kernels.prepare import TRAINING, prepare, reference
    from zoo.ops import mosaic_gpu

    arrays, cotangent = make_inputs("selective_scan", 40, Sizes(batch=1, width=64, states=8))
    expected = reference("selective_scan", arrays, cotangent)
    peers = [peer for peer in PEERS if peer.implementation == "mosaic_gpu" and peer.op == "selective_scan"]
    assert [peer.dtype for peer in peers] == ["float32", "bfloat16"]
    for peer in peers:
        with mosaic_gpu.interpreted():
            call = prepare(peer, TRAINING, arrays, cotangent)
        found = errors(call.fetch(), expected)
        assert set(found) == {"y", *(f"d{name}" for name in arrays)}
        assert max(found.values()) <= TOLERANCE[peer.dtype], (peer.name, found)


def test_what_a_peer_takes_is_cast_before_it_is_timed():
    """Only arrays with an axis T, and the cotangent; what comes back is float32."""
    from benchmarks.kernels.cases import TINY, make_inputs, peers_of
    from benchmarks.kernels.prepare import TRAINING, prepare

    arrays, cotangent = make_inputs("selective_scan", 5, TINY)
    peer = next(peer for peer in peers_of("selective_scan") if peer.name == "zoo, bfloat16")
    seen = {}

    def look(**given):
        seen.update({name: str(x.dtype) for name, x in given.items()})
        return given["u"] * given["D"].astype(given["u"].dtype)

    fetched = prepare(peer, TRAINING, arrays, cotangent, look).fetch()
    assert {name for name, dtype in seen.items() if dtype == "bfloat16"} == {"u", "dt", "B", "C", "z"}
    assert {name for name, dtype in seen.items() if dtype == "float32"} == {"A", "D", "dt_bias"}
    assert {str(x.dtype) for x in fetched.values()} == {"float32"}
    assert np.abs(fetched["y"] - arrays["u"] * arrays["D"]).max() <= 2e-2


def test_the_command_refuses_unknown_names(run_python):
    done = run_python("-m", "benchmarks.kernels", "--ops", "attention", check=False)
    assert done.returncode == 2
    assert "unknown: attention; choose selective_scan" in done.stderr


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    """Every peer that is installed, torch's included, in processes of their own, at tiny shapes."""
    command = [sys.executable, "-m", "benchmarks.kernels", "--tiny", "--lengths", "5,70", "--repeats", "1"]
    done = subprocess.run([*command, "--output", str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "kernels_cpu.md").read_text()
    assert "## causal_conv1d" in table
    assert ": wrong" not in table
    assert ": failed" not in table
