"""The README's table of results."""

import json
from pathlib import Path

import pytest
from made_records import made_matrix

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """`benchmarks` is not installed: it is imported from the checkout."""
    monkeypatch.syspath_prepend(str(REPO))


@pytest.fixture
def records(tmp_path):
    """A folder of records."""
    folder = tmp_path / "records"
    folder.mkdir()
    for record in made_matrix(variants=("softmax", "gla")):
        (folder / f"{record['id'].replace('/', '-')}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_it_is_written_and_told_when_stale(tmp_path, records, capsys):
    from benchmarks.lra.results_table import main

    page = tmp_path / "README.md"
    page.write_text("# x\n<!-- results -->\nold\n<!-- /results -->\nrest\n", encoding="utf-8")
    arguments = [str(records), "--page", str(page)]
    assert main([*arguments, "--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert main(arguments) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# x\n<!-- results -->\n")
    assert text.endswith("\n<!-- /results -->\nrest\n")
    assert "| gla (changed: not the shipped recipe) |" in text
    assert "old" not in text
    assert main([*arguments, "--check"]) == 0
    next(records.glob("*gla-s0*")).unlink()
    assert main([*arguments, "--check"]) == 1


def test_a_record_that_is_not_whole_stops_it(tmp_path, records, capsys):
    from benchmarks.lra.results_table import main

    page = tmp_path / "README.md"
    page.write_text("<!-- results -->\n<!-- /results -->\n", encoding="utf-8")
    (records / "bad.json").write_text('{"best": 1}', encoding="utf-8")
    assert main([str(records), "--page", str(page)]) == 2
    assert "bad.json" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "<!-- results -->\n<!-- /results -->\n"


def test_a_page_without_marks_is_left_alone(tmp_path, records, capsys):
    from benchmarks.lra.results_table import main

    page = tmp_path / "README.md"
    page.write_text("<!-- /results -->\n<!-- results -->\n", encoding="utf-8")
    assert main([str(records), "--page", str(page)]) == 2
    assert "once and in this order" in capsys.readouterr().err


def test_the_readme_is_of_the_committed_records():
    from benchmarks.lra.results_table import MARKS, put, results_text

    page = (REPO / "README.md").read_text(encoding="utf-8")
    if MARKS[0] not in page:
        pytest.skip(f"README.md has no {MARKS[0]} yet")
    assert put(page, results_text()) == page, "python -m benchmarks.lra.results_table writes it anew"
