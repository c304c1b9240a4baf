"""What the kernels share: how a block's work is laid out over its threads, its stream of tiles, and the mathematics.

A block has `CHANNELS` = 64 channels of one example and goes through time by itself, `TILE` tokens after `TILE`. Every
warp has 16 channels to itself, in all that follows, so that no step makes warps wait for each other. The states are
[4, 16, N], warps first: a thread has two channels and a quarter of their states in its registers. For the sums over
states that costs two shuffles, and in exchange a sum over a warp's channels is one addition and three shuffles per
state, which is what the gradients of B and C consist of.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_gpu
from zoo.ops.mosaic_gpu import cast, copy_in, load, pl, plgpu, store, tiled
from zoo.ops.selective_scan import fast_math
from zoo.typing import Array, DType

WARPS, PER_WARP = 4, 16
CHANNELS = WARPS * PER_WARP
TILE = 32
# Tokens whose code is written out one after the other, at most: between two writes loads can be moved ahead.
TOGETHER = 8
# The states are a multiple of this.
STATES = 8
# The operands with a value per token and channel.
WIDE = ("u", "dt", "z", "dout")

# [4, 16, N]: a warp's 8 x 4 threads have 8 channels times 4 pairs of neighbouring states.
STATE = tiled(((WARPS, PER_WARP, 8), (8, 8), (2,)), warps=(-6,), lanes=(-3, -2))
BY_CHANNEL = STATE.reduce(2)
BY_STATE = STATE.reduce((0, 1))
# [TILE, 4, 16]: a warp's 4 x 8 threads have 4 tokens times 8 pairs of neighbouring channels.
TOKENS = tiled(((4, WARPS, PER_WARP), (2,)), warps=(-3,), lanes=(-4, -2))
BY_TOKEN = TOKENS.reduce((1, 2))
OVER_TOKENS = TOKENS.reduce(0)
# [4, N], the sum over each warp's channels.
BY_WARP = STATE.reduce(1)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a kernel is made for.

    Attributes:
      batch, length, width, states: sizes of [B, T, E] and N; whole tiles, blocks and pairs of quads.
      spans: parts of T that different blocks work on, each of as many tiles.
      reverse: time runs from T - 1 to 0.
      dt_softplus: as in `selective_scan`.
      gate, masked: whether there are z, mask.
      keep: whether the states before each tile are written.
    """

    batch: int
    length: int
    width: int
    states: int
    spans: int
    reverse: bool
    dt_softplus: bool
    gate: bool
    masked: bool
    keep: bool

    @property
    def tiles(self) -> int:
        """Of a span."""
        return self.length // TILE // self.spans

    @property
    def sub(self) -> int:
        """Tokens whose states and decays the backward pass has in registers at once: about 128 of them."""
        return max(1, min(TOGETHER, 128 // self.states))

    @property
    def grid(self) -> dict[str, Any]:
        """The arguments of `launch` that say so."""
        grid = (self.spans, self.batch, self.width // CHANNELS)
        return {"grid": grid, "grid_names": ("span", "example", "block")}

    def states_shape(self, *leading: int) -> tuple[int, ...]:
        """Of states in device memory, [..., B, E / 16, 16, N]."""
        return (*leading, self.batch, self.width // PER_WARP, PER_WARP, self.states)

    def within(self, step: Any) -> Any:
        """Where in its tile the token is that is processed as number `step`."""
        return TILE - 1 - step if self.reverse else step


@dataclasses.dataclass(frozen=True)
class Stream:
    """Tiles of some operands on their way through shared memory, two at a time.

    Attributes:
      task: the kernel's.
      sources: [B, T, ...] by name, in device memory; of those in `WIDE`, [B, T, E / 16, 16], a block has its share, as
        of "bounds", [T / TILE, B, E / 16, 16, N].
      slots: room for two tiles of each, in shared memory.
      arrived: two barriers that as many copies complete.
      last_first: whether the span's tiles are wanted from the last to the first.
    """

    task: Task
    sources: dict[str, Any]
    slots: dict[str, Any]
    arrived: Any
    last_first: bool = False

    def number(self, i: Any) -> Any:
        """Of the tile that comes as the i-th, in the order of processing of the scan."""
        first = jax.lax.axis_index("span") * self.task.tiles
        return first + (self.task.tiles - 1 - i if self.last_first else i)

    def rows(self, i: Any) -> Any:
        """Its tokens in [B, T, ...]."""
        count, number = self.task.length // TILE, self.number(i)
        return pl.ds(TILE * (count - 1 - number if self.task.reverse else number), TILE)

    def part(self, name: str, ref: Any, i: Any) -> Any:
        """Its share of an array in device memory."""
        example = jax.lax.axis_index("example")
        if name == "bounds":
            return ref.at[self.number(i), example, warps()]
        return ref.at[example, self.rows(i), warps(), :] if name in WIDE else ref.at[example, self.rows(i)]

    def start(self, i: Any) -> None:
        """Copies the i-th tile, if there is one, into slot i mod 2, which nobody uses any more."""
        slot = jax.lax.rem(i, 2)

        @pl.when(i < self.task.tiles)
        def _() -> None:
            for name, source in self.sources.items():
                copy_in(self.part(name, source, i), self.slots[name].at[slot], self.arrived.at[slot])

    def wait(self, i: Any) -> SimpleNamespace:
        """The i-th tile, once it is there, as references by name."""
        slot = jax.lax.rem(i, 2)
        plgpu.barrier_wait(self.arrived.at[slot])
        return SimpleNamespace(**{name: ref.at[slot] for name, ref in self.slots.items()})


def warps() -> Any:
    """The block's share of E / 16."""
    return pl.ds(jax.lax.axis_index("block") * WARPS, WARPS)


def slots(task: Task, dtypes: Mapping[str, DType]) -> dict[str, Any]:
    """Scratch types of a stream: two tiles of each operand."""
    shapes = {
        "mask": (2, TILE),
        "b": (2, TILE, task.states),
        "c": (2, TILE, task.states),
        "bounds": (2, WARPS, PER_WARP, task.states),
    }
    return {
        name: mosaic_gpu.SMEM((2, TILE, WARPS, PER_WARP) if name in WIDE else shapes[name], dtype)
        for name, dtype in dtypes.items()
    }


def over_states(x: Array, states: int) -> Array:
    """[4, 16] to [4, 16, N]."""
    return cast(jax.lax.broadcast_in_dim(x, (WARPS, PER_WARP, states), (0, 1)), STATE)


def over_channels(x: Array) -> Array:
    """[N] to [4, 16, N]."""
    return cast(jax.lax.broadcast_in_dim(x, (WARPS, PER_WARP, *x.shape), (2,)), STATE)


def over_tokens(x: Array) -> Array:
    """[4, 16] to [TILE, 4, 16]."""
    return cast(jax.lax.broadcast_in_dim(x, (TILE, WARPS, PER_WARP), (1, 2)), TOKENS)


def clean(tile: SimpleNamespace, name: str, task: Task) -> Array:
    """A wide operand's tile in float32, zero at padding, [TILE, 4, 16]."""
    x = load(getattr(tile, name), TOKENS).astype(jnp.float32)
    return jnp.where(real(tile), x, 0.0) if task.masked else x


def real(tile: SimpleNamespace) -> Array:
    """True at real tokens, [TILE, 4, 16]."""
    mask = load(tile.mask, BY_TOKEN)
    return cast(jax.lax.broadcast_in_dim(mask, (TILE, WARPS, PER_WARP), (0,)), TOKENS) > 0.5


def deltas(tile: SimpleNamespace, bias: Array, task: Task) -> tuple[Array, Array]:
    """The time steps of a tile before and after the softplus, the latter zero at padding, [TILE, 4, 16]."""
    raw = clean(tile, "dt", task) + over_tokens(bias)
    delta = fast_math.softplus(raw) if task.dt_softplus else raw
    return raw, jnp.where(real(tile), delta, 0.0) if task.masked else delta


def gradient_of_scan(tile: SimpleNamespace, task: Task) -> Array:
    """The cotangent of Σ_n C h + D u, from that of the output, [TILE, 4, 16]."""
    dout = clean(tile, "dout", task)
    if not task.gate:
        return dout
    z = clean(tile, "z", task)
    return dout * z * sigmoid(z)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); exp may overflow to infinity, which is right."""
    return 1.0 / (1.0 + jnp.exp(-x))


def decays(delta: Array, rate: Array) -> Array:
    """exp(delta A) [4, 16, N] of a token, given delta [4, 16] and A log2(e) [4, 16, N]."""
    return jnp.exp2(over_states(delta, rate.shape[-1]) * rate)


def put(ref: Any, index: Any, rows: Sequence[Array]) -> None:
    """Writes [4, 16] per token at these places of [TILE, 4, 16]."""
    for place, row in zip(index, rows, strict=True):
        store(ref.at[place], row)
