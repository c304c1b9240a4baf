"""The stand-ins that need no download: what they make, and that they are told from what they stand in for."""

import json

import numpy as np
import pytest

from zoo import registry
from zoo.data.manifest import DataError
from zoo.data.stdlib import library_folder, read_library
from zoo.tasks.classify.line_order import LineOrder
from zoo.tasks.classify.shapes import KINDS, Shapes, Size
from zoo.tasks.pairs import same_file
from zoo.tasks.pairs.same_file import SameFile
from zoo.training.recipe import load_recipe
from zoo.training.run import check

TASKS = (LineOrder, Shapes, SameFile)
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
    for task, stands_for in zip(TASKS, ("lra/text", "lra/image", "lra/retrieval"), strict=True):
        assert registry.get(task.name, kind="task") is task
        assert stands_for in registry.spec(task.name).notes
        assert task().is_prepared()
    info = LineOrder().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 257, 2, 512)
    info = Shapes().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len) == ("tokens", 256, 8, 1024)
    assert Shapes("grey16").info.max_len == 256
    info = SameFile().info
    assert (info.inputs, info.vocab_size, info.num_classes, info.max_len, info.pairs) == ("tokens", 257, 2, 128, True)


@pytest.mark.parametrize("task", TASKS)
def test_no_stand_in_has_a_name_of_what_it_stands_in_for(task):
    assert not task.name.startswith("lra/")
    assert not {"text", "image", "retrieval"} & {*task.name.split("/"), *task.sources}
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


def sides_of(source):
    """The two texts of each pair."""
    windows = texts_of(source.documents)
    return [(windows[one], windows[two]) for one, two in source.pairs.tolist()]


def test_windows_are_of_one_file_or_of_two(library):
    task = SameFile(max_len=64)
    files = read_library(library, 0, parts=8)
    for name in SPLITS:
        source = task.split(name)
        assert source.lengths.tolist() == [64] * len(source)
        assert source.labels.sum() * 2 == len(source)
        for (one, two), label in zip(sides_of(source), source.labels, strict=True):
            homes = [{number for number, file in enumerate(files[name]) if side in file} for side in (one, two)]
            assert (len(homes[0]), len(homes[1])) == (1, 1)  # each file's lines have its number in them
            assert (homes[0] == homes[1]) == bool(label)
            if label:
                (home,) = homes[0]
                places = [files[name][home].index(side) // 64 for side in (one, two)]
                assert abs(places[0] - places[1]) > 1
        assert 0.3 < source.labels[: len(source) // 2].mean() < 0.7  # the order mixes the labels
    batch = task.split("test").gather(np.arange(2), 64)
    assert batch["inputs"].shape == batch["mask"].shape == (2, 64, 2)
    np.testing.assert_array_equal(SameFile(max_len=64).split("test").pairs, task.split("test").pairs)


def test_neither_side_alone_tells_whether_it_is_one_file(library):
    """Each window stands as often in pairs of one file as in others, on the same side; and no file has most pairs."""
    source = SameFile(max_len=32).split("train")
    for side in range(2):
        counts = np.zeros((len(source.documents), 2), int)
        np.add.at(counts, (source.pairs[:, side], source.labels), 1)
        assert set(map(tuple, counts.tolist())) == {(0, 0), (1, 1)}
    assert len(source) <= 60 * 2 * same_file._MOST_PAIRS


def test_no_place_is_dealt_one_of_its_own_home():
    from zoo.data.draws import Draws

    for homes in ([0] * 5 + [1] * 5, [0] * 6 + [1, 2, 3, 4, 5, 6], list(range(50)) * 2):
        dealt = same_file._dealt(np.array(homes), Draws(1))
        assert sorted(dealt.tolist()) == list(range(len(homes)))
        assert (np.array(homes)[dealt] != np.array(homes)).all()
    for homes in ([], [0], [0, 0, 1]):
        assert same_file._dealt(np.array(homes, int), Draws(1)) is None


def test_a_library_without_sources_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert library_folder() == tmp_path
    with pytest.raises(DataError, match="has no source files for train; this Python is installed without them"):
        LineOrder().split("train")
    with pytest.raises(DataError, match="too few source files for test with windows of 128 bytes; this Python is inst"):
        SameFile().split("test")


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
        (lambda: SameFile("stdlb"), "pairs/same_file has no source 'stdlb'. Did you mean stdlib"),
        (lambda: SameFile(max_len=8), "max_len must be from 16 to 4096"),
        (lambda: Shapes("gray32"), "classify/shapes has no source 'gray32'. Did you mean grey32"),
        (lambda: Shapes(max_len=100), "classify/shapes/grey32 has 1024 pixels, which max_len=100 cannot change"),
        (lambda: Shapes(seed=-1), "task.seed must lie in"),
        (lambda: Shapes().split("val"), "classify/shapes has no split 'val'"),  # pyright: ignore
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
