"""Classification of one's own files: what models are given, what is drawn, and a run that knows its labels."""

import csv
import json

import numpy as np
import pytest

import zoo
from zoo import registry
from zoo.data.manifest import DataError
from zoo.tasks.classify.files import Files
from zoo.training.recipe import load_recipe
from zoo.training.run import evaluate_run, load_run, train


def put(folder, name, rows, head=("text", "label")):
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return folder


def reviews(count, seed=0):
    draw = np.random.default_rng(seed)
    for i in range(count):
        yield f"{'good' if i % 2 else 'bad'} film number {draw.integers(10**6)}", "pos" if i % 2 else "neg"


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    folder = put(tmp_path / "reviews", "train.csv", reviews(40))
    put(folder, "val.csv", reviews(10, seed=1))
    return put(folder, "test.csv", reviews(12, seed=2))


def test_registered(folder):
    assert registry.get("classify/files", kind="task") is Files
    task = Files(str(folder))
    assert task.is_prepared()
    assert task.prepare() == folder
    info = task.info
    assert (info.inputs, info.vocab_size, info.num_classes, info.pairs) == ("tokens", 257, 2, False)
    assert not Files(str(folder / "gone")).is_prepared()
    for source in (None, "", "full"):
        assert not Files(source).is_prepared()
        with pytest.raises(ValueError, match="classify/files needs the path of a folder"):
            Files(source).prepare()


def test_texts_are_bytes_and_labels_are_numbered_in_order(folder):
    task = Files(str(folder))
    assert task.classes == ["neg", "pos"]
    wanted = list(reviews(12, seed=2))
    batch = task.split("test").gather(np.arange(12), task.info.max_len)
    assert batch["label"].tolist() == [task.classes.index(label) for _, label in wanted]
    for inputs, mask, (text, _) in zip(batch["inputs"], batch["mask"], wanted, strict=True):
        assert bytes((inputs[mask] - 1).tolist()) == text.encode()[: task.info.max_len]
    assert task.cautions() == []
    facts = json.loads(json.dumps(task.describe()))
    assert facts["splits"]["train"]["labels"] == {"neg": 20, "pos": 20}
    assert facts["splits"]["validation"]["from"] == "val.csv"
    assert facts["max_len"] == max(len(text) for text, _ in reviews(40))
    assert task.baselines() == {"majority": 0.5, "bag_of_bytes": 1.0}
    encoded = task.encode([text for text, _ in wanted])
    np.testing.assert_array_equal(encoded["inputs"], batch["inputs"])
    np.testing.assert_array_equal(encoded["mask"], batch["mask"])
    task.verify()


def test_columns_whose_names_are_numbers(tmp_path):
    path = put(tmp_path, "train.csv", reviews(40), head=("2020", "label")) / "train.csv"
    assert Files(str(path), column=2020).classes == ["neg", "pos"]  # pyright: ignore[reportArgumentType]


def test_whole_numbers_are_in_their_own_order(tmp_path):
    rows = [(f"text {i}", label) for i, label in enumerate(["10", "9", "2"] * 10)]
    assert Files(str(put(tmp_path, "train.csv", rows) / "train.csv")).classes == ["2", "9", "10"]


def test_splits_without_a_file_are_drawn_and_said(tmp_path):
    path = put(tmp_path, "all.csv", reviews(100)) / "all.csv"
    task = Files(str(path), test_share=0.2)
    texts = {}
    for name in ("train", "validation", "test"):
        source = task.split(name)
        texts[name] = {source.tokens[a:b].tobytes() for a, b in zip(source.offsets, source.offsets[1:], strict=False)}
        assert np.bincount(source.labels).tolist() == [len(source) // 2] * 2
    assert [len(found) for found in texts.values()] == [70, 10, 20]
    assert len(set.union(*texts.values())) == 100
    assert task.cautions() == ["drawn from the rows of all.csv, seed 0: test 20 %, validation 10 %"]
    assert task.describe()["splits"]["test"]["from"] == "all.csv, drawn"
    again, other = Files(str(path), test_share=0.2), Files(str(path), test_share=0.2, seed=1)
    assert task.fingerprint() == again.fingerprint() != other.fingerprint()
    folder = put(tmp_path / "two", "train.csv", reviews(100))
    two = Files(str(put(folder, "test.csv", reviews(7, seed=1))))
    assert [len(two.split(name)) for name in ("train", "validation", "test")] == [90, 10, 7]
    assert two.cautions() == ["drawn from the rows of train.csv, seed 0: validation 10 %"]


def test_rows_that_stand_in_training_too_and_rows_that_are_cut(folder):
    put(folder, "test.csv", [*list(reviews(40))[:3], ("x" * 5000, "pos")])
    put(folder, "train.csv", [*reviews(40), ("y" * 4097, "neg")])
    task = Files(str(folder))
    assert task.info.max_len == 4096
    assert task.cautions() == [
        "2 rows are cut to max_len=4096, which no one chose; see task.max_len",
        "3 of the 4 rows for test stand in training too",
    ]
    facts = task.describe()["splits"]["test"]
    assert (facts["cut"], facts["in_training_too"]) == (1, 3)
    assert len(Files(str(folder), max_len=100).cautions()) == 1


def test_content_is_told_apart(folder):
    before = Files(str(folder)).fingerprint()
    assert before == Files(str(folder), max_len=7).fingerprint()
    put(folder, "val.csv", [*list(reviews(10, seed=1))[:9], ("another", "pos")])
    assert Files(str(folder)).fingerprint() != before


def test_pairs(tmp_path):
    rows = [(f"a{i}", f"{i}bc", i % 2) for i in range(40)]
    path = put(tmp_path, "train.csv", rows, head=("text", "other", "label")) / "train.csv"
    task = Files(str(path), second_column="other")
    assert task.info.pairs
    batch = task.split("train").gather(np.arange(1), 4)
    (inputs,), (mask,) = batch["inputs"], batch["mask"]
    one, two = (bytes((inputs[mask[:, side], side] - 1).tolist()).decode() for side in range(2))
    assert (one[0], two) == ("a", f"{one[1:]}bc")
    encoded = task.encode([(one, two)])
    np.testing.assert_array_equal(encoded["inputs"][:, :4], batch["inputs"])
    assert list(task.baselines()) == ["majority", "bag_of_bytes"]


def arrays(folder, draw, **more):
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", 90), ("val", 30), ("test", 30)):
        labels = draw.integers(0, 3, rows)
        np.savez(folder / f"{name}.npz", inputs=labels[:, None] + draw.integers(1, 3, (rows, 8)), labels=labels, **more)
    return folder


def test_tokens(tmp_path):
    folder = arrays(tmp_path / "d", np.random.default_rng(0))
    task = Files(str(folder))
    assert (task.info.inputs, task.info.vocab_size, task.info.max_len) == ("tokens", 5, 8)
    assert task.split("train").gather(np.arange(2), 9)["inputs"].dtype == np.int32
    scores = task.baselines()
    assert list(scores) == ["majority", "bag_of_tokens"]
    assert scores["bag_of_tokens"] > 0.9
    assert Files(str(folder), zero="token").info.vocab_size == 6
    assert Files(str(folder), vocab_size=50).info.vocab_size == 50
    with pytest.raises(
        DataError, match=r"train\.npz, row \d+: the id 4 is not below the vocabulary of 4\. .*vocab_size=5"
    ):
        Files(str(folder), vocab_size=4).prepare()
    with pytest.raises(DataError, match=r"the rows given, row 1: the id 9 is not below the vocabulary of 5"):
        task.encode([[9]])


def test_a_bag_of_many_tokens_has_columns_for_the_frequent_ones(tmp_path):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 300)
    inputs = draw.integers(1000, 9000, (300, 12))
    inputs[:, 5] = 77 + 8 * labels
    np.savez(tmp_path / "all.npz", inputs=inputs, labels=labels)
    assert Files(str(tmp_path / "all.npz")).baselines()["bag_of_tokens"] > 0.9


def test_values_are_scaled_by_training(tmp_path):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 200)
    values = 1000 + draw.normal(size=(200, 16)) * np.where(labels, 5, 1)[:, None]
    np.savez(tmp_path / "all.npz", inputs=values, labels=labels)
    task = Files(str(tmp_path / "all.npz"))
    assert (task.info.inputs, task.info.vocab_size) == ("scalars", None)
    train = task.split("train")
    assert train.tokens.dtype == np.float32
    assert abs(train.tokens.mean()) < 1e-3
    assert abs(train.tokens.std() - 1) < 1e-3
    scores = task.baselines()
    assert list(scores) == ["majority", "bag_of_values"]
    assert scores["bag_of_values"] > 0.8
    plain = Files(str(tmp_path / "all.npz"), scale=False)
    assert plain.split("train").tokens.mean() == pytest.approx(1000, abs=1)
    facts = task.facts()
    wanted = ((values[:1] - facts["mean"]) / facts["std"]).astype(np.float32)
    np.testing.assert_allclose(task.encode(values[:1])["inputs"], wanted, atol=2e-5)  # of float32 around 1000


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"train": [("a", "x"), ("b", "x")]}, {}, r"train\.csv has one label only, 'x'"),
        ({"train": [(f"text {i}", i) for i in range(9)]}, {}, "no label comes twice in its 9 rows. Is '0' one"),
        ({"train": [("a", "x"), ("b", "y"), ("c", "x")]}, {}, "3 rows are too few to draw test from .10 %.*test_share"),
        (
            {"train": list(reviews(40)), "test": [("a", "pos"), ("b", "posi")]},
            {},
            r"test\.csv, line 3: no row of training has the label 'posi'. Did you mean pos",
        ),
        ({"train": list(reviews(40)), "test": []}, {}, r"test\.csv has no row"),
        ({"train": list(reviews(40))}, {"column": "txt"}, "has no column 'txt'. Did you mean text"),
    ],
)
def test_files_that_are_wrong(tmp_path, files, options, message):
    for name, rows in files.items():
        put(tmp_path, f"{name}.csv", rows)
    for ask in (Files.prepare, lambda task: task.info, lambda task: task.split("train")):
        with pytest.raises(DataError, match=message):
            ask(Files(str(tmp_path), **options))


def test_kinds_that_do_not_fit(tmp_path):
    folder = put(arrays(tmp_path / "d", np.random.default_rng(0)), "test.csv", reviews(3))
    (folder / "test.npz").unlink()
    with pytest.raises(DataError, match=r"test\.csv holds text, and .*train\.npz tokens"):
        Files(str(folder)).prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 0}, "max_len must be at least 1"),
        ({"seed": -1}, "task.seed must lie in"),
        ({"validation_share": 0.5, "test_share": 0.5}, "together below 1"),
        ({"vocab_size": 1}, "vocab_size must be at least 2"),
        ({"vocab_size": 2.5}, "vocab_size must be at least 2"),
        ({"quotes": "no"}, "quotes must be true or false"),
        ({"scale": 1}, "scale must be true or false"),
        ({"zero": "pad"}, "zero='pad' is not known; there are refuse, token, padding"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Files("x.csv", **options)


SMALL = ["model.d_model=8", "model.num_heads=2", "model.d_ff=8", "model.num_layers=1", "model.dropout=0.0"]
SHORT = ["train.steps=60", "train.warmup_steps=5", "train.eval_every=20", "train.lr=1e-2", "train.tensorboard=false"]


@pytest.mark.usefixtures("compilation_cache")
def test_a_model_learns_and_knows_its_labels_without_the_files(folder, tmp_path):
    recipe = load_recipe("classify/files", [*SMALL, *SHORT, f"task.source={folder}"], variant="linear_attention")
    result = train(recipe, tmp_path / "run", progress=False)
    assert result["best"]["test"]["accuracy"] > 0.9
    assert result["baselines"]["test"] == {"majority": 0.5, "bag_of_bytes": 1.0}
    found = evaluate_run(tmp_path / "run")
    assert found["accuracy"] == result["best"]["test"]["accuracy"]
    put(folder, "test.csv", [("good film number 1", "positive")])
    with pytest.raises(DataError, match=r"no row of training has the label 'positive'\. Did you mean pos"):
        evaluate_run(tmp_path / "run")
    for file in folder.iterdir():
        file.unlink()
    run = load_run(tmp_path / "run")
    batch = run.task.encode(["bad film number 17", "good film number 17"])
    logits = run.model(batch["inputs"], mask=batch["mask"])
    assert [run.task.classes[number] for number in logits.argmax(-1).tolist()] == ["neg", "pos"]
    assert zoo.load_run(tmp_path / "run").task.classes == ["neg", "pos"]


@pytest.mark.slow
@pytest.mark.usefixtures("compilation_cache")
@pytest.mark.parametrize("kind", ["values", "pairs"])
def test_other_kinds_train_too(kind, tmp_path):
    if kind == "pairs":
        rows = [(f"a{i}", f"{i}bc", i % 2) for i in range(40)]
        path = put(tmp_path, "train.csv", rows, head=("text", "other", "label")) / "train.csv"
        options = ["task.options.second_column=other"]
    else:
        path, options = tmp_path / "all.npz", []
        np.savez(path, inputs=np.random.default_rng(0).normal(size=(40, 6)), labels=np.arange(40) % 2)
    short = [*SHORT, "train.steps=2", "train.warmup_steps=1", "train.batch_size=4"]
    recipe = load_recipe(
        "classify/files", [*SMALL, *short, f"task.source={path}", *options], variant="linear_attention"
    )
    result = train(recipe, tmp_path / "run", progress=False)
    assert np.isfinite(result["last"]["test"]["loss"])
    assert result["cautions"][0].startswith("drawn from the rows of")
