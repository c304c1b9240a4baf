"""The Pathfinder builders: the same bytes whatever happens, and the release read as the original reads it."""

import dataclasses
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from zoo.data.archives import tfds_order
from zoo.data.builders.base import RecordRows, read_ragged
from zoo.data.builders.pathfinder import BUILDERS, prepare
from zoo.data.chunks import chunk_path
from zoo.data.manifest import DataError
from zoo.data.pathfinder import DIFFICULTIES, SIZES, draw, law
from zoo.data.pathfinder_draw import draw_images, read_images
from zoo.data.pathfinder_published import FOLDERS, read_png
from zoo.data.pathfinder_sets import PathfinderConfig, get_config, labels_path, open_dataset, prepared, split_bounds

CONFIG = PathfinderConfig(name="tiny", difficulty="easy", examples=120, chunk_size=25)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(name="tiny", scope="module")
def tiny_fixture(tmp_path_factory):
    """The data folder of one prepared set, drawn in one process; read only."""
    pytest.importorskip("numba")
    data_dir = tmp_path_factory.mktemp("tiny")
    prepare(32, CONFIG, data_dir, workers=1, progress=False)
    return data_dir


def write_release(folder, size=32, difficulty="hard", files=2, rows=10):
    """A release in small; returns images and labels by the keys that LRA's builder gives them."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(size)
    inner = folder / FOLDERS[difficulty]
    (inner / "metadata").mkdir(parents=True)
    found = {}
    for number in range(files):
        (inner / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for row in range(rows):
            pixels = rng.integers(0, 256, (size, size), dtype=np.uint8)
            label = int(rng.integers(0, 2))
            name = f"sample_{row}.png"
            image.fromarray(pixels).save(inner / "imgs" / str(number) / name)
            length = DIFFICULTIES[difficulty]
            lines.append(f"imgs/{number} {name} {row} {label} 1.0 {length} {length // 3} 2 0.5 1 1\n")
            found[f"imgs/{number}_{name}_{row + 1}"] = (pixels, label)
        (inner / "metadata" / f"{number}.npy").write_text("".join(lines))
    return found


def test_configurations():
    for size in SIZES:
        names = [config.name for config in BUILDERS[size].BUILDER_CONFIGS]
        assert names[:3] == ["hard", "hard_smoke", "hard_published"]
        assert len(set(names)) == 9
        assert get_config(size).examples == 200_000
    assert split_bounds(200_000) == {
        "train": (0, 160_000),
        "validation": (160_000, 180_000),
        "test": (180_000, 200_000),
    }
    assert split_bounds(199_999)["test"] == (179_999, 199_999)
    assert get_config(32, "easy", "full", 3).name == "easy_seed3"
    assert get_config(32, "hard", "published", 3).name == "hard_published"
    with pytest.raises(ValueError, match="no source 'all'"):
        get_config(32, "hard", "all")


def test_contents_are_the_draws_in_order(tiny):
    assert [path.name for path in tiny.iterdir()] == ["lra_pathfinder32"]
    assert [path.name for path in (tiny / "lra_pathfinder32").iterdir()] == ["tiny"]
    folder = prepared(32, CONFIG, tiny).folder
    drawing = draw(law(32, "easy"), 0, range(120))
    for split, (first, last) in split_bounds(120).items():
        source = read_ragged(folder, split, mend="", tokens="image")
        np.testing.assert_array_equal(source.tokens.reshape(-1, 32, 32), drawing.images[first:last])
        np.testing.assert_array_equal(source.labels, drawing.labels[first:last])
        np.testing.assert_array_equal(np.load(labels_path(folder, split)), drawing.labels[first:last])
        lazy = RecordRows(folder, split, "image", mend="")
        lazy = pickle.loads(pickle.dumps(lazy))
        order = np.random.default_rng(0).permutation(len(lazy))
        np.testing.assert_array_equal(lazy(order).reshape(-1, 32, 32), drawing.images[first:last][order])
    manifest = open_dataset(32, CONFIG, tiny, verify=True)
    assert manifest["splits"]["train"]["labels"] == np.bincount(drawing.labels[:96]).tolist()
    records = tfds.builder_from_directory(folder).as_data_source(split="test")
    np.testing.assert_array_equal(records[1]["image"], drawing.images[109])


@pytest.mark.parametrize(("workers", "chunk_size"), [(2, 25), (1, 50)])
def test_any_number_of_workers_makes_identical_files(tiny, tmp_path, workers, chunk_size):
    config = dataclasses.replace(CONFIG, chunk_size=chunk_size)
    prepare(32, config, tmp_path, workers=workers, progress=False)
    assert files_of(tmp_path) == files_of(tiny)


def test_an_interrupted_run_goes_on(tiny, tmp_path, capfd):
    code = f"""
from pathlib import Path
from zoo.data.builders import pathfinder as b
from zoo.data import pathfinder_draw
b.prepare(32, b.PathfinderConfig(name="tiny", difficulty="easy", examples=120, chunk_size=25), Path({str(tmp_path)!r}),
          workers=1)
"""
    slow = "import zoo.data.pathfinder_draw as d, time\nm = d.make_chunk\n" + (
        "d.make_chunk = lambda *a, **k: (time.sleep(0.5), m(*a, **k))[1]\nd.make_chunk.__module__ = d.__name__\n"
        "d.make_chunk.__name__ = 'make_chunk'\n"
    )
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    process = subprocess.Popen([sys.executable, "-c", slow + code], env={**os.environ, "PYTHONPATH": path})

    def whole():
        return [file for file in tmp_path.rglob("chunk-*") if len(file.name) == len("chunk-000000")]

    deadline = time.monotonic() + 60
    while not whole() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = whole()
    assert 0 < len(kept) < 5
    assert not prepared(32, CONFIG, tmp_path).folder.exists()
    kept[0].write_bytes(b"damaged")
    prepare(32, CONFIG, tmp_path, workers=1)
    assert "images were finished before" in capfd.readouterr().err
    assert files_of(tmp_path) == files_of(tiny)


def test_chunks_that_are_missing_or_damaged_are_drawn_anew(tmp_path):
    pytest.importorskip("numba")
    rules = law(32, "easy")
    draw_images(rules, 30, tmp_path, seed=5, chunk_size=10, workers=1)
    chunk_path(tmp_path, 1).unlink()
    chunk_path(tmp_path, 2).write_bytes(chunk_path(tmp_path, 2).read_bytes()[:-1])
    drawing = draw(rules, 5, range(4, 27))
    found = list(read_images(rules, 4, 27, tmp_path, seed=5, chunk_size=10))
    np.testing.assert_array_equal([image for image, _ in found], drawing.images)
    assert [label for _, label in found] == drawing.labels.tolist()


def test_damage_and_other_laws_are_noticed(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"made with seed = 0, not 1.*zoo data prepare lra/pathfinder/full size=32"):
        open_dataset(32, dataclasses.replace(CONFIG, seed=1), tmp_path)
    folder = prepared(32, CONFIG, tmp_path).folder
    file = next(folder.glob("*train.array_record*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="SHA-256"):
        open_dataset(32, CONFIG, tmp_path, verify=True)
    labels_path(folder, "test").unlink()
    with pytest.raises(DataError, match=r"labels-test\.npy is missing"):
        prepare(32, CONFIG, tmp_path)


def test_damaged_records_are_named(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    folder = prepared(32, CONFIG, tmp_path).folder
    rows = RecordRows(folder, "train", "image", mend="zoo data prepare x")
    file = next(folder.glob("*train.array_record*"))
    file.write_bytes(file.read_bytes()[:70000])
    with pytest.raises(DataError, match=r"train\.array_record.*damaged.*zoo data prepare x"):
        rows(np.arange(90))


@pytest.mark.parametrize(("size", "difficulty"), [(32, "hard"), (64, "intermediate")])
def test_the_release_has_the_order_and_the_splits_of_the_original(tmp_path, size, difficulty):
    keyed = write_release(tmp_path / "lra_release" / "lra_release" / f"pathfinder{size}", size, difficulty)
    config = get_config(size, difficulty, "published")
    folder = prepare(size, config, tmp_path / "data", archive=tmp_path, progress=False)
    keys = list(keyed)
    ordered = [keyed[keys[place]] for place in tfds_order(keys, difficulty)]
    assert tfds_order(keys, difficulty) not in (list(range(20)), tfds_order(keys, "easy"))
    for split, (first, last) in (("train", (0, 16)), ("validation", (16, 18)), ("test", (18, 20))):
        source = read_ragged(folder, split, mend="", tokens="image")
        np.testing.assert_array_equal(
            source.tokens.reshape(-1, size, size), [image for image, _ in ordered[first:last]]
        )
        assert source.labels.tolist() == [label for _, label in ordered[first:last]]
    assert open_dataset(size, config, tmp_path / "data")["origin"] == "published"


def test_the_release_is_found_where_it_may_lie(tmp_path):
    config = get_config(32, "hard", "published")
    with pytest.raises(DataError, match=r"lra_release\.gz.*tar -xzf.*source=full"):
        prepare(32, config, tmp_path, progress=False)
    with pytest.raises(DataError, match="no folder"):
        prepare(32, config, tmp_path, archive=tmp_path / "nowhere", progress=False)
    write_release(tmp_path / "downloads" / "manual" / "pathfinder32", rows=5)
    folder = prepare(32, config, tmp_path, progress=False)
    assert folder == tmp_path / "lra_pathfinder32" / "hard_published" / "1.0.0"


def test_the_empty_file_of_the_release_is_left_out(tmp_path):
    release = tmp_path / "pathfinder32"
    write_release(release, difficulty="easy", files=1, rows=10)
    inner = release / FOLDERS["easy"]
    file = inner / "metadata" / "0.npy"
    file.write_text(file.read_text().replace("sample_4.png", "sample_172.png"))
    (inner / "imgs" / "0" / "sample_172.png").write_bytes(b"")
    config = get_config(32, "easy", "published")
    prepare(32, config, tmp_path / "data", archive=tmp_path, progress=False)
    splits = open_dataset(32, config, tmp_path / "data")["splits"]
    assert sum(split["examples"] for split in splits.values()) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(" 0.5 1 1\n", "\n", 1), r"0\.npy, line 1: 8 fields"),
        (lambda text: text.replace(" 14 4 ", " 9 3 ", 1), "curves of 9 paddles, not 14"),
        (
            lambda text: text.replace(" 3 0 1.0", " 3 0.5 1.0").replace(" 3 1 1.0", " 3 0.5 1.0"),
            "line 4: field 4 is '0.5'",
        ),
        (
            lambda text: text + text.splitlines()[0].replace("imgs/0", "../imgs/0") + "\n",
            "line 11: .*no image of this set",
        ),
        (lambda text: text.replace("sample_7.png", "sample_70.png"), r"sample_70\.png cannot be read: No such file"),
        (lambda text: "\x93NUMPY é", "It is text there"),
        (lambda text: "", "no images"),
    ],
)
def test_a_wrong_release_is_refused(tmp_path, change, message):
    release = tmp_path / "pathfinder32"
    write_release(release, files=1)
    file = release / FOLDERS["hard"] / "metadata" / "0.npy"
    file.write_text(change(file.read_text()), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        prepare(32, get_config(32, "hard", "published"), tmp_path / "data", archive=tmp_path, progress=False)
    assert not prepared(32, get_config(32, "hard", "published"), tmp_path / "data").folder.exists()


def test_pictures_of_another_kind_are_refused(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    stream = io.BytesIO()
    image.fromarray(np.zeros((32, 32), np.uint8)).save(stream, format="PNG")
    path.write_bytes(stream.getvalue())
    assert read_png(path, 32).shape == (32, 32)
    with pytest.raises(DataError, match=r"\(32, 32\).*not \(64, 64\)"):
        read_png(path, 64)
    path.write_bytes(stream.getvalue()[:40])
    with pytest.raises(DataError, match=r"a\.png \(40 bytes\) is no PNG, or a damaged one"):
        read_png(path, 32)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        read_png(path, 32)
    image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match="mode RGB"):
        read_png(path, 32)
