"""What goes wrong is said in one message, with an exit code, and nothing that was there is harmed.

The cases (`tests/helpers/failure_cases.py`) make the table in docs/failures.md: `ZOO_WRITE_DOCS=1 python -m pytest
tests/test_failures.py` writes it, the tests compare.
"""

import contextlib
import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from circumstances import PREPARED, Case, Place
from failure_cases import CASES
from toy_runs import recipe, run

import zoo
from zoo import cli
from zoo.data.builders import listops
from zoo.training.recipe import recipe_from_dict

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs" / "failures.md"
WRITE = bool(os.environ.get("ZOO_WRITE_DOCS"))


def normal(text: str, folder: Path) -> str:
    """A message without what differs from one machine or day to another."""
    text = text.replace(f"{folder}/", "").replace(str(folder), ".").replace(f"{REPO}/", "")
    text = re.sub(r"process \d+ on [\w-]+(\.[\w-]+)*", "process 1234 on host", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "2f0c1b", text)
    # Since Python 3.12 argparse writes choices without quotes.
    return re.sub(r"\(choose from .*?\)", lambda found: found[0].replace("'", ""), text).strip()


def loose(line: str) -> str:
    """A row without numbers that another machine or version of JAX may find otherwise."""
    line = re.sub(r"[\d.,]*\d (bytes|[kMG]B)\b|instead of [\d,]+", r"... \1", line)
    line = re.sub(r"(accumulate|batch_size|max_len)=\d+ \(|in \d+ parts", r"\1=... (", line)
    return re.sub(r"zoo \d+\.\d+\.\d+|at line \d+|(loss|norm) (nan|inf)", "...", line)


def provoke(case: Case, folder: Path) -> tuple[int | str, str]:
    """The exit code (or exception) and what is said, with the case's circumstances in an empty folder."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as disks, warnings.catch_warnings():
        patch.chdir(folder)
        patch.setenv("ZOO_DATA", str(folder / "data"))
        case.prepare(Place(folder, patch, disks))
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
        if isinstance(case.code, str):
            with pytest.raises((ValueError, TypeError)) as caught:
                eval(case.command, {"zoo": zoo, "jnp": jnp})
            return type(caught.value).__name__, normal(str(caught.value), folder)
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main(case.command.split())
            except SystemExit as exit:
                code = exit.code
        if not case.goes_on:
            assert_unharmed(case, before)
    assert "Traceback" not in err.getvalue()
    lines = err.getvalue().splitlines()
    if case.goes_on:
        start = next(index for index, line in enumerate(lines) if "heckpoint" in line or "set aside" in line)
        lines = lines[start : next(index for index, line in enumerate(lines) if line.startswith("going on from")) + 1]
        return code, normal(" ".join(lines), folder)
    said = [line for line in lines if line.startswith("zoo: ")]
    assert len(said) == 1, err.getvalue()
    return code, normal(" ".join(lines[lines.index(said[0]) :]), folder)


def assert_unharmed(case: Case, before: dict[Path, bytes]) -> None:
    """What was there is there still; a run that began afterwards may have added to it."""
    if case.code in (130, 143):
        return
    for path, data in before.items():
        assert path.exists(), path
        assert path.read_bytes() == data, path


def slug(case: Case) -> str:
    return case.what.replace(" ", "-")


ALL = [case for cases in CASES.values() for case in cases]


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """Draws the data that cases damage."""
    folder = tmp_path_factory.mktemp("failures") / "data"
    listops.prepare("smoke", folder, workers=1, progress=False)
    PREPARED[:] = [folder]


@pytest.fixture(scope="module")
def said():
    """Rows of the table that this process has made; written at the end if asked for."""
    rows: dict[str, str] = {}
    yield rows
    if WRITE and len(rows) == len(ALL):
        DOCS.write_text(page(rows), encoding="utf-8")


def row(case: Case, code: int | str, message: str) -> str:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("<", "&lt;")

    typed = case.command if isinstance(case.code, str) else f"zoo {case.command}"
    return f"| {cell(case.what)} | `{cell(typed)}` | {code} | {cell(message.removeprefix('zoo: '))} |"


def page(rows: dict[str, str]) -> str:
    intro = DOCS.read_text(encoding="utf-8").split("\n## ")[0].rstrip()
    parts = [intro]
    for title, cases in CASES.items():
        head = "| what | how | exit code | message |\n|---|---|---|---|"
        parts.append(f"## {title}\n\n{head}\n" + "\n".join(rows[case.what] for case in cases))
    return "\n\n".join(parts) + "\n"


# What Orbax had still to write when the disk was full complains when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("toy", "compilation_cache")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=slug(case), marks=[pytest.mark.slow] if case.slow else []) for case in ALL]
)
def test_what_is_said(case, tmp_path, said):
    code, message = provoke(case, tmp_path)
    assert code == case.code, message
    said[case.what] = row(case, code, message)
    if not WRITE:
        written = [loose(line) for line in DOCS.read_text(encoding="utf-8").splitlines()]
        assert loose(said[case.what]) in written, said[case.what]


def test_the_page_has_these_cases_and_no_others():
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    whats = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    assert [what for what in whats if what != "what"] == [case.what for case in ALL]
    assert len({case.what for case in ALL}) == len(ALL)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_was_full_and_is_not_any_more(toy, tmp_path):
    """The same command goes on to the end that an undisturbed run comes to."""
    case = next(case for case in ALL if case.what == "its disk fills up")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as disks:
        place = Place(tmp_path, patch, disks)
        patch.chdir(tmp_path)
        case.prepare(place)
        with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            cli.main(case.command.split())
        (tmp_path / "disk" / "filler").unlink()
        patch.undo()
        result = run(tmp_path / "disk" / "run", recipe())
        plain = run(tmp_path / "plain", recipe())
        assert result["last"] == plain["last"]
        assert json.dumps(result["best"]) == json.dumps(plain["best"])
        log = "metrics.jsonl"
        assert (tmp_path / "disk" / "run" / log).read_bytes() == (tmp_path / "plain" / log).read_bytes()


def test_the_same_recipe_without_its_faults_runs(toy, tmp_path):
    """Or the cases above show nothing."""
    assert run(tmp_path, recipe_from_dict(recipe().to_dict()))["steps"] == 60
