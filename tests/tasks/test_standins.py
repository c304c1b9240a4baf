"""The stand-ins that need no download: what they make, and that they are told from what they stand in for."""

import json

import numpy as np
import pytest

from zoo import registry
from zoo.data.manifest import DataError
from zoo.data.stdlib import library_folder, read_library
from zoo.tasks.classify.line_order import LineOrder
from zoo.tasks.classify.shapes import KINDS, Shapes, Size
from zoo.training.recipe import load_recipe
from zoo.training.run import check

TASKS = (LineOrder, Shapes)
SPLITS = ("train", "validation", "test")


@pytest.fixture(name="library")
def library_fixture(tmp_path, monkeypatch):
    """A standard library of 60 files, and few images."""
    for number in range(60):
        lines = [f"def f{number}_{line}(x):\n    return x + {line}" for line in range(30)]
        (tmp_path / f"m{number}.py").write_text("\n".join(lines))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr("zoo.tasks.classify.shapes._SIZES", {"grey32": Size(32, 300, 100), "grey16": Size(16, 64, 64)})
    return tmp_path


def texts_of(source):
    return [source.tokens[a:b].tobytes() for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)]


def test_registered():
    for task, stands_for in zip(TASKS, ("lra/text", "lra/image"), strict=True):
        assert registry.get(task.name, kind="task") is task
        assert stands_for in registry.spec(task.name).notes
        assert task().is_prepared()
    info = LineOrder().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 257, 2, 512)
    info = Shapes().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 256, 8, 1024)
    assert Shapes("grey16").info.max_len == 256


@pytest.mark.parametrize("task", TASKS)
def test_no_stand_in_has_a_name_of_what_it_stands_in_for(task):
    assert not task.name.startswith("lra/")
    assert not {"text", "image"} & {*task.name.split("/"), *task.sources}
    recipe = load_recipe(task.name)
    assert (recipe.protocol, recipe.published) == ("stand-in", {})
    assert check(recipe).task.cautions() == [
        f"a stand-in that needs no download; no result on it says anything of {task.stands_for}"
    ]


def test_pieces_are_whole_lines_of_a_file_in_order_or_not(library):
    task = LineOrder(max_len=200)
    files = read_library(library, 0, parts=8)
    assert all(len(files[name]) >= 3 for name in SPLITS)
    seen = []
    for name in SPLITS:
        source = task.split(name)
        for text, label in zip(texts_of(source), source.labels, strict=True):
            assert len(text) <= 200
            assert len(set(text.split(b"\n"))) >= 6
            lines = sorted(text.split(b"\n"))
            (home,) = [file for file in files[name] if text in file] or [None]
            assert (home is None) == bool(label)
            # The same lines are found together in a file of this split, and of no other.
            assert any(set(lines) <= set(file.split(b"\n")) for file in files[name])
        seen.append(len(source))
        assert 0.2 < source.labels.mean() < 0.8
    assert seen[0] > 2 * seen[1]
    batch = task.split("test").gather(np.arange(2), 200)
    assert batch["inputs"].min() == 0
    assert bytes((batch["inputs"][0][batch["mask"][0]] - 1).tolist()) == texts_of(task.split("test"))[0]


def test_a_bag_of_bytes_is_at_chance_on_the_order_of_lines(library):
    """By construction: a shuffle keeps every byte."""
    scores = LineOrder().baselines()
    assert set(scores) == {"majority", "bag_of_bytes"}
    assert abs(scores["bag_of_bytes"] - 0.5) < 0.25  # of 48 pieces
    counted = [LineOrder(seed=seed).baselines("train")["bag_of_bytes"] for seed in range(2)]
    assert max(counted) < 0.75


def test_a_library_without_sources_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert library_folder() == tmp_path
    with pytest.raises(DataError, match="has no source files for train; this Python is installed without them"):
        LineOrder().split("train")


def test_drawn_shapes(library):
    for source in Shapes.sources:
        task = Shapes(source)
        train = task.split("train")
        side = int(task.info.max_len**0.5)
        assert train.pixels.shape == (len(train), side * side)
        assert set(train.labels) == set(range(len(KINDS)))
        assert train.gather(np.arange(3), side * side)["mask"].all()
        assert not np.array_equal(train.pixels[:64], task.split("test").pixels[:64])
        assert not np.array_equal(train.pixels, Shapes(source, seed=1).split("train").pixels)
        np.testing.assert_array_equal(train.pixels, Shapes(source).split("train").pixels)
    task = Shapes()
    scores = task.baselines()
    assert list(scores) == ["majority", "bag_of_bytes", "bright_pixels"]
    assert max(scores.values()) < 0.6
    train, test = task.split("train"), task.split("test")
    right = 0
    for bright, label in zip((test.pixels > 128).sum(1), test.labels, strict=True):
        alike = train.labels[(train.pixels > 128).sum(1) == bright]
        right += np.bincount(alike, minlength=8).argmax() == label
    assert scores["bright_pixels"] == right / len(test)


def test_drawn_shapes_are_the_same_everywhere(library):
    """Pinned: another digest means that the images have changed."""
    assert Shapes("grey16").fingerprint() == "5b34be692005f8d8"


@pytest.mark.parametrize("task", TASKS)
def test_describe(task, library):
    facts = json.loads(json.dumps(task().describe()))
    assert facts["cautions"] == task().cautions()
    assert facts["splits"]["train"]["examples"] == sum(facts["splits"]["train"]["labels"])
    assert task().fingerprint() == facts["checksum"] != task(seed=1).fingerprint()
    assert "Python 3" in facts["origin"] or facts["origin"] == "drawn from the seed"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LineOrder("stdlb"), "classify/line_order has no source 'stdlb'. Did you mean stdlib"),
        (lambda: LineOrder(max_len=10), "max_len must be at least 64"),
        (lambda: Shapes("gray32"), "classify/shapes has no source 'gray32'. Did you mean grey32"),
        (lambda: Shapes(max_len=100), "classify/shapes/grey32 has 1024 pixels, which max_len=100 cannot change"),
        (lambda: Shapes(seed=-1), "task.seed must lie in"),
        (lambda: Shapes().split("val"), "classify/shapes has no split 'val'"),  # pyright: ignore
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
