"""PyTorch's files: what is read, and what is refused without being run."""

import contextlib
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_files import items, number, pickle_of, sizes, tensor, text, write_archive, write_torch

from zoo.weights import WeightsError, read_tensors

MADE = Path(__file__).parents[1] / "golden" / "torch_state_dict.pt"


def expected():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "plain": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "parameter": np.array([0.5, -0.25], np.float32),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "brain": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "half": np.array([0.5], np.float16),
        "double": np.array([1e-300]),
        "bytes": np.array([0, 255], np.uint8),
        "flags": np.array([True, False]),
        "norm.weight": np.ones(3, np.float32),
        "norm.bias": np.zeros(3, np.float32),
        "norm.running_mean": np.zeros(3, np.float32),
        "norm.running_var": np.array([1, 2, 3], np.float32),
        "norm.num_batches_tracked": np.array(0, np.int64),
    }


def test_reads_what_pytorch_wrote():
    found, due = read_tensors(MADE), expected()
    assert list(found) == list(due)
    for name, array in due.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_reads_what_the_tests_write(tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}
    found = read_tensors(write_torch(tmp_path / "x.pt", arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model"])
def test_reads_the_weights_of_a_training_checkpoint(tmp_path, name):
    inner = items(w=tensor("0", (2,), (1,)))
    path = write_archive(tmp_path / "x.ckpt", pickle_of(items(**{"epoch": number(3), name: inner})), {"0": bytes(8)})
    assert list(read_tensors(path)) == ["w"]


def refused(path, match):
    with pytest.raises(WeightsError, match=match) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


class Evil:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_named_and_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    for function, arguments in ((open, (str(mark), "w")), (eval, (f"open({str(mark)!r}, 'w')",))):
        path = write_archive(tmp_path / "evil.pt", pickle.dumps({"w": Evil(function, *arguments)}, protocol))
        refused(path, rf"names (_?io|builtins|__builtin__)\.{function.__name__}.*neither imported nor run")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"cos\nsystem\n" + text("true") + b"\x85R", "names os.system"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R", "names numpy.core.multiarray._reconstruct"),
        (b"ctorch\nload\n)R", "names torch.load"),
        (b"(" + text("a") + b"ios\nsystem\n", "operation INST"),
        (items(w=tensor("0", (2,), (1,))) + b"ccopy_reg\n_reconstructor\n)Rb", "names copy_reg"),
        (text("no dict"), "no dict of tensors"),
        (items(w=number(3)), "'w' is no tensor but a int"),
        (items(w=items(v=tensor("0", (2,), (1,)))), "'w' is no tensor but a dict"),
        (b"", "damaged"),
        (b"(((", "damaged"),
        (b"t", "damaged"),
        (b"h\x07", "damaged"),
        (items(w=tensor("0", (2,), (1,)))[:-40], "damaged"),
        (b"}(" + sizes([1]) + number(1) + b"u", "damaged"),
        (items(w=tensor("9", (2,), (1,))), "lacks the numbers of 'w'"),
        (items(w=tensor("0", (3,), (1,))), "larger than its storage of 2 numbers"),
        (items(w=tensor("0", (2**40,), (0,), size=2)), r"expanded view; save it after \.contiguous"),
        (items(w=tensor("0", (2,), (1,), offset=2**62)), "larger than its storage"),
        (items(w=tensor("0", (2,), (-1,), offset=1)), "impossible sizes"),
        (items(w=tensor("0", (2,), (1, 1))), "impossible sizes"),
        (items(w=tensor("0", (1,) * 9, (1,) * 9)), "too many axes"),
        (items(w=tensor("0", (0, 2**62), (1, 1))), "damaged"),
        (b"ctorch\nSize\n(](" + number(1) * 9 + b"etR", "too many axes"),
        (b"ccollections\nOrderedDict\n](" + text("a") + number(1) + b"\x86e\x85R", "damaged"),
        (b"ctorch\nComplexFloatStorage\n.", "a kind of tensor that is not read here"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n.", "a kind of tensor that is not read here"),
    ],
)
def test_hostile_pickles(tmp_path, body, match):
    refused(write_archive(tmp_path / "x.bin", pickle_of(body), {"0": bytes(8)}), match)


def test_deep_nesting_and_huge_memo_numbers_cost_nothing(tmp_path):
    deep = b"(" * 200_000 + b"t" * 200_000
    refused(write_archive(tmp_path / "deep.pt", pickle_of(deep)), "no dict of tensors")
    refused(write_archive(tmp_path / "key.pt", pickle_of(b"}" + deep + number(1) + b"s")), "tuple as a key")
    far = text("w") + b"r" + (2**32 - 1).to_bytes(4, "little")
    refused(write_archive(tmp_path / "memo.pt", pickle_of(far)), "no dict of tensors")


def test_nothing_compressed_is_unpacked(tmp_path):
    bomb = {"0": bytes(10_000_000)}
    body = pickle_of(items(w=tensor("0", (2_500_000,), (1,))))
    refused(write_archive(tmp_path / "x.pt", body, bomb, compression=zipfile.ZIP_DEFLATED), "compressed")


def test_damaged_archives(tmp_path):
    whole = write_torch(tmp_path / "x.pt", {"w": np.arange(1000, dtype=np.float32)}).read_bytes()
    path = tmp_path / "y.pt"
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged")
    at = whole.index(np.arange(1000, dtype=np.float32).tobytes())
    path.write_bytes(whole[: at + 9] + bytes([whole[at + 9] ^ 1]) + whole[at + 10 :])
    refused(path, "damaged")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    refused(path, "not one of torch.save")


def test_files_older_than_1_6_say_so(tmp_path):
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + bytes(100))
    refused(path, "before 1.6")


def test_the_other_byte_order(tmp_path):
    path = write_torch(tmp_path / "x.pt", {"w": np.zeros(2, np.float32)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    refused(path, "other byte order")


def test_an_axis_of_one_may_have_any_stride(tmp_path):
    body = pickle_of(items(w=tensor("0", (1, 2), (2**62, 1))))
    np.testing.assert_array_equal(read_tensors(write_archive(tmp_path / "x.pt", body, {"0": bytes(8)}))["w"], [[0, 0]])


def test_a_tensor_beside_the_weights_of_a_checkpoint(tmp_path):
    both = items(best=tensor("0", (1,), (1,)), state_dict=items(w=tensor("0", (2,), (1,))))
    assert list(read_tensors(write_archive(tmp_path / "x.pt", pickle_of(both), {"0": bytes(8)}))) == ["w"]


def test_no_byte_of_a_file_is_read_twice(tmp_path):
    """Entries of the directory that point at one and the same, or have one name: small files would be large ones."""
    data = bytes(100_000)
    body = pickle_of(items(**{str(i): tensor(str(i), (25_000,), (1,)) for i in range(50)}))
    path = write_archive(tmp_path / "x.pt", body, {"0": data})
    with zipfile.ZipFile(path, "a") as archive:
        (first,) = [info for info in archive.infolist() if info.filename.endswith("data/0")]
        for i in range(1, 50):
            again = zipfile.ZipInfo(f"archive/data/{i}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(again, name, getattr(first, name))
            archive.filelist.append(again)
        archive._didModify = True
    assert path.stat().st_size < 120_000
    refused(path, "lies over another entry")
    write_archive(path, body, {"0": data})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", data)
    refused(path, "there twice")


def test_many_operations_are_refused(tmp_path):
    refused(write_archive(tmp_path / "x.pt", pickle_of(b"}" * 1_100_000)), "too many operations")
    refused(write_archive(tmp_path / "x.pt", pickle_of(text("a" * 9_000_000))), "too many to be one")


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_is_said_so(tmp_path, seed):
    """Two bytes changed at random places: the same tensors, or others, or an error of ours."""
    whole, draw = MADE.read_bytes(), np.random.default_rng(seed)
    path = tmp_path / "x.pt"
    for _ in range(100):
        data = bytearray(whole)
        for place in draw.integers(len(data), size=2):
            data[place] = draw.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(WeightsError):
            read_tensors(path)
