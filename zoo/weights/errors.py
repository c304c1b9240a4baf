"""What goes wrong with files of weights."""

from collections.abc import Iterable

_SHOWN = 8


class WeightsError(ValueError):
    """A file of weights cannot be read, or its tensors do not fit the model."""


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
