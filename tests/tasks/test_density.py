"""Densities of images: what the tasks draw and read, what they count, and a run through the one loop."""

import dataclasses
import hashlib
import json
import math
import tarfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_server import Served, serving
from toy_runs import assert_same_run, interrupt, metrics, run

import zoo
from zoo import registry
from zoo.data import cifar10 as files
from zoo.data.images import ImageSource
from zoo.data.manifest import DataError
from zoo.data.pipeline import eval_batches, train_batches
from zoo.models.axial_transformer import OneChannel
from zoo.sampling import image_grid, sample_images, sample_png, write_png
from zoo.tasks.density.cifar10 import Cifar10
from zoo.tasks.density.shapes import Shapes, Size
from zoo.training.build import make_task, model_maker
from zoo.training.recipe import RecipeError, load_recipe, recipe_from_dict
from zoo.training.run import evaluate_run

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture
def small(monkeypatch):
    """The task's colour images of 4 x 4 pixels and 4 values, a few of them."""
    sizes = {"grey": Size(5, 1, 4, 64, 20), "colour": Size(4, 2, 4, 64, 20)}
    monkeypatch.setattr("zoo.tasks.density.shapes._SIZES", sizes)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder of CIFAR-10's form with 12 images a file."""
    monkeypatch.setattr(files, "_ROWS", 12)
    monkeypatch.setattr("zoo.tasks.density.cifar10._VALIDATION", 10)
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*files._FILES["train"], *files._FILES["test"]]:
        rows = rng.integers(0, 256, (12, 3073), np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())
    return folder.parent


def test_registered():
    assert registry.get("density/shapes", kind="task") is Shapes
    info = Shapes("colour").info
    assert (info.inputs, info.output, info.image_shape, info.num_values, info.max_len) == (
        "image",
        "image",
        (8, 8, 3),
        16,
        8,
    )
    assert Shapes.metric == "bpd"
    assert Shapes().is_better(1.0, 2.0)
    assert Shapes().is_prepared()


@pytest.mark.parametrize("source", Shapes.sources)
def test_drawn_images(source):
    task = Shapes(source)
    test = task.images("test")
    assert (test.shape[1:], test.dtype, len(test)) == (task.info.image_shape, np.uint8, 1000)
    assert (test.min(), test.max()) == (0, 15)
    assert len(np.unique(test, axis=0)) == 1000
    assert not np.array_equal(test, task.images("validation"))
    assert not np.array_equal(test, Shapes(source, seed=1).images("test"))
    # Most neighbours are equal; independent values would be so once in sixteen times.
    assert (test[:, 1:] == test[:, :-1]).mean() > 0.7
    assert np.abs(test[:, 1:, :, 0].astype(int) - test[:, :-1, :, 0]).mean() > 0.3


def test_drawn_images_are_the_same_everywhere():
    assert {name: Shapes(name).fingerprint() for name in Shapes.sources} == {
        "grey": "629edb8bc12e37cd",
        "colour": "767380a76ee28790",
    }


def test_batches_are_whole_images():
    images = np.arange(7 * 2 * 3).reshape(7, 2, 3, 1)
    batches = list(eval_batches(ImageSource(images), batch_size=4, max_len=2))
    assert [batch["inputs"].shape for batch in batches] == [(4, 2, 3, 1)] * 2
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    np.testing.assert_array_equal(np.concatenate([batch["inputs"] for batch in batches])[:7], images)
    assert not batches[1]["inputs"][3].any()
    batch = next(train_batches(ImageSource(images), batch_size=4, max_len=2, seed=0))
    assert set(batch) == {"inputs", "weight"}
    assert batch["inputs"].dtype == np.int32
    for wrong, error in ((np.zeros((2, 3, 1), int), ValueError), (np.zeros((2, 3, 3, 1)), TypeError)):
        with pytest.raises(error, match="images must be"):
            ImageSource(wrong)


def test_bits_are_nats_over_all_values(small):
    task = Shapes("colour")
    images = jnp.asarray(task.images("test")[:3], jnp.int32)
    batch: Any = {"inputs": images, "weight": jnp.array([1.0, 1.0, 0.0])}
    sum_up = jax.jit(task.sums)
    sums = sum_up(jnp.zeros((*images.shape, 4)), batch)
    assert float(sums["weight"]) == 2 * 4 * 4 * 2 == task.weights(batch).sum()
    assert float(sums["bpd"] / sums["weight"]) == pytest.approx(2, rel=1e-6)
    assert float(sums["loss"] / sums["weight"]) == pytest.approx(2 * math.log(2), rel=1e-6)
    logits = jax.random.normal(jax.random.key(0), (*images.shape, 4))
    whole = sum_up(logits, batch)
    by_hand = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(images)[..., None], -1)
    assert float(whole["loss"]) == pytest.approx(by_hand[:2].sum(), rel=1e-5)
    # Of one channel: its loss, as often as there are channels; the mean over the choices is the whole.
    parts = [sum_up(OneChannel(logits[..., channel, :], jnp.full(3, channel)), batch) for channel in range(2)]
    assert float(parts[0]["loss"] + parts[1]["loss"]) / 2 == pytest.approx(float(whole["loss"]), rel=1e-5)
    assert parts[0]["weight"] == whole["weight"]
    assert task.arguments(batch) == {}


def test_baselines(small):
    task = Shapes("colour")
    train, test = task.images("train"), task.images("test")
    bits = {"histogram": 0.0, "pixel_histogram": 0.0}
    for image, row, column, channel in np.ndindex(test.shape):
        value = test[image, row, column, channel]
        for name, seen in (("histogram", train[..., channel]), ("pixel_histogram", train[:, row, column, channel])):
            bits[name] -= math.log2((1 + (seen == value).sum()) / (seen.size + 4))
    assert task.baselines("test") == pytest.approx({name: total / test.size for name, total in bits.items()})


def test_cifar_is_fetched_to_be_prepared_and_not_to_be_read(cifar, tmp_path, monkeypatch):
    name = files.CIFAR10.name
    with tarfile.open(tmp_path / name, "w:gz") as archive:
        archive.add(cifar / "cifar-10-batches-bin", "cifar-10-batches-bin")
    content = (tmp_path / name).read_bytes()
    with serving(monkeypatch) as server:
        server.files[name] = Served(content)
        facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "urls": (server.url(name),)}
        monkeypatch.setattr(files, "CIFAR10", dataclasses.replace(files.CIFAR10, **facts))
        task = Cifar10(data_dir=tmp_path / "empty")
        for read in (task.verify, task.describe, lambda: task.split("test")):
            with pytest.raises(DataError, match=f"There is no {name}"):
                read()
        assert server.asked == []
        assert task.prepare(progress=False) == tmp_path / "empty" / "downloads" / name
    assert task.cautions() == []
    np.testing.assert_array_equal(task.images("test"), Cifar10(data_dir=cifar).images("test"))


def test_cifar(cifar):
    task = Cifar10(data_dir=cifar)
    assert task.is_prepared()
    assert task.prepare() == cifar / "cifar-10-batches-bin"
    task.verify()
    images, _ = files.read_cifar10(cifar / "cifar-10-batches-bin", "train")
    np.testing.assert_array_equal(task.images("train"), images[:50])
    np.testing.assert_array_equal(task.images("validation"), images[50:])
    np.testing.assert_array_equal(task.images("test"), files.read_cifar10(cifar / "cifar-10-batches-bin", "test")[0])
    facts = json.loads(json.dumps(task.describe()))
    assert facts["splits"] == {"train": 50, "validation": 10, "test": 12}
    assert facts["origin"] == "an unpacked folder"
    assert task.cautions() == ["unverified data: cifar-10-batches-bin is not the publisher's by its checksum"]
    small = Cifar10(data_dir=cifar, size=16)
    assert small.info.image_shape == (16, 16, 3)
    square = images[0, 2:4, 6:8, 1].astype(int)
    assert small.images("train")[0, 1, 3, 1] == square.sum() // 4
    assert small.fingerprint() != task.fingerprint()
    assert not Cifar10(data_dir=cifar / "nowhere").is_prepared()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shapes("gray"), r"density/shapes has no source 'gray'. Did you mean grey"),
        (lambda: Shapes(max_len=7), "has images of 12 rows, which max_len=7 cannot change"),
        (lambda: Shapes(seed=-1), "task.seed must lie in"),
        (lambda: Shapes().images("val"), "density/shapes has no split 'val'; there are train"),  # pyright: ignore
        (lambda: Cifar10("half"), "density/cifar10 has no source 'half'"),
        (lambda: Cifar10(size=31), "size must be 32, 16 or 8, got 31"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["density/shapes", "density/cifar10"])
def test_recipes_make_their_model(name):
    recipe = load_recipe(name)
    task = make_task(recipe)
    make = model_maker(recipe, task.info)
    assert callable(make)
    with pytest.raises(RecipeError, match=rf"softmax does not read images, which {name} has; .*axial_transformer"):
        model_maker(load_recipe(name, variant="softmax"), task.info)
    with pytest.raises(RecipeError, match=r"model\.causal=false: axial_transformer runs forward only"):
        model_maker(load_recipe(name, ["model.causal=false"]), task.info)
    listops = load_recipe("lra/smoke/listops", ["model.causal=true"], variant="axial_transformer")
    info = make_task(listops).info
    with pytest.raises(RecipeError, match=r"axial_transformer reads image; lra/listops has tokens"):
        model_maker(listops, info)


# --- through the loop

VALUES = {
    "protocol": "toy",
    "variant": "axial_transformer",
    "task": {"name": "density/shapes", "source": "colour"},
    "model": {"d_model": 16, "num_layers": 2, "num_heads": 2, "causal": True},
    "options": {"num_inner_layers": 1},
    "train": {
        "steps": 60, "batch_size": 8, "accumulate": 2, "lr": 0.005, "warmup_steps": 5, "eval_every": 20,
        "checkpoint_every": 10, "log_every": 20, "tensorboard": False,
    },
}  # fmt: skip
TINY = {"grey": Size(5, 1, 4, 64, 20), "colour": Size(4, 2, 4, 64, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.tasks.density.shapes._SIZES", TINY)
        run(folder, recipe_from_dict(VALUES))
    return folder


def test_it_learns_and_the_figure_is_exact(folder, small):
    result = json.loads((folder / "result.json").read_text())
    assert result["metric"] == "bpd"
    assert result["last"]["test"]["bpd"] < result["baselines"]["test"]["pixel_histogram"] - 0.05
    assert result["last"]["test"]["examples"] == 20 * 4 * 4 * 2
    scores = {line["step"]: line["bpd"] for line in metrics(folder, "validation")}
    assert result["best"]["step"] == min(scores, key=scores.__getitem__)
    loaded = zoo.load_run(folder, "last")
    images = loaded.task.images("test")
    bits = -np.asarray(loaded.model.log_prob(jnp.asarray(images, jnp.int32)), np.float64).sum() / math.log(2)
    assert evaluate_run(folder, which="last")["bpd"] == pytest.approx(bits / images.size, rel=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_ends_the_same(folder, small, tmp_path, monkeypatch):
    interrupt(tmp_path / "run", recipe_from_dict(VALUES), 33, monkeypatch)
    run(tmp_path / "run", recipe_from_dict(VALUES))
    assert_same_run(folder, tmp_path / "run")


def test_samples_of_a_run(folder, small, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    images = sample_images(folder, count=2, seed=1)
    assert images.shape == (2, 4, 4, 2)
    assert images.min() >= 0
    assert images.max() < 4
    model = zoo.load_run(folder).model
    key = jax.random.fold_in(jax.random.key(1), 0)
    np.testing.assert_array_equal(images, model.sample(2, key=key))
    path = sample_png(folder, tmp_path / "new" / "samples.png", count=2, seed=1)
    first = path.read_bytes()
    np.testing.assert_array_equal(np.round(imread(path)[..., :3] * 255), image_grid(images, num_values=4))
    assert sample_png(folder, path, count=2, seed=1).read_bytes() == first
    assert sample_png(folder, path, count=2, seed=2).read_bytes() != first
    assert [file.name for file in path.parent.iterdir()] == ["samples.png"]
    monkeypatch.setattr("zoo.sampling._AT_ONCE", 2)
    assert sample_images(folder, count=3).shape == (3, 4, 4, 2)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        sample_images(folder, count=0)


def test_the_command_line_draws(folder, small, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from zoo.cli import main

    main(["sample", str(folder), "--count", "2", "--out", str(tmp_path / "two.png")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_another_task_draws_no_images(toy, tmp_path):
    from toy_runs import recipe

    run(tmp_path / "run", recipe(steps=5, warmup_steps=1, eval_every=0, checkpoint_every=0))
    with pytest.raises(ValueError, match=r"is a run of toy, which draws no images; give one of a density/\* task"):
        sample_images(tmp_path / "run")


def test_the_grid():
    images = np.arange(5)[:, None, None, None] * np.ones((1, 2, 3, 1), int)
    grid = image_grid(images, num_values=5)
    times, gap = 21, 10
    assert grid.shape == (2 * (2 * times + gap) + gap, 3 * (3 * times + gap) + gap, 3)
    assert grid[0, 0].tolist() == [255] * 3
    for index in range(5):
        top, left = gap + index // 3 * (2 * times + gap), gap + index % 3 * (3 * times + gap)
        assert (grid[top : top + 2 * times, left : left + 3 * times] == round(index * 255 / 4)).all()
    colours = image_grid(np.array([[[[0, 1, 2]]]]), num_values=3)
    assert colours[40, 40].tolist() == [0, 128, 255]
    assert image_grid(np.array([[[[1, 2]]]]), num_values=3)[40, 40].tolist() == [128, 255, 0]
    assert image_grid(np.zeros((1, 100, 100, 3), int)).shape == (102, 102, 3)


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.image", None)
    with pytest.raises(ModuleNotFoundError, match="a PNG needs matplotlib: pip install"):
        write_png(np.zeros((1, 2, 2, 1), int), tmp_path / "x.png")


def test_a_length_that_images_cannot_have_is_no_advice(folder, small):
    recipe = recipe_from_dict(VALUES)
    changed = dataclasses.replace(recipe, task=dataclasses.replace(recipe.task, max_len=2))
    with pytest.raises(ValueError, match="which max_len=2 cannot change"):
        make_task(changed)
