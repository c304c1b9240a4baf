"""Batches kept on the device ahead of the step that uses them, with the position of those handed out."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def prefetch_to_device(
    batches: Iterable[Any], put: Callable[[Any], Any] | None = None, *, size: int = 2
) -> "DeviceIterator":
    """Returns an iterator that keeps `size` batches on their way to the device while one is in use.

    Args:
      batches: `train_batches(...)`, `eval_batches(...)` or any other iterable.
      put: moves a batch to the device(s) and returns at once; None is `jax.device_put`.
      size: batches kept ahead; 0 moves each when it is asked for.

    Raises:
      ValueError: `size` is negative.
    """
    if size < 0:
        raise ValueError(f"size must not be negative, got {size}.")
    return DeviceIterator(iter(batches), put or _device_put, size)


class DeviceIterator(Iterator[Any]):
    """Iterator of `prefetch_to_device`. Its state is that of the last batch handed out, not of those in flight."""

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any], size: int):
        self._batches: Any = batches  # with position, get_state, set_state and close where it has them
        self._put, self._size = put, size
        self._restart()

    @property
    def position(self) -> int:
        """Number of the next batch: that of `batches` less those in flight."""
        return self._position

    def __next__(self) -> Any:
        while len(self._ahead) <= self._size and not self._exhausted:
            try:
                batch = next(self._batches)
            except StopIteration:
                self._exhausted = True
            else:
                self._ahead.append((self._put(batch), self._inner_state()))
        if not self._ahead:
            raise StopIteration
        batch, self._state = self._ahead.popleft()
        self._position += 1
        return batch

    def get_state(self) -> Any:
        """Returns the state of `batches` as it was after the last batch that was handed out.

        Raises:
          TypeError: `batches` keeps no state.
        """
        if self._state is None:
            raise TypeError(f"{type(self._batches).__name__} has no get_state, so its position cannot be saved.")
        return self._state

    def set_state(self, state: Any) -> None:
        """Drops the batches in flight and continues from `state`.

        Raises:
          TypeError: `batches` keeps no state.
          ValueError: the state belongs to other settings.
        """
        if self._state is None:
            raise TypeError(f"{type(self._batches).__name__} has no set_state, so its position cannot be restored.")
        self._batches.set_state(state)
        self._restart()

    def close(self) -> None:
        """Drops the batches in flight and closes `batches` if that can be done."""
        self._ahead.clear()
        self._exhausted = True
        getattr(self._batches, "close", lambda: None)()

    def _restart(self) -> None:
        self._ahead: deque[tuple[Any, Any]] = deque()
        self._exhausted = False
        self._state = self._inner_state()
        self._position: int = getattr(self._batches, "position", 0)

    def _inner_state(self) -> Any:
        return self._batches.get_state() if hasattr(self._batches, "get_state") else None


def _device_put(batch: Any) -> Any:
    import jax

    return jax.device_put(batch)
