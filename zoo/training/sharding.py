"""Where arrays live: one mesh of two axes, the batch split over both, the state by rules on the paths of its arrays.

`data` copies the state, `fsdp` splits it: each device keeps its part of the parameters, of their moving average and of
the optimizer's moments. A step gathers the parameters whole, computes on its rows of the batch as if alone, and keeps
its part of the summed gradient. So every variant runs on every mesh, whatever operations it is made of, and the results
differ by rounding only.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.registry import did_you_mean
from zoo.typing import PyTree

AXES = ("data", "fsdp")
# Arrays with fewer elements stay whole: moving them about costs more than keeping them.
MIN_SHARDED = 1024
Rules = Mapping[str, Sequence[str | None]]


class MeshError(ValueError):
    """The devices cannot be laid out as asked; the message says what would be right."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the user asks of the devices.

    Attributes:
      devices: how many of each process's devices are used; None for all.
      mesh: sizes by axis name, one of which may be left out; empty for all devices on `data`.
    """

    devices: int | None = None
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)


def parse_mesh(text: str) -> dict[str, int]:
    """Reads "data=4,fsdp=2".

    Raises:
      MeshError: it is not written so, or an axis is unknown or named twice.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise MeshError(f"--mesh {text}: there is no axis {name!r}. {did_you_mean(name, AXES)}")
        if not size.isdecimal() or int(size) < 1 or name in sizes:
            raise MeshError(f"--mesh {text}: each axis is named once with its size from 1, as in data=4,fsdp=2.")
        sizes[name] = int(size)
    if not sizes:
        raise MeshError("--mesh is written as in data=4,fsdp=2.")
    return sizes


def make_mesh(layout: Layout, batch_size: int, accumulate: int = 1) -> Mesh:
    """The mesh over the devices of all processes.

    Args:
      layout: what is asked for.
      batch_size: rows of the global batch.
      accumulate: parts that the batch is worked off in, each of which is split over all devices.

    Raises:
      MeshError: there are fewer devices, the axes do not multiply to their number, or they do not divide the batch.
    """
    devices = _devices(layout.devices)
    count = len(devices)
    sizes = dict(layout.mesh)
    asked = ",".join(f"{name}={size}" for name, size in sizes.items())
    if len(sizes) == 1:
        (given,) = sizes.values()
        if count % given:
            raise MeshError(f"mesh {asked} does not divide the {count} devices.")
    missing = [name for name in AXES if name not in sizes]
    for name in missing:
        sizes[name] = count // math.prod(sizes.values()) if name == missing[0] else 1
    if math.prod(sizes.values()) != count:
        pairs = " or ".join(f"data={count // size},fsdp={size}" for size in _divisors(count))
        raise MeshError(
            f"mesh {asked} is for {math.prod(sizes.values())} devices, and there are {count}: "
            f"{pairs} would be right, or --devices for fewer."
        )
    if batch_size % (count * accumulate):
        parts = f" times train.accumulate={accumulate}" if accumulate > 1 else ""
        unit = count * accumulate
        near = sorted({max(batch_size // unit, 1) * unit, -(-batch_size // unit) * unit})
        raise MeshError(
            f"train.batch_size={batch_size} is not a multiple of the number of devices, {count}{parts}; "
            f"{' or '.join(map(str, near))} would be."
        )
    shape = tuple(sizes[name] for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def _devices(per_process: int | None) -> list[Any]:
    if per_process is None:
        return jax.devices()
    chosen = []
    for process in range(jax.process_count()):
        local = [device for device in jax.devices() if device.process_index == process]
        if len(local) < per_process:
            kind = local[0].device_kind if local else "no device"
            raise MeshError(f"--devices {per_process}: process {process} has {len(local)} ({kind}).")
        chosen += local[:per_process]
    return chosen


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device, whole."""
    return NamedSharding(mesh, PartitionSpec())


def over_devices(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices: how a batch lies."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def put_batch(mesh: Mesh) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """A function that puts this process's rows of a batch on its devices, as part of the global batch."""
    sharding = over_devices(mesh)
    return lambda batch: {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def state_shardings(mesh: Mesh, state: PyTree, rules: Rules | None = None) -> PyTree:
    """A sharding for each array of a train state: parameters, moving average, optimizer moments and the rest.

    An array follows the first rule whose pattern is found in its path, such as "params/encoder/layers/0/mixer/query/
    kernel" or "opt/1/mu/encoder/layers/0/mixer/query/kernel": one rule covers a parameter and its moments. Without a
    rule, the largest axis that `fsdp` divides is split, and what is smaller than `MIN_SHARDED` stays whole.

    Args:
      mesh: of `make_mesh`.
      state: arrays or shapes.
      rules: by regular expression, for each axis of the array "fsdp", "data" or None; axes at the end may be left out.

    Raises:
      MeshError: a rule is no regular expression, finds nothing, names an unknown axis, has too many axes or splits
        one that cannot be split so.
    """
    compiled = [(_compile(pattern), pattern, tuple(axes)) for pattern, axes in (rules or {}).items()]
    used = set()

    def place(path, leaf):
        name = _name(path)
        for expression, pattern, axes in compiled:
            if expression.search(name):
                used.add(pattern)
                return NamedSharding(mesh, _checked_spec(mesh, pattern, axes, name, leaf.shape))
        return NamedSharding(mesh, _largest_axis(mesh, leaf))

    placed = jax.tree.map_with_path(place, state)
    for _, pattern, _ in compiled:
        if pattern not in used:
            paths = [_name(path) for path, _ in jax.tree.leaves_with_path(state)]
            some = ", ".join([path for path in paths if path.startswith("params/")][:3])
            raise MeshError(f"train.sharding: no array has {pattern!r} in its path; paths are, for example, {some}.")
    return placed


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _compile(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise MeshError(f"train.sharding: {pattern!r} is no regular expression: {error}.") from error


def _checked_spec(mesh: Mesh, pattern: str, axes: tuple, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    where = f"train.sharding {pattern!r}: [{', '.join(str(axis) for axis in axes)}] does not fit {path} {list(shape)}"
    # The same path may lead to a scalar beside (a count of the optimizer); there is nothing to split in it.
    if not shape:
        return PartitionSpec()
    if len(axes) > len(shape):
        raise MeshError(f"{where}: it has {len(shape)} axes.")
    for index, axis in enumerate(axes):
        if axis is None:
            continue
        if axis not in AXES:
            raise MeshError(f"{where}: there is no mesh axis {axis!r}. {did_you_mean(str(axis), AXES)}")
        if axes.count(axis) > 1:
            raise MeshError(f"{where}: {axis} is named twice.")
        if shape[index] % mesh.shape[axis]:
            raise MeshError(
                f"{where}: axis {index} is {shape[index]}, which {axis}={mesh.shape[axis]} does not divide."
            )
    return PartitionSpec(*axes)


def _largest_axis(mesh: Mesh, leaf: Any) -> PartitionSpec:
    size = mesh.shape["fsdp"]
    splittable = [(length, -index) for index, length in enumerate(leaf.shape) if length % size == 0]
    if size == 1 or not splittable or math.prod(leaf.shape) < MIN_SHARDED:
        return PartitionSpec()
    axis = -max(splittable)[1]
    return PartitionSpec(*[None] * axis, "fsdp")


def describe(mesh: Mesh) -> str:
    """The mesh as text, "data=4,fsdp=2"."""
    return ",".join(f"{name}={mesh.shape[name]}" for name in AXES)
