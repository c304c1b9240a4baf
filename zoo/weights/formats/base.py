"""What a published format is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from zoo.weights.errors import WeightsError
from zoo.weights.tables import Table

Config = Mapping[str, Any]
# Builds a module from `rngs`, `dtype` and `param_dtype`.
Builder = Callable[..., nnx.Module]


@dataclasses.dataclass(frozen=True)
class Format:
    """Names of tensors, and of a config file where there is one, of a code base.

    Attributes:
      name: short, for `format=`.
      source: the code base.
      holds: what of ours it has names for, in words.
      knows: whether it has names for a module.
      table: of such a module.
      reads: whether a config file is one of this format; None where there are no config files.
      builder: of the model that such a config describes.
      last_layer: how the names of tensors of its last layer begin.
      config: the config of a module.
    """

    name: str
    source: str
    holds: str
    knows: Callable[[nnx.Module], bool]
    table: Callable[[Any], Table]
    reads: Callable[[Config], bool] | None = None
    builder: Callable[[Config], Builder] | None = None
    last_layer: Callable[[Config], str] | None = None
    config: Callable[[Any], dict[str, Any]] | None = None


def need(config: Config, name: str, *also: str) -> Any:
    """A value of a config under any of these names. WeightsError where there is none."""
    for known in (name, *also):
        if config.get(known) is not None:
            return config[known]
    raise WeightsError(f"the config lacks {name!r}.")


def need_size(config: Config, name: str, *also: str, most: int = 2**24) -> int:
    """A positive whole number of a config. WeightsError where there is none."""
    value = need(config, name, *also)
    if type(value) is not int or not 1 <= value <= most:
        raise WeightsError(f"the config has {name}={value!r}; it must be a whole number from 1 to {most}.")
    return value


def refuse_architectures(config: Config, *known: str) -> None:
    """WeightsError where the config says that the files are of another class."""
    found = config.get("architectures") or known[:1]
    if not set(found) & set(known):
        raise WeightsError(f"the config has architectures={list(found)}; {', '.join(known)} are read here.")


def refuse_unlike(config: Config, **supported: Any) -> None:
    """WeightsError where the config wants another value than the only one that is built here."""
    for name, value in supported.items():
        if name in config and config[name] != value:
            raise WeightsError(f"the config has {name}={config[name]!r}; only {value!r} is built here.")


def require(holds: bool, what: str) -> None:
    """WeightsError where a module is not what the published format can describe."""
    if not holds:
        raise WeightsError(f"the published format cannot describe this model: {what}.")
