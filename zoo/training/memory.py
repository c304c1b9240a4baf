"""Whether an update fits the device, by the compiler's plan, and what would fit where it does not.

Without this a run on a GPU ends in the allocator's error, and one on a CPU is killed by the system without a word.
"""

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from zoo.functional import Functional
from zoo.training.build import make_task, model_maker
from zoo.training.host_memory import host_memory
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import Recipe
from zoo.training.sharding import over_devices
from zoo.training.step import abstract_state, make_train_step

Plan = Callable[[int, int, int], int]
"""`plan(batch_size, accumulate, max_len)`: bytes that one device needs for one update, by a compilation."""

# Compilations that each search may cost.
TRIES = {"accumulate": 3, "batch_size": 4, "max_len": 5}
KEYS = {"accumulate": "train.accumulate", "batch_size": "train.batch_size", "max_len": "task.max_len"}


class OutOfMemory(RuntimeError):
    """An update does not fit the memory; the message says which settings would."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """Settings whose update fits, each changed alone and compiled; None where none was found.

    Attributes:
      planned: bytes that the present update needs on one device; None where the compiler itself ran out of memory.
      available: bytes that one device has; None where that is unknown.
      accumulate: smallest number of parts.
      batch_size: largest batch.
      max_len: largest length, a multiple of 16 above 64.
      present: the present batch_size, accumulate and max_len.
      needs: bytes of each setting that was found, by its name.
      least: the smallest need of all that was compiled, and its setting ("train.batch_size=1"); None where nothing was.
      devices: number of devices that share a batch.
    """

    planned: int | None
    available: int | None
    accumulate: int | None
    batch_size: int | None
    max_len: int | None
    present: tuple[int, int, int]
    needs: Mapping[str, int]
    least: tuple[int, str] | None = None
    devices: int = 1

    def text(self) -> str:
        """The whole as one paragraph."""
        options = []
        for name, need in self.needs.items():
            value = getattr(self, name)
            note = f"the same update in {value} parts, " if name == "accumulate" else ""
            options.append(f"{KEYS[name]}={value} ({note}{amount(need)})")
        others = "model.remat=full and a mixer of linear memory may help"
        if options:
            verb = ("This needs", "These need") if self._should_fit() else ("This fits", "These fit")
            half = " at most half of it" if self._should_fit() else ""
            return f"{self._need()} {verb[len(options) > 1]}{half}: {', or '.join(options)}. {others} as well."
        least = f"; the least is {amount(self.least[0])}, with {self.least[1]}" if self.least else ""
        return (
            f"{self._need()} No accumulation, smaller batch or shorter length alone was found to fit{least}. {others}."
        )

    def _should_fit(self) -> bool:
        return self.planned is not None and fits(self.planned, self.available)

    def _need(self) -> str:
        batch_size, accumulate, max_len = self.present
        what = f"one update of batch {batch_size} x {max_len}" + (f" in {accumulate} parts" if accumulate > 1 else "")
        each = " on each device" if self.devices > 1 else ""
        if self.planned is None:
            text = f"{what} needs more memory{each} than the compiler can plan with"
        else:
            text = f"{what} needs {amount(self.planned)} of memory{each} by the compiler's plan"
        if self.available is None:
            return f"{text}."
        if self._should_fit():
            return f"{text}; {amount(self.available)} are there, but other arrays or processes hold too much of them."
        return f"{text}, {amount(self.available)} are available."


def advice(
    plan: Plan, *, planned: int | None, available: int | None, batch_size: int, accumulate: int, max_len: int, rows: int
) -> Advice:
    """Looks for settings that fit, with at most twelve compilations.

    Args:
      plan: see `plan_step`. A setting for which it raises counts as one that does not fit.
      planned: bytes of the present settings; None where the compiler ran out of memory. Where they are within those
        available, what is looked for needs at most half of them.
      available: bytes of one device; None where unknown.
      batch_size, accumulate, max_len: the present settings.
      rows: number of devices, which must divide each part of a batch.
    """
    limit = math.inf if available is None else available
    if planned is not None and planned <= limit:
        limit = planned // 2
    part, step = batch_size // accumulate, rows * accumulate
    # Of each option: what memory grows with, ascending to its present value, and the settings that have it. A length
    # below a 64th of the present one would be another task.
    searches: dict[str, tuple[list[int], Callable[[int], tuple[int, int, int]]]] = {
        "accumulate": (
            [*(size for size in range(rows, part, rows) if batch_size % size == 0), part],
            lambda size: (batch_size, batch_size // size, max_len),
        ),
        "batch_size": ([*range(step, batch_size, step), batch_size], lambda size: (size, accumulate, max_len)),
        "max_len": (
            [*(size for size in range(-(-max_len // 64), max_len) if size <= 64 or size % 16 == 0), max_len],
            lambda size: (batch_size, accumulate, size),
        ),
    }
    found: dict[str, int | None] = dict.fromkeys(searches)
    needs: dict[str, int] = {}
    least: list[tuple[int, str]] = []
    for name, (sizes, settings) in searches.items():
        seen = _search(sizes, lambda size, of=settings: _try(plan, *of(size)), limit, planned, TRIES[name])
        value = {size: batch_size // size if name == "accumulate" else size for size in seen}
        least += [(int(need), f"{KEYS[name]}={value[size]}") for size, need in seen.items() if need < math.inf]
        fitting = [size for size, need in seen.items() if need <= limit and need < math.inf]
        if fitting:
            found[name], needs[name] = value[max(fitting)], int(seen[max(fitting)])
    now = (batch_size, accumulate, max_len)
    return Advice(planned, available, **found, present=now, needs=needs, least=min(least, default=None), devices=rows)


def _try(plan: Plan, *settings: int) -> float:
    try:
        return plan(*settings)
    except Exception:  # a length that a model cannot have, say: the search for advice must not hide what it is about
        return math.inf


def _search(
    sizes: list[int], need: Callable[[int], float], limit: float, planned: int | None, tries: int
) -> dict[int, float]:
    """What was seen to be needed on the way to the largest of `sizes` within `limit`; the last of them needs `planned`.

    Needs grow with sizes by and large, but neither smoothly nor always: a model may turn to another algorithm. So where
    the first guess does not fit the smallest size comes next, and after each miss the next guess is nearer to one that
    fits.
    """
    seen: dict[int, float] = {}
    low, high, misses = -1, len(sizes) - 1, 0
    ends = {-1: (0, 0.0), high: (sizes[high], math.inf if planned is None else float(planned))}
    for attempt in range(tries):
        if high - low <= 1:
            break
        lowest = attempt > 0 and low < 0
        guess = sizes[0] if lowest else _between(*ends[low], *ends[high], limit, 0.8**misses)
        if low >= 0 and ends[low][1] >= 0.95 * limit and guess < 1.05 * sizes[low]:
            break  # as good as the largest
        index = min(max(bisect.bisect_right(sizes, guess) - 1, low + 1), high - 1)
        seen[sizes[index]] = result = need(sizes[index])
        ends[index] = (sizes[index], result)
        if result <= limit and result < math.inf:
            low, misses = index, misses if lowest else 0
        else:
            high, misses = index, misses + 1
    return seen


def _between(size: int, need: float, larger: int, more: float, limit: float, share: float) -> float:
    """A share of the way to the size that may need `limit`, by a line or a power: both are cautious for polynomials."""
    if not (need < more < math.inf and limit < math.inf):
        return (size + larger) / 2
    guess = size + (limit - need) / (more - need) * (larger - size)
    if need > 0:
        guess = max(guess, size * (limit / need) ** (math.log(larger / size) / math.log(more / need)))
    return size + (guess - size) * share


def require_memory(
    compiled: jax.stages.Compiled, plan: Plan, *, batch_size: int, accumulate: int, max_len: int, rows: int
) -> None:
    """Lets an update pass that fits, or whose memory is unknown.

    Args:
      compiled: the update.
      plan: see `plan_step`; called only where the update does not fit.
      batch_size, accumulate: of the recipe.
      max_len: length of the batch that `compiled` takes.
      rows: number of devices, which must divide each part of a batch.

    Raises:
      OutOfMemory: it does not fit.
    """
    planned, available = planned_bytes(compiled), _available(rows)
    if fits(planned, available):
        return
    settings = {"batch_size": batch_size, "accumulate": accumulate, "max_len": max_len, "rows": rows}
    raise OutOfMemory(advice(plan, planned=planned, available=available, **settings).text())


def out_of_memory(
    error: BaseException, plan: Plan, *, batch_size: int, accumulate: int, max_len: int, rows: int
) -> OutOfMemory | None:
    """What to raise in place of an error of a compilation or of an update; None where it is not about memory.

    Where the plan says that the update fits, something else holds memory too: then the advice is for half the need.

    Args:
      error: as it came from JAX.
      plan, batch_size, accumulate, max_len, rows: see `require_memory`.
    """
    if not is_out_of_memory(error):
        return None
    planned = _try(plan, batch_size, accumulate, max_len)
    settings = {"batch_size": batch_size, "accumulate": accumulate, "max_len": max_len, "rows": rows}
    found = advice(plan, planned=None if math.isinf(planned) else int(planned), available=_available(rows), **settings)
    return OutOfMemory(f"{found.text()} (XLA: {str(error).strip().splitlines()[0]})")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA found too little memory on the device, in a compilation or in a call."""
    text = str(error)
    # The memory of one core (a kernel's tiles) is another matter: a smaller batch does not help there.
    if not isinstance(error, jax.errors.JaxRuntimeError) or re.search(
        r"shared memory|memory space [vs]mem", text, re.I
    ):
        return False
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def fits(planned: int, available: int | None) -> bool:
    """Whether `planned` bytes are within those available; unknown counts as enough."""
    return available is None or planned <= available


def amount(count: float) -> str:
    """Bytes as a person reads them: "19.6 GB", "350.0 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that one device needs for one call: arguments, results and temporaries, donated memory counted once.

    XLA compiles one program that each device runs on its part, and its analysis is of that program. So it is for eight
    simulated devices as well: there a split batch counts an eighth, and a replicated state counts whole. 0 where the
    backend has no analysis.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return int(used - memory.alias_size_in_bytes)


def device_memory() -> int | None:
    """Bytes that one device of this process can give to an update, its arguments included; None where unknown.

    On an accelerator this is the allocator's limit, not the free part of it: the state that is there already is part of
    the plan. On a CPU see `host_memory`; its simulated devices share that.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit") or None
    total = host_memory()
    return None if total is None else total // jax.local_device_count()


def _available(rows: int) -> int | None:
    available = device_memory()
    if available is None or jax.default_backend() != "cpu":
        return available
    # Simulated devices that are not used leave their share of the one memory to those that are.
    return available * jax.device_count() // rows


def plan_step(
    recipe: Recipe,
    batch: Mapping[str, Any],
    *,
    length: int,
    mesh: jax.sharding.Mesh | None = None,
    data_dir: Path | None = None,
) -> Plan:
    """A function that compiles the recipe's update for other settings, from shapes alone, and returns its bytes.

    It raises ValueError where the task or the model cannot have a length, and whatever XLA raises.

    Args:
      recipe: resolved.
      batch: an example, arrays or shapes [B, ...] over all devices. In each, the first axis after the batch's that
        equals `length` changes with max_len.
      length: that of `batch`.
      mesh: over which state and batch lie as in training; None for one device.
      data_dir: for the task; nothing is read from it.
    """

    def plan(batch_size: int, accumulate: int, max_len: int) -> int:
        changed = dataclasses.replace(
            recipe,
            task=dataclasses.replace(recipe.task, max_len=max_len),
            train=dataclasses.replace(recipe.train, batch_size=batch_size, accumulate=accumulate),
        )
        task = make_task(changed, data_dir)
        if task.info.max_len != max_len:
            raise ValueError(f"{recipe.task.name} cannot have max_len={max_len}, only {task.info.max_len}.")
        functional = Functional(model_maker(changed, task.info))
        optimizer = make_optimizer(changed.train)
        state = abstract_state(functional, optimizer, changed.train, mesh)
        inputs = {name: resized(array, batch_size, length, max_len) for name, array in batch.items()}
        if mesh is not None:
            inputs = {name: placed(shape, over_devices(mesh)) for name, shape in inputs.items()}
        step = make_train_step(functional, task, optimizer, changed.train, mesh)
        return planned_bytes(step.lower(state, inputs, jax.random.key(0)).compile())

    return plan


def resized(array: Any, batch_size: int, length: int, max_len: int) -> jax.ShapeDtypeStruct:
    inner = list(array.shape[1:])
    if length in inner:
        inner[inner.index(length)] = max_len
    return jax.ShapeDtypeStruct((batch_size, *inner), array.dtype)


def placed(shape: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
