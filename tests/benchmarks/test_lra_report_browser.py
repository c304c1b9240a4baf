"""The report in a browser: sorting, filtering, plots, panels, themes, and an empty console."""

import json
from pathlib import Path

import pytest
from browser import find_browser, open_page
from made_records import made_efficiency, made_matrix

REPO = Path(__file__).resolve().parents[2]
BOARD = "document.getElementById('board-lra-small')"
ROWS = f"[...{BOARD}.querySelector('tbody').rows]"
# Pairs of labels in one plot whose boxes overlap by more than a pixel, and labels that stick out of their plot.
OVERLAPS = """
(() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const texts = [...svg.querySelectorAll('text')].map((text) => [text.textContent, text.getBoundingClientRect()]);
    texts.forEach(([name, box], index) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1) found.push([name, 'sticks out']);
      for (const [other, its] of texts.slice(0, index)) {
        const across = Math.min(box.right, its.right) - Math.max(box.left, its.left);
        const down = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
        if (across > 1 && down > 2.5) found.push([name, other]);
      }
    });
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of made-up records."""
    folder = tmp_path_factory.mktemp("report")
    records = folder / "records"
    records.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO))
        from benchmarks.lra.report import report

        for number, record in enumerate([*made_matrix(), made_efficiency()]):
            (records / f"{number:03d}.json").write_text(json.dumps(record), encoding="utf-8")
        assert not report([records], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A tab of a headless Chromium."""
    command = find_browser()
    if command is None:
        pytest.skip("needs a Chromium on the path (Debian: apt-get install chromium)")
    with open_page(command, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser, report):
    """The report, freshly loaded; afterwards the console must be empty, and nothing else may have been asked for."""
    browser.said.clear()
    browser.asked.clear()
    browser.load(report)
    yield browser
    assert browser.said == []
    assert {address.partition("#")[0] for address in browser.asked} == {report.resolve().as_uri()}


pytestmark = pytest.mark.slow


def test_tables_are_sorted_by_their_heads(page):
    values = f"{ROWS}.map((row) => row.cells[1].dataset.value)"
    page.run(f"{BOARD}.querySelectorAll('.sort')[1].click()")
    down = [float(value) for value in page.run(f"{values}.filter((value) => value !== undefined)")]
    assert len(down) > 20
    assert down == sorted(down, reverse=True)
    assert page.run(f"{BOARD}.querySelectorAll('th')[1].getAttribute('aria-sort')") == "descending"
    page.run(f"{BOARD}.querySelectorAll('.sort')[1].click()")
    assert [float(value) for value in page.run(values) if value] == down[::-1]
    page.run(f"{BOARD}.querySelectorAll('.sort')[0].click()")
    names = page.run(f"{ROWS}.map((row) => row.cells[0].dataset.value.toLowerCase())")
    assert names[0] == "axial"
    assert page.run(f"{BOARD}.querySelectorAll('[aria-sort]').length") == 1


def test_tables_are_filtered_by_words_and_kinds(page):
    visible = f"{ROWS}.filter((row) => row.offsetParent !== null).map((row) => row.cells[0].dataset.value)"
    everything = page.run(visible)
    page.run(f"{BOARD}.querySelector('.filter').focus()")
    page.command("Input.insertText", text="MAMBA other")
    assert page.run(visible) == []
    page.run(f"{BOARD}.querySelector('.filter').value = ''")
    page.command("Input.insertText", text="MAMBA")
    assert page.run(visible) == ["mamba", "mamba2"]
    assert page.run(f"{BOARD}.querySelector('.count').textContent") == f"2 of {len(everything)} rows"
    page.run(f"{BOARD}.querySelector('.filter').value = ''")
    page.run(f"{BOARD}.querySelector('.kind[value=published]').click()")
    left = page.run(visible)
    assert "softmax" in left
    assert "Skyformer" in everything
    assert "Skyformer" not in left


def test_a_number_opens_its_record_by_keyboard_and_escape_closes_it(page):
    page.run(f"{BOARD}.querySelector('tbody a.to-record').focus()")
    page.press("Enter", 13, "\r")
    assert page.run("document.getElementById('panel').open")
    page.run("document.querySelector('#panel-content a.to-record').focus()")
    page.press("Enter", 13, "\r")
    text = page.run("document.getElementById('panel').textContent")
    assert "lra/small/listops, axial, seed 0" in text
    assert "0123456789abcdef" in text
    assert "1 x made up" in text
    page.press("Escape", 27)
    assert not page.run("document.getElementById('panel').open")
    assert page.run("document.activeElement.className") == "to-record"


def test_a_mark_of_a_plot_opens_its_record(page):
    click = "dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
    page.run(f"document.querySelector('figure .wide .mark circle').{click}")
    assert page.run("document.getElementById('panel').open")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_plots_are_there_at_every_width_and_theme(page, report, width, dark):
    page.load(report, width=width, dark=dark)
    shown = "[...figure.querySelectorAll('svg')].filter((svg) => svg.getBoundingClientRect().width > 250).length"
    sizes = page.run(f"[...document.querySelectorAll('figure')].map((figure) => {shown})")
    assert len(sizes) >= 9  # score and cost, curves, and scaling
    assert set(sizes) == {1}
    assert page.run(OVERLAPS) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    colors = page.run("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert colors[0] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert colors[1] != colors[0]


def test_the_switch_overrules_the_system(page, report):
    background = "getComputedStyle(document.body).backgroundColor"
    page.load(report, dark=True)
    assert page.run(background) == "rgb(20, 23, 27)"
    page.run("document.getElementById('theme').click()")
    assert page.run("document.getElementById('theme').textContent") == "Theme: light"
    assert page.run(background) == "rgb(255, 255, 255)"
    page.load(report)
    assert page.run("document.getElementById('theme').textContent") == "Theme: light"  # kept
    page.run("document.getElementById('theme').click()")
    assert page.run(background) == "rgb(20, 23, 27)"
    page.run("document.getElementById('theme').click()")


def test_it_reads_without_a_script(page, report):
    page.command("Emulation.setScriptExecutionDisabled", value=True)
    page.load(report, hash="#details")
    page.command("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.querySelectorAll('#board-lra-small tbody tr').length") > 20
    assert page.run("document.querySelector('details.record').offsetHeight") > 0
