"""Published models from a folder or the Hugging Face hub, and back."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.typing import DType
from zoo.weights.errors import WeightsError
from zoo.weights.files import IN_FOLDERS, read_json, read_tensors, write_safetensors
from zoo.weights.formats.base import Format
from zoo.weights.tables import dump, fill

_MODULES = ("mamba", "fla", "nystromformer", "forecasters", "layers")


def formats() -> dict[str, Format]:
    """The published formats that are known, by name."""
    modules = [importlib.import_module(f"zoo.weights.formats.{name}") for name in _MODULES]
    return {found.name: found for module in modules for found in module.FORMATS}


def load_pretrained(
    source: str | Path,
    *,
    dtype: DType | None = None,
    param_dtype: DType = jnp.float32,
    revision: str | None = None,
) -> Any:
    """The model that a folder or a repository of the Hugging Face hub holds, in evaluation mode.

    What it is follows from its config.json: `zoo.CausalLM` around Mamba, Mamba-2, DeltaNet or Gated DeltaNet (files of
    Hugging Face transformers, of mamba_ssm, or of flash-linear-attention), `zoo.NystromformerEncoder`, or a forecaster
    that `save_pretrained` wrote::

        model = zoo.load_pretrained("state-spaces/mamba-130m-hf")       # needs `pip install seqzoo[hub]`
        logits = model(tokens)

    Args:
      source: a folder with config.json and weights (safetensors, or files of `torch.save`, whole or in shards), or the
        name of a hub repository, "owner/name".
      dtype: of the computation; None for `param_dtype`.
      param_dtype: dtype that the parameters are converted to.
      revision: branch, tag or commit of the hub repository.

    Raises:
      WeightsError: the config is of no known model, the files are damaged, or the tensors do not fit the model; lists
        what is missing, surplus or misshapen by name.
      FileNotFoundError: there is no such folder, and the name is none of a hub repository.
      ImportError: a hub repository is named, and huggingface_hub is not installed.
    """
    folder = _folder(source, revision)
    if not (folder / "config.json").is_file():
        known = ", ".join(formats())
        raise WeightsError(
            f"{folder} has no config.json, so what model it is is not known. Build the model, and fill it with "
            f"zoo.weights.load(model, {str(folder)!r}, format=...); formats are {known}."
        )
    config = read_json(folder / "config.json")
    found = next((entry for entry in formats().values() if entry.reads is not None and entry.reads(config)), None)
    if found is None or found.builder is None:
        raise WeightsError(
            f"{folder / 'config.json'} is of no model known here (model_type={config.get('model_type')!r}). Known are "
            + "; ".join(entry.source for entry in formats().values() if entry.reads is not None)
            + "."
        )
    dtypes = {"dtype": jnp.dtype(param_dtype if dtype is None else dtype), "param_dtype": jnp.dtype(param_dtype)}
    for name, kind in dtypes.items():
        if kind not in (jnp.float32, jnp.bfloat16, jnp.float16) or (name == "param_dtype" and kind == jnp.float16):
            raise ValueError(f"{name}={kind} is not known; there are float32 and bfloat16 (float16 to compute in).")
    tensors = read_tensors(folder)
    try:
        build = found.builder(config)
        last = "" if found.last_layer is None else found.last_layer(config)
        # Before the model is built, which takes long if it has many layers.
        if not any(name.startswith(last) for name in tensors):
            raise WeightsError(f"the files have no tensor {last}*, which the last of so many layers would have.")
        # Shapes alone: the initial numbers would be thrown away.
        model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0), **dtypes))
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        raise WeightsError(f"{folder / 'config.json'}: {error}") from error
    fill(model, found.table(model), tensors, source=str(folder))
    model.eval()
    return model


def save_pretrained(model: nnx.Module, folder: str | Path, *, format: str | None = None) -> None:
    """Writes config.json and model.safetensors as the model's code base does, so that it and `load_pretrained` read it.

    Args:
      model: see `load_pretrained` for what can be written.
      folder: is made if need be. The config is written last, so that a folder with one is whole.
      format: one of `zoo.weights.formats()`; None for the first that knows the model, Hugging Face's before others.

    Raises:
      WeightsError: the format cannot describe the model; says why.
    """
    found = _format(model, format)
    if found.config is None:
        raise WeightsError(f"{found.name} has no config file. zoo.weights.dump gives the tensors alone.")
    tensors = dump(model, found.table(model))  # first: it says best what has no name
    config = found.config(model)
    dtypes = {str(tensor.dtype) for tensor in tensors.values() if jnp.issubdtype(tensor.dtype, jnp.floating)}
    config |= {"dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    from zoo.files import write_json

    write_json(folder / "config.json", config)


def load(
    module: nnx.Module,
    source: str | Path | Mapping[str, np.ndarray],
    *,
    format: str | None = None,
    prefix: str = "",
) -> None:
    """Fills a module, a whole model or a layer, from published tensors; all of them or none.

    ::

        layer = zoo.Mamba(768, causal=True, rngs=nnx.Rngs(0))
        zoo.weights.load(layer, "mamba-130m-hf", prefix="backbone.layers.0.mixer.")

    Args:
      module: changed in place.
      source: tensors by name, or what `read_tensors` reads.
      format: one of `formats()`; None for the first that knows the module.
      prefix: only tensors whose names begin so are used, without it.

    Raises:
      WeightsError: no format knows the module, files are damaged, or the tensors do not fit.
    """
    found = _format(module, format)
    tensors = source if isinstance(source, Mapping) else read_tensors(source)
    where = "the tensors" if isinstance(source, Mapping) else str(source)
    if prefix:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        where += f" below {prefix!r}"
    fill(module, found.table(module), tensors, source=where)


def dump_tensors(module: nnx.Module, *, format: str | None = None, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a module under published names; the reverse of `load`. Arguments and errors are as there."""
    return {f"{prefix}{name}": tensor for name, tensor in dump(module, _format(module, format).table(module)).items()}


def _format(module: nnx.Module, name: str | None) -> Format:
    known = formats()
    if name is not None and name not in known:
        from zoo.registry import did_you_mean

        raise WeightsError(f"unknown format {name!r}. {did_you_mean(name, known)}")
    fitting = [found for found in known.values() if found.knows(module)]
    if name is not None:
        if known[name] not in fitting:
            raise WeightsError(f"format {name!r} has names for {known[name].holds}, not for {type(module).__name__}.")
        return known[name]
    if not fitting:
        holds = "; ".join(f"{found.name}: {found.holds}" for found in known.values())
        raise WeightsError(f"no published format has names for {type(module).__name__}. Known are {holds}.")
    return fitting[0]


def _folder(source: str | Path, revision: str | None) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if not isinstance(source, str) or source.count("/") != 1 or path.exists() or source.startswith((".", "~", "/")):
        raise FileNotFoundError(f"{source} is no folder, and no name of a hub repository (owner/name).")
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError:
        raise ImportError(
            f"{source!r} is no folder here; to fetch it from the hub, pip install 'seqzoo[hub]' (or huggingface_hub)."
        ) from None
    names = list_repo_files(source, revision=revision)
    weights = next((name for name in IN_FOLDERS if name in names), None)
    if weights is None:
        raise WeightsError(f"{source} has no file of weights. Looked for: {', '.join(IN_FOLDERS)}.")
    # Not what a repository holds besides: the same weights in other formats, and states of trainers.
    shards = f"{weights.partition('.')[0]}-*.{weights.split('.')[1]}"
    wanted = ["config.json", weights, *([shards] if weights.endswith(".json") else [])]
    return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
