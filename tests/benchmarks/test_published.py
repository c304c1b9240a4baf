"""Published results of the Long Range Arena: their averages, what is known to be wrong in print, and wrong files."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo import registry

REPO = Path(__file__).resolve().parents[2]

# By family, model and source: the averages of five and of six tasks, computed apart from the file and its code.
AVERAGES = {
    ("A", "Local Attention", "lra"): (46.06, 46.71),
    ("A", "Linear Transformer", "lra"): (50.55, 50.46),
    ("A", "Reformer", "lra"): (50.67, 50.56),
    ("A", "Sparse Transformer", "lra"): (51.24, 51.03),
    ("A", "Sinkhorn", "lra"): (51.48, 51.23),
    ("A", "Linformer", "lra"): (51.36, 51.13),
    ("A", "Performer", "lra"): (51.41, 51.18),
    ("A", "Synthesizer", "lra"): (52.88, 52.4),
    ("A", "Longformer", "lra"): (53.46, 52.88),
    ("A", "Transformer", "lra"): (54.39, 53.66),
    ("A", "BigBird", "lra"): (55.01, 54.18),
    ("A", "IGLOO", "lra_readme"): (62.25, None),
    ("A", "TLB", "lra_readme"): (66.48, 63.73),
    ("B", "Flowformer", "flowformer"): (56.48, None),
    ("B", "Flowformer w/o competition", "flowformer"): (55.25, None),
    ("B", "Flowformer w/o allocation", "flowformer"): (55.58, None),
    ("B", "cosFormer", "cosformer"): (55.23, None),
    ("B", "FNet", "fnet"): (55.3, 54.42),
    ("B", "Luna-256", "luna"): (61.24, 59.37),
    ("B", "Luna-256, later version", "luna"): (61.95, None),
    ("B", "Transformer", "luna"): (59.25, 57.7),
    ("B", "H-Transformer-1D", "h_transformer"): (61.41, None),
    ("B", "Hrrformer", "hrrformer"): (60.83, None),
    ("B", "FLASH", "hgrn"): (61.31, 59.42),
    ("B", "cosFormer", "hgrn"): (62.11, None),
    ("B", "CCNN", "ccnn"): (None, None),
    ("C", "Standard attention", "nystromformer"): (58.77, None),
    ("C", "Reformer", "nystromformer"): (55.04, None),
    ("C", "Linformer", "nystromformer"): (55.59, None),
    ("C", "Performer", "nystromformer"): (53.63, None),
    ("C", "Nystromformer", "nystromformer"): (58.95, None),
    ("C", "Self-attention", "skyformer"): (57.37, None),
    ("C", "Kernelized attention", "skyformer"): (58.56, None),
    ("C", "Nystromformer", "skyformer"): (58.93, None),
    ("C", "Linformer", "skyformer"): (54.69, None),
    ("C", "Informer", "skyformer"): (53.73, None),
    ("C", "Performer", "skyformer"): (58.0, None),
    ("C", "Reformer", "skyformer"): (58.99, None),
    ("C", "BigBird", "skyformer"): (59.05, None),
    ("C", "Skyformer", "skyformer"): (59.39, None),
    ("C", "Standard", "xformers"): (57.69, None),
    ("C", "Nystrom-128", "xformers"): (57.61, None),
    ("C", "Favor-256", "xformers"): (53.35, None),
    ("C", "FourierMix", "xformers"): (52.8, None),
    ("C", "Linformer seq/4", "xformers"): (54.24, None),
    ("C", "Lambda", "xformers"): (49.22, None),
    ("C", "Orthoformer-32", "xformers"): (54.19, None),
    ("D", "S4 v1", "s4"): (78.95, 80.48),
    ("D", "S4-LegS", "s4"): (84.03, 86.09),
    ("D", "S4D-LegS", "s4d"): (83.47, 84.89),
    ("D", "DSS-exp", "dss"): (80.3, 81.18),
    ("D", "DSS-softmax", "dss"): (80.7, 81.88),
    ("D", "S5", "s5"): (85.24, 87.46),
    ("D", "Liquid-S4", "liquid_s4"): (85.45, 87.32),
    ("D", "SGConv", "sgconv"): (85.04, 87.17),
    ("D", "LRU", "lru"): (84.72, 86.3),
    ("D", "Mega", "mega"): (86.25, 88.21),
    ("D", "Mega-chunk", "mega"): (84.03, 85.66),
    ("D", "Megalodon", "megalodon"): (86.72, 88.62),
    ("D", "Megalodon-chunk", "megalodon"): (85.7, 87.62),
    ("D", "TNN", "tnn"): (84.23, 86.21),
    ("D", "HGRN", "hgrn"): (84.79, 86.91),
    ("D", "S7", "s7"): (73.91, 71.84),
    ("D", "B2S6", "b2s6"): (85.67, 87.71),
    ("D", "RWKV-4", "rwkv"): (71.84, 68.2),
    ("D", "Mamba", "b2s6"): (66.44, 66.59),
    ("D", "Mamba-2", "b2s6"): (70.84, 70.54),
    ("D", "Mamba", "xlstm"): (None, None),
    ("D", "xLSTM", "xlstm"): (None, None),
    ("D", "LION-LIT", "lion"): (50.41, 50.34),
    ("D", "LION-D", "lion"): (83.36, 85.68),
    ("D", "LION-S", "lion"): (83.63, 86.02),
    ("D", "LION-S without HiPPO", "lion"): (50.26, 50.22),
}


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """`benchmarks` is not installed: it is imported from the checkout."""
    monkeypatch.syspath_prepend(str(REPO))


@pytest.fixture(name="rows", scope="module")
def rows_fixture():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO))
        from benchmarks.lra.published import load_published

        return {(row.family, row.model, row.source): row for row in load_published()}


def test_averages_are_those_of_the_cells(rows):
    assert list(rows) == list(AVERAGES)
    for key, means in AVERAGES.items():
        for ours, expected in zip((rows[key].mean_of_five, rows[key].mean_of_six), means, strict=True):
            assert ours == (expected if expected is None else pytest.approx(expected, abs=0.0051)), key


def test_a_fail_counts_as_chance_and_a_missing_task_as_nothing():
    from benchmarks.lra.averages import mean_of_five, mean_of_six

    five: Any = {"listops": 10, "text": 20, "retrieval": 30, "image": 40, "pathfinder": 50.0}
    assert (mean_of_five(five), mean_of_six(five)) == (30, None)
    failed = {**five, "pathx": "fail"}
    assert (mean_of_five(failed), mean_of_six(failed)) == (30, pytest.approx(200 / 6))
    assert mean_of_six({**five, "pathx": 90.0}) == 40
    del failed["text"]
    assert (mean_of_five(failed), mean_of_six(failed)) == (None, None)
    assert mean_of_five({}) is None


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [
        ({"listop": 30.0}, "no task 'listop'; there are listops, text"),
        ({"image": "fail"}, "image must be a percentage from 0 to 100, got 'fail'"),
        ({"pathx": "FAIL"}, "pathx must be a percentage from 0 to 100 or 'fail', got 'FAIL'"),
        ({"text": 100.1}, "got 100.1"),
        ({"text": float("nan")}, "got nan"),
        ({"text": None}, "got None"),
    ],
)
def test_accuracies_that_cannot_be_are_refused(accuracies, message):
    from benchmarks.lra.averages import mean_of_five, mean_of_six

    for mean in (mean_of_five, mean_of_six):
        with pytest.raises(ValueError, match=message):
            mean(accuracies)


def test_what_is_printed_wrong_is_known(rows):
    """Sinkhorn's and RWKV's averages are of no cells; FLASH's and cosFormer's count 0 for Path-X, which nobody ran."""
    wrong = {(row.model, row.source): row for row in rows.values() if row.printed}
    assert {key: row.printed for key, row in wrong.items()} == {
        ("Sinkhorn", "lra"): (51.39, 51.29),
        ("RWKV-4", "rwkv"): (72.07,),
        ("FLASH", "hgrn"): (51.09,),
        ("cosFormer", "hgrn"): (51.76,),
    }
    assert wrong["Sinkhorn", "lra"].mean_of_five == pytest.approx(51.48, abs=0.005)
    assert wrong["RWKV-4", "rwkv"].mean_of_five == pytest.approx(71.84, abs=0.005)
    for key in (("FLASH", "hgrn"), ("cosFormer", "hgrn")):
        mean = wrong[key].mean_of_five
        assert mean is not None
        assert mean * 5 / 6 == pytest.approx(wrong[key].printed[0], abs=0.005)


def test_rows_that_must_not_be_quoted_are_not_there(rows):
    """LION's Linformer is a copy of another row; the cells of SPT and LongConv were never read in a source."""
    models = {(row.source, row.model) for row in rows.values()}
    assert ("lion", "Linformer") not in models
    assert not any(name in model for _, model in models for name in ("SPT", "LongConv", "WaLRUS", "RoPE"))
    assert "two dimensions" in (rows["D", "HGRN", "hgrn"].note or "")


def test_variants_are_of_the_zoo(rows):
    named = {row.variant for row in rows.values() if row.variant}
    assert named <= {spec.name for spec in registry.list_specs(kind="mixer")}
    assert {"softmax", "linear_attention", "flowformer", "nystromformer", "informer", "mamba", "mamba2"} == named


def test_recipes_name_the_same_figures(rows):
    """What stands in a recipe as published is one of the rows."""
    from zoo.training.recipe import list_recipes, load_recipe

    figures = {(row.variant, task, value) for row in rows.values() for task, value in row.accuracies.items()}
    seen = 0
    for name in (name for name in list_recipes() if name.startswith("lra/")):
        for variant in ("softmax", "flowformer", "informer"):  # the last two may have figures of their own
            for model, value in load_recipe(name, variant=variant).published.items():
                assert model == "source" or (model, name.split("/")[-1], value) in figures, name
                seen += 1
    assert seen > 60


@pytest.mark.parametrize("key", ["read", "source", "family", "model"])
def test_every_row_says_where_it_is_from(key, tmp_path):
    from benchmarks.lra.published import PUBLISHED, load_published

    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    del content["rows"][2][key]
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match=rf"row 3 \(.*lacks {key}"):
        load_published(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "E"}, r"row 1 \(Local Attention\): unknown family 'E'; there are A, B, C, D"),
        ({"source": "me"}, "unknown source 'me'"),
        ({"read": "once"}, "unknown read 'once'; there are primary, later"),
        ({"via": "me"}, "unknown via 'me'"),
        ({"speed": 3}, "unknown key 'speed'"),
        ({"text": 1e3}, "text must be a percentage"),
        ({"model": "Linear Transformer"}, "row 2 .*family A has it from lra twice"),
    ],
)
def test_wrong_rows_are_named(change, message, tmp_path):
    from benchmarks.lra.published import PUBLISHED, load_published

    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    content["rows"][0] |= change
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match=message):
        load_published(path)


def test_efficiency():
    """The ratios to the Transformer that LRA's table 2 prints too, which are of figures less rounded."""
    from benchmarks.lra.published import load_efficiency, load_sources

    speeds = load_efficiency("lra")
    base = speeds["Transformer"]
    printed = {
        "Local Attention": (1.1, 5.3), "Linformer": (1.2, 5.5), "Reformer": (0.5, 0.8), "Sinkhorn": (1.1, 3.8),
        "Synthesizer": (1.1, 1.4), "BigBird": (0.9, 1.1), "Linear Transformer": (1.1, 5.6), "Performer": (1.2, 5.7),
    }  # fmt: skip
    assert {"Transformer", *printed} == set(speeds)
    for model, ratios in printed.items():
        for length, ratio in zip((1000, 4000), ratios, strict=True):
            assert speeds[model][f"steps_{length}"] / base[f"steps_{length}"] == pytest.approx(
                ratio, rel=0.06, abs=0.06
            )
    assert load_efficiency("skyformer")["Informer"]["hours_text"] == 1.6
    assert load_sources()["skyformer"].startswith("Skyformer")
    with pytest.raises(ValueError, match="no table 'xformers'; there are lra, skyformer"):
        load_efficiency("xformers")
