"""Tables between published names of tensors and the variables of a module.

A table is a list of entries, one a published tensor. `fill` reads a module's variables from tensors, `dump` does the
reverse; both account for every tensor and every variable.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.weights.errors import WeightsError, listed

Arrays = Sequence[np.ndarray]


class Layout(NamedTuple):
    """How a published tensor holds variables of ours.

    Attributes:
      read: the variables of a published tensor.
      write: the published tensor of the variables.
    """

    read: Callable[[np.ndarray], Arrays]
    write: Callable[[Arrays], np.ndarray]


def _transposed(*axes: int) -> Layout:
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Layout(lambda tensor: [tensor.transpose(axes)], lambda arrays: arrays[0].transpose(back))


SAME = Layout(lambda tensor: [tensor], lambda arrays: arrays[0])
# PyTorch's Linear [out, in]; Conv1d [out, in, W]; the same with W = 1, a Linear of ours.
LINEAR = _transposed(1, 0)
CONV = _transposed(2, 1, 0)
POINTWISE = Layout(lambda tensor: [tensor[..., 0].T], lambda arrays: arrays[0].T[..., None])
# A depthwise Conv1d [D, 1, W]; a Conv2d [H, 1, W, 1] along T with a filter a head.
DEPTHWISE = Layout(lambda tensor: [tensor[:, 0].T], lambda arrays: arrays[0].T[:, None])
PER_HEAD = Layout(lambda tensor: [tensor[:, 0, :, 0].T], lambda arrays: arrays[0].T[:, None, :, None])
# Two Linears of the same shape, one above the other.
TWO_LINEARS = Layout(
    lambda tensor: [half.T for half in np.split(tensor, 2)], lambda arrays: np.concatenate([x.T for x in arrays])
)


class Entry(NamedTuple):
    """A published tensor.

    Attributes:
      name: of the tensor.
      paths: of the variables that it holds, attributes joined by dots; none for what is no variable of ours.
      layout: how it holds them.
      fixed: for what is no variable: makes the tensor. It need not be among those that are read; if it is, it must be
        nearly equal (float32 tables of sines differ by 2e-4 between code bases).
      optional: need not be among the tensors that are read, and is not written.
      shape: of what is fixed; it is made for tensors of that shape only.
    """

    name: str
    paths: tuple[str, ...]
    layout: Layout = SAME
    fixed: Callable[[], np.ndarray] | None = None
    optional: bool = False
    shape: tuple[int, ...] = ()


Table = list[Entry]


def entry(name: str, path: str, layout: Layout = SAME) -> Entry:
    """A published tensor that is one variable of ours."""
    return Entry(name, (path,), layout)


def linear(name: str, path: str, *, bias: bool = True, layout: Layout = LINEAR) -> Table:
    """Weight, and bias, of a Linear or convolution."""
    weight = entry(f"{name}.weight", f"{path}.kernel", layout)
    return [weight, entry(f"{name}.bias", f"{path}.bias")] if bias else [weight]


def norm(name: str, path: str, *, bias: bool = True) -> Table:
    """Weight, and bias, of a norm."""
    weight = entry(f"{name}.weight", f"{path}.scale")
    return [weight, entry(f"{name}.bias", f"{path}.bias")] if bias else [weight]


def inside(table: Table, name: str, path: str) -> Table:
    """The table of a part, for the whole: prefixes before its names and its paths."""
    return [item._replace(name=f"{name}{item.name}", paths=tuple(f"{path}{x}" for x in item.paths)) for item in table]


def variables(module: nnx.Module) -> dict[str, nnx.Variable]:
    """Parameters and statistics by path."""
    state = nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def fill(module: nnx.Module, table: Table, tensors: Mapping[str, np.ndarray], *, source: str = "the tensors") -> None:
    """Puts tensors into a module, all or none; the module may be abstract (of `nnx.eval_shape`).

    Args:
      module: changed in place. The numbers take the dtype of its variables.
      table: of its variables.
      tensors: by published name.
      source: where they come from, for messages.

    Raises:
      WeightsError: tensors are missing, surplus, misshapen or no real numbers; lists them by name.
    """
    found = variables(module)
    _check_table(table, found)
    wanted = {item.name for item in table}
    problems = []
    needed = [item.name for item in table if not item.optional and item.fixed is None]
    if missing := sorted(set(needed) - set(tensors)):
        problems.append(f"missing: {listed(missing)}")
    if surplus := sorted(set(tensors) - wanted):
        problems.append(f"surplus: {listed(surplus)}")
    values: dict[str, np.ndarray] = {}
    wrong = []
    for item in table:
        if item.name in tensors:
            wrong += _read(item, tensors[item.name], found, values)
    problems += [f"misfits: {listed(wrong)}"] if wrong else []
    if problems:
        raise WeightsError(f"{source} do not fit {type(module).__name__}. {'; '.join(problems)}.")
    state = nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat))
    flat = [
        (path, variable.replace(jnp.asarray(values[".".join(map(str, path))], dtype=variable.get_value().dtype)))
        for path, variable in nnx.to_flat_state(state)
    ]
    nnx.update(module, nnx.from_flat_state(flat))


def dump(module: nnx.Module, table: Table) -> dict[str, np.ndarray]:
    """The published tensors of a module, in the dtype of its variables.

    Raises:
      WeightsError: the module has variables that the published format has no names for; lists them.
    """
    found = variables(module)
    _check_table(table, found)
    tensors = {}
    for item in table:
        if item.optional:
            continue
        if item.fixed is not None:
            tensors[item.name] = item.fixed()
        else:
            arrays = [np.asarray(found[path].get_value()) for path in item.paths]
            tensors[item.name] = np.asarray(item.layout.write(arrays), order="C")
    return tensors


def _check_table(table: Table, found: Mapping[str, Any]) -> None:
    named = [path for item in table if not item.optional for path in item.paths]
    if unnamed := sorted(set(found) - set(named)):
        raise WeightsError(f"the published format has no names for {listed(unnamed)}; build the model without these.")
    if unknown := sorted(set(named) - set(found)):
        raise WeightsError(f"the published format has tensors for {listed(unknown)}, which the model lacks.")


def _read(item: Entry, tensor: np.ndarray, found: Mapping[str, Any], values: dict[str, np.ndarray]) -> list[str]:
    """Puts the variables of a tensor into `values`; says what is wrong with it."""
    if item.fixed is not None:
        same = tensor.shape == item.shape and (not item.shape or np.allclose(tensor, item.fixed(), atol=1e-3))
        return [] if same else [f"{item.name} (a constant of the model, which has other values)"]
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        return [f"{item.name} ({tensor.dtype}, not real numbers)"]
    shapes = [found[path].get_value().shape for path in item.paths]
    zeros = [np.broadcast_to(np.zeros((), np.float32), shape) for shape in shapes]
    expected = item.layout.write(zeros).shape
    if tensor.shape != expected:
        return [f"{item.name} {list(tensor.shape)}, not {list(expected)}"]
    arrays = item.layout.read(tensor)
    for path, array in zip(item.paths, arrays, strict=True):
        # What an optional entry repeats must be equal.
        if path in values and not np.array_equal(values[path], array):
            return [f"{item.name} (differs from the tensor that it is tied to)"]
        values[path] = array
    return []
