"""From a recipe to the task and the model it names."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flax import nnx

from zoo import registry
from zoo.encoder import BodyConfig, EncoderConfig
from zoo.models.causal_lm import CausalLM
from zoo.models.encoder_forecaster import EncoderForecaster
from zoo.models.pair_classifier import PairClassifier
from zoo.models.sequence_classifier import SequenceClassifier
from zoo.tasks.base import Task, TaskInfo
from zoo.training.recipe import ModelConfig, Recipe, RecipeError

# Settings of the model section that only one kind of model around an encoder reads.
_PAIRS = ("head_layers", "head_activation", "pair_features")
_ONLY = {"label": ("pooling", "head_dim", *_PAIRS), "token": ("tie_embeddings",), "series": ("use_norm",)}


def make_task(recipe: Recipe, data_dir: Path | None = None) -> Task:
    """The recipe's task; nothing is read or made yet.

    Raises:
      RegistryError: no such task.
      RecipeError: `task.options` names what the task does not take.
      ValueError: the task has no such source, or cannot have that `max_len`.
    """
    config = recipe.task
    cls = registry.get(config.name, "task")
    common = {"source", "max_len", "data_dir", "seed"}
    known = [name for name in registry.option_names(cls) if name not in common]
    for option in config.options:
        if option not in known:
            hint = registry.did_you_mean(option, known)
            raise RecipeError(f"task.options.{option}: {config.name} has no such option. {hint}")
    try:
        return cls(source=config.source, max_len=config.max_len, data_dir=data_dir, seed=config.seed, **config.options)
    except TypeError as error:
        raise RecipeError(f"{config.name} with options {config.options}: {error}") from error


def variant_spec(recipe: Recipe) -> registry.Spec:
    """Facts of the recipe's variant, which may be the path of a file that registers one.

    Raises:
      RegistryError: no such variant, or it is a task.
      RecipeError: the recipe asks of it what it cannot do.
    """
    name = recipe.variant
    spec = registry.load_file(name) if name.endswith(".py") else registry.spec(name)
    if spec.kind == "task":
        raise registry.RegistryError(f"{name!r} is a task; a variant is a mixer or a model (`zoo list`).")
    if recipe.model.causal and not spec.causal:
        raise RecipeError(f"model.causal=true: {spec.name} cannot be causal. {spec.notes}".strip())
    if not recipe.model.causal and not spec.bidirectional:
        raise RecipeError(f"model.causal=false: {spec.name} runs forward only; set model.causal=true.")
    return spec


def model_maker(recipe: Recipe, info: TaskInfo) -> Callable[[nnx.Rngs], nnx.Module]:
    """A function that builds the recipe's model for a task.

    Around a mixer that is a classifier, a language model where the task asks for tokens, or a forecaster where it asks
    for the rest of a series.

    Raises:
      RegistryError, RecipeError: see `variant_spec`; or a model that cannot read the task's inputs, or settings of
        another kind of model.
    """
    spec = variant_spec(recipe)
    model = recipe.model
    cls = registry.get(spec.name)
    accepted = registry.option_names(cls)
    known = [name for name in accepted if name != "d_model"]
    for option in recipe.options:
        if option not in known:
            hint = registry.did_you_mean(option, known)
            raise RecipeError(f"options.{option}: {spec.name} has no such option. {hint}")
    if spec.kind == "model":
        if info.inputs not in spec.inputs:
            raise RecipeError(f"{spec.name} reads {' or '.join(spec.inputs)}; {recipe.task.name} has {info.inputs}.")
        if info.pairs:
            raise RecipeError(f"{spec.name} reads one sequence at a time; {recipe.task.name} has pairs. Take a mixer.")
        offered = {**dataclasses.asdict(model), **dataclasses.asdict(info)}
        arguments = {name: value for name, value in offered.items() if name in accepted} | recipe.options
        return _with_options_named(lambda rngs: cls(**arguments, rngs=rngs), recipe, spec.name)
    if info.inputs == "image":
        known = ", ".join(other.name for other in registry.list_specs(kind="model", inputs="image"))
        raise RecipeError(f"{spec.name} does not read images, which {recipe.task.name} has; models that do: {known}.")
    _check_output(recipe, info)
    body = {field.name: getattr(model, field.name) for field in dataclasses.fields(BodyConfig)}
    config = EncoderConfig(
        **body,
        mixer=spec.name,
        mixer_options=dict(recipe.options),
        inputs="scalars" if info.inputs == "series" else info.inputs,
        vocab_size=info.vocab_size,
        max_len=info.max_len,
        causal=model.causal,
    )

    def make(rngs: nnx.Rngs) -> nnx.Module:
        if info.output == "series":
            assert info.num_variates is not None
            assert info.horizon is not None
            return EncoderForecaster(
                config,
                num_variates=info.num_variates,
                lookback=info.max_len,
                horizon=info.horizon,
                num_marks=info.num_marks,
                use_norm=model.use_norm,
                rngs=rngs,
            )
        if info.output == "token":
            return CausalLM(config, tie_embeddings=model.tie_embeddings, rngs=rngs)
        if info.pairs:
            pair_head = {name: getattr(model, name) for name in ("pooling", "head_dim", *_PAIRS)}
            return PairClassifier(config, info.num_classes, **pair_head, rngs=rngs)
        return SequenceClassifier(config, info.num_classes, pooling=model.pooling, head_dim=model.head_dim, rngs=rngs)

    return _with_options_named(make, recipe, spec.name)


def _check_output(recipe: Recipe, info: TaskInfo) -> None:
    """Raises RecipeError where the model section asks for what no model of the task's output has."""
    if info.output == "token" and not recipe.model.causal:
        raise RecipeError(
            f"model.causal=false: {recipe.task.name} asks for the token that comes next, which such a model sees; set "
            "model.causal=true."
        )
    default, kind = ModelConfig(), {"label": "classifiers", "token": "language models", "series": "forecasters"}
    for name in () if info.pairs or info.output != "label" else _PAIRS:
        if getattr(recipe.model, name) != getattr(default, name):
            raise RecipeError(f"model.{name} is for classifiers of pairs; {recipe.task.name} has single sequences.")
    for output in _ONLY.keys() - {info.output}:
        for name in _ONLY[output]:
            if getattr(recipe.model, name) != getattr(default, name):
                raise RecipeError(
                    f"model.{name}={getattr(recipe.model, name)} is for {kind[output]}; {recipe.task.name} trains "
                    f"{kind[info.output]}."
                )


def _with_options_named(make: Callable[[nnx.Rngs], nnx.Module], recipe: Recipe, name: str):
    """`make`, whose TypeError most likely comes from the type of an option: those are not known before."""

    def checked(rngs: nnx.Rngs) -> nnx.Module:
        try:
            return make(rngs)
        except TypeError as error:
            if not recipe.options:
                raise
            raise RecipeError(f"{name} with options {recipe.options}: {error}") from error

    return checked
