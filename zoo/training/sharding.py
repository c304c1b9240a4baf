"""Where arrays live: one mesh over all devices, the batch split over its `data` axis, the state on every device."""

from collections.abc import Callable

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.training.step import Batch


def make_mesh(batch_size: int) -> jax.sharding.Mesh:
    """A mesh of one axis, "data", over all devices.

    Raises:
      ValueError: the number of devices does not divide the batch.
    """
    count = jax.device_count()
    if batch_size % count:
        raise ValueError(f"train.batch_size={batch_size} is not a multiple of the number of devices, {count}.")
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: jax.sharding.Mesh) -> Callable[[Batch], Batch]:
    """A function that puts this process's rows of a batch on its devices, as part of the global batch."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return lambda batch: {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
