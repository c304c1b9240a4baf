"""Recipes: everything that decides a run, typed, checked and overridable.

A recipe is a YAML file. It is read in layers, later ones over earlier ones: the defaults below, the file, the file's
`variants.<name>` section for the chosen variant, and `key.path=value` overrides. Each value remembers where it came
from, so that an error can say so. The resolved recipe that a run directory holds is itself a recipe.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import draccus
import yaml

from zoo.encoder import BodyConfig, check_choices
from zoo.layers.pooling import Pooling
from zoo.models.pair_classifier import HeadActivation, PairFeatures
from zoo.registry import did_you_mean
from zoo.training.shipped import list_recipes, recipe_folder


class RecipeError(ValueError):
    """A recipe is not found, or a key or value of it is wrong."""


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2 and in Python; PyYAML wants 1.0e-3."""


class _Dumper(yaml.SafeDumper):
    """What `_Loader` reads back."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which data.

    Attributes:
      name: a registered task.
      source: which of its data sets.
      max_len: length that sequences are padded or cut to, and of a series the lookback; None for the data set's own.
      seed: of the data, where it is drawn.
      options: further arguments of the task's constructor.
    """

    name: str = "lra/listops"
    source: str = "full"
    max_len: int | None = None
    seed: int = 0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.max_len is not None and not 1 <= self.max_len < 2**31:
            raise ValueError(f"task.max_len must be from 1 to {2**31 - 1}, or null, got {self.max_len}.")


@dataclasses.dataclass(frozen=True)
class ModelConfig(BodyConfig):
    """The encoder's shape (see `zoo.encoder.BodyConfig`) and that of the model around it.

    Attributes:
      causal: every block sees the past only; tasks that ask for the next token need it.
      pooling: of a classifier, see `zoo.layers.pooling.pool`.
      head_dim: of a classifier, width of the head's inner layer; None for a single Linear.
      head_layers, head_activation, pair_features: of a classifier of pairs, see
        `zoo.models.pair_classifier.PairClassifier`.
      tie_embeddings: of a language model, see `zoo.models.causal_lm.CausalLM`.
      use_norm: of a forecaster, see `zoo.models.encoder_forecaster.EncoderForecaster`.
    """

    causal: bool = False
    pooling: Pooling = "mean"
    head_dim: int | None = None
    head_layers: int = 1
    head_activation: HeadActivation = "relu"
    pair_features: PairFeatures = "nli"
    tie_embeddings: bool = False
    use_norm: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.head_dim is not None and not 1 <= self.head_dim <= 2**20:
            raise ValueError(f"head_dim must be from 1 to {2**20}, or null for none, got {self.head_dim}.")
        if not 1 <= self.head_layers <= 8:
            raise ValueError(f"head_layers must be from 1 to 8, got {self.head_layers}.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation, evaluation and checkpoints.

    Attributes:
      seed: of parameters, shuffles and dropout.
      steps: number of updates.
      epochs: passes over the training examples in the place of `steps`: as many updates as fill that many times the
        number of full batches in one pass. Evaluations are then once a pass, where `eval_every` is 0. None for `steps`.
      batch_size: examples an update, over all devices and accumulation steps.
      accumulate: parts that a batch is split into; gradients are summed over them.
      lr: base of the schedule (the peak, except for "rsqrt", where the peak is lr / sqrt(warmup_steps)).
      schedule: "constant", "cosine" (to `final_lr` * lr), "rsqrt" (original LRA), "onecycle" (PyTorch's, linear) or
        "type1" (Informer's, halved every epoch; needs `epochs`); see `zoo.training.optimizer`.
      warmup_steps: linear warm-up from 0; for "onecycle" the length of the rising part.
      final_lr: where "cosine" ends, as a fraction of lr.
      beta1, beta2, eps: Adam's.
      cycle_beta1: for "onecycle": beta1 falls from 0.95 to 0.85 and rises again, as in PyTorch.
      weight_decay: decoupled, times the learning rate.
      decay: "all" parameters (original LRA) or "matrices" only (no bias, norm or CLS vector); never those that
        `zoo.training.optimizer.STATE_PARAMETERS` names (Mamba's A_log, D and dt_bias).
      state_lr: base of the schedule for those parameters, as S4 and S5 have one for their state space's; None for `lr`.
      clip: largest global norm of the gradient; None for no clipping.
      ema: decay of the moving average of the parameters that is evaluated; None for none.
      eval_every: updates between evaluations on the validation split; 0 for only at the end.
      checkpoint_every: updates between checkpoints; 0 for at evaluations.
      log_every: updates between lines of the log.
      select: which parameters give the headline test figure: "best" on validation, or "last".
      patience: evaluations in a row without a better one after which training ends early; None for never.
      buckets: lengths to pad to, ascending, for less padding; one compilation each. Empty for max_len alone.
      workers: processes that read data; 0 for threads of this one.
      sharding: where arrays lie on several devices, by regular expressions on their paths; see
        `zoo.training.sharding.state_shardings`. It decides nothing of the result.
      tensorboard: write TensorBoard files: True, False, or None for where tensorboardX is installed.
      wandb: name of a Weights & Biases project to log to; None for none.
    """

    seed: int = 0
    steps: int = 1000
    epochs: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    schedule: Literal["constant", "cosine", "rsqrt", "onecycle", "type1"] = "cosine"
    warmup_steps: int = 0
    final_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    cycle_beta1: bool = False
    weight_decay: float = 0.0
    decay: Literal["all", "matrices"] = "matrices"
    state_lr: float | None = None
    clip: float | None = None
    ema: float | None = None
    eval_every: int = 0
    checkpoint_every: int = 0
    log_every: int = 50
    select: Literal["best", "last"] = "best"
    patience: int | None = None
    buckets: tuple[int, ...] = ()
    workers: int = 0
    sharding: dict[str, Any] = dataclasses.field(default_factory=dict)
    tensorboard: bool | None = None
    wandb: str | None = None

    def __post_init__(self):
        check_choices(self)
        for name in ("steps", "batch_size", "accumulate", "log_every"):
            if not 1 <= getattr(self, name) < 2**31:  # what is counted in int32 on the device
                raise ValueError(f"train.{name} must be from 1 to {2**31 - 1}, got {getattr(self, name)}.")
        for name in ("warmup_steps", "eval_every", "checkpoint_every", "workers", "weight_decay", "final_lr", "eps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"train.{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"train.seed must be from 0 to 2**32 - 1, got {self.seed}.")
        for name in ("lr", "state_lr"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < float("inf"):
                raise ValueError(f"train.{name} must be positive, got {rate}.")
        for name in ("beta1", "beta2", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"train.{name} must be in [0, 1), got {value}.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"train.clip must be positive, or null for no clipping, got {self.clip}.")
        if self.batch_size % self.accumulate:
            raise ValueError(f"train.accumulate={self.accumulate} does not divide train.batch_size={self.batch_size}.")
        if self.schedule in ("rsqrt", "onecycle") and self.warmup_steps < 1:
            raise ValueError(f"train.schedule={self.schedule} needs train.warmup_steps of at least 1.")
        if self.epochs is not None and not 1 <= self.epochs < 2**31:
            raise ValueError(f"train.epochs must be from 1 to {2**31 - 1}, or null for train.steps, got {self.epochs}.")
        if self.schedule == "type1" and (self.epochs is None or self.warmup_steps):
            raise ValueError("train.schedule=type1 needs train.epochs and has no train.warmup_steps.")
        if self.epochs is None and self.warmup_steps >= self.steps and self.schedule in ("cosine", "onecycle"):
            raise ValueError(f"train.warmup_steps={self.warmup_steps} must be below train.steps={self.steps}.")
        if any(not length or length < 1 for length in self.buckets) or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"train.buckets must be ascending lengths from 1, got {list(self.buckets)}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"train.patience must be at least 1, or null for none, got {self.patience}.")
        for pattern, axes in self.sharding.items():
            if not isinstance(axes, list | tuple) or any(
                axis is not None and not isinstance(axis, str) for axis in axes
            ):
                raise ValueError(f"train.sharding.{pattern} must be a list such as [fsdp, null], got {axes!r}.")
        if self.cycle_beta1 and self.schedule != "onecycle":
            raise ValueError("train.cycle_beta1 belongs to train.schedule=onecycle.")


def with_steps(config: TrainConfig, examples: int) -> TrainConfig:
    """The config with `steps` and `eval_every` that follow from `epochs`; unchanged where that is None.

    Args:
      config: of a recipe.
      examples: of the training split.

    Raises:
      RecipeError: there are fewer examples than a batch holds, or the warm-up is not shorter than the training.
    """
    if config.epochs is None:
        return config
    epoch = examples // config.batch_size
    if not epoch:
        raise RecipeError(
            f"train.epochs={config.epochs}: the {examples} training examples do not fill one batch of "
            f"train.batch_size={config.batch_size}."
        )
    steps = epoch * config.epochs
    if config.warmup_steps >= steps:
        raise RecipeError(f"train.warmup_steps={config.warmup_steps} must be below the {steps} steps of train.epochs.")
    return dataclasses.replace(config, steps=steps, eval_every=config.eval_every or epoch)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A run, resolved.

    Attributes:
      name: where it came from.
      protocol: the named set of rules that its result may be compared under.
      variant: a registered mixer, or the path of a .py file that registers one.
      options: further arguments of the variant's constructor.
      task, model, train: the sections.
      published: figures in percent to hold the result against, by variant, and their source.
    """

    name: str = ""
    protocol: str = ""
    variant: str = "softmax"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    published: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return draccus.encode(self)

    def to_yaml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to an equal one."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False)


def load_recipe(name: str | os.PathLike, overrides: Iterable[str] = (), *, variant: str | None = None) -> Recipe:
    """Reads and checks a recipe.

    Args:
      name: a shipped recipe's name (see `list_recipes`) or the path of a YAML file.
      overrides: "key.path=value" strings; values are read as YAML.
      variant: the same as an override of `variant`.

    Raises:
      RecipeError: no such recipe; an unknown key (with the nearest right one), a value of the wrong type or out of
        range. The message names the file or override that the value came from.
    """
    path = _find(name)
    values = _read_yaml(path)
    layers = [(_parse_override(text), f"override {text!r}") for text in overrides]
    if variant is not None:
        layers.append(({"variant": variant}, f"variant {variant!r}"))
    per_variant = values.pop("variants", None) or {}
    given = [layer["variant"] for layer in (values, *(layer for layer, _ in layers)) if "variant" in layer]
    chosen = str(given[-1] if given else Recipe.variant)
    if not isinstance(per_variant, Mapping):
        raise RecipeError(f"variants (from {path}) must map names of variants to sections, got {per_variant!r}.")
    for other, section in per_variant.items():
        if not isinstance(section, Mapping):
            raise RecipeError(f"variants.{other} (from {path}) is a section of keys, got {section!r}.")
        checked: dict[str, Any] = {}
        where: dict[str, str] = {}
        _merge(checked, section, f"{path}, variants.{other}", where)
        _check_keys(Recipe, checked, "", where)
    origin: dict[str, str] = {}
    merged: dict[str, Any] = {"name": str(name)}
    special = [(per_variant[chosen], f"{path}, variants.{chosen}")] if chosen in per_variant else []
    for layer, source in [(values, str(path)), *special, *layers]:
        _merge(merged, layer, source, origin)
    _check_keys(Recipe, merged, "", origin)
    return _decode(merged, origin)


def recipe_from_dict(values: Mapping[str, Any], source: str = "the given values") -> Recipe:
    """Checks and types nested values, as `load_recipe` does those of a file."""
    origin: dict[str, str] = {}
    merged: dict[str, Any] = {}
    _merge(merged, values, source, origin)
    _check_keys(Recipe, merged, "", origin)
    return _decode(merged, origin)


def _find(name: str | os.PathLike) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"There is no recipe file {path}.")
        return path
    shipped = recipe_folder() / f"{os.fspath(name)}.yaml"
    if not shipped.is_file():
        known = list_recipes()
        # "lra/listops" is likeliest to mean the recipes of that task.
        same_task = [other for other in known if other.split("/")[-1] == path.name]
        hint = f"Did you mean {' or '.join(same_task)}?" if same_task else did_you_mean(str(name), known)
        raise RecipeError(f"There is no recipe {str(name)!r}. {hint}")
    return shipped


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {_yaml_complaint(error)}") from error
    if not isinstance(values, dict) or not values:
        raise RecipeError(f"{path} is empty or not a mapping of keys to values; is it cut short?")
    return values


def _yaml_complaint(error: Exception) -> str:
    """In one line, where the parser's own message has a picture."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"An override is written key.path=value, for example train.lr=3e-3; got {text!r}.")
    try:
        result: Any = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        complaint = _yaml_complaint(error)
        raise RecipeError(f"The value of override {text!r} is not valid YAML: {complaint}") from error
    for part in reversed(parts):
        result = {part: result}
    return result


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """ "name=value" strings as a mapping; values are read as YAML.

    Raises:
      RecipeError: one is not of that form.
    """
    options: dict[str, Any] = {}
    for text in texts:
        _merge(options, _parse_override(text), "", {})
    return options


def _merge(
    into: dict[str, Any], layer: Mapping[str, Any], source: str, origin: dict[str, str], prefix: str = ""
) -> None:
    for key, value in layer.items():
        key = str(key)
        path = f"{prefix}{key}"
        origin[path] = source
        if isinstance(value, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, source, origin, path + ".")
        else:
            into[key] = value


def _check_keys(cls: type, values: Mapping[str, Any], prefix: str, origin: Mapping[str, str]) -> None:
    hints = get_type_hints(cls)
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            elsewhere = [full for full in _all_keys(Recipe) if full.rpartition(".")[2] == key]
            known = [prefix + other for other in hints]
            hint = f"Did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(path, known)
            raise RecipeError(f"There is no key {path!r} (from {origin[path]}). {hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{path} (from {origin[path]}) is a section of keys, got {value!r}.")
            _check_keys(hints[key], value, path + ".", origin)  # pyright: ignore[reportArgumentType]
        elif complaint := _complaint(hints[key], value):
            raise RecipeError(f"{path} (from {origin[path]}) {complaint}, got {value!r}.")


def _complaint(hint: Any, value: Any) -> str | None:
    """What draccus would let pass or put badly: nulls, booleans as numbers, and scalars for lists or the reverse."""
    choices = {get_origin(choice) or choice for choice in get_args(hint)} if type(None) in get_args(hint) else set()
    kinds = choices or {get_origin(hint) or hint}
    if value is None:
        return None if type(None) in kinds else "must not be null"
    if isinstance(value, bool):
        return None if bool in kinds else "must not be a boolean"
    if isinstance(value, Mapping):
        if dict not in kinds:
            return "must not be a mapping"
        return None if _is_plain(value) else "must hold numbers, texts, booleans and nulls only (quote what is a text)"
    if isinstance(value, list | tuple):
        return None if tuple in kinds else "must not be a list"
    for kind, name in ((dict, "mapping of keys to values"), (tuple, "list, as in [1, 2]")):
        if kind in kinds:
            return f"must be a {name}"
    return None


def _is_plain(value: Any) -> bool:
    """Whether a value is free of what YAML has besides: dates, bytes and sets, which cannot be written again."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _all_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for key, hint in get_type_hints(cls).items():
        keys += _all_keys(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint) else [prefix + key]  # pyright: ignore[reportArgumentType]
    return keys


def _decode(values: Mapping[str, Any], origin: Mapping[str, str]) -> Recipe:
    try:
        return draccus.decode(Recipe, values)
    except draccus.utils.DecodingError as error:
        path = ".".join(map(str, error.key_path))
        section = next((path for path in (path, path.rpartition(".")[0]) if path in origin), None)
        where = f" (from {origin[section]})" if section else ""
        raise RecipeError(f"{path}{where}: {error.message}.") from error
    except draccus.utils.ParsingError as error:
        # Out of range: draccus hides what the section said. The keys that the message names tell where they are from.
        message = str(error.__cause__ or error)
        words = set(re.findall(r"\w+", message))
        named = [path for path in origin if path.startswith(("train.", "model.")) and path.split(".")[1] in words]
        where = "; ".join(f"{path} is from {origin[path]}" for path in named)
        raise RecipeError(f"{message} ({where})" if where else message) from error
