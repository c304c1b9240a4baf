"""Modules by name."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

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


def create_model(
    name: str,
    *,
    output: Literal["label", "token"] | None = None,
    rngs: nnx.Rngs | int | None = None,
    **options: Any,
) -> Any:
    """The whole model registered as `name`, or a classifier or language model around the mixer of that name.

    For a mixer, `options` may hold fields of `zoo.EncoderConfig`, arguments of `zoo.SequenceClassifier` or, with
    output="token", of `zoo.CausalLM`, and options of the mixer; what two of them name goes to the first::

        zoo.create_model("flowformer", num_classes=10, vocab_size=17, d_model=64, num_layers=2, rngs=0)
        zoo.create_model("flowformer", output="token", vocab_size=257, d_model=64, num_layers=2, rngs=0)

    Args:
      name: a registered model or mixer.
      output: of a model around a mixer: "label" (None is that) for one answer a sequence, "token" for the token that
        comes next after each position.
      rngs: for the initial parameters: `nnx.Rngs`, or a seed; None for seed 0.
      **options: see above; for a registered model, its constructor's arguments.

    Raises:
      RegistryError: neither a model nor a mixer has that name; the message has the nearest names.
      TypeError: an option that nothing takes, with the nearest and the list; or a needed one is missing.
      ValueError: no such output, or one that the mixer cannot give.
    """
    found = registry.spec(name)
    if found.kind == "model":
        cls = registry.get(name, "model")
        options = options if output is None else {**options, "output": output}
        check_options(name, cls, options)
        return cls(**options, rngs=_as_rngs(rngs))
    if found.kind != "mixer":
        known = [spec.name for spec in registry.list_specs() if spec.kind != "task"]
        raise registry.RegistryError(f"{name!r} is a {found.kind}, not a model. {registry.did_you_mean(name, known)}")
    if output not in (None, "label", "token"):
        raise ValueError(f"unknown output {output!r}; there are label, token.")
    return _around_mixer(name, output or "label", options, _as_rngs(rngs))


def _around_mixer(name: str, output: str, options: Mapping[str, Any], rngs: nnx.Rngs) -> Any:
    """A `SequenceClassifier` or a `CausalLM` with the mixer `name`."""
    from zoo.encoder import EncoderConfig
    from zoo.models.causal_lm import CausalLM
    from zoo.models.sequence_classifier import SequenceClassifier

    cls: Any = SequenceClassifier if output == "label" else CausalLM
    what, needed = (
        (f"A {name} classifier", "num_classes") if output == "label" else (f"A {name} language model", "vocab_size")
    )
    groups = {
        "encoder": [field.name for field in dataclasses.fields(EncoderConfig) if field.name != "mixer"],
        "model": [option for option in registry.option_names(cls) if option != "config"],
        "mixer": [option for option in registry.option_names(registry.get(name, "mixer")) if option != "d_model"],
    }
    _reject_unknown(what, options, [option for group in groups.values() for option in group])
    taken: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for option, value in options.items():
        group = next(group for group, known in groups.items() if option in known)
        taken[group][option] = value
    mixer_options = {**taken["encoder"].pop("mixer_options", {}), **taken["mixer"]}
    if needed not in options:
        raise TypeError(f"{what} needs {needed}.")
    config = EncoderConfig(mixer=name, mixer_options=mixer_options, **taken["encoder"])
    return cls(config, **taken["model"], rngs=rngs)


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
