"""Pathfinder images: marks against Pillow, labels against the kept curves, pixels, statistics, and the same bytes."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from zoo.data import pathfinder_kernel
from zoo.data.pathfinder import DIFFICULTIES, SIZES, Law, draw, law
from zoo.data.pathfinder_check import flood, traced_labels
from zoo.data.pathfinder_shapes import SCALE, dilate, disc, lanczos, line, paddle, reach, shrink
from zoo.data.pathfinder_tables import tables

LAWS = [law(size, difficulty) for size in SIZES for difficulty in DIFFICULTIES]
SHAPES = sorted({(each.paddle_length, each.thickness, margin) for each in LAWS for margin in each.margins})
# SHA-256 over images, labels, curves and attempts of numbers 0 to 3, by size: what a seed means is kept.
DIGESTS = {
    32: "5212f230c74f33fc7e1408e82c78ea8206b7936a2dbe0e991ad8edde3c1a2ac4",
    64: "37d895a1d7f5cbe3afe208543042cf5fcddc6ff1f83915463e79ef822cb50410",
    128: "e5a2a48a836839ca16dbaac30a91bc43703e950c99185eeecd234f9c62313836",
    256: "104f2b7413337013c7499693ba10149b45a52a829a264d6f0188da54efad7f2c",
}


@pytest.fixture(name="drawing", scope="module")
def drawing_fixture():
    pytest.importorskip("numba")
    return draw(law(32, "hard"), 0, range(400))


def digest(drawing):
    parts = (drawing.images, drawing.labels, drawing.targets, drawing.distractors, drawing.attempts)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def ends(length):
    """All ends that a line of a paddle of this length may have, on the finer grid."""
    angles = np.radians(np.arange(0, 360, 0.1))
    points = np.ceil(SCALE * length * np.stack([np.sin(angles), np.cos(angles)], 1) - 1e-9)
    return sorted({(int(y), int(x)) for y, x in points})


@pytest.mark.parametrize(("length", "thickness", "margin"), SHAPES)
def test_marks_are_those_of_pillow(length, thickness, margin):
    image = pytest.importorskip("PIL.Image")
    drawer = pytest.importorskip("PIL.ImageDraw")
    half = reach(length, thickness, margin)
    size = 2 * half + 1
    for row, column in ends(length):
        canvas = image.new("F", (4 * half + 1, 4 * half + 1), "black")
        points = [(2 * half, 2 * half), (2 * half + column, 2 * half + row)]
        drawer.Draw(canvas).line(points, fill="white", width=round(SCALE * thickness))
        fine = np.array(canvas).astype(np.uint8)
        np.testing.assert_array_equal(line(2 * half, row, column, round(SCALE * thickness)), fine)
        mark, room = paddle(length, thickness, margin, row, column)
        for found, source in ((mark, fine), (room, dilate(fine, SCALE * margin))):
            expected = image.fromarray(source).resize((size, size), image.Resampling.LANCZOS)
            np.testing.assert_array_equal(found, np.array(expected))


def test_shrink_and_dilate_of_anything():
    image = pytest.importorskip("PIL.Image")
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(0).integers(0, 256, (29, 29)).astype(np.uint8)
    for size in (15, 14, 29, 7):
        expected = np.array(image.fromarray(values).resize((size, size), image.Resampling.LANCZOS))
        np.testing.assert_array_equal(shrink(values, size), expected)
    for radius in (1, 2, 3):
        footprint = np.zeros((2 * radius + 1,) * 2, bool)
        footprint[tuple((disc(radius) + radius).T)] = True
        expected = ndimage.maximum_filter(values, footprint=footprint, mode="constant")
        np.testing.assert_array_equal(dilate(values, radius), expected)


def test_weights_of_the_filter_add_up():
    for size in SIZES:
        _, weights = lanczos(2 * size, size)
        assert np.abs(weights.sum(1) - 2**22).max() < 8


@pytest.mark.parametrize("size", SIZES)
def test_discs_are_those_of_a_canvas_of_the_whole_image(size):
    pytest.importorskip("numba")
    rules = law(size)
    look_up = tables(rules, rules.margins[0])
    fine = np.arange(SCALE * size)
    for y, x in ((size // 2, size // 3), (1, 0), (size - 1, size - 2), (3, size - 3), (size // 2, 4)):
        canvas = np.zeros((size, size), np.int64)
        pathfinder_kernel._stamp_disc(canvas, look_up, y, x)
        inside = (fine[:, None] - 2 * y) ** 2 + (fine - 2 * x) ** 2 <= (2 * rules.marker_radius) ** 2
        np.testing.assert_array_equal(canvas, 20 * shrink(255 * inside.astype(np.uint8), size).astype(np.int64))


def test_an_image_depends_on_law_seed_and_number_alone(drawing):
    rules = law(32, "hard")
    some = [7, 3, 399]
    again = draw(rules, 0, some)
    for name in ("images", "labels", "targets", "distractors", "markers", "attempts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(drawing, name)[some], err_msg=name)
    assert len({image.tobytes() for image in drawing.images}) == 400
    assert not (draw(rules, 1, some).images == again.images).all((1, 2)).any()
    assert digest(draw(law(32, "easy"), 0, some)) != digest(again)
    assert len(draw(rules, 0, []).images) == 0


@pytest.mark.parametrize("size", SIZES)
def test_what_a_seed_means_is_kept(size):
    pytest.importorskip("numba")
    assert digest(draw(law(size, "easy"), 0, range(4))) == DIGESTS[size]


def test_compiled_and_interpreted_agree():
    """The same code without the compiler, in a process where Numba is not to be had."""
    pytest.importorskip("numba")
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from zoo.data import pathfinder, pathfinder_kernel
assert pathfinder_kernel.numba is None
pathfinder._kernel = lambda: pathfinder_kernel.paint
with np.errstate(over="ignore"):
    drawing = pathfinder.draw(pathfinder.law(32, "easy"), 0, range(2))
sys.stdout.buffer.write(drawing.images.tobytes() + drawing.targets.tobytes())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    drawing = draw(law(32, "easy"), 0, range(2))
    assert found == drawing.images.tobytes() + drawing.targets.tobytes()


def test_the_bits_are_those_of_numpy():
    pytest.importorskip("numba")
    state = np.array([1, 2**63 + 5, 77, 1], np.uint64)
    reference = np.random.SFC64()
    reference.state = {**reference.state, "state": {"state": state.copy()}}
    expected = reference.random_raw(100)
    assert [int(pathfinder_kernel._bits(state)) for _ in range(100)] == expected.tolist()


@pytest.mark.parametrize(
    ("size", "difficulty", "count"), [(32, "hard", 400), (64, "easy", 50), (128, "intermediate", 20), (256, "hard", 20)]
)
def test_labels_are_proven_by_the_curves(size, difficulty, count):
    pytest.importorskip("numba")
    rules = law(size, difficulty)
    drawing = draw(rules, 3, range(count))
    traced = traced_labels(rules, drawing)
    np.testing.assert_array_equal(traced[traced >= 0], drawing.labels[traced >= 0])
    assert (traced < 0).mean() < 0.02
    # A fair coin, within four standard deviations.
    assert abs(drawing.labels.mean() - 0.5) < 2 / math.sqrt(count)
    assert set(np.unique(drawing.margins)) == set(rules.margins)
    for i, drawn in enumerate(drawing.num_distractors):
        assert (drawing.distractors[i, :drawn] >= -2).all()
        assert drawn == 0 or (drawing.distractors[i, :drawn] >= 0).any()
        assert (drawing.distractors[i, drawn:] == -1).all()


def test_a_broken_curve_is_noticed(drawing):
    rules = law(32, "hard")
    for change, message in (
        (lambda d: d.targets[3, 1].__setitem__((7, 0), d.targets[3, 1, 7, 0] + 2), "image 3: a curve is broken"),
        (lambda d: d.targets[5].__setitem__((0, 2, 2), 40), "image 5: a curve leaves the image"),
        (lambda d: d.markers[9].__setitem__((1, 0), d.markers[9, 1, 0] + 1), "image 9: a curve has no disc"),
    ):
        parts = {field.name: getattr(drawing, field.name).copy() for field in dataclasses.fields(drawing)}
        damaged = dataclasses.replace(drawing, **parts)
        change(damaged)
        with pytest.raises(ValueError, match=message):
            traced_labels(rules, damaged)


def test_flooding_pixels():
    image = np.zeros((1, 9, 9), np.uint8)
    image[0, 1, [1, 2, 4, 7]] = 200
    ends = np.array([[[1, 1], [1, 7]]])
    found = [flood(image, ends, reach) for reach in (1, 2, 3)]
    assert [(bool(arrived[0]), int(size[0])) for arrived, size in found] == [(False, 2), (False, 3), (True, 4)]
    image[0, 1, 5:7] = 30
    assert not flood(image, ends, 2)[0][0]
    assert flood(image, ends, 2, bright=20)[0][0]


def test_flooding_is_right_where_it_does_not_arrive():
    pytest.importorskip("numba")
    drawing = draw(law(128, "easy"), 0, range(60))
    arrived, _ = flood(drawing.images, drawing.markers, 7)
    assert not drawing.labels[~arrived].any()
    assert 5 < (~arrived).sum() < 40


def test_curves_and_discs_are_in_the_pixels(drawing):
    for i in range(100):
        image = drawing.images[i].astype(int)
        assert image.max() == 255
        assert image.min() == 0
        points = drawing.targets[i][:, :, 1:].reshape(-1, 2).astype(int)
        around = np.pad(image, 1)
        bright = np.max([around[1 + y : 33 + y, 1 + x : 33 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)], 0)
        assert (bright[points[:, 0], points[:, 1]] > 60).all()
        for y, x in drawing.markers[i]:
            assert image[y, x] > 200


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_statistics_are_those_of_the_reference(size, difficulty, shared_path):
    """The full comparison is `benchmarks/lra/pathfinder.py`."""
    pytest.importorskip("numba")
    path = shared_path("facts", "pathfinder_stats.json")
    theirs = json.loads(path.read_text(encoding="utf-8"))[f"p{size}_{DIFFICULTIES[difficulty]}"]
    images = draw(law(size, difficulty), 11, range(150)).images
    for name, values in (("frac_gt0", (images > 0).mean((1, 2))), ("mean_intensity", images.mean((1, 2)))):
        reference = theirs[name]
        deviation = reference.get("std", reference.get("std_over_images"))
        error = math.sqrt(deviation**2 / theirs["n"] + values.var() / len(values))
        assert abs(values.mean() - reference["mean"]) < 4 * error, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 48}, "32, 64, 128, 256"),
        ({"difficulty": "brutal"}, "easy, intermediate, hard"),
    ],
)
def test_unknown_sets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        law(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thickness": 0.3}, "thickness must be a positive multiple of 0.5"),
        ({"margins": ()}, "margins"),
        ({"seed_distance": 8}, r"seed_distance must lie in 1\.\.7"),
        ({"contour_length": 0}, "contour_length must be at least 1"),
        ({"continuity": 0.5}, "continuity"),
    ],
)
def test_laws_without_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Law(**{**{name: getattr(law(32), name) for name in Law.__dataclass_fields__}, **change})


def test_negative_numbers_and_hopeless_laws_are_refused(monkeypatch):
    pytest.importorskip("numba")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        draw(law(32), 0, [0, -1])
    crowded = Law(**{**{name: getattr(law(32), name) for name in Law.__dataclass_fields__}, "contour_length": 60})
    monkeypatch.setattr("zoo.data.pathfinder._kernel", lambda: lambda *_: (0, 0, 0, -1000))
    with pytest.raises(ValueError, match="no pair of curves in 1,000 attempts"):
        draw(crowded, 0, [0])


def test_numba_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(pathfinder_kernel, "numba", None)
    with pytest.raises(ModuleNotFoundError, match=r"seqzoo\[pathfinder\]"):
        draw(law(32), 0, [0])
