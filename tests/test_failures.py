"""What goes wrong is said in one message, with an exit code, and nothing that was there is harmed.

The cases below make the table in docs/failures.md: `ZOO_WRITE_DOCS=1 python -m pytest tests/test_failures.py` writes
it, the tests compare.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import interrupt, recipe, run

import zoo
from zoo import cli
from zoo.data.builders import listops
from zoo.files import seal
from zoo.training import checkpoint, memory
from zoo.training.folder import hold
from zoo.training.loop import Trainer
from zoo.training.recipe import recipe_from_dict

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs" / "failures.md"
WRITE = bool(os.environ.get("ZOO_WRITE_DOCS"))
SMOKE = "lra/smoke/listops"
PREPARED: list[Path] = []  # the data of lra/listops/smoke, drawn once


@dataclasses.dataclass
class Place:
    """Where a case is provoked: an empty working directory, and how to make things in it."""

    folder: Path
    patch: pytest.MonkeyPatch
    disks: contextlib.ExitStack

    def toy(self, at: int | None = None, **options: Any) -> Path:
        """A run of the task `toy` in run/, stopped after step `at`, and its recipe in toy.yaml."""
        made = recipe(**options)
        (self.folder / "toy.yaml").write_text(made.to_yaml())
        if at is not None:
            interrupt(self.folder / "run", made, at, self.patch)
        return self.folder / "run"

    def data(self) -> Path:
        """The prepared data of lra/listops/smoke in data/."""
        shutil.copytree(PREPARED[0], self.folder / "data")
        return self.folder / "data" / "lra_listops" / "smoke" / "1.0.0"

    def disk(self, name: str, size: str, *options: str) -> Path:
        """A small disk of its own."""
        folder = self.folder / name
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk is not allowed here")
        self.disks.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        return folder


@dataclasses.dataclass
class Case:
    """One thing that goes wrong.

    Attributes:
      what: it, in words.
      command: what the user types: arguments of `zoo`, or Python.
      code: the exit code, or the class of the exception.
      prepare: makes the circumstances.
      goes_on: the command succeeds all the same, and says this on the way.
      slow: whether bringing it about takes half a minute.
    """

    what: str
    command: str
    code: int | str
    prepare: Callable[[Place], Any] = lambda place: None
    goes_on: bool = False
    slow: bool = False


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def damaged_checkpoint(place: Place, steps: list[int], damage: Callable[[Path], Any]) -> None:
    last = place.toy(53) / "checkpoints" / "last"
    for step in steps:
        damage(largest(last / str(step) / "state"))


def other_format(place: Place) -> None:
    with place.patch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 0)
        patch.setattr(zoo, "__version__", "0.0.1")
        place.toy(23)


def other_model(place: Place) -> None:
    folder = place.toy(23)
    other = recipe("model", d_model=16)
    interrupt(place.folder / "other", other, 23, place.patch)
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(place.folder / "other" / "checkpoints", folder / "checkpoints")


def other_generator(place: Place) -> None:
    path = place.data() / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    path.write_text(json.dumps(seal({**manifest, "generator_version": 0})))


def disk_that_fills(place: Place) -> None:
    place.disk("disk", "2500k")
    place.toy()
    save = Trainer._save

    def fill(self, step):
        if step == 40:
            self.best.wait()
            self.last.wait()
            with contextlib.suppress(OSError), (place.folder / "disk" / "filler").open("wb") as file:
                while True:
                    file.write(bytes(1024))
        save(self, step)

    place.patch.setattr(Trainer, "_save", fill)


def small_memory(place: Place) -> None:
    place.patch.setattr(memory, "device_memory", lambda: 400_000_000)
    place.patch.setattr(memory, "_available", lambda rows: 400_000_000)
    place.data()


def locked(place: Place) -> None:
    place.toy()
    place.disks.enter_context(hold(place.folder / "run"))


def trained_on_other_data(place: Place) -> None:
    from zoo.registry import get

    toy = get("toy", "task")
    place.patch.setattr(toy, "fingerprint", lambda self: "0e5f...", raising=False)
    place.toy(53)
    place.patch.setattr(toy, "fingerprint", lambda self: "91aa...", raising=False)


def told(place: Place, number: signal.Signals) -> None:
    place.toy()
    take = Trainer._take

    def signalled(self, step, sums):
        take(self, step, sums)
        if step == 33:
            os.kill(os.getpid(), number)

    place.patch.setattr(Trainer, "_take", signalled)


def published(place: Place, text: str | None) -> None:
    folder = place.folder / "data" / "downloads" / "manual" / "listops-1000"
    folder.mkdir(parents=True)
    for name in ("train", "val", "test"):
        (folder / f"basic_{name}.tsv").write_text(text or "")


def online(place: Place) -> None:
    place.patch.delenv("ZOO_OFFLINE")
    place.patch.delenv("ZOO_MIRROR", raising=False)
    place.patch.setenv("no_proxy", "*")


def write(name: str, text: str) -> Callable[[Place], Any]:
    return lambda place: (place.folder / name).write_text(text)


def own_table(change: Mapping[int, str | None] | None = None, rows: int | None = 80) -> Callable[[Place], Any]:
    """A recipe, and a csv of hours with the columns load and temperature in which lines (from 1) are changed."""

    def prepare(place: Place) -> None:
        (place.folder / "table.yaml").write_text(
            "variant: dlinear\ntask: {name: forecasting/csv, source: table.csv, max_len: 8, options: {horizon: 3}}\n"
            "train: {steps: 2, batch_size: 4, tensorboard: false}\n"
        )
        if rows is None:
            return
        hours = (f"2020-01-{1 + hour // 24:02} {hour % 24:02}:00:00,{hour % 24},{hour % 7}" for hour in range(rows))
        lines: list[str | None] = ["date,load,temperature", *hours]
        for line, text in (change or {}).items():
            lines[line - 1] = text
        (place.folder / "table.csv").write_text("\n".join(line for line in lines if line is not None) + "\n")

    return prepare


def own_rows(change: Mapping[int, str | None] | None = None, **more: str) -> Callable[[Place], Any]:
    """A folder reviews/ with a train.csv in which lines (from 1) are changed, and other files by their names."""

    def prepare(place: Place) -> None:
        (place.folder / "reviews").mkdir()
        lines: list[str | None] = ["text,label", *(f"film {row},{'pos' if row % 2 else 'neg'}" for row in range(60))]
        for line, text in (change or {}).items():
            lines[line - 1] = text
        text = "\n".join(line for line in lines if line is not None) + "\n"
        for name, content in {"train_csv": text, **more}.items():
            path = place.folder / "reviews" / name.replace("_", ".")
            path.write_bytes(content.encode("utf-8", "surrogateescape"))

    return prepare


def own_arrays(**arrays: Any) -> Callable[[Place], Any]:
    """A file reviews.npz."""
    return lambda place: np.savez(place.folder / "reviews.npz", **arrays)


def forecast_of_days(place: Place) -> None:
    own_table()(place)
    cli.main(["train", "table.yaml", "--run-dir", "run"])
    lines = ["date,load,temperature", *(f"2020-02-{day:02},1,2" for day in range(1, 20))]
    (place.folder / "daily.csv").write_text("\n".join(lines) + "\n")


OWN = "train classify/files task.source=reviews"
OWN_ARRAYS = "train classify/files task.source=reviews.npz"
TOY = "train toy.yaml --run-dir run"
CASES = {
    "Names": [
        Case("no such command", "trian", 2),
        Case("no such recipe", "train lra/smoke/listop", 2),
        Case("no such key", f"train {SMOKE} train.lrr=1e-3", 2),
        Case("no such variant", f"train {SMOKE} --variant nystromfomer", 2),
        Case("no such option of a variant", f"train {SMOKE} options.heads=3", 2),
        Case("no such task", f"train {SMOKE} task.name=lra/listop", 2),
        Case("no such source of a task", f"train {SMOKE} task.source=smok", 2),
        Case("no such file of a variant", f"train {SMOKE} --variant mine.py", 2),
        Case("a logger that is not installed", f"{TOY} train.wandb=project", 2,
             lambda place: (place.toy(), place.patch.setitem(sys.modules, "wandb", None))),
    ],
    "Values": [
        Case("a value of another type", f"train {SMOKE} train.steps=many", 2),
        Case("a value out of range", f"train {SMOKE} train.lr=-1", 2),
        Case("values that do not fit together", f"train {SMOKE} train.warmup_steps=400", 2),
        Case("a width that the heads do not divide", f"train {SMOKE} model.d_model=30 model.num_heads=4", 2),
        Case("causal, of a variant that cannot be", f"train {SMOKE} --variant nystromformer model.causal=true", 2),
        Case("a summary that a causal model cannot have", f"train {SMOKE} model.causal=true model.pooling=cls", 2),
        Case("buckets in the wrong order", f"train {SMOKE} train.buckets=[64,32]", 2),
        Case("updates to trace that there are not", f"train {SMOKE} --profile steps=500:600", 2),
        Case("updates to trace, written otherwise", f"train {SMOKE} --profile 20-30", 2),
    ],
    "Shapes (in Python)": [
        Case("a width that is not the module's",
             'zoo.create_mixer("flowformer", d_model=64)(jnp.ones((2, 7, 32)))', "ValueError"),
        Case("an axis that is missing", 'zoo.create_mixer("softmax", d_model=64)(jnp.ones((7, 64)))', "ValueError"),
        Case("a mask of another length",
             'zoo.create_mixer("nystromformer", d_model=64)(jnp.ones((2, 7, 64)), mask=jnp.ones((2, 8), bool))',
             "ValueError"),
        Case("a mask that is not boolean",
             'zoo.create_mixer("softmax", d_model=64)(jnp.ones((2, 7, 64)), mask=jnp.ones((2, 7)))', "TypeError"),
        Case("a sequence that is too long",
             'zoo.create_model("softmax", num_classes=2, vocab_size=9, max_len=32)(jnp.ones((2, 33), int))',
             "ValueError"),
    ],
    "Devices and processes": [
        Case("a batch that the devices do not divide", f"train {SMOKE} train.batch_size=30 train.accumulate=2", 2,
             lambda place: place.patch.setattr("zoo.training.sharding._devices", lambda _: jax.devices() * 8)),
        Case("a mesh of another size", f"train {SMOKE} --mesh data=4,fsdp=2", 2),
        Case("a mesh axis that there is not", f"train {SMOKE} --mesh fdsp=2", 2),
        Case("more devices than there are", f"train {SMOKE} --devices 16", 2),
        Case("a rule for arrays that there are not", f"train {SMOKE} train.sharding={{tabel:[fsdp]}}", 2),
        Case("a process that is named by half", f"train {SMOKE} --coordinator 10.0.0.1:1234", 2),
    ],
    "Files": [
        Case("an empty recipe", "train mine.yaml", 2, write("mine.yaml", "")),
        Case("a recipe that is cut short", "train mine.yaml", 2, write("mine.yaml", "train: {lr: 1")),
        Case("a checkpoint that is cut short; an older one is used", TOY, 0,
             lambda place: damaged_checkpoint(place, [40], cut), goes_on=True),
        Case("a checkpoint with a changed bit; an older one is used", TOY, 0,
             lambda place: damaged_checkpoint(place, [40], flip), goes_on=True),
        Case("a checkpoint that was not finished; an older one is used", TOY, 0,
             lambda place: (place.toy(53) / "checkpoints/last/40/manifest.json").unlink(), goes_on=True),
        Case("no checkpoint that is whole", TOY, 1, lambda place: damaged_checkpoint(place, [20, 40], flip)),
        Case("a damaged checkpoint, to be evaluated", "evaluate run --which last", 1,
             lambda place: damaged_checkpoint(place, [40], cut)),
        Case("a checkpoint of another version", TOY, 1, other_format),
        Case("a checkpoint of another model", "evaluate run", 1, other_model),
        Case("a run's recipe that was changed", TOY, 1, lambda place: flip(place.toy(23) / "recipe.yaml")),
        Case("a result that is cut short", TOY, 1,
             lambda place: (run(place.toy(), recipe()), cut(place.folder / "run" / "result.json"))),
        Case("a log that is cut short; an older checkpoint is used", TOY, 0,
             lambda place: cut(place.toy(53) / "metrics.jsonl"), goes_on=True),
        Case("data that is not there", "data info lra/listops/smoke --data-dir data", 2),
        Case("data whose file is cut short", f"train {SMOKE} --data-dir data", 1,
             lambda place: cut(next(place.data().glob("*train*")))),
        Case("data with a changed bit", f"train {SMOKE} --data-dir data", 1,
             lambda place: flip(next(place.data().glob("*train*")))),
        Case("data of another version", f"train {SMOKE} --data-dir data", 1, other_generator),
        Case("a run that began with other data", TOY, 1, trained_on_other_data),
        Case("published files that are not there", "data prepare lra/listops/published --data-dir data", 1),
        Case("published files that are empty", "data prepare lra/listops/published --data-dir data", 1,
             lambda place: published(place, "")),
        Case("an archive that is not there, with ZOO_OFFLINE=1", "data prepare lra/text --data-dir data", 1),
        Case("an archive at an address where nobody answers",
             "data prepare lra/text --data-dir data archive=http://127.0.0.1:9/aclImdb_v1.tar.gz", 1, online),
        Case("an archive that is fetched only when asked", "data prepare lra/retrieval --data-dir data", 1, online),
        Case("a folder that is no run", "evaluate .", 1),
    ],
    "Tables of your own": [
        Case("no such table", "train table.yaml", 1, own_table(rows=None)),
        Case("a wrong date", "train table.yaml", 1, own_table({3: "2020-13-01 01:00:00,1,1"})),
        Case("text where a number should be", "train table.yaml", 1, own_table({4: "2020-01-01 02:00:00,two,2"})),
        Case("an empty cell", "train table.yaml", 1, own_table({4: "2020-01-01 02:00:00,,2"})),
        Case("a gap in the times", "train table.yaml", 1, own_table({5: None, 6: None})),
        Case("two rows of one time", "train table.yaml", 1, own_table({5: "2020-01-01 02:00:00,1,1"})),
        Case("rows that are not sorted", "train table.yaml", 1, own_table({5: "2019-01-01 02:00:00,1,1"})),
        Case("a number that stands for a missing one", "train table.yaml", 1,
             own_table({4: "2020-01-01 02:00:00,-9999,2"})),
        Case("a row with another number of fields", "train table.yaml", 1, own_table({4: "2020-01-01 02:00:00,1"})),
        Case("no column of that name", "train table.yaml task.options.target=lod", 2, own_table()),
        Case("too few rows", "train table.yaml task.max_len=96", 1, own_table()),
        Case("an option that the task does not have", "train table.yaml task.options.horizn=3", 2, own_table()),
        Case("a step other than the run's", "forecast run daily.csv --no-plot", 2, forecast_of_days),
    ],
    "Files of your own": [
        Case("no path of files", "train classify/files", 2),
        Case("no such folder", OWN, 1),
        Case("a folder without a file for training", OWN, 1,
             lambda place: (own_rows()(place), Path("reviews/train.csv").rename("reviews/all.csv"))),
        Case("two files for one split", OWN, 1, own_rows(dev_csv="text,label\n", val_jsonl="")),
        Case("an empty file", OWN, 1, own_rows(test_csv="")),
        Case("no column of the texts", OWN, 1, own_rows({1: "txt,label"})),
        Case("no column of the labels", f"{OWN} task.options.label_column=lable", 1, own_rows()),
        Case("a row with other fields than the first line", OWN, 1, own_rows({4: "film, the,pos"})),
        Case("a quote that is not closed", OWN, 1, own_rows({9: '"film,pos'})),
        Case("a line that is no UTF-8", OWN, 1, own_rows({3: "caf\udce9,pos"})),
        Case("a row without a text", OWN, 1, own_rows({6: ",pos"})),
        Case("a row without a label", OWN, 1, own_rows({7: "film,"})),
        Case("one label only", OWN, 1, own_rows(dict.fromkeys(range(2, 62, 2)))),
        Case("a label that training lacks", OWN, 1, own_rows(test_csv="text,label\na film,posi\n")),
        Case("a line that is no JSON", OWN, 1, own_rows(test_jsonl='{"text": "a", "label": "pos"}\n{"text": "b", \n')),
        Case("too few rows to draw from", OWN, 1, own_rows(dict.fromkeys(range(6, 62)))),
        Case("arrays of other lengths", OWN_ARRAYS, 1, own_arrays(inputs=[[1, 2], [2, 1]], labels=[0])),
        Case("a token that is the padding", OWN_ARRAYS, 1, own_arrays(inputs=[[1, 2], [2, 0]], labels=[0, 1])),
        Case("a number that is none", OWN_ARRAYS, 1, own_arrays(inputs=[[1.0, float("nan")]], labels=[0])),
        Case("arrays of objects", OWN_ARRAYS, 1, own_arrays(inputs=np.array([1, None]), labels=[0, 1])),
    ],
    "Run directories": [
        Case("another process writes there", TOY, 1, locked),
        Case("it holds a run of another recipe", f"{TOY} train.lr=0.03", 1, lambda place: place.toy(23)),
        Case("it holds a run, and going on was forbidden", f"{TOY} --no-resume", 1, lambda place: place.toy(23)),
        Case("its name is that of a file", TOY, 1, lambda place: (place.toy(), write("run", "")(place))),
        Case("its disk may not be written", "train toy.yaml --run-dir disk/run", 1,
             lambda place: (place.toy(), place.disk("disk", "1m", "ro"))),
        Case("its disk is too small for the checkpoints", "train toy.yaml --run-dir disk/run", 1,
             lambda place: (place.toy(), place.disk("disk", "16k"))),
        Case("its disk fills up", "train toy.yaml --run-dir disk/run", 1, disk_that_fills),
        Case("the disk of the data is too small", f"train {SMOKE} --data-dir disk", 1,
             lambda place: place.disk("disk", "64k")),
        Case("the folder of the data may not be written", f"train {SMOKE} --data-dir disk", 1,
             lambda place: place.disk("disk", "1m", "ro")),
    ],
    "While it runs": [
        Case("an update that does not fit the memory", f"train {SMOKE} --data-dir data train.batch_size=512", 1,
             small_memory, slow=True),
        Case("a loss that is not finite", TOY, 1,
             lambda place: place.toy(lr=1e30, schedule="constant", warmup_steps=0)),
        Case("SIGINT (Ctrl-C)", TOY, 130, lambda place: told(place, signal.SIGINT)),
        Case("SIGTERM", TOY, 143, lambda place: told(place, signal.SIGTERM)),
    ],
}  # fmt: skip


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
