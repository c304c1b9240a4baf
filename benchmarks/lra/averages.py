"""The two averages over the Long Range Arena that papers print, which are never to be put side by side."""

from collections.abc import Mapping
from typing import Literal

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
"""The tasks in the order of the LRA paper's table."""

CHANCE = {"listops": 10.0, "text": 50.0, "retrieval": 50.0, "image": 10.0, "pathfinder": 50.0, "pathx": 50.0}
"""Accuracy in percent of an answer drawn at random."""

FAIL = "fail"
"""What tables say of Path-X in the place of an accuracy that is no better than chance."""

Accuracies = Mapping[str, float | Literal["fail"]]


def mean_of_five(accuracies: Accuracies) -> float | None:
    """The LRA paper's average (Tay et al. 2020, arXiv:2011.04006, table 1): over all tasks but Path-X.

    Args:
      accuracies: percent by task, see `TASKS`; "fail" for Path-X where a source says so.

    Returns:
      Percent; None where one of the five is missing.

    Raises:
      ValueError: an unknown task, an accuracy outside of 0..100, or a fail on another task than Path-X.
    """
    return _mean(accuracies, TASKS[:-1])


def mean_of_six(accuracies: Accuracies) -> float | None:
    """The average of S4 and what followed it: over all tasks, a fail on Path-X counting as its chance, 50.

    Some later tables count 0 for what is missing, which gives a model that nobody ran on Path-X 8 points less than one
    that failed there. Here an average with a task missing does not exist.

    Args:
      accuracies: as for `mean_of_five`.

    Returns:
      Percent; None where one of the six is missing.

    Raises:
      ValueError: as `mean_of_five`.
    """
    return _mean(accuracies, TASKS)


def check_accuracies(accuracies: Mapping[str, object]) -> None:
    """Raises ValueError where a task is unknown, or its accuracy is neither in 0..100 nor a fail on Path-X."""
    for task, value in accuracies.items():
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
        if value == FAIL and task == "pathx":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            also = " or 'fail'" if task == "pathx" else ""
            raise ValueError(f"{task} must be a percentage from 0 to 100{also}, got {value!r}.")


def _mean(accuracies: Accuracies, tasks: tuple[str, ...]) -> float | None:
    check_accuracies(accuracies)
    if any(task not in accuracies for task in tasks):
        return None
    values = (accuracies[task] for task in tasks)
    return sum(CHANCE["pathx"] if value == FAIL else float(value) for value in values) / len(tasks)
