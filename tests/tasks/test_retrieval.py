"""LRA Retrieval from the release's files, its stand-in, and a run on pairs."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_server import Served, serving

from zoo import cli
from zoo.data.builders import pairs as builders
from zoo.data.manifest import DataError
from zoo.data.pairs import AAN_FILES
from zoo.tasks.lra.retrieval import Retrieval
from zoo.tasks.pairs.acl import Acl
from zoo.training.recipe import load_recipe
from zoo.training.run import train

SIZES = {"train": 40, "validation": 20, "test": 20}
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "acl_citation_pairs"


@pytest.fixture(autouse=True)
def small_release(monkeypatch):
    monkeypatch.setattr(builders.LraRetrieval, "SIZES", SIZES)


def lines(split, count):
    """Pairs that share a letter where they are citations; quotes in odd numbers."""
    draw = np.random.default_rng(len(split))
    for i in range(count):
        one, two = draw.choice(list("abcdefgh"), 2, replace=False)
        label = i % 2
        yield f'{label}.0\t{i}\t{i + 1}\t"{one * 9} text {i}\t{(one if label else two) * 7} é\n'.encode()


def files(counts=SIZES):
    return {AAN_FILES[split]: b"".join(lines(split, count)) for split, count in counts.items()}


def write_folder(folder, counts=SIZES):
    folder.mkdir(parents=True)
    for name, data in files(counts).items():
        (folder / name).write_bytes(data)
    return folder


def write_release(path, contents=None):
    """As the release is: a gzipped tar, its folders nested twice, other tasks' files before."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {"listops-1000/basic_train.tsv": b"x" * 5000, **(contents or files())}.items():
            place = name if "/" in name else f"tsv_data/{name}"
            member = tarfile.TarInfo(f"lra_release/lra_release/{place}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def prepared(tmp_path, archive, cls=Retrieval, **options):
    task = cls(data_dir=tmp_path / "data", archive=archive, **options)
    task.prepare(progress=False)
    return task


def test_pairs_are_those_of_the_files(tmp_path):
    task = prepared(tmp_path, write_folder(tmp_path / "tsv_data"), max_len=12)
    assert task.is_prepared()
    assert task.info.pairs
    task.verify()
    source = task.split("train")
    assert len(source) == 40
    batch = source.gather(np.arange(40), 12)
    assert batch["inputs"].shape == batch["mask"].shape == (40, 12, 2)
    wanted = set()
    for line in lines("train", 40):
        label, _, _, one, two = line.rstrip(b"\n").split(b"\t")
        wanted.add((int(label[:1]), one[:12], two[:12]))
    found = set()
    for inputs, mask, label in zip(batch["inputs"], batch["mask"], batch["label"], strict=True):
        sides = [bytes((inputs[mask[:, side], side] - 1).astype(np.uint8)) for side in range(2)]
        found.add((int(label), *sides))
    assert found == wanted
    assert 5 < batch["label"][:20].sum() < 15  # the order mixes the labels
    facts = task.describe()
    assert facts["splits"]["train"]["labels"] == [20, 20]
    assert "unverified" in facts["cautions"][0]
    assert task.baselines()["majority"] == 0.5


def test_the_release_is_streamed_and_gives_the_same(tmp_path):
    folder = prepared(tmp_path / "a", write_folder(tmp_path / "tsv_data"))
    release = prepared(tmp_path / "b", write_release(tmp_path / "lra_release.gz"))
    assert folder.fingerprint() == release.fingerprint()
    np.testing.assert_array_equal(folder.split("test").pairs, release.split("test").pairs)


def test_the_release_is_fetched_only_when_its_address_is_given(tmp_path, monkeypatch):
    with serving(monkeypatch) as server:
        server.files["lra_release.gz"] = Served(write_release(tmp_path / "lra_release.gz").read_bytes())
        data = tmp_path / "data"
        with pytest.raises(
            DataError, match=r"fetched only where its address is given: archive=https://storage\.google"
        ):
            Retrieval(data_dir=data).prepare(progress=False)
        address = server.url("lra_release.gz")
        cli.main(["data", "prepare", "lra/retrieval", "--data-dir", str(data), f"archive={address}"])
        assert server.asked == [("lra_release.gz", None)]
    task = Retrieval(data_dir=data)
    assert len(task.split("train")) == 40
    assert "publisher names no checksum" in task.cautions()[0]
    with pytest.raises(DataError, match=r"no acl_citation_pairs\.tar\.gz below .* It cannot be fetched\.$"):
        Acl(data_dir=data, archive=address).prepare(progress=False)


def test_rows_that_a_reader_of_quotes_would_lose_are_missed(tmp_path):
    folder = write_folder(tmp_path / "tsv_data", {**SIZES, "validation": 19})
    with pytest.raises(DataError, match=r"new_aan_pairs\.eval\.tsv has 19 pairs instead of 20.*quotes"):
        prepared(tmp_path, folder)
    assert not Retrieval(data_dir=tmp_path / "data").is_prepared()


def test_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"no lra_release\.gz below .*storage\.googleapis\.com.*downloads/manual"):
        Retrieval(data_dir=tmp_path).prepare(progress=False)
    folder = write_folder(tmp_path / "tsv_data")
    (folder / AAN_FILES["test"]).unlink()
    with pytest.raises(DataError, match=r"lacks new_aan_pairs\.test\.tsv"):
        prepared(tmp_path, folder)
    release = write_release(tmp_path / "lra_release.gz")
    release.write_bytes(release.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"damaged|instead of"):
        prepared(tmp_path, release)
    for source, max_len in (("full", None), ("original", 0), ("original", 20_000)):
        with pytest.raises(ValueError, match=r"no source|max_len must be"):
            Retrieval(source, max_len=max_len)


def write_papers(folder, count=60):
    folder.mkdir()
    draw = np.random.default_rng(0)
    topics = draw.integers(6, size=count)
    texts = {f"P{i}": "abcdef"[topic] * int(draw.integers(8, 16)) + f" {i}" for i, topic in enumerate(topics)}
    rows = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items())
    (folder / "docs.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    cited = [f"P{i}\tP{j}" for i in range(count) for j in range(i) if topics[i] == topics[j]]
    (folder / "citations.tsv").write_text("citing\tcited\n" + "\n".join(cited) + "\n")
    return folder


def test_a_run_on_pairs_learns(tmp_path):
    """Papers cite those of the same letter, which neither paper alone tells."""
    folder = write_papers(tmp_path / "acl_citation_pairs")
    overrides = [f"task.options.archive={folder}", "task.max_len=20", "model.d_model=16", "model.num_layers=1"]
    overrides += ["train.steps=150", "train.eval_every=50", "train.warmup_steps=10", "train.lr=1e-2"]
    overrides += ["train.tensorboard=false", "model.dropout=0.0", "train.batch_size=64"]
    recipe = load_recipe("pairs/acl", overrides, variant="linear_attention")
    result = train(recipe, tmp_path / "run", data_dir=tmp_path / "data")
    assert result["best"]["test"]["accuracy"] > 0.9
    assert result["cautions"] == ["a stand-in for LRA Retrieval on other papers: not to be held against its figures"]
    assert abs(result["baselines"]["test"]["majority"] - 0.5) < 0.01


@pytest.mark.skipif(not SHARED.is_dir(), reason="the ACL papers are not at hand")
def test_the_acl_papers(tmp_path):
    task = prepared(tmp_path, SHARED, Acl)
    assert {name: len(task.split(name)) for name in SIZES} == {"train": 4350, "validation": 592, "test": 588}
    assert task.baselines()["bag_of_bytes"] == pytest.approx(0.645, abs=0.03)
