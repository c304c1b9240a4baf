"""Tensors from PyTorch's files, without PyTorch and without running what is pickled in them.

Since version 1.6 `torch.save` writes a zip archive, uncompressed: `<root>/data.pkl` is a pickle that says which tensors
there are, `<root>/data/<key>` the bytes of each storage. The pickle is not unpickled but read: a small interpreter
knows the operations and the names that a dict of tensors needs, builds dicts, lists and tensors of them, and refuses
everything else. Nothing in the file is imported or called, and what is built is no larger than the file.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from zoo.weights.errors import WeightsError

# Of a pickle that describes a state dict: bytes and operations. The largest published ones have some thousand tensors,
# below 1 MB and of thirty operations each.
_PICKLE_LIMIT = 8 * 2**20
_OPERATIONS_LIMIT = 1_000_000
_MOST_AXES = 8
_LOCAL_HEADER = 30  # bytes before the name of an entry of a zip archive
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_DAMAGE = (zipfile.BadZipFile, struct.error, ValueError, ArithmeticError, LookupError, EOFError, OSError, RuntimeError)
# Names below which training scripts keep the state dict of the model.
_INSIDE = ("state_dict", "model_state_dict", "model")


class _Name(NamedTuple):
    """A global of the pickle, not imported."""

    module: str
    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_torch_file(start: bytes) -> bool:
    """Whether a file that starts so is one of PyTorch's, of any age."""
    return start.startswith((b"PK\x03\x04", _LEGACY[:10]))


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `torch.save(state_dict, path)` wrote, by name.

    Args:
      path: the file; a checkpoint of a training script does too if its weights are under "state_dict",
        "model_state_dict" or "model".

    Raises:
      WeightsError: the file is damaged, older than PyTorch 1.6, compressed, or holds more than tensors. Nothing in it
        was run.
      OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        if file.read(len(_LEGACY)) == _LEGACY:
            raise WeightsError(
                f"{path} was written by PyTorch before 1.6, whose format is not read here. Load it there with "
                "weights_only=True and save it again, best as safetensors."
            )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except WeightsError:
        raise
    except _DAMAGE as error:
        raise WeightsError(f"{path} is damaged or no file of PyTorch: {error}. Fetch it again.") from error


def _read_archive(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    _check_entries(archive.infolist(), path)
    infos = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is a zip archive, but not one of torch.save: it has no <root>/data.pkl.")
    root = pickles[0].removesuffix("data.pkl")
    if infos[pickles[0]].file_size > _PICKLE_LIMIT:
        raise WeightsError(f"{path}: the list of tensors has {infos[pickles[0]].file_size} bytes, too many to be one.")
    if f"{root}byteorder" in infos and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError(f"{path} was written on a machine of the other byte order. Save it again as safetensors.")
    tensors = _state_dict(_Reader(path).read(archive.read(pickles[0])), path)
    storages: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise WeightsError(f"{path}: {name!r} is no tensor but a {type(tensor).__name__}.")
        key = tensor.storage.key
        if key not in storages:
            if f"{root}data/{key}" not in infos:
                raise WeightsError(f"{path} lacks the numbers of {name!r} ({root}data/{key}). Fetch it again.")
            storages[key] = np.frombuffer(archive.read(f"{root}data/{key}"), np.uint8)
    return {name: _view(tensor, storages[tensor.storage.key], f"{path}: {name!r}") for name, tensor in tensors.items()}


def _check_entries(infos: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Raises unless each byte of the file belongs to one entry, as it is: so that no more can be read than there is."""
    end, names = 0, set()
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise WeightsError(
                f"{path}: {info.filename} is compressed, which torch.save does not do; it was not unpacked."
            )
        if info.header_offset < end or info.filename in names:
            raise WeightsError(f"{path}: {info.filename} lies over another entry, or is there twice; nothing was read.")
        end = info.header_offset + _LOCAL_HEADER + len(info.filename.encode()) + info.file_size
        names.add(info.filename)
    if end > path.stat().st_size:
        raise WeightsError(f"{path} is cut short. Fetch it again.")


def _state_dict(found: Any, path: Path) -> dict[str, Any]:
    """The dict of tensors in what the pickle describes."""
    if isinstance(found, dict):
        for name in _INSIDE:
            inner = found.get(name)
            if isinstance(inner, dict) and any(isinstance(value, _Tensor) for value in inner.values()):
                found = inner
                break
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found):
        raise WeightsError(f"{path} holds no dict of tensors by name, but a {type(found).__name__}.")
    return found


def _view(tensor: _Tensor, storage: np.ndarray, where: str) -> np.ndarray:
    """The tensor's numbers, inside its storage."""
    dtype, shape, strides = tensor.storage.dtype, tensor.shape, tensor.strides
    numbers = storage[: storage.size // dtype.itemsize * dtype.itemsize].view(dtype)
    if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
        raise WeightsError(f"{where} has impossible sizes {shape} and strides {strides}.")
    strides = tuple(0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last < numbers.size < math.prod(shape):
        raise WeightsError(f"{where} is an expanded view; save it after .contiguous().")
    if math.prod(shape) and (last >= numbers.size or math.prod(shape) > numbers.size):
        raise WeightsError(f"{where} of shape {shape} is larger than its storage of {numbers.size} numbers.")
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    steps = [stride * dtype.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, steps, writeable=False)


class _Reader:
    """Reads one pickle; see the module's docstring."""

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """What the pickle describes."""
        try:
            for count, (operation, argument) in enumerate(self._operations(data)):
                if count > _OPERATIONS_LIMIT:
                    raise WeightsError(f"{self.path}: its list of tensors has too many operations to be one.")
                if operation == "STOP":
                    return self.stack.pop()
                self._do(operation, argument)
        except WeightsError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise WeightsError(f"{self.path}: its list of tensors is damaged ({error}). Fetch it again.") from None
        raise WeightsError(f"{self.path}: its list of tensors has no end. Fetch it again.")

    @staticmethod
    def _operations(data: bytes) -> Iterator[tuple[str, Any]]:
        for operation, argument, _ in pickletools.genops(io.BytesIO(data)):
            yield operation.name, argument

    def _do(self, operation: str, argument: Any) -> None:
        if operation in _IGNORED:
            return
        if operation in _PUSHED:
            self.stack.append(_PUSHED[operation](argument))
        elif operation == "MARK":
            self.marks.append(len(self.stack))
        elif operation in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif operation == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif operation in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif operation == "GLOBAL":
            self.stack.append(self._name(*argument.split(" ", 1)))
        elif operation == "STACK_GLOBAL":
            module, name = self._pop(2)
            self.stack.append(self._name(module, name))
        elif operation in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self._pop(int(operation[-1]))))
        elif operation == "TUPLE":
            self.stack.append(tuple(self._to_mark()))
        elif operation in ("APPEND", "APPENDS"):
            items = self._pop(1) if operation == "APPEND" else self._to_mark()
            self._top(list).extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if operation == "SETITEM" else self._to_mark()
            self._top(dict).update(_dict(zip(items[::2], items[1::2], strict=True)))
        elif operation == "BINPERSID":
            self.stack.append(self._storage(self.stack.pop()))
        elif operation == "REDUCE":
            function, arguments = self._pop(2)
            self.stack.append(self._built(function, arguments))
        elif operation == "BUILD":
            self.stack.pop()
            self._top(dict)  # of an OrderedDict: `_metadata`, versions of modules
        else:
            raise WeightsError(f"{self.path} has a pickle operation {operation} that no dict of tensors needs.")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _to_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self.marks.pop())

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} belongs")
        return self.stack[-1]

    def _name(self, module: Any, name: Any) -> _Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        found = _Name(module, name)
        if found not in _BUILDERS and not (module == "torch" and name in _DTYPES):
            if module in ("torch._utils", "torch.storage") or (module == "torch" and name.endswith("Storage")):
                raise WeightsError(
                    f"{self.path} has a kind of tensor that is not read here ({module}.{name}). Convert it to one of "
                    f"{', '.join(kind.removesuffix('Storage').lower() for kind in _DTYPES)}, or save it as safetensors."
                )
            raise WeightsError(
                f"{self.path} names {module}.{name}, which no dict of tensors needs; it was neither imported nor run. "
                "If you made the file, save model.state_dict() alone, best as safetensors; if not, do not trust it."
            )
        return found

    def _storage(self, persistent: Any) -> _Storage:
        kind, name, key, _, size = persistent
        if kind != "storage" or not isinstance(name, _Name) or name.name not in _DTYPES or not isinstance(key, str):
            raise TypeError("a reference that is no storage of numbers")
        return _Storage(key, np.dtype(_DTYPES[name.name]), int(size))

    def _built(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name) or function not in _BUILDERS or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no function")
        return _BUILDERS[function](*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    for sizes in (shape, strides):
        if not isinstance(sizes, tuple) or len(sizes) > _MOST_AXES:
            raise ValueError("a tensor whose sizes are none, or of too many axes")
    if not isinstance(storage, _Storage) or not all(type(size) is int for size in (offset, *shape, *strides)):
        raise TypeError("a tensor without storage or sizes")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _empty_dict() -> dict[Any, Any]:
    return {}  # what is in it is set later, an item an operation


def _sizes(sizes: Any) -> tuple[int, ...]:
    if len(sizes) > _MOST_AXES:
        raise ValueError("sizes of too many axes")
    return tuple(sizes)


def _dict(pairs: Any) -> dict[Any, Any]:
    found = {}
    for key, value in pairs:
        # Other keys are not needed, and hashing them (tuples in tuples in tuples) could exhaust the stack.
        if type(key) not in (str, int):
            raise TypeError(f"a {type(key).__name__} as a key")
        found[key] = value
    return found


# What stands for the functions that torch.save names.
_BUILDERS: dict[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): _empty_dict,
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    _Name("torch", "Size"): lambda sizes=(): _sizes(sizes),
}
_IGNORED = {"PROTO", "FRAME"}
_PUSHED: dict[str, Callable[[Any], Any]] = {
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
}
for _kept in ("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT", "BINUNICODE"):
    _PUSHED[_kept] = lambda argument: argument
for _kept in ("SHORT_BINUNICODE", "UNICODE", "SHORT_BINSTRING", "BINSTRING"):
    _PUSHED[_kept] = lambda argument: argument
