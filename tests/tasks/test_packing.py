"""Tasks read from one file: the same examples, without TFDS."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_archives import batches, reviews, shrink, write_archive

from zoo import cli
from zoo.data.builders import pairs as builders
from zoo.data.manifest import DataError
from zoo.tasks.lra.image import Image
from zoo.tasks.lra.listops import ListOps
from zoo.tasks.lra.retrieval import Retrieval
from zoo.tasks.lra.text import Text
from zoo.tasks.packing import pack
from zoo.training.recipe import load_recipe
from zoo.training.run import train

SPLITS = ("train", "validation", "test")
SIZES = {"train": 40, "validation": 20, "test": 20}
NAMES = {"train": "train", "validation": "eval", "test": "test"}


def papers(folder):
    """Files of the release's form, each text in more than one pair."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, count in SIZES.items():
        lines = []
        for i in range(count):
            one, two = draw.integers(0, 30, 2)
            lines.append(f"{i % 2}.0\t{one}\t{two}\t{9 * f'text {one} '}\t{9 * f'text {two} '}\n")
        (folder / f"new_aan_pairs.{NAMES[split]}.tsv").write_text("".join(lines))
    return folder


@pytest.fixture(name="data", scope="module")
def data_fixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(builders.LraRetrieval, "SIZES", SIZES)
        text = write_archive(folder / "aclImdb_v1.tar.gz", reviews())
        image = write_archive(folder / "cifar-10-binary.tar.gz", batches())
        for task in (
            Text(data_dir=folder, archive=text),
            Image(data_dir=folder, archive=image),
            Retrieval(data_dir=folder, archive=papers(folder / "tsv_data")),
            ListOps("smoke", data_dir=folder),
        ):
            task.prepare(progress=False, workers=1)
    return folder


def everything(task):
    for split in SPLITS:
        source = task.split(split)
        yield source.gather(np.arange(len(source)), task.info.max_len)


@pytest.mark.parametrize("make", [Text, Image, Retrieval, lambda **kw: ListOps("smoke", **kw)])
def test_a_pack_is_the_data(make, data, tmp_path):
    task = make(data_dir=data)
    path, size = pack(task, tmp_path)
    assert (path, size) == (tmp_path / task.prepared.pack.name, path.stat().st_size)
    packed = make(data_dir=tmp_path)
    assert packed.is_prepared()
    assert packed.prepare(progress=False) == path
    packed.verify()
    for one, two in zip(everything(task), everything(packed), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    # A run may go on with it.
    assert packed.fingerprint() == task.fingerprint()
    assert packed.cautions() == task.cautions()
    assert packed.baselines() == task.baselines()
    about = packed.describe()
    assert (about["path"], about["bytes"]) == (str(path), size)


def test_the_names_that_need_no_tfds_are_those_of_the_builders():
    for task in (Text(), Image(), Retrieval()):
        builder = task._builder()
        assert task.dataset == f"{builder.name}/{builder.VERSION}"
        assert task._published() is builder.ARCHIVE


def test_fewer_pairs_and_shorter_texts(data, tmp_path):
    whole = Retrieval(data_dir=data, max_len=50)
    pack(whole, tmp_path, examples=10, max_len=50)
    cut = Retrieval(data_dir=tmp_path, max_len=50)
    assert [len(cut.split(split)) for split in SPLITS] == [10, 20, 20]
    for split in SPLITS:
        rows = np.arange(len(cut.split(split)))
        one, two = whole.split(split).gather(rows, 50), cut.split(split).gather(rows, 50)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert cut.fingerprint() != whole.fingerprint()
    assert cut.cautions()[0] == "a pack of 10 of 40 training examples"
    with pytest.raises(DataError, match=r"holds 50 bytes of each row, and max_len=60 .* --max-len 60"):
        Retrieval(data_dir=tmp_path, max_len=60).split("train")
    with pytest.raises(DataError, match="is a pack already: copy that file"):
        pack(cut, tmp_path / "again.npz")


def test_what_cannot_be_packed_so(data, tmp_path):
    with pytest.raises(ValueError, match="holds validation out of the stored training rows"):
        pack(Text(data_dir=data), tmp_path, examples=10)
    with pytest.raises(ValueError, match=r"lra/listops is packed whole only"):
        pack(ListOps("smoke", data_dir=data), tmp_path, examples=10)
    with pytest.raises(ValueError, match="examples must be at least 1"):
        pack(Retrieval(data_dir=data), tmp_path, examples=0)
    with pytest.raises(ValueError, match=r"a pack is a file \*\.npz"):
        pack(Text(data_dir=data), tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be written"):
        pack(Text(data_dir=data), Path("/proc/nothing/pack.npz"))
    assert not list(tmp_path.iterdir())


def test_command(data, tmp_path, capsys):
    cli.main(["data", "pack", "lra/text", "--data-dir", str(data), "--out", str(tmp_path)])
    assert f"{tmp_path / 'lra_text-1.0.0.npz'}: " in capsys.readouterr().out
    for arguments, message in (
        (["lra/text", "--data-dir", str(tmp_path / "none")], "run: zoo data prepare lra/text"),
        (["recall/copy"], "has nothing to pack"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["data", "pack", *arguments])
        assert message in f"{stopped.value}{capsys.readouterr().err}"


@pytest.mark.parametrize("name", ["lra/text", "lra/listops"])
def test_reading_a_pack_imports_no_tfds(name, data, tmp_path):
    task = Text(data_dir=data) if name == "lra/text" else ListOps("smoke", data_dir=data)
    pack(task, tmp_path)
    code = (
        "import sys\n"
        "from zoo.training.build import make_task\n"
        "from zoo.training.recipe import load_recipe\n"
        f"recipe = load_recipe('lra/smoke/{name.split('/')[1]}', ['task.source={task.source}'])\n"
        f"task = make_task(recipe, {str(tmp_path)!r})\n"
        "task.prepare(progress=False)\n"
        "task.split('train'), task.fingerprint(), task.cautions(), task.describe()\n"
        "print([name for name in ('tensorflow_datasets', 'array_record') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr


@pytest.mark.usefixtures("compilation_cache")
def test_training_from_a_pack(data, tmp_path):
    pack(Text(data_dir=data), tmp_path)
    small = ["model.d_model=8", "model.num_heads=2", "model.d_ff=8", "model.num_layers=1", "task.source=original"]
    steps = ["train.steps=2", "train.batch_size=4", "train.warmup_steps=1", "train.tensorboard=false"]
    recipe = load_recipe("lra/smoke/text", [*small, *steps, "task.max_len=32"], variant="linear_attention")
    results = [
        train(recipe, tmp_path / f"run{number}", data_dir=where, progress=False)
        for number, where in enumerate((data, tmp_path))
    ]
    assert results[0]["last"] == results[1]["last"]
    assert results[0]["data"] == results[1]["data"]
