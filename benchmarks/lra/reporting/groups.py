"""Which results may stand side by side, and which are seeds of one thing."""

import dataclasses
import functools
import re
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.lra.averages import TASKS
from benchmarks.lra.reporting.records import Record, RecordError, is_number

PROTOCOLS = ("original", "small", "ssm")
FAMILIES = {"original": "A", "small": "C", "ssm": "D"}
"""The family of published rows (see published.yaml) that a protocol's results may be held against."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report, within which results may be compared.

    Attributes:
      key: for links; starts with "lra-" only where results may stand beside LRA's.
      title: of the part.
      note: how to read it.
      protocol: of LRA, or None.
    """

    key: str
    title: str
    note: str
    protocol: str | None = None


_LRA = {
    "original": "The configurations of LRA's own code. The parameters after the last update are tested.",
    "small": "The PyTorch family of Nyströmformer, Skyformer and xformers: 2 layers, 64 wide.",
    "ssm": "Long, bidirectional training as of S4 and S5: other sizes, lengths and rates than LRA's own.",
}
_OTHERS = (
    ("smoke", "Smoke runs", "Small parts of the data, minutes a run. Never to be held against the Long Range Arena."),
    ("other", "LRA's data by other recipes", "No protocol of the suite: not to be held against its tables."),
    ("stand", "Stand-ins and data of one's own", "Tasks in the form of LRA's that need no download. They are not LRA."),
    ("recall", "Recall", "Generated tasks of memory, for models that run causally."),
    ("lm", "Language", "Bytes of text, for models that run causally."),
    ("density", "Density of images", "Exact likelihoods."),
    ("forecasting", "Forecasting", "Errors on standardised values, over every window of the test split."),
    ("rest", "Other tasks", "Tasks of other packages."),
)
SECTIONS = (
    *(Section(f"lra-{name}", f"LRA, {name}", note, name) for name, note in _LRA.items()),
    *(Section(key, title, note) for key, title, note in _OTHERS),
)
_IDLE = ("train.seed", "train.workers", "train.tensorboard", "train.wandb")
_PREFIXES = {"classify": "stand", "pairs": "stand", "recall": "recall", "lm": "lm", "density": "density"}


def section_of(record: Record) -> Section:
    """Where a record belongs: LRA's sections take LRA's tasks, by its protocols, on whole data, and nothing else."""
    prefix = record.task.partition("/")[0]
    key = _PREFIXES.get(prefix, "forecasting" if prefix == "forecasting" else "rest")
    if prefix == "lra":
        small = "smoke" in (record.source, record.protocol)
        known = record.protocol in PROTOCOLS and short_task(record) in TASKS
        key = "smoke" if small else f"lra-{record.protocol}" if known else "other"
    return next(section for section in SECTIONS if section.key == key)


def short_task(record: Record) -> str:
    """A task's name without its folder."""
    return record.task.partition("/")[2] or record.task


def recipe_status(record: Record) -> str:
    """Whether a record's recipe is the one that is shipped under its name, with the overrides that it states.

    Returns:
      "shipped", "overridden", "other" (the hash is that of another recipe: changed on the way, or shipped differently
      then) or "unrecorded" (no hash).
    """
    if record.recipe_hash is None:
        return "unrecorded"
    stated = record.overrides or ()
    deciding = _deciding(record)
    wanted = _shipped_hash(record.recipe, (*stated, f"train.seed={record.seed}"), record.variant)
    if wanted != record.recipe_hash:
        return "other"
    return "overridden" if deciding else "shipped"


def _deciding(record: Record) -> tuple[str, ...] | None:
    """The overrides of a record that can change its numbers, None where it does not say."""
    if record.overrides is None:
        return None
    return tuple(text for text in record.overrides if text.partition("=")[0].strip() not in _IDLE)


@functools.cache
def _shipped_hash(name: str, overrides: tuple[str, ...], variant: str) -> str | None:
    from benchmarks.lra.cells import recipe_hash
    from zoo.training.recipe import RecipeError, list_recipes, load_recipe

    if name not in list_recipes():  # never a path that a record names
        return None
    try:
        return recipe_hash(load_recipe(name, overrides, variant=variant))
    except RecipeError:
        return None


@dataclasses.dataclass(frozen=True)
class Group:
    """The seeds of one variant by one recipe on one data set.

    Attributes:
      records: by seed.
      status: see `recipe_status`.
    """

    records: tuple[Record, ...]
    status: str

    @property
    def first(self) -> Record:
        """Any of them, for what they have in common."""
        return self.records[0]

    @property
    def key(self) -> str:
        """For links: the one record's, or one of the group's own."""
        return self.first.key if len(self.records) == 1 else f"g{self.first.key[1:]}"

    def scores(self, metric: str | None = None) -> list[float]:
        """Test scores by seed; see `Record.score`."""
        return [record.score("test", metric) for record in self.records]

    def mean(self, metric: str | None = None) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores(metric))

    def spread(self, metric: str | None = None) -> float | None:
        """Standard deviation over the seeds (n - 1), None for one."""
        return statistics.stdev(self.scores(metric)) if len(self.records) > 1 else None

    @property
    def steps_per_second(self) -> float | None:
        """Median over the seeds; None where they ran on different devices, or did not tell."""
        speeds: list[Any] = [record.values.get("steps_per_second") for record in self.records]
        known = [float(speed) for speed in speeds if is_number(speed) and speed > 0]
        one_device = len({record.device for record in self.records}) == 1
        return statistics.median(known) if known and one_device else None

    @property
    def memory(self) -> tuple[float, str] | None:
        """Bytes and what they are: the device's peak where it tells, else the compiler's plan for one update."""
        for name, what in (("device_peak", "peak of the device"), ("step", "planned for one update")):
            found: list[Any] = [(record.values.get("memory") or {}).get(name) for record in self.records]
            known = [float(number) for number in found if is_number(number) and number > 0]
            if len(known) == len(self.records):
                return max(known), what
        return None

    def changes(self) -> str:
        """What differs from the shipped recipe, in a few words; "" for nothing."""
        if self.status == "overridden":
            return ", ".join(_deciding(self.first) or ())
        if self.status == "other":
            return ", ".join(_deciding(self.first) or ()) or "not the shipped recipe"
        return ""


def group(records: Iterable[Record]) -> dict[Section, list[Group]]:
    """Results by section and group, in the order of `SECTIONS` and of the records.

    Seeds are put together where their recipes are known to agree but for the seed, or, for records of before recipe
    hashes, where all else that they tell agrees.

    Raises:
      RecordError: two different results of one group and seed.
    """
    found: dict[Section, dict[tuple, list[Record]]] = {section: {} for section in SECTIONS}
    for record in records:
        mine = found[section_of(record)].setdefault(_group_key(record), [])
        twin = next((other for other in mine if other.seed == record.seed), None)
        if twin is not None:
            raise RecordError(
                f"{twin.origin} and {record.origin} are two results of one recipe, variant and seed "
                f"({record.recipe}, {record.variant}, {record.seed}). Give one of them."
            )
        mine.append(record)
    return {
        section: in_order(Group(tuple(sorted(mine, key=lambda one: one.seed)), key[-1]) for key, mine in groups.items())
        for section, groups in found.items()
        if groups
    }


def in_order(groups: Iterable[Group]) -> list[Group]:
    """Groups by task, LRA's in the order of its table, and else as they come."""
    return sorted(groups, key=lambda one: TASKS.index(short_task(one.first)) if short_task(one.first) in TASKS else 99)


def _group_key(record: Record) -> tuple:
    status = recipe_status(record)
    known = [record.task, record.source, record.protocol, record.recipe, record.variant, record.metric, record.data]
    known += [record.select, record.batch_size, record.max_len, record.parameters, _deciding(record)]
    if status == "other":
        # Two changed recipes may agree in all of the above; only the commit and stated overrides tell that they do not.
        known.append(record.recipe_hash if record.overrides is None else record.environment["commit"])
    return (*known, status)


def slug(text: str) -> str:
    """A text as part of an address: small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "none"
