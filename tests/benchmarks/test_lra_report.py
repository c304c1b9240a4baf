"""The report: what it takes, what it sets side by side, and what it says."""

import csv
import json
import re
from pathlib import Path

import pytest
from made_records import made_efficiency, made_environment, made_matrix, made_record

from zoo.files import seal

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "benchmarks" / "lra" / "results"


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """`benchmarks` is not installed: it is imported from the checkout."""
    monkeypatch.syspath_prepend(str(REPO))


@pytest.fixture
def write(tmp_path):
    """Writes values as JSON files into a folder and returns it."""

    def write(*values, folder="records", **named):
        where = tmp_path / folder
        where.mkdir(parents=True, exist_ok=True)
        for number, value in enumerate(values):
            (where / f"{number:03d}.json").write_text(json.dumps(value), encoding="utf-8")
        for name, value in named.items():
            (where / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return where

    return write


@pytest.fixture
def page(tmp_path):
    """Makes a report of paths and returns the page, the Markdown, the rows of the CSV and what was left out."""

    def make(*paths, allow_old=False):
        from benchmarks.lra.report import report

        out = tmp_path / "out" / "report.html"
        left_out = report(paths, out, allow_old=allow_old)
        with out.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return out.read_text(encoding="utf-8"), out.with_suffix(".md").read_text(encoding="utf-8"), rows, left_out

    return make


def shipped(name, variant, seed, *overrides):
    """The hash of a shipped recipe."""
    from benchmarks.lra.cells import recipe_hash
    from zoo.training.recipe import load_recipe

    return recipe_hash(load_recipe(name, [*overrides, f"train.seed={seed}"], variant=variant))


def resealed(record, **changes):
    """A record with other values and a digest that fits."""
    values = {**record, **changes}
    values.pop("digest")
    return seal({key: value for key, value in values.items() if value is not KeyError})


def groups_of(*records):
    from benchmarks.lra.reporting.groups import group
    from benchmarks.lra.reporting.records import make_record

    return group([make_record(record, f"{number}.json") for number, record in enumerate(records)])


def board(*records, published=()):
    """The leaderboard of the one section of some records: name to texts by column."""
    from benchmarks.lra.reporting.tables import leaderboard

    ((section, groups),) = groups_of(*records).items()
    table = leaderboard(section, groups, published)
    return [dict(zip(table.columns, (cell.text for cell in row.cells), strict=True)) for row in table.rows], table


@pytest.mark.parametrize(
    ("values", "section"),
    [
        ({}, "lra-small"),
        ({"protocol": "original"}, "lra-original"),
        ({"protocol": "ssm", "source": "published"}, "lra-ssm"),
        ({"protocol": "smoke", "source": "smoke"}, "smoke"),
        ({"protocol": "small", "source": "smoke"}, "smoke"),
        ({"protocol": "smoke"}, "smoke"),
        ({"protocol": "mine"}, "other"),
        ({"protocol": None}, "other"),
        ({"task": "lra/unheard_of"}, "other"),
        ({"task": "classify/shapes"}, "stand"),
        ({"task": "pairs/acl"}, "stand"),
        ({"task": "lm/bytes"}, "lm"),
        ({"task": "theirs"}, "rest"),
    ],
)
def test_only_lra_by_its_protocols_stands_beside_lra(values, section):
    assert [found.key for found in groups_of(made_record(**values))] == [section]


def test_mean_spread_and_number_of_seeds():
    rows, table = board(*(made_record(seed=seed, value=value) for seed, value in enumerate((0.40, 0.42, 0.44))),
                        made_record(variant="gla", value=0.3))  # fmt: skip
    assert [row["Variant"] for row in rows] == ["gla", "softmax", "majority", "root operator"]
    assert rows[1]["ListOps"] == "42.00 ± 2.00 (3)"
    assert rows[0]["ListOps"] == "30.00"
    assert [cell.best for row in table.rows for cell in row.cells[1:2]] == [False, True, False, False]
    assert rows[2]["ListOps"] == "17.10"


def test_averages_only_where_all_tasks_are_there():
    values = {"listops": 0.4, "text": 0.6, "retrieval": 0.8, "image": 0.4, "pathfinder": 0.7}
    records = [made_record(f"lra/{task}", value=value) for task, value in values.items()]
    rows, _ = board(*records)
    assert (rows[0]["Mean of 5"], rows[0]["Mean of 6"]) == ("58.00", "–")
    assert board(*records[1:])[0][0]["Mean of 5"] == "–"
    rows, _ = board(*records, made_record("lra/pathx", value=0.5))
    assert (rows[0]["Mean of 5"], rows[0]["Mean of 6"]) == ("58.00", "56.67")
    rows, table = board(*records, made_record("lra/text", source="clean", value=0.7))
    assert rows[0]["Mean of 5"] == "–"  # which of the two texts?
    assert table.columns[2:4] == ("Text, clean", "Text, original")


def test_published_rows_are_of_the_same_family(write, page):
    from benchmarks.lra.published import load_published

    folder = write(made_record(protocol="original"), made_record(protocol="small", variant="gla"))
    html, text, *_ = page(folder)
    for section, family in (("LRA, original", "A"), ("LRA, small", "C")):
        part = text.split(f"## {section}")[1].split("\n## ")[0]
        shown = {line.split("|")[1].strip(" *") for line in part.splitlines() if line.startswith("| *")}
        assert {row.model for row in load_published() if row.family == family} <= shown
        assert not {"S5", "Mega"} & shown
    assert 'class="published"' in html
    assert "Tay et al. 2020" in html


def test_smoke_has_no_published_rows_and_no_averages(write, page):
    _, text, *_ = page(write(made_record(protocol="smoke", source="smoke")))
    assert "Transformer" not in text
    assert "Mean of 5" not in text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"recipe_hash": None}, "recipe_hash"),
        ({"data": None}, "lacks data"),
        ({"seed": None}, "lacks seed"),
        ({"seed": "0"}, "whole number"),
        ({"environment": {**made_environment(), "commit": None}}, "environment.commit"),
        ({"environment": {**made_environment(), "device": ""}}, "environment.device"),
        ({"best": {"test": {"accuracy": float("nan")}, "validation": {"accuracy": 0.1}}}, "finite number"),
        ({"best": 3}, "best must be an object"),
        ({"curve": [[1, "x"]]}, "curve"),
        ({"overrides": "train.lr=1"}, "overrides"),
    ],
)
def test_a_record_that_is_not_whole_is_refused(write, page, change, why):
    html, text, rows, left_out = page(write(good=made_record(), bad=resealed(made_record(variant="gla"), **change)))
    assert [row["variant"] for row in rows] == ["softmax"]
    ((what, reason),) = left_out
    assert what == "bad.json"
    assert why in reason
    assert "bad.json" in html
    assert "bad.json" in text
    assert "gla" not in text.split("What is not here")[0]


def test_a_changed_number_is_refused(write, page, capsys):
    from benchmarks.lra.report import main

    record = made_record()
    record["best"]["test"]["accuracy"] = 0.99
    folder = write(good=made_record(variant="gla"), doctored=record)
    assert "digest" in page(folder)[3][0][1]
    assert main([str(folder), "--out", str(folder.parent / "report.html")]) == 1
    assert "doctored.json" in capsys.readouterr().err


def test_a_record_may_be_sealed_with_or_without_its_extras(write, page):
    extras = {"recipe_hash": "0" * 16, "curve": [[1, 0.2], [2, 0.3]], "id": "x"}
    bare = made_record(extras={})
    _, _, rows, left_out = page(write({**bare, **extras}, resealed({**made_record(seed=1, extras={}), **extras})))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert not left_out


def test_old_records_are_taken_when_asked_and_marked(page):
    from benchmarks.lra.reporting.records import RecordError

    smoke = RESULTS / "listops_smoke_all.json"
    with pytest.raises(RecordError, match="--allow-old"):
        page(smoke)
    html, text, rows, left_out = page(smoke, allow_old=True)
    assert not left_out
    assert len(rows) == 12
    assert {row["recipe_is"] for row in rows} == {"unrecorded"}
    assert "| **38.20†** |" in text
    assert "root operator" in text
    assert html.count('<circle cx="') >= 24  # a mark for each variant, wide and narrow


def test_two_results_of_one_seed_are_an_error(write, page):
    from benchmarks.lra.reporting.records import RecordError

    folder = write(one=made_record(value=0.4), two=made_record(value=0.5))
    with pytest.raises(RecordError, match=r"one\.json and two\.json .* Give one of them"):
        page(folder)


def test_recipes_are_told_from_one_another():
    name, override = "lra/small/listops", "train.lr=1.0e-3"
    records = [made_record(seed=seed) for seed in (0, 1)]
    as_shipped = [resealed(record, recipe_hash=shipped(name, "softmax", record["seed"])) for record in records]
    changed = [resealed(record, recipe_hash=shipped(name, "softmax", record["seed"], override), overrides=[override])
               for record in records]  # fmt: skip
    idle = resealed(records[0], overrides=["train.workers=2"],
                    recipe_hash=shipped(name, "softmax", 0, "train.workers=2"))  # fmt: skip
    ((_, groups),) = groups_of(*as_shipped, *changed).items()
    assert [(one.status, one.changes(), len(one.records)) for one in groups] == [
        ("shipped", "", 2),
        ("overridden", override, 2),
    ]
    ((_, groups),) = groups_of(idle, as_shipped[1]).items()
    assert [(one.status, len(one.records)) for one in groups] == [("shipped", 2)]
    # Two recipes of which nothing is known but that they are not the shipped one are not two seeds of one thing.
    unknown = [resealed(record, overrides=KeyError, recipe_hash=f"{record['seed']:016d}") for record in records]
    ((_, groups),) = groups_of(*unknown).items()
    assert [(one.status, len(one.records)) for one in groups] == [("other", 1), ("other", 1)]
    rows, table = board(*as_shipped, *changed)
    assert rows[1]["Variant"] == "softmax"
    assert table.rows[1].badges == (f"changed: {override}",)


def test_a_recipe_name_in_a_record_is_never_a_path(tmp_path):
    from benchmarks.lra.reporting.groups import recipe_status
    from benchmarks.lra.reporting.records import make_record

    recipe = tmp_path / "mine.yaml"
    recipe.write_text((REPO / "configs/lra/small/listops.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    values = resealed(made_record(), recipe=str(recipe), recipe_hash=shipped(recipe, "softmax", 0))
    assert recipe_status(make_record(values, "x")) == "other"


def run_folder(folder, variant, seed, value):
    """A finished run directory."""
    from zoo.training.folder import write_recipe
    from zoo.training.recipe import load_recipe

    folder.mkdir(parents=True)
    write_recipe(folder, load_recipe("lra/small/listops", [f"train.seed={seed}"], variant=variant))
    result = made_record(variant=variant, seed=seed, value=value, extras={})
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    log = [{"step": step, "split": split, "accuracy": step / 1000} for step in (100, 200) for split in
           ("train", "validation")]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in log)
    (folder / "metrics.jsonl").write_text(text + '{"step": 300, "spl', encoding="utf-8")
    (folder / "checkpoints" / "best").mkdir(parents=True)
    (folder / "checkpoints" / "best" / "digest.json").write_text('{"digest": 1}', encoding="utf-8")
    return result


def test_run_directories_and_matrices(tmp_path, page):
    out = tmp_path / "matrix"
    cells = []
    for variant, state in (
        ("softmax", "done"),
        ("gla", "done"),
        ("mamba", "failed"),
        ("retnet", "waiting"),
        ("axial", "done"),
    ):
        folder = f"cells/small/listops/{variant}-s0"
        cells.append({"id": f"small-listops-{variant}-s0", "protocol": "small", "task": "listops", "variant": variant,
                      "seed": 0, "overrides": [], "recipe_hash": shipped("lra/small/listops", variant, 0),
                      "state": state, "folder": folder,
                      "reason": "no <room>" if state == "failed" else None})  # fmt: skip
    results = [run_folder(out / cells[index]["folder"], cells[index]["variant"], 0, 0.4) for index in (0, 1)]
    content = {"format": 1, "spec": {}, "environment": made_environment(), "cells": cells}
    (out / "matrix.json").write_text(json.dumps(content), encoding="utf-8")
    html, _, rows, left_out = page(out)
    assert [(row["variant"], row["recipe_is"]) for row in rows] == [("gla", "shipped"), ("softmax", "shipped")]
    assert dict(left_out) == {
        "small-listops-axial-s0": "the matrix calls it done, and it has no result.json.",
        "small-listops-mamba-s0": "the cell failed: no <room>",
        "cells of a matrix": "1 are not finished",
    }
    assert "no &lt;room&gt;" in html
    assert html.count('class="curve"') == 4  # two variants, wide and narrow
    # The run directory alone, and a record made of the same run, are the same result.
    record = {**results[0], "recipe_hash": rows[1]["recipe_hash"]}
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    _, _, rows, left_out = page(out / cells[0]["folder"], tmp_path / "record.json")
    assert [(row["variant"], row["recipe_is"]) for row in rows] == [("softmax", "shipped")]
    assert not left_out


def test_equal_input_gives_equal_bytes(tmp_path):
    from benchmarks.lra.report import report

    pages = []
    for name, order in (("a", 1), ("b", -1)):
        folder = tmp_path / name / "records"
        folder.mkdir(parents=True)
        for number, record in list(enumerate([*made_matrix(), made_efficiency()]))[::order]:
            (folder / f"{number:03d}.json").write_text(json.dumps(record), encoding="utf-8")
        report([folder], tmp_path / name / "report.html")
        pages.append([(tmp_path / name / f"report.{end}").read_bytes() for end in ("html", "md", "csv")])
    assert pages[0] == pages[1]


def test_every_link_leads_somewhere_and_nothing_is_loaded(write, page):
    html, *_ = page(write(*made_matrix(), efficiency=made_efficiency()))
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'href="([^"]*)"', html))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "https://arxiv.org/abs/")) for link in links)
    assert not re.search(r"\bsrc=|<link|@import|url\(", html)
    numbers = re.findall(r'<td class="number"[^>]*>(.*?)</td>', html)
    ours = [cell for cell in numbers if "±" in cell]
    assert ours
    assert all(cell.startswith('<a class="to-record"') for cell in ours)


BAD = "<img src=x onerror=alert(1)>\"'{0}{}|@SCRIPT@ @ = `*_[]"


def test_whatever_a_record_holds_is_shown_as_text(write, page):
    bad = made_record(
        variant=BAD, seed=0, value=0.5, source=BAD, protocol="small", data=BAD, cautions=[BAD], recipe=BAD,
        published={BAD: BAD, "source": BAD}, baselines={"validation": {}, "test": {BAD: 0.2}}, mesh=BAD,
        environment={**made_environment(), "device": BAD, "commit": "=1+1"},
    )  # fmt: skip
    html, text, rows, left_out = page(write(bad, resealed(bad, variant="softmax", overrides=[BAD])))
    assert not left_out
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert "&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;{0}{}|@SCRIPT@ @ =" in html
    assert "<img" not in text.replace("\\<img", "")
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(cells) == 1
    assert rows[0]["commit"] == "'=1+1"


def test_odd_values_are_refused_or_shown_but_never_break_the_page(write, page):
    odd = [None, True, 10**400, "x", [1], 1e999]
    keys = [key for key in made_record() if key != "digest"]
    values = []
    for key in keys:
        for value in odd:
            record = made_record(seed=100 + len(values))
            values.append(resealed(record, **{key: value}))
            if isinstance(record[key], dict):
                values += [
                    resealed(made_record(seed=1000 + 20 * len(values) + index), **{key: {**record[key], inner: value}})
                    for index, inner in enumerate(record[key])
                ]
    _, _, rows, left_out = page(write(made_record(), *values))
    assert len(rows) + len(left_out) == len(values) + 1
    assert min(len(rows), len(left_out)) > 50


def test_nothing_to_show_is_an_error(tmp_path, capsys):
    from benchmarks.lra.report import main

    out = ["--out", str(tmp_path / "report.html")]
    assert main([str(tmp_path / "none"), *out]) == 2
    assert "there is no" in capsys.readouterr().err
    (tmp_path / "half.json").write_text('{"a": ', encoding="utf-8")
    assert main([str(tmp_path), *out]) == 2
    assert "half.json: it cannot be read as JSON" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    assert main([str(tmp_path / "other.json"), *out]) == 2
    assert "holds nothing that a report shows" in capsys.readouterr().err
    assert main([str(tmp_path), "--out", str(tmp_path / "report.txt")]) == 2
    assert "must end in .html" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_efficiency_is_shown_with_its_record_or_refused(write, page):
    html, text, _, left_out = page(write(efficiency=made_efficiency(("softmax", "gla"))))
    assert not left_out
    assert "Time of a training update" in html
    assert "did not run" in text
    assert re.search(r'href="#m-0-efficiency-json"', html)
    assert "1 x made up (2 x made up)" in html
    bare = made_efficiency(("softmax", "gla"))
    del bare["environment"]["commit"]
    _, text, _, left_out = page(write(efficiency=bare))
    assert left_out == [("efficiency.json", "its environment lacks commit: not a whole record.")]
    assert "training update" not in text


def test_forecasting_has_the_published_figures_beside_it(page):
    html, text, rows, _ = page(REPO / "benchmarks" / "forecasting" / "results", allow_old=True)
    assert len(rows) == 54
    line = next(line for line in text.splitlines() if line.startswith("| lookback96/etth1, 96 | itransformer"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3].startswith("0.3867 ± ")
    assert cells[3].endswith("† (3)")
    assert cells[5:8] == ["0.386", "0.405", "+0.0007"]
    assert "validation mse" in html  # curves, from the epochs beside the records
    assert 'id="forecast-' not in html


def test_a_forecast_that_a_record_holds_is_drawn(write, page):
    held = {"variate": "OT", "past": [1.0, 2.0, 3.0], "truth": [4.0, 5.0], "forecast": [3.9, 5.2]}
    record = made_record("forecasting/ett", "itransformer_forecaster", metric="mse", value=0.4,
                         extras={"recipe_hash": "0" * 16, "forecast": held})  # fmt: skip
    html, *_ = page(write(record, resealed(record, seed=1, forecast={"past": "x"})))
    assert html.count('<figure id="forecast-') == 1
    assert ">truth</text>" in html


def test_plots_are_written_as_files_that_need_nothing_else(write, tmp_path):
    from xml.etree import ElementTree

    from benchmarks.lra.report import report

    records = [made_record("lra/listops", name, seed=seed) for name in ("softmax", "gla") for seed in (0, 1)]
    assert not report(
        [write(*records, efficiency=made_efficiency(("softmax", "gla")))],
        tmp_path / "r.html",
        allow_old=True,
        pictures=tmp_path / "plots",
    )
    files = sorted((tmp_path / "plots").iterdir())
    page = (tmp_path / "r.html").read_text()
    assert len(files) == page.count("<figure ")
    assert all(f'<figure id="{path.stem}"' in page for path in files)
    for path in files:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        left, top, width, height = map(float, root.get("viewBox").split())
        assert (width, height) == (float(root.get("width")), float(root.get("height")))
        # Nothing lies beyond the picture's edges, and nothing leads out of it.
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            if text.get("transform"):  # the name of an axis, turned
                continue
            assert left <= float(text.get("x")) <= left + width
            assert top <= float(text.get("y")) <= top + height
        assert not list(root.iter("{http://www.w3.org/2000/svg}a"))
        assert "url(" not in path.read_text()
        assert any((text.text or "").rstrip("*") == "gla" for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_labels_do_not_overlap():
    import random

    from benchmarks.lra.reporting.labels import Box, place, spread

    frame = Box(50, 40, 510, 350)
    drawn = random.Random(0)
    for _ in range(20):
        points = [(drawn.gauss(300, 60), drawn.gauss(200, 40), drawn.uniform(3, 16), f"variant_{n}") for n in range(15)]
        boxes = place(points, frame)
        assert None not in boxes
        for index, box in enumerate(boxes):
            assert box.inside(frame)
            assert not any(box.meets(other) for other in boxes[:index])
            assert not any(box.meets(Box(x - r, y - r, 2 * r, 2 * r)) for x, y, r, _ in points)
    heights = spread([100.0] * 10 + [20.0], 0, 300)
    assert sorted(heights) == heights[-1:] + heights[:-1]
    assert min(b - a for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)) >= 13.99
    assert all(0 <= height <= 300 for height in spread([290.0] * 40, 0, 300))
