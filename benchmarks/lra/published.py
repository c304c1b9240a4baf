"""What others report on the Long Range Arena, from `published.yaml`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.lra.averages import TASKS, check_accuracies, mean_of_five, mean_of_six

PUBLISHED = Path(__file__).with_name("published.yaml")
_TEXTS = ("family", "model", "source", "read")
_MAY = ("variant", "via", "printed", "note")


@dataclasses.dataclass(frozen=True)
class Row:
    """One model's published accuracies.

    Attributes:
      family: "A" (original code), "B" (that size, other code), "C" (the small PyTorch family) or "D" (free for all).
      model: its authors' name for it.
      source: where the figures originate, a key of the file's `sources`.
      read: "primary", in that source, or "later", in the table of another paper.
      accuracies: percent by task, "fail" where Path-X is at chance; tasks without a figure are missing.
      variant: the name in this zoo, or None.
      via: in whose table the row was read, or None.
      printed: averages that a source prints and that are not those of the cells.
      note: what else is to be known, or None.
    """

    family: str
    model: str
    source: str
    read: Literal["primary", "later"]
    accuracies: Mapping[str, float | Literal["fail"]]
    variant: str | None = None
    via: str | None = None
    printed: tuple[float, ...] = ()
    note: str | None = None

    @property
    def mean_of_five(self) -> float | None:
        """Percent, see `benchmarks.lra.averages.mean_of_five`."""
        return mean_of_five(self.accuracies)

    @property
    def mean_of_six(self) -> float | None:
        """Percent, see `benchmarks.lra.averages.mean_of_six`."""
        return mean_of_six(self.accuracies)


def load_published(path: str | Path = PUBLISHED) -> list[Row]:
    """The rows of the file, in its order: families A to D.

    Args:
      path: of a file in the form of `published.yaml`.

    Raises:
      ValueError: a row without family, model, source or way of reading, with an unknown one, an unknown key or an
        accuracy that cannot be; or two rows of one family, model and source. The message names the row.
    """
    content = _read(path)
    rows: list[Row] = []
    for number, values in enumerate(content["rows"], start=1):
        where = f"{path}, row {number} ({values.get('model', 'without a model')})"
        try:
            row = _row(values, content)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if (row.family, row.model, row.source) in {(other.family, other.model, other.source) for other in rows}:
            raise ValueError(f"{where}: family {row.family} has it from {row.source} twice.")
        rows.append(row)
    return rows


def load_sources(path: str | Path = PUBLISHED) -> dict[str, str]:
    """What the keys in `Row.source` and `Row.via` mean, in words."""
    return _read(path)["sources"]


def load_efficiency(table: str, path: str | Path = PUBLISHED) -> dict[str, dict[str, float]]:
    """A published table of speed and memory: by model the value of each column.

    Args:
      table: "lra" (steps/s, and GB on a device, by length) or "skyformer" (hours of training and GB, by task).
      path: as for `load_published`.

    Raises:
      ValueError: no such table, or a row of it has another number of values than there are columns.
    """
    tables = _read(path)["efficiency"]
    if table not in tables:
        raise ValueError(f"there is no table {table!r}; there are {', '.join(tables)}.")
    columns, found = tables[table]["columns"], {}
    for model, values in tables[table]["rows"].items():
        if len(values) != len(columns):
            raise ValueError(f"{path}, {table}, {model}: {len(values)} values for {len(columns)} columns.")
        found[model] = dict(zip(columns, map(float, values), strict=True))
    return found


def _read(path: str | Path) -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def _row(values: Mapping[str, Any], content: Mapping[str, Any]) -> Row:
    missing = [name for name in _TEXTS if not values.get(name)]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}.")
    known = {"family": content["families"], "source": content["sources"], "read": ("primary", "later")}
    for name, choices in {**known, "via": content["sources"]}.items():
        if values.get(name) is not None and values[name] not in choices:
            raise ValueError(f"unknown {name} {values[name]!r}; there are {', '.join(choices)}.")
    unknown = values.keys() - {*_TEXTS, *_MAY, *TASKS}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}.")
    accuracies = {task: values[task] for task in TASKS if task in values}
    if not accuracies:
        raise ValueError("has no accuracy.")
    check_accuracies(accuracies)
    printed = tuple(map(float, values.get("printed", ())))
    texts: dict[str, Any] = {name: values.get(name) for name in (*_TEXTS, "variant", "via", "note")}
    return Row(**texts, accuracies=accuracies, printed=printed)
