"""Our code on the arrays of tests/golden, each within its bound, and docs/parity.md says so of every one."""

import re

import pytest
from goldens import GOLDEN, Arrays, comparisons
from goldens.page import PAGE, page, rows

CASES = [
    pytest.param(
        entry, case, id=f"{entry.array}-{entry.what}-{case}", marks=[pytest.mark.slow] if case in entry.slow else []
    )
    for entry in comparisons()
    for case in entry.cases
]


@pytest.mark.parametrize(("entry", "case"), CASES)
def test_parity(entry, case, compilation_cache):
    measured = entry.measure(case)
    assert measured.keys
    assert measured.outputs <= entry.bound
    assert measured.gradients is None or measured.gradients <= entry.bound


def test_every_array_is_compared():
    """In the default tests, and all that is in it, gradients too."""
    files = {path.stem for path in GOLDEN.glob("*.npz")}
    assert files == {entry.array for entry in comparisons()}, "add an entry in tests/helpers/goldens"
    for name in files:
        found = set()
        for entry in comparisons():
            if entry.array == name:
                found |= {key for case in entry.cases if case not in entry.slow for key in entry.measure(case).keys}
        assert found == Arrays(name).results(), name


def test_the_page_is_of_these_comparisons():
    """The printed errors may vary with versions of XLA; they are within the bounds, and all else is as written."""
    text = PAGE.read_text(encoding="utf-8")

    def without_errors(text):
        text = re.sub(r"\| (?:\d\.\de-\d\d|0|–) (?=\|)", "| # ", text)
        return re.sub(r"(?m)^Measured .*$", "", text)

    unmeasured = [(entry, case, None) for entry in comparisons() for case in entry.cases]
    assert without_errors(text) == without_errors(page(unmeasured)), "run python tests/parity.py"
    found = rows(text)
    assert len(found) == len(CASES)
    for row in found:
        bound = float(row["bound"])
        assert float(row["outputs"]) <= bound
        assert row["gradients"] == "–" or float(row["gradients"]) <= bound
    assert any(row["gradients"] != "–" for row in found)
