"""What the kernels share: how the work is cut up, where its parts are, and the mathematics of a few tokens.

A step of the grid has `CHUNK` tokens of one example and `lanes` of its channels. Blocks of channels come one after the
other and then the next chunk, so that what all channels share, B, C and the mask, is brought into shape once, and sums
over channels are finished in VMEM; what goes from chunk to chunk, [N, E], stays there too.

States are [N, lanes], states in sublanes, channels in lanes: every 8 states of 128 channels fill a register. What a
token has for each channel is a row, which is read repeated over the sublanes; what it has for each state is a column,
repeated over 128 lanes beforehand (`spread`). A sum over states is left in 8 sublanes, and these are added for `GROUP`
tokens at a time, by reads with a stride that give the sums as rows (`sums_of_group`).
"""

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_tpu
from zoo.ops.mosaic_tpu import pl, pltpu
from zoo.ops.selective_scan import fast_math
from zoo.typing import Array

LANES, SUBLANES = 128, 8
# Tokens of a step of the grid.
CHUNK = 128
# Tokens whose code is written out one after the other: what fills a register's sublanes with 16-bit numbers.
GROUP = 16
GROUPS = CHUNK // GROUP
# States of a step, all channels, at most: the backward pass has room for those of every token of a chunk, 4 MiB.
STATES_AT_ONCE = 8192
# VMEM that the compiler gives a kernel unasked.
_USUAL_VMEM = 16 * 2**20
# Kinds of operands by name.
_KINDS = {
    **dict.fromkeys(("u", "dt", "z", "y", "dout", "du", "ddt", "dz"), "wide"),
    **dict.fromkeys(("b", "c", "db", "dc"), "narrow"),
    **dict.fromkeys(("mask", "follows"), "flags"),
    "bounds": "bounds",
    # These have all channels, although a step of the grid works on a few.
    "rate": "rate",
    **dict.fromkeys(("skip", "bias"), "channel"),
    **dict.fromkeys(("dskip", "dbias"), "total"),
    **dict.fromkeys(("first", "state", "last", "w", "drate"), "state"),
}
_OF_ALL = {name for name, kind in _KINDS.items() if kind in ("rate", "channel", "total", "state")}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a kernel is made for.

    Attributes:
      batch, length, width, states: sizes of [B, T, E] and N; whole chunks, lanes and sublanes.
      reverse: time runs from T - 1 to 0.
      dt_softplus: as in `selective_scan`.
      gate, masked, packed: whether there are z, mask, starts.
      keep: whether the states before each chunk are written.
    """

    batch: int
    length: int
    width: int
    states: int
    reverse: bool
    dt_softplus: bool
    gate: bool
    masked: bool
    packed: bool
    keep: bool

    @property
    def lanes(self) -> int:
        """Channels of a step of the grid: as many as there is room for, a divisor of E."""
        tiles = self.width // LANES
        most = max(1, STATES_AT_ONCE // (self.states * LANES))
        return LANES * max(n for n in range(1, most + 1) if tiles % n == 0)

    @property
    def chunks(self) -> int:
        """How many there are."""
        return self.length // CHUNK

    @property
    def grid(self) -> tuple[int, int, int]:
        """Examples, chunks, blocks of channels."""
        return self.batch, self.chunks, self.width // self.lanes

    def specs(self, *, last_first: bool) -> dict[str, Any]:
        """Block specifications by kind: which part of an array a step of the grid has.

        Args:
          last_first: whether the chunks are gone through from the last to the first, in terms of the scan.
        """
        states, lanes, width, chunks = self.states, self.lanes, self.width, self.chunks

        def number(i: Any) -> Any:
            return chunks - 1 - i if last_first else i

        def place(i: Any) -> Any:
            return chunks - 1 - i if last_first != self.reverse else i

        def spec(shape: tuple[int | None, ...], index: Callable[..., tuple[Any, ...]]) -> Any:
            return pl.BlockSpec(shape, index)

        return {
            "wide": spec((None, CHUNK, lanes), lambda b, i, e: (b, place(i), e)),  # [B, T, E]
            "narrow": spec((None, states, CHUNK), lambda b, i, e: (b, 0, place(i))),  # [B, N, T]
            "flags": spec((None, 1, CHUNK), lambda b, i, e: (b, 0, place(i))),  # [B, 1, T]
            "rate": spec((states, width), lambda b, i, e: (0, 0)),  # [N, E]
            "channel": spec((1, width), lambda b, i, e: (0, 0)),  # [1, E]
            "state": spec((None, states, width), lambda b, i, e: (b, 0, 0)),  # [B, N, E]
            "total": spec((None, 1, width), lambda b, i, e: (b, 0, 0)),  # [B, 1, E]
            "bounds": spec((None, None, states, lanes), lambda b, i, e: (number(i), b, 0, e)),  # [chunks, B, N, E]
        }

    def room(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the scratch, in float32, that `spread` fills."""
        flags = {name: (CHUNK, LANES) for name, there in (("real", self.masked), ("going", self.packed)) if there}
        return dict.fromkeys(("b_columns", "c_columns"), (CHUNK, self.states, LANES)) | flags

    def places(self, *, last_first: bool) -> list[int]:
        """Where in its group the tokens are, in the order in which they are gone through."""
        places = list(range(GROUP))
        return places[::-1] if self.reverse != last_first else places

    def rows(self, i: Any, *, last_first: bool) -> Any:
        """Where in its chunk the group is that comes as the i-th."""
        number = GROUPS - 1 - i if self.reverse != last_first else i
        return pl.ds(pl.multiple_of(number * GROUP, GROUP), GROUP)


def launch(
    task: Task,
    body: Callable[[SimpleNamespace], None],
    *,
    name: str,
    given: dict[str, Array],
    out: dict[str, Any],
    scratch: dict[str, tuple[int, ...]],
    last_first: bool,
) -> dict[str, Array]:
    """Runs a kernel.

    Args:
      task: sizes and options.
      body: takes references by name, those over all channels narrowed to the ones of its step of the grid.
      name: of the kernel, in profiles.
      given: the operands, by the names of `_KINDS`.
      out: shapes and dtypes of the results, likewise.
      scratch: shapes of further room, in float32, beside that of `spread`.
      last_first: see `Task.specs`.

    Returns:
      The results by name.
    """
    scratch = task.room() | scratch
    specs = task.specs(last_first=last_first)
    blocks = {name: specs[_KINDS[name]] for name in [*given, *out]}

    def step(*refs: Any) -> None:
        here = pl.ds(pl.multiple_of(pl.program_id(2) * task.lanes, LANES), task.lanes)
        named = zip([*given, *out, *scratch], refs, strict=True)
        body(SimpleNamespace(**{name: ref.at[:, here] if name in _OF_ALL else ref for name, ref in named}))

    # Blocks are there twice, so that they are copied while others are worked on; an eighth is for the compiler.
    sizes = [
        2 * math.prod(filter(None, blocks[name].block_shape)) * x.dtype.itemsize for name, x in (given | out).items()
    ]
    room = sum(sizes) + 4 * sum(math.prod(shape) for shape in scratch.values())
    results = mosaic_tpu.launch(
        step,
        name=name,
        semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit=max(_USUAL_VMEM, room + room // 8),
        grid=task.grid,
        in_specs=[blocks[name] for name in given],
        out_specs=[blocks[name] for name in out],
        out_shape=list(out.values()),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
    )(*given.values())
    return dict(zip(out, results, strict=True))


def spread(task: Task, refs: SimpleNamespace) -> None:
    """What a chunk's tokens have for all channels together goes to scratch: columns and flags, over 128 lanes."""

    def group(i: Array, carry: None) -> None:
        start = i * GROUP
        for source, target in ((refs.b, refs.b_columns), (refs.c, refs.c_columns)):
            # The group's tokens come to the first lanes, so that each has a lane that is known to the compiler.
            tokens = pltpu.roll(source[...], jax.lax.rem(CHUNK - start, CHUNK), 1)
            for k in range(GROUP):
                target[start + k] = jnp.broadcast_to(tokens[:, k : k + 1], (task.states, LANES))

    jax.lax.fori_loop(0, GROUPS, group, None)
    for source, target in (("mask", "real"), ("follows", "going")):
        if hasattr(refs, source):
            flags = jnp.broadcast_to(getattr(refs, source)[...], (LANES, CHUNK))
            getattr(refs, target)[...] = flags.T


def over_channels(x: Array, lanes: int) -> Array:
    """[rows, 128] of equal lanes to [rows, lanes]."""
    return jnp.concatenate([x] * (lanes // LANES), axis=1)


def row(ref: Any, token: Any, states: int) -> Array:
    """The row of a token, over all states [N, lanes]."""
    return jnp.broadcast_to(ref[pl.ds(token, 1), :], (states, ref.shape[1]))


def parts_shape(lanes: int) -> tuple[int, ...]:
    """Of the scratch of `put_sum` and `sums_of_group`: reads with a stride are for arrays of 128 lanes."""
    return lanes // LANES, GROUP * SUBLANES, LANES


def put_sum(ref: Any, place: int, x: Array) -> None:
    """Leaves what is to be summed over the states, [N, lanes], for `sums_of_group`."""
    total = tree_sum([x[n : n + SUBLANES] for n in range(0, x.shape[0], SUBLANES)])
    for n in range(ref.shape[0]):
        ref[n, place * SUBLANES : (place + 1) * SUBLANES, :] = total[:, n * LANES : (n + 1) * LANES]


def sums_of_group(ref: Any) -> Array:
    """The sums over the states for each token of the group, [GROUP, lanes]."""
    tiles = [
        tree_sum([ref.at[tile][pl.ds(n, GROUP, stride=SUBLANES), :] for n in range(SUBLANES)])
        for tile in range(ref.shape[0])
    ]
    return jnp.concatenate(tiles, axis=1)


def tree_sum(terms: list[Array]) -> Array:
    """The sum of some arrays, neighbours first."""
    while len(terms) > 1:
        paired = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = paired + terms[2 * len(paired) :]
    return terms[0]


def clean(task: Task, refs: SimpleNamespace, name: str, rows: Any) -> Array:
    """A wide operand's rows in float32, zero at padding, [GROUP, lanes]."""
    x = getattr(refs, name)[rows, :].astype(jnp.float32)
    return only_real(task, refs, x, rows)


def only_real(task: Task, refs: SimpleNamespace, x: Array, rows: Any) -> Array:
    """Rows [GROUP, lanes] with zeros at padding."""
    return jnp.where(over_channels(refs.real[rows, :], task.lanes) > 0.5, x, 0.0) if task.masked else x


def raw_deltas(task: Task, refs: SimpleNamespace, rows: Any) -> Array:
    """The time steps of a group before the softplus, [GROUP, lanes]."""
    return clean(task, refs, "dt", rows) + refs.bias[...]


def deltas(task: Task, refs: SimpleNamespace, rows: Any) -> Array:
    """The time steps of a group, zero at padding, [GROUP, lanes]."""
    raw = raw_deltas(task, refs, rows)
    return only_real(task, refs, fast_math.softplus(raw, _divide) if task.dt_softplus else raw, rows)


def decays(task: Task, refs: SimpleNamespace, rate: Array, delta: Array, token: Any) -> Array:
    """exp(delta A) [N, lanes] of a token, given A log2(e); zero where a packed sequence begins."""
    decay = jnp.exp2(delta * rate)
    return decay * over_channels(row(refs.going, token, task.states), task.lanes) if task.packed else decay


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), below -87 that of -87."""
    return _divide(1.0, 1.0 + jnp.exp(jnp.minimum(-x, 87.0)))


def _divide(x: Array | float, y: Array) -> Array:
    """x / y for ordinary y; without what infinities, zeros and the like need, which takes as long again."""
    return x * mosaic_tpu.reciprocal(y, full_range=False)
