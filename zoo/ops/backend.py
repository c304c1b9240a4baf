"""A kind of device that has kernels written for it: do they run here, interpreted, or are they for another machine."""

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

_logger = logging.getLogger(__name__)


class Backend:
    """Who gets the kernels that an `implementation` of some ops consists of.

    Attributes:
      implementation: that name.
      hardware: what it is for, in the plural.
    """

    def __init__(self, implementation: str, hardware: str, missing: Callable[..., str | None]):
        """`missing` says why kernels cannot run on the default device, or returns None."""
        self.implementation, self.hardware, self._missing = implementation, hardware, missing
        self._interpreting = contextvars.ContextVar[dict[str, Any] | None](
            f"{implementation}-interpreted", default=None
        )
        self._exporting = contextvars.ContextVar[bool](f"{implementation}-exported", default=False)

    @contextlib.contextmanager
    def interpreted(self, **options: Any) -> Iterator[None]:
        """Kernels that are traced inside run in Pallas' interpreter, on a CPU: for tests, slowly.

        What was traced before keeps its way: `jax.jit` a new function inside.

        Args:
          options: of the interpreter.
        """
        token = self._interpreting.set(options)
        try:
            yield
        finally:
            self._interpreting.reset(token)

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """Kernels that are traced inside are for another machine (`jax.export`), so none is required here."""
        token = self._exporting.set(True)
        try:
            yield
        finally:
            self._exporting.reset(token)

    def interpreting(self) -> bool:
        """Whether `interpreted` is in force."""
        return self._interpreting.get() is not None

    def interpreter_options(self) -> dict[str, Any]:
        """What `interpreted` was given."""
        return self._interpreting.get() or {}

    def unavailable(self, **needs: Any) -> str | None:
        """Why kernels cannot run on the default device, or None where they can.

        Args:
          needs: what the backend's devices do not all have.
        """
        return None if self.interpreting() or self._exporting.get() else self._missing(**needs)

    def require(self, op: str, unsupported: str | None = None, **needs: Any) -> None:
        """Raises the reason where `op` was asked to run a kernel and none can; arguments as of `usable`.

        Raises:
          RuntimeError: this is not the device.
          ValueError: `unsupported`.
        """
        reason = self.unavailable(**needs)
        if reason:
            raise RuntimeError(
                f"{op} has implementation={self.implementation!r} for {self.hardware} only: {reason}. "
                "None chooses what suits this device."
            )
        if unsupported:
            raise ValueError(f"{op} has implementation={self.implementation!r} only within limits: {unsupported}.")

    def usable(self, op: str, unsupported: str | None = None, **needs: Any) -> bool:
        """Whether a caller that prefers kernels gets one; where not, the reason is logged, once per process and reason.

        Args:
          op: the op's name, for the log.
          unsupported: why the kernel of `op` does not take these arguments, or None.
          needs: as in `unavailable`.
        """
        reason = self.unavailable(**needs) or unsupported
        if reason:
            _log_once(f"{op} runs by XLA instead of its kernel: {reason}.")
        return not reason


@functools.cache
def _log_once(message: str) -> None:
    _logger.warning(message)
