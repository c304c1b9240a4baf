"""The ListOps builder: the same bytes whatever happens, nothing half-made, nothing damaged unnoticed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from zoo.data.builders.base import read_ragged
from zoo.data.builders.listops import (
    CONFIGS,
    ListopsConfig,
    LraListops,
    dataset_folder,
    get_config,
    open_dataset,
    prepare,
)
from zoo.data.chunks import chunk_path
from zoo.data.listops import Law, evaluate, generate, to_source
from zoo.data.manifest import DataError

# 30 chunks of 50 expressions: enough to be interrupted, small enough to be drawn in a moment.
LAW = Law(max_depth=6, max_args=5, min_length=20, max_length=120)
CONFIG = ListopsConfig(name="tiny", law=LAW, train=1300, validation=100, test=100, chunk_size=50)
PYTHONPATH = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(source):
    return [source.tokens[a:b].tobytes() for a, b in zip(source.offsets[:-1], source.offsets[1:], strict=True)]


@pytest.fixture(name="tiny", scope="module")
def tiny_fixture(tmp_path_factory):
    """The data folder of one prepared set, drawn in one process; read only."""
    data_dir = tmp_path_factory.mktemp("tiny")
    prepare(CONFIG, data_dir, workers=1, progress=False)
    return data_dir


@pytest.fixture(name="copy")
def copy_fixture(tiny, tmp_path):
    """A copy of that folder, to be damaged."""
    for name, data in files_of(tiny).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_only_the_data_set_is_left(tiny):
    assert [path.name for path in tiny.iterdir()] == ["lra_listops"]
    assert [path.name for path in (tiny / "lra_listops").iterdir()] == ["tiny"]
    assert dataset_folder(CONFIG, tiny) == tiny / "lra_listops" / "tiny" / "1.0.0"


def test_contents_are_the_draws_in_order_without_duplicates(tiny):
    folder = dataset_folder(CONFIG, tiny)
    splits = {name: read_ragged(folder, name, mend="") for name in CONFIG.sizes}
    drawn = [row for chunk in range(40) for row in generate(LAW, 0, chunk, 50)]
    unique = list(dict.fromkeys(drawn))[:1500]
    found = [row for name in CONFIG.sizes for row in zip(rows_of(splits[name]), splits[name].labels, strict=True)]
    assert found == unique
    assert len({tokens for tokens, _ in found}) == 1500
    assert [len(source) for source in splits.values()] == [1300, 100, 100]
    assert all(evaluate(tokens) == label for tokens, label in found)


@pytest.mark.parametrize("workers", [2, None])
def test_any_number_of_workers_makes_identical_files(tiny, tmp_path, workers):
    prepare(CONFIG, tmp_path, workers=workers, progress=False)
    assert files_of(tmp_path) == files_of(tiny)


def test_other_seeds_are_other_sets_beside_it(tmp_path):
    config = get_config("smoke", 3)
    assert config.name == "smoke_seed3"
    assert dataset_folder(config, tmp_path) != dataset_folder(get_config("smoke"), tmp_path)
    assert get_config("published", 3) is get_config("published")
    with pytest.raises(ValueError, match="no source 'ful'; there are full, smoke, published"):
        get_config("ful")


def test_published_sizes_and_bounds():
    sizes = {config.name: config.sizes for config in CONFIGS}
    assert sizes["full"] == sizes["published"] == {"train": 96_000, "validation": 2_000, "test": 2_000}
    assert get_config("full").law == Law(10, 10, 500, 2000, 0.25)
    assert get_config("smoke").law.max_length <= 256


def test_killed_and_restarted_gives_identical_files(tiny, tmp_path):
    """Killed with the chunks half done, one of them then damaged, and leftovers of a killed write in place."""
    code = (
        "import sys, time\n"
        "from zoo.data.listops import Law\n"
        "from zoo.data.builders.listops import ListopsConfig, prepare\n"
        "from zoo.data.progress import Progress\n"
        "Progress.advance = lambda self, count: time.sleep(0.05)\n"
        f"prepare({CONFIG!r}, sys.argv[1], workers=1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=PYTHONPATH, stderr=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.rglob("chunk-*"))) < 8 and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    work = next((tmp_path / "lra_listops" / ".work").iterdir())
    finished = len(list((work / "chunks").glob("chunk-*")))
    assert 8 <= finished < 30
    assert not dataset_folder(CONFIG, tmp_path).exists()
    path = chunk_path(work / "chunks", 3)
    path.write_bytes(path.read_bytes()[:-7])
    leftover = work / "tfds" / "lra_listops" / "tiny" / "incomplete.XYZ_1.0.0"
    leftover.mkdir(parents=True, exist_ok=True)
    (leftover / "half").write_bytes(b"half")

    prepare(CONFIG, tmp_path, workers=2, progress=False)
    assert files_of(tmp_path) == files_of(tiny)


def test_killed_before_it_tidied_up_leaves_nothing(tiny, tmp_path, monkeypatch):
    from zoo.data.builders import listops

    with monkeypatch.context() as patch:
        patch.setattr(listops, "tidy", lambda work: None)
        prepare(CONFIG, tmp_path, workers=1, progress=False)
    assert (tmp_path / "lra_listops" / ".work").exists()
    prepare(CONFIG, tmp_path, progress=False)
    assert not (tmp_path / "lra_listops" / ".work").exists()
    assert files_of(tmp_path) == files_of(tiny)


def test_finished_chunks_are_not_drawn_again(tiny, tmp_path, monkeypatch):
    from zoo.data import listops_draw

    calls = []
    monkeypatch.setattr(listops_draw, "make_chunks", lambda f, a, chunks, folder, **kw: calls.append(list(chunks)))
    monkeypatch.setattr(listops_draw, "chunk_path", lambda folder, chunk: folder / ("." if chunk < 20 else "none"))
    folder = tmp_path / "chunks"
    listops_draw.draw_splits(LAW, CONFIG.sizes, folder, seed=0, chunk_size=50, workers=1)
    assert calls == [list(range(20, 30))]


def test_prepared_data_is_left_alone(tiny):
    folder = dataset_folder(CONFIG, tiny)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert prepare(CONFIG, tiny, progress=False) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_law_under_the_same_name_is_refused(tiny):
    other = ListopsConfig(name="tiny", law=LAW, train=1300, validation=100, test=100, chunk_size=50, seed=1)
    with pytest.raises(DataError, match=r"was made with seed = 0, not 1.*zoo data prepare lra/listops/tiny"):
        prepare(other, tiny, progress=False)


def record_file(data_dir):
    return next(dataset_folder(CONFIG, data_dir).glob("*train.array_record*"))


def test_truncated_records_are_refused_by_size(copy):
    path = record_file(copy)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"train\.array_record.* bytes instead of .*Delete the folder .* and run `zoo data"
    ):
        open_dataset(CONFIG, copy)
    with pytest.raises(DataError, match=r"train\.array_record"):
        prepare(CONFIG, copy, progress=False)


def test_flipped_bits_are_refused_on_reading_and_by_verify(copy):
    path = record_file(copy)
    whole = path.read_bytes()
    places = random.Random(0)
    used = next(i for i in range(len(whole) - 1, 0, -1) if whole[i])
    for _ in range(20):
        data = bytearray(whole)
        data[places.randrange(used // 2)] ^= 1 << places.randrange(8)
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"train\.array_record.*SHA-256"):
            open_dataset(CONFIG, copy, verify=True)
        with pytest.raises(DataError, match=r"train\.array_record.* is damaged.*run `mend`"):
            read_ragged(dataset_folder(CONFIG, copy), "train", mend="mend")


def test_damaged_description_is_refused(copy):
    (dataset_folder(CONFIG, copy) / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_info\.json is damaged"):
        open_dataset(CONFIG, copy)
    with pytest.raises(DataError, match=r"description .* is damaged"):
        read_ragged(dataset_folder(CONFIG, copy), "train", mend="mend")


def test_too_few_expressions_is_an_error_not_a_loop(tmp_path):
    law = Law(max_depth=2, max_args=2, min_length=1, max_length=10)  # 400 in all
    config = ListopsConfig(name="none", law=law, train=380, validation=20, test=1, chunk_size=1000)
    with pytest.raises(ValueError, match="too few expressions: 400 of 401"):
        prepare(config, tmp_path, workers=1, progress=False)
    assert not dataset_folder(config, tmp_path).exists()
    whole = ListopsConfig(name="all", law=law, train=360, validation=20, test=20, chunk_size=1000)
    folder = prepare(whole, tmp_path, workers=1, progress=False)
    rows = [row for name in whole.sizes for row in rows_of(read_ragged(folder, name, mend=""))]
    assert len(set(rows)) == len(rows) == 400


def test_full_disk_is_told_plainly_and_resumed(tiny, tmp_path, monkeypatch):
    from zoo.data import chunks

    original, written = chunks.write_bytes, []

    def full(path, data):
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(path)
        original(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(chunks, "write_bytes", full)
        with pytest.raises(DataError, match=r"No space left for .*finished parts are kept"):
            prepare(CONFIG, tmp_path, workers=1, progress=False)
    assert not dataset_folder(CONFIG, tmp_path).exists()
    prepare(CONFIG, tmp_path, workers=1, progress=False)
    assert files_of(tmp_path) == files_of(tiny)


def test_readable_and_writable_by_plain_tfds(tiny, tmp_path, capsys):
    builder = tfds.builder_from_directory(dataset_folder(CONFIG, tiny))
    source = builder.as_data_source("validation")
    ours = read_ragged(dataset_folder(CONFIG, tiny), "validation", mend="")
    assert len(source) == 100
    np.testing.assert_array_equal(source[7]["tokens"], ours.tokens[ours.offsets[7] : ours.offsets[8]])
    assert source[7]["label"] == ours.labels[7]
    assert builder.info.features["label"].num_classes == 10

    LraListops(config=CONFIG, data_dir=tmp_path, workers=1).download_and_prepare()
    written = dataset_folder(CONFIG, tmp_path)
    assert files_of(written) == files_of(dataset_folder(CONFIG, tiny))


def test_progress_goes_to_standard_error_and_tfds_is_quiet(tmp_path, capfd):
    config = ListopsConfig(name="loud", law=LAW, train=80, validation=10, test=10, chunk_size=50)
    prepare(config, tmp_path, workers=1, progress=True)
    output = capfd.readouterr()
    assert output.out == ""
    assert "lra_listops/loud: done, 100 of 100 expressions" in output.err
    assert f"written to {dataset_folder(config, tmp_path)}" in output.err
    prepare(
        ListopsConfig(name="quiet", law=LAW, train=8, validation=1, test=1, chunk_size=50), tmp_path, progress=False
    )
    assert capfd.readouterr() == ("", "")


def test_no_tensorflow_and_no_jax_to_prepare_and_read(tmp_path):
    code = (
        "import sys\n"
        "from zoo.data.listops import Law\n"
        "from zoo.data.builders.listops import ListopsConfig, prepare\n"
        "from zoo.data.builders.base import read_ragged\n"
        f"folder = prepare({CONFIG!r}, sys.argv[1], progress=False)\n"
        "assert len(read_ragged(folder, 'train', mend='')) == 1300\n"
        "print(sorted({'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules)))\n"
    )
    output = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=PYTHONPATH, capture_output=True, text=True)
    assert (output.stdout.strip(), output.returncode) == ("[]", 0), output.stderr


@pytest.fixture(name="release")
def release_fixture(tmp_path):
    """A made-up folder of published files, and its configuration."""
    config = ListopsConfig(name="made_up", law=LAW, train=30, validation=5, test=5, published=True)
    rows = [f"{to_source(tokens)}\t{label}" for tokens, label in generate(LAW, 5, 0, 40)]
    folder = tmp_path / "downloads" / "manual" / "lra_release" / "lra_release" / "listops-1000"
    folder.mkdir(parents=True)
    for name, part in {"train": rows[:30], "val": rows[30:35], "test": rows[35:]}.items():
        (folder / f"basic_{name}.tsv").write_text("\n".join(["Source\tTarget", *part]) + "\n")
    return config, tmp_path, folder


def test_published_files_are_read(release):
    config, data_dir, _ = release
    folder = prepare(config, data_dir, progress=False)
    rows = [row for name in config.sizes for row in rows_of(read_ragged(folder, name, mend=""))]
    assert rows == [tokens for tokens, _ in generate(LAW, 5, 0, 40)]
    manifest = open_dataset(config, data_dir)
    assert manifest["origin"] == "published"
    assert "seed" not in manifest


def test_published_files_with_crlf_are_read_alike(release):
    config, data_dir, folder = release
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(read_ragged(prepare(config, data_dir, progress=False), "train", mend="")) == 30


def edit_line(path, line, function):
    lines = path.read_text().split("\n")
    lines[line - 1] = function(lines[line - 1])
    path.write_text("\n".join(lines))


def wrong_label(row):
    return row[:-1] + str((int(row[-1]) + 1) % 10)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda path: edit_line(path, 4, wrong_label), r"line 4: the label is \d but the expression's value is \d"),
        (lambda path: edit_line(path, 5, lambda row: row.replace("\t", " ")), "line 5: there is no tab"),
        (
            lambda path: edit_line(path, 6, lambda row: row[: len(row) // 2] + row[-2:]),
            "line 6: the expression breaks off",
        ),
        (lambda path: edit_line(path, 7, lambda row: row.replace("[", "{", 1)), "line 7: token .* is '{"),
        (lambda path: edit_line(path, 7, lambda row: row.replace("( ", "", 1)), "line 7: token .* belong"),
        (lambda path: edit_line(path, 7, lambda row: row[:-1] + "12"), "line 7: the label is b'12'"),
        (
            lambda path: edit_line(path, 8, lambda row: "( ( ( [MAX 1 ) 2 ) ] )\t2"),
            "line 8: .* 4 tokens instead of 21 to 119",
        ),
        (lambda path: edit_line(path, 1, str.lower), "line 1: the header is"),
        (
            lambda path: path.write_text("".join(path.read_text().splitlines(True)[:-2])),
            "28 rows after the header instead of 30",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), r"line \d\d: .*instead of 30"),
        (lambda path: path.write_bytes(b""), "line 1: the header is b''"),
        (lambda path: path.unlink(), r"lacks basic_train\.tsv\. Unpack"),
    ],
)
def test_wrong_published_files_are_refused_with_file_and_line(release, edit, message):
    config, data_dir, folder = release
    edit(folder / "basic_train.tsv")
    with pytest.raises(DataError, match=message) as error:
        prepare(config, data_dir, progress=False)
    assert "basic_train.tsv" in str(error.value)
    assert not dataset_folder(config, data_dir).exists()


def test_many_wrong_lines_are_summed_up(release):
    config, data_dir, folder = release
    for line in range(2, 32):
        edit_line(folder / "basic_train.tsv", line, wrong_label)
    with pytest.raises(DataError, match=r"line 2: .*line 11: .*and 20 more lines"):
        prepare(config, data_dir, progress=False)


def test_missing_published_files_say_what_to_put_where(tmp_path):
    with pytest.raises(
        DataError, match=r"lra_release\.gz.*basic_train\.tsv, basic_val\.tsv, basic_test\.tsv.*listops-1000"
    ):
        prepare("published", tmp_path, progress=False)
