"""Efficiency against length: figures, what stops a variant, resuming, tables; and the formulas of FLOPs against XLA."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from zoo import registry

RECIPE = """
task: {name: toy, source: last}
model: {d_model: 8, num_layers: 1, num_heads: 2, d_ff: 16, positions: learned, dropout: 0.1}
train: {steps: 2}
variants:
  flowformer: {model: {num_layers: 3}}
"""
ENVIRONMENT = {"device": "1 x cpu", "processor": "p", "platform": "cpu", "jax": "0", "flax": "0", "zoo": "0",
               "jaxlib": "0", "commit": None, "date": "today"}  # fmt: skip


@pytest.fixture
def setting(tmp_path, toy):
    from benchmarks.lra.efficiency_points import Setting

    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return Setting(recipe=str(path), batch_size=2, repeats=1)


def measured(setting, variants, kind, length):
    from benchmarks.lra.efficiency_points import measure

    events = []
    measure(setting, variants, kind, length, events.append)
    return [event["row"] for event in events if "row" in event], [event.get("doing") for event in events]


@pytest.mark.usefixtures("compilation_cache")
@pytest.mark.parametrize("kind", ["train", "infer", "decode"])
def test_variants_of_one_length_are_measured(setting, kind):
    rows, doing = measured(setting, ["softmax", "linear_attention"], kind, 16)
    assert doing[:2] == ["softmax", "linear_attention"]
    assert sorted(doing[2:4]) == ["linear_attention", "softmax"]
    assert [row["variant"] for row in rows] == ["softmax", "linear_attention"]
    for row in rows:
        assert row["reason"] is None
        assert (row["kind"], row["length"], row["batch_size"], row["d_model"]) == (kind, 16, 2, 8)
        assert row["tokens_per_second"] == pytest.approx((2 if kind == "decode" else 32) / row["seconds"])
        assert row["ratio"] == pytest.approx(rows[0]["seconds"] / row["seconds"])
        assert min(row["step_bytes"], row["compile_seconds"], row["flops"], row["parameters"]) > 0
        assert row["device_peak"] is None  # which a CPU does not count


@pytest.mark.usefixtures("compilation_cache")
def test_what_does_not_run_has_a_reason(setting, monkeypatch):
    from benchmarks.lra import efficiency_points

    rows, _ = measured(setting, ["nystromformer", "itransformer"], "decode", 16)
    assert [row["reason"] for row in rows] == [f"{row['variant']} does not decode token by token" for row in rows]
    (row,), _ = measured(dataclasses.replace(setting, limit=1e-9), ["linear_attention"], "infer", 16)
    assert row["reason"].startswith("time: one call takes")
    assert row["seconds"] is None
    assert row["step_bytes"] > 0
    monkeypatch.setattr(efficiency_points.memory, "device_memory", lambda: 1000)
    (row,), _ = measured(setting, ["linear_attention"], "infer", 16)
    assert row["reason"].startswith("memory: ")
    assert row["reason"].endswith("by the compiler's plan, 1.0 kB are there")


def test_all_variants_have_one_width_and_depth(setting):
    from benchmarks.lra.efficiency_points import recipe_of

    one, other = (recipe_of(setting, variant, 16) for variant in ("softmax", "flowformer"))
    assert one.model == other.model
    assert (other.variant, other.task.max_len, other.train.batch_size) == ("flowformer", 16, 2)


def test_variants_may_have_as_many_parameters_in_place_of_one_width(setting):
    from benchmarks.lra.efficiency_points import prepare, recipe_of

    setting = dataclasses.replace(setting, equal="parameters", overrides=("model.d_model=32", "model.d_ff=64"))
    models = {variant: recipe_of(setting, variant, 16).model for variant in ("softmax", "mamba", "itransformer")}
    assert (models["softmax"].d_model, models["softmax"].d_ff) == (32, 64)
    assert models["mamba"].d_model < 32
    assert models["mamba"].d_ff == 2 * models["mamba"].d_model
    layers = {}
    for variant, model in models.items():
        recipe = dataclasses.replace(recipe_of(setting, variant, 16), model=model)
        layers[variant] = layer_parameters(recipe)
        wider = dataclasses.replace(model, d_model=model.d_model + 4, d_ff=2 * model.d_model + 8)
        narrower = dataclasses.replace(model, d_model=model.d_model - 4, d_ff=2 * model.d_model - 8)
        off = abs(layers[variant] - layers["softmax"])
        for other in (wider, narrower):
            assert abs(layer_parameters(dataclasses.replace(recipe, model=other)) - layers["softmax"]) >= off
    row = prepare(setting, "mamba", "infer", 16).row
    assert row["d_model"] == models["mamba"].d_model


def layer_parameters(recipe):
    from zoo.functional import Functional, count_parameters
    from zoo.training.build import make_task, model_maker

    functional = Functional(model_maker(recipe, make_task(recipe).info))
    params = functional.abstract_params
    return count_parameters(params.get("encoder", params)["layers"])


def row(variant, length, seconds=None, *, kind="train", reason=None, ratio=None, peak=None):
    from benchmarks.lra.efficiency_points import blank_row

    figures = {"seconds": seconds, "reason": reason, "ratio": ratio, "device_peak": peak}
    if seconds is not None:
        figures |= {"tokens_per_second": length / seconds, "step_bytes": 10**6 * length, "compile_seconds": 1.5}
        figures |= {"flops": 1e9 * length, "parameters": 10, "d_model": 8}
    return blank_row(variant, kind, length, 1) | figures


@pytest.fixture
def command(setting, tmp_path, monkeypatch):
    """`command(*arguments)` runs the command line with `results`, by (kind, length), in the place of processes."""
    from benchmarks.lra import efficiency

    asked, results = [], {}

    def run_process(setting, variants, kind, length):
        asked.append((kind, length, tuple(variants)))
        found = results.get(
            (kind, length), lambda variants: ([row(name, length, 0.5, kind=kind) for name in variants], None, None)
        )
        return found(variants)

    monkeypatch.setattr(efficiency, "run_process", run_process)
    monkeypatch.setattr(efficiency, "device_facts", lambda cores=(): (ENVIRONMENT, 1))
    common = ["--json", str(tmp_path / "e.json"), "--recipe", setting.recipe, "--kinds", "train"]

    def call(*arguments: str) -> int:
        return efficiency.main([*common, *arguments])

    call.asked, call.results = asked, results
    return call


def rows_of(tmp_path):
    return {
        (found["variant"], found["length"]): found for found in json.loads((tmp_path / "e.json").read_text())["rows"]
    }


def test_it_goes_on_with_what_is_missing(command, tmp_path):
    arguments = ["--lengths", "16,8", "--variants", "linear_attention,softmax"]
    assert command(*arguments) == 0
    assert command.asked == [
        ("train", 8, ("softmax", "linear_attention")),
        ("train", 16, ("softmax", "linear_attention")),
    ]
    command.asked.clear()
    assert command(*arguments) == 0
    assert command.asked == []
    before = rows_of(tmp_path)
    # Softmax takes part for the ratios, and its rows stay.
    assert command("--lengths", "8", "--variants", "gla,linear_attention") == 0
    assert command.asked == [("train", 8, ("softmax", "gla"))]
    assert before.items() < rows_of(tmp_path).items()


def test_a_variant_that_ends_the_process_is_left_out_and_not_tried_again(command, tmp_path):
    def dies(variants):
        if "gla" in variants:
            return [row("mamba", 8, reason="no such thing")], "gla", "memory: the system ended the process (SIGKILL)"
        return [row(name, 8, 0.25) for name in variants], None, None

    command.results["train", 8] = dies
    assert command("--lengths", "8,16,32", "--variants", "softmax,gla,mamba") == 0
    assert command.asked == [
        ("train", 8, ("softmax", "gla", "mamba")),
        ("train", 8, ("softmax",)),
        ("train", 16, ("softmax",)),
        ("train", 32, ("softmax",)),
    ]
    found = {key: held["reason"] for key, held in rows_of(tmp_path).items()}
    assert found["gla", 8] == "memory: the system ended the process (SIGKILL)"
    assert found["gla", 16] == found["gla", 32] == f"not tried: {found['gla', 8]} (at 8)"
    assert found["mamba", 32] == "not tried: no such thing (at 8)"
    assert found["softmax", 32] is None


def test_figures_of_another_setting_or_device_are_not_mixed(command, monkeypatch, capsys):
    from benchmarks.lra import efficiency

    arguments = ["--lengths", "8", "--variants", "softmax"]
    assert command(*arguments) == 0
    assert command(*arguments, "--repeats", "3") == 2
    monkeypatch.setattr(efficiency, "device_facts", lambda cores=(): ({**ENVIRONMENT, "device": "1 x H100"}, 1))
    assert command(*arguments) == 2
    assert "was measured with device 1 x cpu, and here is 1 x H100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "trian"], "there is no kind 'trian'. Did you mean train?"),
        (["--lengths", "1K"], "--lengths takes whole numbers"),
        (["--lengths", "0"], "must be positive"),
        (["--variants", "sofmax"], "Did you mean softmax"),
        (["model.d_modl=3"], "There is no key 'model.d_modl'"),
    ],
)
def test_a_wrong_request_is_refused(command, capsys, arguments, message):
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err
    assert command.asked == []


def test_tables():
    from benchmarks.lra.efficiency_table import to_markdown

    rows = [
        row("softmax", 1024, 0.5, ratio=1.0),
        row("gla", 1024, 0.25, ratio=2.0),
        row("softmax", 4096, reason="memory: 9 GB"),
        row("gla", 4096, 1.0),
        row("gla", 1024, 0.125, kind="infer"),
        row("gla", 1024, 0.125, kind="decode"),
    ]
    setting = {
        "recipe": "lra/small/text",
        "overrides": ["model.dropout=0"],
        "batch_size": 1,
        "repeats": 5,
        "equal": "width",
    }
    text = to_markdown({"environment": ENVIRONMENT, "setting": setting, "rows": rows})
    for line in (
        "| variant | steps/s 1K | steps/s 2K | steps/s 3K | steps/s 4K | GB 1K | GB 2K | GB 3K | GB 4K |",
        "| softmax | 2.00 | - | - | - | 1.02 | - | - | - |",
        "| gla | 4.00 (2.0) | - | - | 1.00 | 1.02 | - | - | 4.10 |",
        "memory as the compiler plans it",
        "| gla | 250.0; 4,096 (2.00x) | 1,000.0; 4,096 |",
        "### One decoding step after so many tokens",
        "| gla | 1024.000 |",
        "* softmax, train, 4,096: memory: 9 GB",
        "`lra/small/text` model.dropout=0, batch 1",
    ):
        assert line in text, line
    peaks = [row("softmax", 1024, 0.5, peak=2 * 10**9)]
    text = to_markdown({"environment": ENVIRONMENT, "setting": setting, "rows": peaks})
    assert "peak memory of the device" in text
    assert "| softmax | 2.00 | - | - | - | 2.00 | - | - | - |" in text


FORMS = {
    # How each is computed such that XLA sees all of what the equations ask for, and no more.
    "flowformer": {"implementation": "xla"},
    "linear_attention": {"implementation": "xla"},
    "nystromformer": {"implementation": "xla", "num_landmarks": 16, "conv_kernel_size": None},
    "mamba2": {"implementation": "reference", "d_head": 32, "d_state": 32},
}


@pytest.mark.parametrize(
    "name", [spec.name for spec in registry.list_specs(kind="mixer") if spec.module.startswith("zoo.")]
)
def test_formulas_agree_with_xla(name, monkeypatch):
    """Within 15 %: norms, gates, softmax's sums and the like are not in the formulas. Loops are unrolled, since XLA
    counts a body once; nothing is compiled."""
    from benchmarks.lra.flops import mixer_flops

    scan = jax.lax.scan

    def unrolled(f, init, xs=None, length=None, reverse=False, **options):
        return scan(f, init, xs, length, reverse=reverse, unroll=True)

    monkeypatch.setattr(jax.lax, "scan", unrolled)
    cls, length = registry.get(name), 32
    options = {"num_heads": 2} if "num_heads" in registry.option_names(cls) else {}
    mixer = cls(64, **options, **FORMS.get(name, {"implementation": "reference"}), rngs=nnx.Rngs(0))
    graph, state = nnx.split(mixer)
    lowered = jax.jit(lambda state, x: nnx.merge(graph, state)(x, deterministic=True)).lower(
        state, jax.ShapeDtypeStruct((1, length, 64), jnp.float32)
    )
    assert mixer_flops(name, mixer, length) == pytest.approx(lowered.cost_analysis()["flops"], rel=0.15)


def test_every_variant_of_the_suite_has_a_formula(setting):
    from benchmarks.lra.efficiency_points import recipe_of
    from benchmarks.lra.flops import decode_flops, model_flops
    from benchmarks.lra.recipes import variants
    from zoo.training.build import make_task, model_maker

    wide = dataclasses.replace(setting, overrides=("model.d_model=32",))

    def flops(variant, length, count=model_flops):
        recipe = recipe_of(wide, variant, length)
        make = model_maker(recipe, make_task(recipe).info)
        return count(variant, nnx.eval_shape(lambda: make(nnx.Rngs(0))), length)

    for variant in variants():
        if variant != "toy_mean":
            assert flops(variant, 64) > 0, variant
    assert flops("toy_mean", 64) is None
    # By hand, D = 32 and F = 16: four maps and two of the feed-forward part, and all pairs.
    maps = 2 * (4 * 32**2 + 2 * 32 * 16)
    assert flops("softmax", 64) == 64 * maps + 4 * 64**2 * 32
    assert flops("softmax", 64, decode_flops) == maps + 4 * 64 * 32


@pytest.mark.slow
def test_the_whole_command(setting, processes_know_the_toy, tmp_path):
    """In processes of their own."""
    from benchmarks.lra import efficiency

    arguments = ["--json", str(tmp_path / "e.json"), "--recipe", setting.recipe, "--batch-size", "2", "--repeats", "1"]
    arguments += ["--kinds", "infer,decode"]
    assert efficiency.main([*arguments, "--variants", "gla,softmax,axial", "--lengths", "8,16"]) == 0
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert len(rows) == 12
    reasons = {(found["variant"], found["kind"]): found["reason"] for found in rows if found["length"] == 8}
    assert {key for key, reason in reasons.items() if reason} == {("axial", "decode")}
    text = (tmp_path / "e.md").read_text()
    assert "### FLOPs" in text
    assert "* axial, decode, 16: not tried: axial does not decode token by token (at 8)" in text
