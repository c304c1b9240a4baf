"""Modules by name."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from zoo import registry


def create_mixer(name: str, d_model: int, *, rngs: nnx.Rngs | int | None = None, **options: Any) -> Any:
    """The mixer registered as `name`, a module that maps [B, T, D] to [B, T, D].

    Args:
      name: a registered mixer, see `zoo.list_specs(kind="mixer")`.
      d_model: D.
      rngs: for the initial parameters: `nnx.Rngs`, or a seed; None for seed 0.
      **options: the mixer's own arguments.

    Raises:
      RegistryError: no mixer has that name; the message has the nearest names.
      TypeError: the mixer has no such option; the message has the nearest option and the list.
    """
    cls = registry.get(name, "mixer")
    check_options(name, cls, options)
    return cls(d_model, **options, rngs=_as_rngs(rngs))


def create_model(name: str, *, rngs: nnx.Rngs | int | None = None, **options: Any) -> Any:
    """The whole model registered as `name`, or a sequence classifier around the mixer of that name.

    For a mixer, `options` may hold fields of `zoo.EncoderConfig`, arguments of `zoo.SequenceClassifier` and options of
    the mixer; what two of them name goes to the first::

        zoo.create_model("flowformer", num_classes=10, vocab_size=17, d_model=64, num_layers=2, rngs=0)

    Args:
      name: a registered model or mixer.
      rngs: for the initial parameters: `nnx.Rngs`, or a seed; None for seed 0.
      **options: see above; for a registered model, its constructor's arguments.

    Raises:
      RegistryError: neither a model nor a mixer has that name; the message has the nearest names.
      TypeError: an option that nothing takes, with the nearest and the list; or a needed one is missing.
    """
    found = registry.spec(name)
    if found.kind == "model":
        cls = registry.get(name, "model")
        check_options(name, cls, options)
        return cls(**options, rngs=_as_rngs(rngs))
    if found.kind != "mixer":
        known = [spec.name for spec in registry.list_specs() if spec.kind != "task"]
        raise registry.RegistryError(f"{name!r} is a {found.kind}, not a model. {registry.did_you_mean(name, known)}")
    return _classifier(name, options, _as_rngs(rngs))


def _classifier(name: str, options: Mapping[str, Any], rngs: nnx.Rngs) -> Any:
    """A `SequenceClassifier` with the mixer `name`."""
    from zoo.encoder import EncoderConfig
    from zoo.models.sequence_classifier import SequenceClassifier

    groups = {
        "encoder": [field.name for field in dataclasses.fields(EncoderConfig) if field.name != "mixer"],
        "classifier": [option for option in registry.option_names(SequenceClassifier) if option != "config"],
        "mixer": [option for option in registry.option_names(registry.get(name, "mixer")) if option != "d_model"],
    }
    _reject_unknown(f"A {name} classifier", options, [option for group in groups.values() for option in group])
    taken: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for option, value in options.items():
        group = next(group for group, known in groups.items() if option in known)
        taken[group][option] = value
    mixer_options = {**taken["encoder"].pop("mixer_options", {}), **taken["mixer"]}
    if "num_classes" not in options:
        raise TypeError(f"A {name} classifier needs num_classes.")
    config = EncoderConfig(mixer=name, mixer_options=mixer_options, **taken["encoder"])
    return SequenceClassifier(config, **taken["classifier"], rngs=rngs)


def check_options(name: str, function: Callable[..., Any], options: Iterable[str]) -> None:
    """Raises the TypeError that names the nearest argument where `function` (called `name`) lacks one of `options`."""
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in registry.parameters(function)):
        _reject_unknown(name, options, registry.option_names(function))


def _reject_unknown(what: str, options: Iterable[str], known: list[str]) -> None:
    for option in options:
        if option not in known:
            listed = ", ".join(dict.fromkeys(known))
            near = registry.did_you_mean(option, known)
            near = f"{near} The options are {listed}." if near.startswith("Did") else near
            raise TypeError(f"{what} has no option {option!r}. {near}")


def _as_rngs(rngs: Any) -> nnx.Rngs:
    if rngs is None:
        return nnx.Rngs(0)
    return rngs if isinstance(rngs, nnx.Rngs) else nnx.Rngs(rngs)
