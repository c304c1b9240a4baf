"""LRA Pathfinder and Path-X as tasks: splits, scales, masks, baselines, what is shown, and that a model learns them."""

import dataclasses
import json
import math

import numpy as np
import pytest

from zoo import cli
from zoo.data import pathfinder_sets as builders
from zoo.data.manifest import DataError
from zoo.data.pathfinder import draw, law
from zoo.data.pathfinder_check import traced_labels
from zoo.data.pipeline import eval_batches, train_batches
from zoo.registry import get, spec
from zoo.tasks.lra.pathfinder import Pathfinder
from zoo.tasks.lra.pathx import PathX

pytest.importorskip("numba")
EXAMPLES = 200


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    """Smoke sets of 200 images."""
    original = builders.get_config

    def config(size, difficulty="hard", origin="full", seed=0):
        whole = original(size, difficulty, origin, seed)
        small = dataclasses.replace(whole, name=f"{whole.name}_small", examples=EXAMPLES, chunk_size=50)
        return small if origin == "smoke" else whole

    monkeypatch.setattr(builders, "get_config", config)


@pytest.fixture(name="data", scope="module")
def data_fixture(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def task(data, cls=Pathfinder, **options):
    options = {"difficulty": "easy", **options}
    made = cls("smoke", data_dir=data, **options)
    made.prepare(progress=False, workers=1)
    return made


def test_registered_and_info():
    assert get("lra/pathfinder", kind="task") is Pathfinder
    assert get("lra/pathx", kind="task") is PathX
    assert spec("lra/pathx").inputs == ("tokens", "scalars")
    info = Pathfinder().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 256, 2, 1024)
    assert PathX(inputs="scalars").info.vocab_size is None
    assert [Pathfinder(size=size).info.max_len for size in (32, 64, 128, 256)] == [1024, 4096, 16384, 65536]
    assert PathX().folder == Pathfinder(size=128).folder
    assert PathX(size=64).folder == Pathfinder(size=64).folder
    assert Pathfinder(max_len=1024).info.max_len == 1024


def test_a_pack_is_the_data_and_needs_no_tfds(data, tmp_path):
    from zoo.tasks.packing import pack

    whole = task(data)
    path, _ = pack(whole, tmp_path)
    packed = Pathfinder("smoke", data_dir=tmp_path, difficulty="easy")
    assert packed.prepare(progress=False) == path
    packed.verify()
    for split in ("train", "validation", "test"):
        rows = np.arange(len(packed.split(split)))
        one, two = (each.split(split).gather(rows, 1024) for each in (whole, packed))
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert packed.fingerprint() == whole.fingerprint()
    assert packed.baselines() == whole.baselines()
    assert packed.describe()["path"] == str(path)
    # Fewer to train on; a part of an image, or what no memory holds, is refused.
    path.unlink()
    pack(whole, tmp_path, examples=30)
    cut = Pathfinder("smoke", data_dir=tmp_path, difficulty="easy")
    assert [len(cut.split(split)) for split in ("train", "validation", "test")] == [30, 20, 20]
    assert cut.cautions()[0] == "a pack of 30 of 160 training examples"
    assert cut.fingerprint() != whole.fingerprint()
    with pytest.raises(ValueError, match="a part of an image has not its label; leave out max_len"):
        pack(whole, tmp_path, max_len=100)


def test_what_no_memory_holds_is_not_packed(data, monkeypatch):
    from zoo.tasks.lra import pathfinder
    from zoo.tasks.packing import pack

    monkeypatch.setattr(pathfinder, "_PACKED", 1024 * EXAMPLES - 1)
    with pytest.raises(ValueError, match=r"lra/pathfinder, size 32, has 0\.0 GB of pixels, too many for a pack"):
        pack(task(data), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "ful"}, r"lra/pathfinder has no source 'ful'\. Did you mean full"),
        ({"size": 31}, "32, 64, 128, 256"),
        ({"difficulty": "very hard"}, "easy, intermediate, hard"),
        ({"max_len": 100}, "has 1,024 pixels, which max_len=100 cannot change"),
        ({"inputs": "images"}, "'tokens' or 'scalars', got 'images'"),
        ({"scale": "s4"}, "'unit' or 'centred', got 's4'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pathfinder(**options)


def test_nothing_is_taken_for_prepared(tmp_path):
    made = Pathfinder("smoke", data_dir=tmp_path)
    assert not made.is_prepared()
    with pytest.raises(DataError, match="zoo data prepare lra/pathfinder/smoke size=32"):
        made.split("train")


def test_splits_are_the_draws(data):
    made = task(data)
    drawing = draw(law(32, "easy"), 0, range(EXAMPLES))
    bounds = {"train": (0, 160), "validation": (160, 180), "test": (180, 200)}
    for name, (first, last) in bounds.items():
        source = made.split(name)
        batch = source.gather(np.arange(len(source)), 1024)
        np.testing.assert_array_equal(batch["inputs"].reshape(-1, 32, 32), drawing.images[first:last])
        np.testing.assert_array_equal(batch["label"], drawing.labels[first:last])
        assert batch["mask"].all()
    again = made.drawing("test", [3, 0])
    np.testing.assert_array_equal(again.images, drawing.images[[183, 180]])
    traced = traced_labels(law(32, "easy"), again)
    assert ((traced == again.labels) | (traced < 0)).all()
    with pytest.raises(ValueError, match="test has rows 0 to 19, not 20"):
        made.drawing("test", [20])
    with pytest.raises(ValueError, match="no split 'dev'"):
        made.split("dev")
    with pytest.raises(ValueError, match="was not drawn here"):
        Pathfinder("published", data_dir=data).drawing("test", [0])


def test_scalars_and_black_pixels(data):
    tokens = task(data).split("test").gather(np.arange(20), 1024)["inputs"]
    unit = task(data, inputs="scalars").split("test").gather(np.arange(20), 1024)["inputs"]
    np.testing.assert_allclose(unit, tokens / 255, rtol=1e-6)
    centred = task(data, inputs="scalars", scale="centred").split("test").gather(np.arange(20), 1024)["inputs"]
    np.testing.assert_allclose(centred, tokens / 127.5 - 1, atol=1e-6)
    assert (centred.min(), centred.max()) == (-1, 1)
    masked = task(data, black_is_padding=True).split("test").gather(np.arange(20), 1024)
    np.testing.assert_array_equal(masked["mask"], tokens > 0)


def test_large_sets_are_read_as_needed(data, monkeypatch):
    whole = task(data).split("train")
    monkeypatch.setattr("zoo.tasks.lra.pathfinder._IN_MEMORY", 1000)
    lazy = task(data).split("train")
    assert type(lazy) is not type(whole)
    assert len(lazy) == len(whole)
    one, two = (train_batches(source, batch_size=16, max_len=1024, seed=0) for source in (whole, lazy))
    for _, a, b in zip(range(3), one, two, strict=False):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    scored = sum(int(batch["weight"].sum()) for batch in eval_batches(lazy, batch_size=64, max_len=1024))
    assert scored == 160


def test_cautions_fingerprint_and_description(data):
    easy, hard = task(data), task(data, difficulty="hard")
    assert easy.cautions() == ["the easy set; LRA's results are on the hard one"]
    assert hard.cautions() == []
    assert easy.fingerprint() != hard.fingerprint()
    assert easy.fingerprint() == task(data, inputs="scalars").fingerprint()
    other = task(data, seed=1)
    assert other.fingerprint() != easy.fingerprint()
    assert other.folder != easy.folder
    described = json.loads(json.dumps(easy.describe()))
    assert described["splits"]["train"]["examples"] == 160
    assert described["law"]["contour_length"] == 6
    easy.verify()


def test_pixels_without_order_tell_nothing(data):
    found = task(data).baselines("validation")
    assert set(found) == {"majority", "bag_of_pixels"}
    assert all(0.2 <= value <= 0.8 for value in found.values())


@pytest.mark.parametrize("cls", [Pathfinder, PathX])
def test_shown(data, cls, tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image")
    made = task(data, cls=cls)
    from zoo.pictures import show, task_images

    images, labels = task_images(made, "test", count=7, first=5)
    np.testing.assert_array_equal(images[0, ..., 0].ravel(), made.split("test").rows(np.array([5]))[0])
    said = show(made, tmp_path / "sheet.png", "test", count=7, first=5).splitlines()
    assert said[0] == str(tmp_path / "sheet.png")
    assert " ".join(said[1:]) == " ".join(map(str, labels))
    assert [len(line.split()) for line in said[1:]] == [3, 3, 1]
    sheet = image.imread(tmp_path / "sheet.png")
    assert sheet.shape[0] > 2 * math.isqrt(made.info.max_len)
    assert task_images(made, "test", count=50)[0].shape[0] == 20
    for arguments, message in (
        ({"count": 0}, "count must be at least 1"),
        ({"first": 20}, "images 0 to 19, not 20"),
        ({"split": "dev"}, "no split 'dev'"),
    ):
        with pytest.raises(ValueError, match=message):
            task_images(made, **{"split": "test", **arguments})


def test_show_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["data", "show", "density/shapes/grey", "--count", "4", "--out", str(tmp_path / "a.png")]
    cli.main([*command, "--data-dir", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 100
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "show", "lra/pathfinder/smoke", "--data-dir", str(tmp_path)])
    assert stopped.value.code == 2
    assert "is not prepared; run: zoo data prepare lra/pathfinder/smoke" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", "show", "recall/mqar", "--data-dir", str(tmp_path)])
    assert "has no images to show" in capsys.readouterr().err
