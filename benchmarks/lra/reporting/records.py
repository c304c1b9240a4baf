"""A record: the result of one run with all that its numbers must be read with; what is not whole is refused."""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.files import seal, unseal

EXTRAS = ("id", "recipe_hash", "overrides", "curve", "forecast")
"""Keys that a record has beyond those of the run's result.json, which its digest may or may not cover."""

_TEXTS = ("task", "source", "variant", "recipe", "metric", "data")
_COUNTS = ("seed", "parameters", "steps", "batch_size", "max_len")
_ENVIRONMENT = ("commit", "zoo", "jax", "jaxlib", "flax", "python", "device", "platform", "processor", "date")
_LOWER = ("loss", "mse", "mae", "bpb", "bpd", "perplexity")


class RecordError(ValueError):
    """A record is not whole, or not what was written; the message says what is wrong and what would mend it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A run's result that has been checked; see `make_record`.

    Attributes:
      values: what the file holds.
      origin: the file, relative to what was asked for, with forward slashes.
      curve: (update, value of the metric on validation), in order; empty where there is none.
    """

    values: Mapping[str, Any]
    origin: str
    curve: tuple[tuple[float, float], ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Any key of the values, as an attribute."""
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def key(self) -> str:
        """A name for links, which differs for runs that differ."""
        return f"r-{self.run[:12]}"

    @functools.cached_property
    def run(self) -> str:
        """The digest of the run's result, equal for a run's result.json and for records made of it."""
        return seal({key: value for key, value in self.values.items() if key not in (*EXTRAS, "digest")})["digest"]

    @property
    def protocol(self) -> str:
        """The protocol's name, "" where the recipe has none."""
        return self.values.get("protocol") or ""

    @property
    def recipe_hash(self) -> str | None:
        """16 hex digits, or None for a record of before there was one."""
        return self.values.get("recipe_hash")

    @property
    def overrides(self) -> tuple[str, ...] | None:
        """What was changed in the recipe, or None where the record does not say."""
        given = self.values.get("overrides")
        return None if given is None else tuple(given)

    @property
    def device(self) -> str:
        """The device and its processor, on which speed and memory depend."""
        return f"{self.environment['device']} ({self.environment['processor']})"

    def score(self, split: str = "test", metric: str | None = None) -> float:
        """The metric of the parameters that the recipe selects."""
        return float(self.values[self.select][split][metric or self.metric])

    @property
    def size_ratio(self) -> float | None:
        """Parameters by those of softmax in the same recipe, where the run told."""
        ratio: Any = (self.values.get("budget") or {}).get("ratio")
        return float(ratio) if is_number(ratio) else None

    def cautions(self) -> list[str]:
        """What whoever reads the numbers must know of the data and the checkout."""
        found = [str(text) for text in self.values.get("cautions") or ()]
        if self.environment["commit"].endswith("+"):
            found.append("files of the checkout differed from its commit")
        return found


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error or a cost, rather than a share of what is right."""
    return metric in _LOWER


def make_record(
    values: Any, origin: str, curve: Sequence[Sequence[float]] | None = None, *, allow_old: bool = False
) -> Record:
    """Checks a record.

    Args:
      values: what a file holds.
      origin: the file's name, for the message and the page.
      curve: (update, value) pairs where they are in a file of their own; else those of the record.
      allow_old: take records without a recipe hash too.

    Raises:
      RecordError: a part is missing or of another type, or the digest does not fit.
    """
    if not isinstance(values, Mapping):
        raise RecordError("it is no record: a JSON object was expected.")
    _check_digest(values)
    _check_parts(values)
    if values.get("recipe_hash") is None and not allow_old:
        raise RecordError("it has no recipe_hash: not a whole record. --allow-old takes it, and marks its numbers.")
    return Record(dict(values), origin, _checked_curve(values.get("curve") if curve is None else curve))


def _check_digest(values: Mapping[str, Any]) -> None:
    bare = {key: value for key, value in values.items() if key not in EXTRAS}
    reasons = []
    for body in (values, bare):
        try:
            unseal(json.dumps(body).encode())
            return
        except ValueError as error:
            reasons.append(str(error))
    raise RecordError(f"{reasons[0]}: it was changed or cut short. Take the run's own result.json again.")


def _check_parts(values: Mapping[str, Any]) -> None:
    parts = (*_TEXTS, *_COUNTS, "select", "best", "last", "environment", "baselines")
    missing = [name for name in parts if values.get(name) is None]
    environment = values.get("environment")
    if isinstance(environment, Mapping):
        missing += [f"environment.{name}" for name in _ENVIRONMENT if not environment.get(name)]
    if missing:
        raise RecordError(f"it lacks {', '.join(missing)}: not a whole record. Train in a checkout, with this version.")
    _expect(values, (*_TEXTS, "select"), "a text", str)
    _expect(values, ("best", "last", "environment", "baselines"), "an object", Mapping)
    _expect(values["environment"], _ENVIRONMENT, "a text", str)
    for name in _COUNTS:
        if not isinstance(values[name], int) or not is_number(values[name]) or values[name] < 0:
            raise RecordError(f"{name} must be a whole number, got {values[name]!r:.80}.")
    _expect(values, ("protocol", "recipe_hash"), "a text", str, may_lack=True)
    _expect(values, ("budget", "memory", "published"), "an object", Mapping, may_lack=True)
    _expect(values, ("cautions", "overrides"), "a list", list, may_lack=True)
    if not all(isinstance(text, str) for text in values.get("overrides") or ()):
        raise RecordError("overrides must be a list of texts.")
    _check_figures(values)


def _check_figures(values: Mapping[str, Any]) -> None:
    if values["select"] not in ("best", "last"):
        raise RecordError(f"select must be 'best' or 'last', got {values['select']!r:.80}.")
    splits = ("validation", "test")
    for which in ("best", "last"):
        _expect(values[which], splits, "an object", Mapping)
    _expect(values["baselines"], splits, "an object", Mapping, may_lack=True)
    for split in splits:
        if not is_number(values[values["select"]][split].get(values["metric"])):
            raise RecordError(f"{values['select']}.{split}.{values['metric']} must be a finite number.")
        if not all(map(is_number, (values["baselines"].get(split) or {}).values())):
            raise RecordError(f"baselines.{split} must hold finite numbers.")


def _expect(values: Any, names: Sequence[str], what: str, kind: type, *, may_lack: bool = False) -> None:
    for name in names:
        value = values.get(name)
        if not isinstance(value, kind) and not (may_lack and value is None):
            raise RecordError(f"{name} must be {what}, got {value!r:.80}.")


def _checked_curve(curve: Any) -> tuple[tuple[float, float], ...]:
    if curve is None:
        return ()
    try:
        points = tuple((float(step), float(value)) for step, value in curve if value is not None)
    except (TypeError, ValueError) as error:
        raise RecordError(f"curve must hold [update, value] pairs: {error}.") from error
    if any(not math.isfinite(number) for point in points for number in point):
        raise RecordError("curve must hold finite numbers.")
    return points


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
