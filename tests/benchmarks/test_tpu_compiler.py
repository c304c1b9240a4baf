"""The readers of what libtpu dumps, on lines of real dumps, and the command where libtpu is installed."""

import dataclasses
import importlib.util
import json
import os
import re

import pytest

# A kernel that adds up blocks of 64 rows, compiled for v5e by libtpu 0.0.50: a grid of 5 steps is a loop of 7, of which
# the first only loads a block; the second sets the sums to zero; a loop of 64 rows is inside. Left out are instructions
# that no branch depends on, and comments.
SCHEDULE = """\
   0x2   :  { %9 = vsyncpa [#allocation5], 0  ;;  %s421_s6 = smov 0 /* copy for cssa */ } /* Start region 78 */
   0x3   :  { %s425_s8 = smov 0 /* copy for cssa */  ;;  %s427_s9 = smov 0 /* copy for cssa */ } /* End region 78 */
   0x4 LB: > { %s440_s10 = sadd.s32 4294967295, %s397_s9 /* iteration index, stage = 1 */  ;;  %s443_s11 = sadd.s32 1, \
%s397_s9 /* copy for cssa :: iteration index, stage = 0 */  ;;  %s397_s9 = sphi %s427_s9, %s518_s9 /* phi copy */ } \
/* Start region 83 :: Start region 3 */
  0x18   : > { %307 = shalt.err (!%p304_p2) /* BoundsCheck 0 [deref of opnd#0] for dma.hbm_to_vmem
hlo: sums.1
 */ }
  0x1b   : > { %p216_p3 = scmp.ge.s32.totalorder %s397_s9, 1  ;;  %p100_p4 = scmp.lt.s32.totalorder %s397_s9, 6 }
  0x1c   : > { %p101_p5 = pnand %p216_p3, %p100_p4 } /* End region 21 */
  0x1e   : > { %104 = sbr.rel (%p101_p5) target = $region24  ;;  %s227_s18 = sand.u32 (!%p101_p5), 64, %s226_s16 }
  0x24   : > { %378 = vsyncadd (%p462_p7), %s107_s19, 4294966272  ;;  %p218_p6 = scmp.ne.s32.totalorder %s440_s10, 0 } \
/* Start region 29 :: End region 29 */
  0x25   : > { %129 = sbr.rel (%p218_p6) target = $region32 }
  0x2c PF: > { %v399_v2 = vmov 0.0 /* copy for cssa */  ;;  %s403_s9 = smov 0 } /* Start/End empty region 32 */
  0x2e LB: >> { %s137_s9 = sadd.s32 1, %s405_s9  ;;  %s405_s9 = sphi %s403_s9, %s137_s9 } /* Start region 72 */
  0x2f   : >> { %v140_v3 = vld [vmem:[%s139_s21] ss:$0 sm:$0xff]  ;;  %p134_p8 = scmp.ge.s32.totalorder %s137_s9, 64 }
  0x31   : > { %136 = sbr.rel (!%p134_p8) target = $region72  ;;  %s150_s22 = sshll.u32 (%p134_p8), %s410_s17, 4 }
  0x38   : > { %382 = vsyncadd (%p239_p7), [#allocation5], 4294967168 } /* End region 83 :: End region 23 */
  0x39 PF: > { %p12_p9 = scmp.ge.s32.totalorder %s443_s11, 7 /* loop exit test */ } /* Start/End empty region 24 */
  0x3b   : > { %s518_s9 = smov %s443_s11  ;;  %14 = sbr.rel (!%p12_p9) target = $region83 } /* End region 3 */
  0x42   :  { %169 = vsyncpa [#allocation5], 1 } /* exit bundle: %sums.1 = custom-call(%x.1) */
"""
# Before the loop; of each of its 7 steps up to the first branch, and after the second's target; of the 5 that compute
# up to the next branch, before the loop inside, 64 times that, and behind it; the zeros, once; the end.
BUNDLES = 4 + 7 * (31 + 7) + 5 * (7 + 2 + 64 * 8 + 3) + 2 + 3


def whole(schedule: str) -> str:
    """With empty bundles for those that were left out."""
    found = {
        int(match[1], 16): match for match in re.finditer(r"^ *0x([0-9a-f]+) .*\n(?:(?! *0x).*\n)*", schedule, re.M)
    }
    return "".join(found[n][0] if n in found else f"  {n:#x}   :  {{}}\n" for n in range(max(found) + 1))


def test_a_schedule_is_followed_through_its_loops_and_branches():
    from benchmarks.kernels.tpu_schedule import cycles

    assert cycles(whole(SCHEDULE)) == BUNDLES == 2895  # the count of the whole dump


def test_spills_other_values_and_wrapped_numbers():
    """As in longer schedules: the loop's count goes through memory, is set if a predicate holds, else another."""
    from benchmarks.kernels.tpu_schedule import cycles

    moved = """\
  0x3a   : > { %7567 = sst [smem:[#allocation30_spill]] (!%p12_p9), %s443_s11  ;;  %p7_p1 = scmp.lt.s32.totalorder \
%s440_s10, 0 }
  0x3b   : > { %s518_s9 = sld [smem:[#allocation30_spill]] /* phi copy */  ;;  %14 = sbr.rel (!%p12_p9) target = \
$region83 }
  0x3d   : > { %s518_s9 = smov (%p7_p1, %s518_s9), 5 /* copy for cssa */ }
"""
    changed = "\n".join(line for line in SCHEDULE.splitlines() if "%s518_s9 = smov" not in line) + "\n"
    # After the first step, at -1, the second to fifth are left out.
    assert cycles(whole(changed + moved)) == BUNDLES - 4 * (31 + 7 + 7 + 2 + 64 * 8 + 3) - 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("sadd.s32 1, %s405_s9", "sfoo.s32 1, %s405_s9", "depends on %p134_p8, which is not known"),
        ("= sbr.rel (%p218_p6) target", "= sbr.abs (%p218_p6) target", "a branch of another form"),
        ("Start region 72", "Begin region 72", "region 72, which is branched to, starts 0 times"),
        ("  0x18   :", "  0x18", "bundle 24 is called 19"),
        ("%s137_s9, 64 }", "%s137_s9, 2147483648 }", None),
        ("%9 = vsyncpa", "%9 = sst [smem:[%s5_s1]] %s6_s2  ;;  %9 = vsyncpa", "a store of another form"),
        ("%s518_s9 = smov", "%s518_s9, %s519_s8 = sfoo", "nothing sets s518_s9, an operand of a phi"),
        ("0x2   :  {", "0x2   :  { %1 = scall $helper  ;;", "a branch of another form"),
    ],
)
def test_what_a_schedule_does_not_say_is_an_error(old, new, reason):
    """Or, of numbers: 2^31 is -2^31, and the loop ends at once."""
    from benchmarks.kernels.tpu_bundles import UnknownForm
    from benchmarks.kernels.tpu_schedule import cycles

    assert old in SCHEDULE
    text = whole(SCHEDULE).replace(old, new)
    if reason is None:
        assert cycles(text) == BUNDLES - 5 * 63 * 8
        return
    with pytest.raises(UnknownForm, match=re.escape(reason)):
        cycles(text)
    with pytest.raises(UnknownForm, match="there are no bundles"):
        cycles("")


def test_a_schedule_without_an_end(monkeypatch):
    from benchmarks.kernels import tpu_schedule
    from benchmarks.kernels.tpu_bundles import UnknownForm

    monkeypatch.setattr(tpu_schedule, "_MOST_VISITS", 1000)
    with pytest.raises(UnknownForm, match="does not come to an end"):
        tpu_schedule.cycles(whole(SCHEDULE.replace("sbr.rel (!%p12_p9) target", "sbr.rel target")))


# Of programs that libtpu 0.0.50 made of `selective_scan`, shortened.
PROGRAM = """\
HloModule jit_forward, is_scheduled=true, entry_computation_layout={(f32[2048,16]{0,1:T(8,128)})->f32[8]{0}}

%fused_computation.7 (param_0.1: f32[8,16,2048]) -> f32[8,16,2048] {
  %param_0.1 = f32[8,16,2048]{2,1,0:T(8,128)S(1)} parameter(0)
  ROOT %negate.1 = f32[8,16,2048]{2,1,0:T(8,128)} negate(%param_0.1), metadata={op_name="jit(f)/neg"}
}

%wide.body (arg_tuple.1: (s32[], f32[8,16,2048])) -> (s32[], f32[8,16,2048]) {
  %arg_tuple.1 = (s32[]{:T(128)}, f32[8,16,2048]{2,1,0:T(8,128)S(1)}) parameter(0)
  %get-tuple-element.5 = s32[]{:T(128)} get-tuple-element(%arg_tuple.1), index=0
  %fusion.7 = f32[8,16,2048]{2,1,0:T(8,128)} fusion(%get-tuple-element.6), kind=kLoop, calls=%fused_computation.7, \
backend_config={"flag_configs":[],"window_config":{"kernel_window_bounds":[]},"estimated_cycles":"33700"}
  %add.597 = s32[]{:T(128)} add(%get-tuple-element.5, %constant.566), metadata={op_name="jit(f)/while/body/add"}
  ROOT %tuple.3 = (s32[]{:T(128)}, f32[8,16,2048]{2,1,0:T(8,128)S(1)}) tuple(%add.597, %fusion.7)
}

%wide.region_2.7 (wide.arg_tuple.4: (s32[], f32[8,16,2048], /*index=2*/s32[])) -> pred[] {
  %constant.804 = s32[]{:T(128)} constant(16)
  %wide.arg_tuple.4 = (s32[]{:T(128)}, f32[8,16,2048]{2,1,0:T(8,128)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %get-tuple-element.1164 = s32[]{:T(128)} get-tuple-element(%wide.arg_tuple.4), index=0
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.1164, %constant.804), direction=LT, metadata={op_name="lt"}
}

ENTRY %main.40 (A.1: f32[2048,16]) -> f32[8,16,2048] {
  %A.1 = f32[2048,16]{0,1:T(8,128)} parameter(0), sharding={mesh[], [{}, {}]}, metadata={op_name="A"}
  %custom-call.2 = f32[8,16,2048]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %slice-start = ((f32[8,16,2048]{2,1,0:T(8,128)}), f32[2,16,2048]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%custom-call.2), slice={[0:2], [0:16], [0:2048]}
  %pad.72 = f32[255,16,2048]{2,1,0:T(8,128)} pad(%A.1, %constant.1), padding=0_1x0_0x0_0
  %selective_scan.1 = (f32[8,16,2048]{2,1,0:T(8,128)}, f32[8]{0}) custom-call(%A.1), \
custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv"}}
  %while.91 = (s32[]{:T(128)}, f32[8,16,2048]{2,1,0:T(8,128)S(1)}) while(%tuple.1), condition=%wide.region_2.7, \
body=%wide.body
  ROOT %copy.9 = f32[8,16,2048]{2,1,0:T(8,128)} copy(%get-tuple-element.9), backend_config={"estimated_cycles":"101"}
}
"""


def test_what_runs_is_listed_with_how_often():
    from benchmarks.kernels.tpu_hlo import KERNEL, Part, read

    assert read(PROGRAM) == [
        Part("pad.72", "pad", 1, None),
        Part("selective_scan.1", KERNEL, 1, None),
        Part("copy.9", "copy", 1, 101),
        Part("fusion.7", "fusion", 16, 33700),
    ]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("direction=LT", "direction=NE", "the loop %while.91 ends at compare"),
        ("constant(16)", "parameter(1)", "the loop %while.91 ends at compare"),
        (
            "%copy.9 = f32[8,16,2048]{2,1,0:T(8,128)} copy(",
            "%copy.9 = f32[8] conditional(",
            "of the conditional %copy.9",
        ),
        ("body=%wide.body", "body=%narrow.body", "%while.91 has no body"),
        ("ENTRY %main", "%main", "no computation is the ENTRY"),
        ("%pad.72 = f32[255,16,2048]{2,1,0:T(8,128)} pad(", "%pad.72 := pad(", "an instruction of another form"),
    ],
)
def test_what_a_program_does_not_say_is_an_error(old, new, reason):
    from benchmarks.kernels.tpu_bundles import UnknownForm
    from benchmarks.kernels.tpu_hlo import read

    assert old in PROGRAM
    with pytest.raises(UnknownForm, match=re.escape(reason)):
        read(PROGRAM.replace(old, new))
    bare = PROGRAM.replace("estimated_cycles", "cycles").replace("tpu_custom_call", "other")
    with pytest.raises(UnknownForm, match="neither kernels nor estimated_cycles"):
        read(bare)


def test_schedules_are_found_in_a_dump(tmp_path):
    """By their own name, or by that of an equal one, whose schedule they share."""
    from benchmarks.kernels.tpu_bundles import UnknownForm
    from benchmarks.kernels.tpu_compiler import Schedules

    (tmp_path / "1795-sums.1-71-final_bundles.txt").write_text(whole(SCHEDULE))
    (tmp_path / "1795-sums.1-70-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:")
    (tmp_path / "1795-others.1-71-final_bundles.txt").write_text("no bundles")
    twins = "key:<top-inlining-caller>\nordinal:0\nequivalent_hlos[size=0]:\n"
    twins += "key:sums.1\nordinal:1\nequivalent_hlos[size=2]:\n  sums.1\n  sums.2\n"
    (tmp_path / "1795-TLP-00-deduplication-map.txt").write_text(twins)
    schedules = Schedules(tmp_path)
    assert schedules.cycles("sums.1") == schedules.cycles("sums.2") == BUNDLES
    with pytest.raises(UnknownForm, match=r"no final_bundles of sums\.3"):
        schedules.cycles("sums.3")
    with pytest.raises(UnknownForm, match=r"1795-others\.1-71-final_bundles\.txt: there are no bundles"):
        schedules.cycles("others.1")


ABOUT = {"libtpu": "0.0.50", "jax": "1", "jaxlib": "1", "python": "3", "zoo": "0", "commit": "abc", "date": "today"}


def test_report_and_its_json():
    from benchmarks.kernels.tpu_report import Record, to_json, to_markdown

    found = {
        "unpriced": {"pad": 2},
        "temporary_bytes": 3_000_000,
        "compile_seconds": 4.4,
    }
    case = ("bfloat16", "training", "v5e")
    ours = {"scheduled": 10**5, "estimated": 10**6, "estimated_unfollowed": 0}
    theirs = {"scheduled": 28 * 10**6, "estimated": 331 * 10**6, "estimated_unfollowed": 5 * 10**6}
    records = [
        Record("selective_scan", "mosaic_tpu", *case, kernels={"a.1": 14 * 10**6}, unfollowed={}, **ours, **found),
        Record("selective_scan", "xla_chunked", *case, kernels={}, unfollowed={"b": "why"}, **theirs, **found),
    ]
    about = ABOUT | {"processor": "2 x Some"}
    table = to_markdown(about, records)
    for line in (
        "B 8, T 4096, D 2048, N 16; with D, z, dt_bias and softplus. Cycles in millions.",
        "| v5e, bfloat16, training step: `mosaic_tpu` | 14 | 0.1 | 1 | - | - | 0, 2 | 3.0 | 4 |",
        "training step: `xla_chunked` | - | 28+ | 331 | 2.0+ | 22.1 | 1 (5 by cost model), 2 | 3.0 | 4 |",
        "**Nothing has been",
        "libtpu 0.0.50, jax 1",
    ):
        assert line in table, line
    written = json.loads(to_json(about, records))
    assert written == {"about": about, "records": [dataclasses.asdict(record) for record in records]}


def test_what_is_compiled():
    """Every form of an op beside ours; shapes are those asked for, whatever they are made from."""
    from benchmarks.kernels.tpu_compiler import requests
    from benchmarks.kernels.tpu_worker import OPS, shapes

    asked = requests(list(OPS), ["v5e"], tiny=False)
    assert len(asked) == len(set(asked)) == 4 * 3 + 4 * 2
    arrays, cotangent = shapes(asked[0])
    assert cotangent == arrays["u"] == arrays["z"] == ((8, 4096, 2048), "bfloat16")
    assert (arrays["B"], arrays["A"]) == (((8, 4096, 16), "bfloat16"), ((2048, 16), "float32"))
    arrays, cotangent = shapes(asked[-1])
    assert cotangent == arrays["q"] == arrays["v"] == ((8, 4096, 2048), "float32")
    assert arrays["beta"] == arrays["log_decay"] == ((8, 4096, 16), "float32")


def test_without_libtpu_it_says_what_is_missing(monkeypatch):
    from benchmarks.kernels import tpu_compiler

    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"libtpu.*is not installed: pip install libtpu"):
        tpu_compiler.main([])


@pytest.mark.parametrize("reason", ["a branch of another form", "its process ended with 1"])
def test_what_cannot_be_read_ends_the_command(monkeypatch, reason):
    """With the name of what was compiled; there are no results then."""
    from benchmarks.kernels import tpu_compiler
    from benchmarks.kernels.tpu_bundles import UnknownForm

    def measure(request):
        raise UnknownForm(reason) if "branch" in reason else RuntimeError(reason)

    monkeypatch.setattr(tpu_compiler, "measure", measure)
    asked = tpu_compiler.requests(["selective_scan"], ["v6e"], tiny=True)
    with pytest.raises(SystemExit, match=f"selective_scan mosaic_tpu bfloat16 forward for v6e: {reason}"):
        tpu_compiler.measure_all(asked, jobs=1)


def test_a_program_without_the_kernels_is_an_error(monkeypatch):
    from benchmarks.kernels import tpu_compiler
    from benchmarks.kernels.tpu_bundles import UnknownForm

    def child(request, folder, dump):
        dump.mkdir()
        (folder / "program.hlo").write_text(PROGRAM.replace("tpu_custom_call", "other"))
        return {"temporary_bytes": 0, "compile_seconds": 0.0}

    monkeypatch.setattr(tpu_compiler, "child", child)
    ours, theirs, *_ = tpu_compiler.requests(["selective_scan"], ["v6e"], tiny=True)
    with pytest.raises(UnknownForm, match="the program has 0 kernels"):
        tpu_compiler.measure(ours)
    found = tpu_compiler.measure(theirs)  # of which nothing was dumped
    assert (found.scheduled, found.estimated, found.estimated_unfollowed) == (0, 16 * 33700 + 101, 16 * 33700 + 101)
    assert set(found.unfollowed) == {"pad.72", "selective_scan.1", "copy.9", "fusion.7"}
    assert found.unpriced == {"pad": 1, "custom-call": 1}


def test_unknown_names_are_refused(capsys):
    from benchmarks.kernels import tpu_compiler

    with pytest.raises(SystemExit):
        tpu_compiler.main(["--devices", "v5e,v1"])
    assert "unknown: v1; choose v5e, v6e" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, which compiles for TPUs, is not installed")
def test_the_whole_command(run_python, tmp_path):
    """Every form, at tiny shapes: kernels by their schedules, all else by both, none of it nothing."""
    command = ["-m", "benchmarks.kernels.tpu_compiler", "--tiny", "--devices", "v5e", "--output", str(tmp_path)]
    run_python(*command, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    records = json.loads((tmp_path / "tpu_compiler.json").read_text())["records"]
    assert len(records) == 20
    for record in records:
        names = {name.split(".")[0] for name in record["kernels"]}
        backward = {"selective_scan": {"selective_scan_backward"}}
        backward["gated_delta_rule"] = {"delta_rule_states", "delta_rule_backward"}
        forward = {"selective_scan": "selective_scan", "gated_delta_rule": "delta_rule"}[record["op"]]
        ours = {forward} | (backward[record["op"]] if record["which"] == "training" else set())
        assert names == (ours if record["implementation"] == "mosaic_tpu" else set())
        assert all(count > 1000 for count in record["kernels"].values())
        assert record["estimated"] > 1000
        assert record["scheduled"] > (0 if ours == names else 1000)
        assert record["compile_seconds"] > 0
    assert "| v5e, float32, training step: `xla_sequential` | - |" in (tmp_path / "tpu_compiler.md").read_text()
