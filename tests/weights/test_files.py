"""Files and folders of weights: which is read, and what a hostile or broken one says."""

import json
import struct

import numpy as np
import pytest
from torch_files import write_torch

from zoo.weights import WeightsError, read_tensors, write_safetensors

A, B = {"a": np.arange(4, dtype=np.float32)}, {"b": np.ones((2, 3), np.float32)}


def equal(found, due):
    assert list(found) == list(due)
    for name in due:
        np.testing.assert_array_equal(found[name], due[name])


def write_index(folder, places, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_safetensors_keep_numbers_and_dtypes(tmp_path):
    import ml_dtypes

    tensors = {"x": np.arange(6, dtype=np.float32).reshape(3, 2).T, "y": np.array([1.5], ml_dtypes.bfloat16)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    found = read_tensors(tmp_path / "m.safetensors")
    equal(found, tensors)
    assert found["y"].dtype == ml_dtypes.bfloat16
    equal(read_tensors(tmp_path), tensors)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_shards(tmp_path, kind):
    if kind == "safetensors":
        write_safetensors(tmp_path / "model-1.safetensors", A)
        write_safetensors(tmp_path / "model-2.safetensors", B)
        write_index(tmp_path, {"b": "model-2.safetensors", "a": "model-1.safetensors"})
    else:
        write_torch(tmp_path / "1.bin", A)
        write_torch(tmp_path / "2.bin", B)
        write_index(tmp_path, {"b": "2.bin", "a": "1.bin"}, "pytorch_model.bin.index.json")
    equal(read_tensors(tmp_path), B | A)


def test_folders(tmp_path):
    with pytest.raises(WeightsError, match="no file of weights"):
        read_tensors(tmp_path)
    write_torch(tmp_path / "checkpoint.pth", A)
    equal(read_tensors(tmp_path), A)
    write_torch(tmp_path / "other.pth", B)
    with pytest.raises(WeightsError, match=r"several files of weights \(checkpoint.pth, other.pth\)"):
        read_tensors(tmp_path)
    write_torch(tmp_path / "pytorch_model.bin", B)
    equal(read_tensors(tmp_path), B)
    write_safetensors(tmp_path / "model.safetensors", A)
    equal(read_tensors(tmp_path), A)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "x" * 400]
)
def test_an_index_that_points_outside_opens_nothing(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(tmp_path / "secret.safetensors", A)
    write_index(folder, {"a": place})
    with pytest.raises(WeightsError, match="points outside its folder"):
        read_tensors(folder)


def test_broken_indexes(tmp_path):
    write_index(tmp_path, {"a": "gone.safetensors"})
    with pytest.raises(WeightsError, match=r"not there: gone.safetensors"):
        read_tensors(tmp_path)
    write_safetensors(tmp_path / "gone.safetensors", B)
    with pytest.raises(WeightsError, match="lack tensors that it names: a"):
        read_tensors(tmp_path)
    write_index(tmp_path, {"a": "model.safetensors.index.json"})
    with pytest.raises(WeightsError, match="no file of weights"):
        read_tensors(tmp_path)
    write_index(tmp_path, {"b": "gone.safetensors"})
    write_safetensors(tmp_path / "other.safetensors", A | {"b": np.zeros(2, np.float32)})
    write_index(tmp_path, {"a": "other.safetensors", "b": "gone.safetensors"})
    equal(read_tensors(tmp_path), A | B)  # from the file that the index names
    for text in ("{", "[1]", '{"weight_map": {}}', '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(WeightsError, match=r"index\.json"):
            read_tensors(tmp_path)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, A | B)
    whole = path.read_bytes()
    header = whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]]
    bad = {
        "truncated": whole[:-5],
        "half a header": whole[:20],
        "empty": b"",
        "100 GB of header": struct.pack("<Q", 100 * 2**30) + whole[8:],
        "wrong dtype": whole.replace(b'"F32"', b'"F64"'),
        "wrong shape": whole.replace(b"[2,3]", b"[9,9]"),
        "huge shape": whole.replace(b"[2,3]", b"[" + b"9" * 3 + b"]"),
        "no JSON": struct.pack("<Q", len(header)) + b"x" * len(header) + whole[8 + len(header) :],
    }
    for what, data in bad.items():
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"damaged.*Fetch it again") as caught:
            read_tensors(path)
        assert str(path) in str(caught.value), what


def test_numbers_of_an_unknown_kind(tmp_path):
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    with pytest.raises(WeightsError, match="of a kind that is not read here"):
        read_tensors(path)
