"""Several processes as one run: how they find each other, and how they fail together.

Every process runs the same command. Process 0 writes the run directory; checkpoints are written by all, into a folder
that all see.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

_TEXT_BYTES = 2048


class ProcessError(RuntimeError):
    """Another process of the run failed, or the processes cannot find each other."""


def start(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    detect: bool = False,
    devices: int | None = None,
) -> None:
    """Joins the processes of a run; to be called before JAX computes anything. Does nothing for a single process.

    Args:
      coordinator: "host:port" of process 0.
      num_processes, process_id: how many there are, and which this is, from 0.
      detect: leave the three above to JAX, which knows SLURM, Open MPI, Kubernetes and Cloud TPU.
      devices: how many devices of this process the run will use; on a CPU they are simulated.

    Raises:
      ValueError: only some of the three are given, or one is out of range.
      ProcessError: the others do not answer, or there is nothing to detect.
    """
    given = (coordinator, num_processes, process_id)
    if devices is not None:
        if devices < 1:
            raise ValueError(f"--devices must be at least 1, got {devices}.")
        _simulate(devices)
    if not detect and all(value is None for value in given):
        return
    if not detect:
        if None in given or num_processes is None or process_id is None:
            raise ValueError("--coordinator, --num-processes and --process-id go together (or --distributed alone).")
        if not 0 <= process_id < num_processes:
            raise ValueError(f"--process-id must be from 0 to {num_processes - 1}, got {process_id}.")
        if ":" not in str(coordinator):
            raise ValueError(f"--coordinator is host:port of process 0, got {coordinator!r}.")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        what = "nothing to detect" if detect else f"no connection to {coordinator}"
        raise ProcessError(f"the processes cannot find each other ({what}): {error}") from error


def _simulate(devices: int) -> None:
    """Lets the CPU count as that many devices, where nothing has been computed and nothing else was said."""
    import os

    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # computing has begun: the devices are those that there are, and `make_mesh` counts them
        return


def is_main() -> bool:
    """Whether this process writes the run directory."""
    return jax.process_index() == 0


@contextmanager
def together() -> Iterator[None]:
    """What happens inside succeeds in every process or fails in every process.

    Without this, the others would wait for one that has failed until a time-out ends them.

    Raises:
      ProcessError: another process failed; the message is its message.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        texts = share(f"{failure}"[:500] if failure is not None else "")
        failed = [(index, text) for index, text in enumerate(texts) if text]
        if failed and failure is None:
            raise ProcessError(f"process {failed[0][0]} failed: {failed[0][1]}")
    if failure is not None:
        raise failure


def share(text: str) -> list[str]:
    """The texts (of at most 2048 bytes) of all processes, by process.

    Raises:
      ValueError: the text is too long.
    """
    data = text.encode()
    if len(data) > _TEXT_BYTES:
        raise ValueError(f"a shared text has at most {_TEXT_BYTES} bytes, got {len(data)}.")
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    row = np.zeros(_TEXT_BYTES, np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(jax.process_count(), _TEXT_BYTES)
    return [bytes(row).rstrip(b"\0").decode() for row in rows]


class AnyProcess:
    """Asks, step by step and without waiting, whether a flag is up in any process.

    Each process hands in its own flag with a step; the answer of that step is the same in all of them, so that they
    stop together though only one was told to.

    Args:
      mesh: over the devices of all processes.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        from zoo.training.sharding import over_devices, replicated

        self._sharding = over_devices(mesh)
        self._rows = len(mesh.local_devices)
        self._add = jax.jit(lambda flags: flags.sum(), out_shardings=replicated(mesh))

    def ask(self, flag: bool) -> Any:
        """An array that is above 0 where any process asked with True; reading it waits for the others."""
        rows = np.full(self._rows, flag, np.int32)
        return self._add(jax.make_array_from_process_local_data(self._sharding, rows))
