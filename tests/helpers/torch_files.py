"""Files as torch.save writes them, and worse, made without PyTorch."""

import zipfile
from pathlib import Path

import numpy as np

STORAGES = {np.dtype(np.float32): b"FloatStorage", np.dtype(np.int64): b"LongStorage"}


def text(value: str) -> bytes:
    """A string on the stack."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    """An integer on the stack."""
    if 0 <= value < 2**31:
        return b"J" + value.to_bytes(4, "little")
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sizes(values) -> bytes:
    """A tuple of integers on the stack."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(key: str, shape, strides, *, storage=b"FloatStorage", offset=0, size=None) -> bytes:
    """A tensor on the stack."""
    size = int(np.prod(shape)) if size is None else size
    reference = b"(" + text("storage") + b"ctorch\n" + storage + b"\n" + text(key) + text("cpu") + number(size) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    body = reference + number(offset) + sizes(shape) + sizes(strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


def items(**values: bytes) -> bytes:
    """A dict on the stack."""
    return b"ccollections\nOrderedDict\n)R(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def pickle_of(value: bytes) -> bytes:
    """A whole pickle of what the bytes put on the stack."""
    return b"\x80\x02" + value + b"."


def write_archive(path: Path, pickle: bytes, storages: dict[str, bytes] | None = None, **options) -> Path:
    """The zip archive around a pickle."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def write_torch(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A state dict of contiguous tensors."""
    parts, storages = {}, {}
    for index, (name, array) in enumerate(tensors.items()):
        strides = [step // array.itemsize for step in array.strides]
        parts[name] = tensor(str(index), array.shape, strides, storage=STORAGES[array.dtype])
        storages[str(index)] = array.tobytes()
    body = b"".join(text(name) + part for name, part in parts.items())
    return write_archive(path, pickle_of(b"ccollections\nOrderedDict\n)R(" + body + b"u"), storages)
