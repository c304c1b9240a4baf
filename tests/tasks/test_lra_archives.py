"""LRA Text and Image: their data as prepared from small archives, splits, marks and baselines."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_archives import ROWS, TEXTS, batches, reviews, shrink, write_archive, write_folder
from tiny_server import Served, serving

from zoo import cli
from zoo.data.archives import tfds_order
from zoo.data.cifar10 import read_cifar10
from zoo.data.grey import tf_grey
from zoo.data.manifest import DataError
from zoo.registry import get, spec
from zoo.tasks.lra.image import Image
from zoo.tasks.lra.text import Text

TASKS = (Text, Image)


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(name="data", scope="module")
def data_fixture(tmp_path_factory):
    """A folder with both archives and what is prepared from them; only read."""
    folder = tmp_path_factory.mktemp("data")
    write_archive(folder / "downloads" / "manual" / "aclImdb_v1.tar.gz", reviews())
    write_archive(folder / "cifar-10-binary.tar.gz", batches())
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        for task in TASKS:
            task(data_dir=folder).prepare(progress=False)
    return folder


def rows_of(source):
    batch = source.gather(np.arange(len(source)), int(source.lengths.max()))
    return [tuple(row[mask]) for row, mask in zip(batch["inputs"], batch["mask"], strict=True)]


def test_registered_and_info():
    assert get("lra/text", kind="task") is Text
    assert get("lra/image", kind="task") is Image
    assert spec("lra/image").inputs == ("tokens", "scalars")
    info = Text().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 257, 2, 1000)
    assert Text(max_len=4000).info.max_len == 4000
    info = Image().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 256, 10, 1024)
    info = Image(inputs="scalars").info
    assert (info.inputs, info.vocab_size) == ("scalars", None)


def test_text_has_the_order_and_the_splits_of_the_original(data):
    files = reviews()
    for split in ("train", "test"):
        names = sorted(name for name in files if f"/{split}/" in name)
        names = [names[place] for place in tfds_order(names, split)]
        source = Text(data_dir=data).split(split)
        assert rows_of(source) == [tuple(byte + 1 for byte in files[name]) for name in names]
        assert source.labels.tolist() == [int("/pos/" in name) for name in names]
        assert 0 < source.labels[:8].sum() < 8  # mixed, where the archive has one label after the other
    original, clean, smoke = (Text(source, data_dir=data) for source in Text.sources)
    assert rows_of(original.split("validation")) == rows_of(original.split("test"))
    train, held_out = (rows_of(clean.split(name)) for name in ("train", "validation"))
    assert train + held_out == rows_of(original.split("train"))
    assert (len(train), len(held_out)) == (2 * TEXTS * 90 // 100, 2 * TEXTS * 10 // 100)
    assert rows_of(clean.split("test")) == rows_of(original.split("test"))
    assert rows_of(smoke.split("train")) == train[:8]
    assert not set(rows_of(smoke.split("train"))) & set(rows_of(smoke.split("validation")))


def test_text_is_cut_at_the_end_and_padded_on_the_right(data):
    source = Text(data_dir=data, max_len=20).split("train")
    batch = source.gather(np.arange(len(source)), 20)
    whole = rows_of(source)
    for row, mask, text in zip(batch["inputs"], batch["mask"], whole, strict=True):
        assert tuple(row[mask]) == text[:20]
        assert mask.sum() == min(20, len(text))
        assert not row[mask.sum() :].any()


def test_image_has_the_pixels_and_the_splits_of_the_original(data):
    path = data / "cifar-10-binary.tar.gz"
    task = Image(data_dir=data)
    pixels, labels = [], []
    for split in ("train", "test"):
        images, found = read_cifar10(path, split)
        order = tfds_order(range(len(images)), split)
        pixels.append(tf_grey(images).reshape(-1, 1024)[order])
        labels.append(found[order])
    sources = {name: task.split(name) for name in ("train", "validation", "test")}
    assert {name: len(source) for name, source in sources.items()} == {"train": 90, "validation": 10, "test": ROWS}
    np.testing.assert_array_equal(sources["train"].pixels, pixels[0][:90])
    np.testing.assert_array_equal(sources["validation"].pixels, pixels[0][90:])
    np.testing.assert_array_equal(sources["validation"].labels, labels[0][90:])
    np.testing.assert_array_equal(sources["test"].pixels, pixels[1])
    assert len(Image("smoke", data_dir=data).split("train")) == 8


def test_black_pixels_and_scalars(data):
    tokens = Image(data_dir=data).split("test").gather(np.arange(ROWS), 1024)
    assert tokens["mask"].all()
    assert (tokens["inputs"] == 0).any()
    masked = Image(data_dir=data, black_is_padding=True).split("test").gather(np.arange(ROWS), 1024)
    np.testing.assert_array_equal(masked["mask"], tokens["inputs"] > 0)
    scalars = Image(data_dir=data, inputs="scalars").split("test").gather(np.arange(ROWS), 1024)
    # S4's: value / 255, less 122.6 / 255, by 61 / 255.
    expected = (tokens["inputs"] / 255 - 122.6 / 255) / (61 / 255)
    np.testing.assert_allclose(scalars["inputs"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_every_example_is_evaluated(task, data):
    from zoo.data.pipeline import eval_batches

    source = task(data_dir=data).split("test")
    batches = eval_batches(source, batch_size=16, max_len=64)
    assert sum(batch["weight"].sum() for batch in batches) == len(source)
    assert len(source) % 16


@pytest.mark.parametrize("task", TASKS)
def test_an_archive_that_is_not_the_publishers_is_marked(task, data, tmp_path, monkeypatch):
    whole = task(data_dir=data)
    (caution, *_) = whole.cautions()
    name = whole.describe()["archive"]["name"]
    assert caution == (
        f"unverified data: {name} passed the checks of its content, but its checksum is not the publisher's"
    )
    folder = write_folder(tmp_path, reviews() if task is Text else batches())
    unpacked = task(data_dir=tmp_path / "data", archive=folder)
    unpacked.prepare(progress=False)
    assert unpacked.cautions()[0].endswith("but a folder has no checksum")
    assert unpacked.fingerprint() == whole.fingerprint()
    monkeypatch.setattr("zoo.data.archives.Archive.is_published", lambda self, path: True)
    published = task(data_dir=tmp_path / "published", archive=next(data.rglob("*" + name)))
    published.prepare(progress=False)
    assert published.describe()["archive"]["verified"] is True
    assert published.cautions() == whole.cautions()[1:]


def test_text_says_that_its_validation_is_the_test_split(data):
    assert any("validation is the test split" in caution for caution in Text(data_dir=data).cautions())
    assert not any("validation" in caution for caution in Text("clean", data_dir=data).cautions())


def test_the_same_archive_gives_the_same_bytes(data, tmp_path):
    for task in TASKS:
        again = task(data_dir=tmp_path, archive=next(data.rglob("*" + task()._builder().ARCHIVE.name)))
        again.prepare(progress=False)
        assert again.describe()["checksum"] == task(data_dir=data).describe()["checksum"]
        assert [path.name for path in (tmp_path / again.folder.parent.name).iterdir()] == ["1.0.0"]


def test_sources_are_other_data(data):
    found = [task(source, data_dir=data).fingerprint() for task in TASKS for source in task.sources]
    assert len(set(found)) == len(found) == 5
    assert Text(data_dir=data, max_len=9).fingerprint() == found[0]


def test_baselines(data):
    text, image = Text(data_dir=data), Image(data_dir=data)
    assert list(text.baselines()) == ["majority", "bag_of_bytes"]
    assert text.baselines()["majority"] == 0.5
    assert text.baselines()["bag_of_bytes"] > 0.9
    assert text.baselines() == Text(data_dir=data).baselines()
    assert Text(data_dir=data, max_len=8).baselines()["bag_of_bytes"] < 0.7  # before the letters that tell
    labels = image.split("test").labels
    majority = np.bincount(image.split("train").labels).argmax()
    assert image.baselines()["majority"] == (labels == majority).mean()
    assert image.baselines("validation")["bag_of_bytes"] > 0.5
    changed = Image(data_dir=data, inputs="scalars", black_is_padding=True)
    assert changed.baselines() == image.baselines()


def test_half_prepared_data_is_not_taken_for_whole(data, tmp_path, monkeypatch):
    """Ended while it is written, and after it was written but not yet moved to its place."""
    archive = next(data.rglob("*aclImdb_v1.tar.gz"))
    task = Text(data_dir=tmp_path, archive=archive)
    for place in ("zoo.data.builders.base.write_manifest", "zoo.data.builders.archives.Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                task.prepare(progress=False)
        assert not task.is_prepared()
        with pytest.raises(DataError, match=r"does not exist.*zoo data prepare lra/text"):
            task.split("train")
    task.prepare(progress=False)
    assert task.describe()["checksum"] == Text(data_dir=data).describe()["checksum"]
    assert [path.name for path in (tmp_path / "lra_text").iterdir()] == ["1.0.0"]
    (task.folder / "manifest.json").unlink()
    assert not task.is_prepared()
    with pytest.raises(DataError, match=r"is not complete .*Delete the folder"):
        task.prepare(progress=False)


def test_damaged_files_are_refused(data, tmp_path):
    task = Image(data_dir=tmp_path, archive=data / "cifar-10-binary.tar.gz")
    task.prepare(progress=False)
    path = next(task.folder.glob("*train.array_record*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"train.array_record.* bytes instead of"):
        Image(data_dir=tmp_path).split("test")
    changed = bytearray(whole)
    changed[len(whole) // 3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DataError, match=r"SHA-256 differs.*zoo data prepare lra/image"):
        Image(data_dir=tmp_path).verify()
    with pytest.raises(DataError, match="SHA-256 differs"):
        Image(data_dir=tmp_path).split("train")


def test_a_wrong_archive_leaves_nothing(tmp_path):
    files = reviews()
    files.pop("aclImdb/test/pos/0_9.txt")
    archive = write_archive(tmp_path / "downloads" / "manual" / "aclImdb_v1.tar.gz", files)
    task = Text(data_dir=tmp_path)
    with pytest.raises(DataError, match="has 49 reviews, not 50"):
        task.prepare(progress=False)
    assert not task.is_prepared()
    write_archive(archive, reviews())
    task.prepare(progress=False)
    assert task.is_prepared()


@pytest.mark.parametrize("task", TASKS)
def test_what_is_missing_is_fetched(task, data, tmp_path, monkeypatch, capsys):
    """From the publisher's address, through a connection that breaks; then it is the publisher's to the byte."""
    builder = task()._builder()
    name = builder.ARCHIVE.name
    content = next(data.rglob("*" + name)).read_bytes()
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serving(monkeypatch) as server:
        server.files[name] = Served(content, breaks=[len(content) // 2])
        facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "urls": (server.url(name),)}
        monkeypatch.setattr(builder, "ARCHIVE", dataclasses.replace(builder.ARCHIVE, **facts))
        cli.main(["data", "prepare", task.name, "--data-dir", str(tmp_path)])
        assert f"{name} from 127.0.0.1: done" in capsys.readouterr().err
        assert len(server.asked) == 2
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [name]
    fetched = task(data_dir=tmp_path)
    assert fetched.describe()["archive"]["verified"] is True
    assert fetched.fingerprint() == task(data_dir=data).fingerprint()
    shutil.rmtree(fetched.folder)
    fetched.prepare(progress=False)  # without the server


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Text("full"), r"lra/text has no source 'full'. There are"),
        (lambda: Text("claen"), r"lra/text has no source 'claen'. Did you mean clean"),
        (lambda: Text(max_len=0), "max_len must be at least 1, got 0"),
        (lambda: Image(max_len=1000), "lra/image has 1024 pixels, which max_len=1000 cannot change"),
        (lambda: Image(inputs="words"), "inputs must be 'tokens' or 'scalars', got 'words'"),  # pyright: ignore
        (lambda: Text().split("val"), "lra/text has no split 'val'; there are train"),  # pyright: ignore
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_from_the_command_line(data, tmp_path, capsys):
    archive = next(data.rglob("*aclImdb_v1.tar.gz"))
    cli.main(["data", "prepare", "lra/text/clean", "--data-dir", str(tmp_path), f"archive={archive}"])
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "lra_text" / "1.0.0")
    assert "lra_text: written to" in shown.err
    cli.main(["data", "info", "lra/text/clean", "--data-dir", str(tmp_path), "--verify"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["archive"]["verified"] is False
    assert facts["splits"]["train"]["examples"] == sum(facts["splits"]["train"]["labels"]) == 90
    assert set(facts["splits"]["test"]["lengths"]) == {"min", "p5", "p25", "p50", "p75", "p95", "max"}
    with pytest.raises(SystemExit) as error:
        cli.main(["data", "prepare", "lra/image", "--data-dir", str(tmp_path)])
    assert error.value.code == 1
    assert "There is no cifar-10-binary.tar.gz below" in capsys.readouterr().err


def test_preparing_and_reading_need_neither_jax_nor_tensorflow(data):
    code = (
        "import sys\n"
        "from zoo.tasks.lra.text import Text\n"
        "task = Text(data_dir=sys.argv[1])\n"
        "print(len(task.split('train')), sorted({'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (f"{2 * TEXTS} []", 0), done.stderr


@pytest.mark.slow
def test_the_whole_data(shared_path, tmp_path, monkeypatch):
    """Sizes, what everybody sees first in TFDS' copies, and the baselines to hold published figures against."""
    monkeypatch.setattr("zoo.data.imdb._TEXTS", 12_500)
    monkeypatch.setattr("zoo.data.cifar10._ROWS", 10_000)
    text = Text(data_dir=tmp_path, archive=shared_path("data", "aclImdb_v1.tar.gz"))
    text.prepare(progress=False)
    first = text.split("train")
    assert first.tokens[:41].tobytes() == b"This was an absolutely terrible movie. Do"
    assert np.bincount(first.labels).tolist() == [12_500, 12_500]
    assert text.split("test").tokens[:35].tobytes() == b"There are films that make careers. "
    assert 0.63 < text.baselines()["bag_of_bytes"] < 0.66
    image = Image(data_dir=tmp_path, archive=shared_path("data", "cifar-10-binary.tar.gz"))
    image.prepare(progress=False)
    assert [len(image.split(name)) for name in ("train", "validation", "test")] == [45_000, 5_000, 10_000]
    assert image.split("train").labels[:1].tolist() == [7]  # a horse, train_16399
    assert 0.001 < (image.split("train").pixels == 0).mean() < 0.003
    assert 0.2 < image.baselines()["bag_of_bytes"] < 0.24
