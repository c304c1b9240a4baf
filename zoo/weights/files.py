"""Tensors by name from files and folders of weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.weights.errors import WeightsError, listed
from zoo.weights.torch_zip import is_torch_file, read_torch

# What a folder's weights are called, in the order in which they are looked for.
IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_JSON_LIMIT = 64 * 2**20


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file or folder, by name, as NumPy arrays (bfloat16 through `ml_dtypes`).

    Args:
      path: a safetensors file, a file of `torch.save` (read without PyTorch and without running anything in it), an
        index of several such files (`*.index.json`), or a folder with one of these under Hugging Face's names or with
        one file of weights alone.

    Raises:
      WeightsError: the file is damaged, of another kind, or holds more than tensors; shards are missing or lie
        elsewhere; the folder has no weights, or several.
      FileNotFoundError: there is nothing at `path`.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".json"):
        return _read_shards(path)
    with path.open("rb") as file:
        start = file.read(16)
    if is_torch_file(start):
        return read_torch(path)
    return _read_safetensors(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. WeightsError where the file is none."""
    if path.stat().st_size > _JSON_LIMIT:
        raise WeightsError(f"{path} has {path.stat().st_size} bytes, too many for what it should be.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_hook=_number)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is no JSON ({error}). Fetch it again.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} is no JSON object. Fetch it again.")
    return found


def _number(found: dict[str, Any]) -> Any:
    """Infinity, as newer Hugging Face configs spell it: {"__float__": "Infinity"}."""
    value = found.get("__float__")
    return float(value) if len(found) == 1 and value in ("Infinity", "-Infinity", "NaN") else found


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file, in full or not at all."""
    from safetensors.numpy import save

    from zoo.files import write_bytes

    # The metadata are those that Hugging Face's loaders look for.
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    write_bytes(path, save(arrays, metadata={"format": "pt"}))


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(_ENDINGS))
    if len(found) == 1:
        return folder / found[0]
    several = f"several files of weights ({listed(found)}): name one of them" if found else "no file of weights"
    raise WeightsError(f"{folder} has {several}. Looked for: {', '.join(IN_FOLDERS)}.")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except AttributeError as error:  # of NumPy, which lacks the dtype
        raise WeightsError(f"{path} holds numbers of a kind that is not read here: {error}.") from None
    except (SafetensorError, TypeError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"{path} is damaged, or neither safetensors nor a file of torch.save: {error}. Fetch it again."
        ) from None


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise WeightsError(f"{index} has no weight_map from names to files.")
    shards = sorted(set(places.values()))
    plain = {name for name in shards if name == Path(name).name and "\\" not in name and len(name) < 256}
    if outside := sorted(set(shards) - plain | set(shards) & {"", ".", ".."}):
        raise WeightsError(f"{index} points outside its folder ({listed(outside)}); nothing there was opened.")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(f"{index} names files that are not there: {listed(missing)}. Fetch them.")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        if shard.endswith(".json"):
            raise WeightsError(f"{index} names {shard}, which is no file of weights.")
        found = read_tensors(index.parent / shard)
        tensors |= {name: found[name] for name, place in places.items() if place == shard and name in found}
    if lacking := sorted(set(places) - set(tensors)):
        raise WeightsError(f"the files of {index} lack tensors that it names: {listed(lacking)}. Fetch them again.")
    return {name: tensors[name] for name in places}
