"""The one copy of the `implementation=` rule: None chooses, a name is exactly that one or an error."""

from collections.abc import Callable, Mapping
from typing import Any


def select(
    implementation: str | None,
    table: Mapping[str, Callable[..., Any]],
    *,
    op: str,
    default: str,
) -> Callable[..., Any]:
    """Returns the function of `table` that `implementation` names.

    Args:
      implementation: a key of `table`, or None for `default`.
      table: the implementations of the op, by name.
      op: the op's name, for the message.
      default: the key used where `implementation` is None.

    Raises:
      ValueError: no implementation has that name.
    """
    name = default if implementation is None else implementation
    if name not in table:
        raise ValueError(f"{op} has no implementation {name!r}; choose {', '.join(map(repr, table))}, or None.")
    return table[name]
