"""Several blocks along time where channels are too few to fill a GPU: what a span passes on, and the chain of spans.

A span of its own accord, from zero, ends in L_s, and multiplies what it is given by exp(A Σ delta). So one more pass,
which reads less than the proper one and writes next to nothing, gives the states before all spans, and likewise
backwards the cotangents of the states after them.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_gpu
from zoo.ops.mosaic_gpu import SMEM, cast, load, store, synchronise
from zoo.ops.selective_scan.hopper.block import (
    BY_CHANNEL,
    BY_STATE,
    CHANNELS,
    OVER_TOKENS,
    PER_WARP,
    STATE,
    TILE,
    WARPS,
    Stream,
    Task,
    clean,
    decays,
    deltas,
    gradient_of_scan,
    over_channels,
    over_states,
    slots,
    warps,
)
from zoo.typing import Array

# Blocks that keep the 132 multiprocessors of a Hopper GPU busy, two on each, and spans that are worth their pass.
_ENOUGH_BLOCKS = 264
_FEWEST_SPANS, _FEWEST_TILES = 3, 4


def choose(batch: int, length: int, width: int) -> int:
    """How many spans: by arithmetic, not by measurements."""
    tiles, blocks = length // TILE, batch * width // CHANNELS
    fitting = [n for n in range(1, tiles // _FEWEST_TILES + 1) if tiles % n == 0 and n * blocks <= _ENOUGH_BLOCKS]
    most = max(fitting, default=1)
    return most if most >= _FEWEST_SPANS else 1


def ends(task: Task, streamed: dict[str, Array], rate: Array, bias: Array, *, gradient: bool) -> tuple[Array, Array]:
    """What spans end in that start from zero, and what they multiply with.

    Args:
      task: what it is for.
      streamed: u, dt, b and mask of the forward kernel; or, for the cotangents, dt, z, c, mask and dout.
      rate, bias: as of the forward kernel.
      gradient: whether it is the cotangent of the state that goes through the spans, backwards.

    Returns:
      Both [spans, B, E / 16, 16, N].
    """
    dtypes = {name: x.dtype for name, x in streamed.items()}
    shape = task.states_shape(task.spans)
    out = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:-1], jnp.float32)]
    tile = SMEM((TILE, WARPS, PER_WARP), jnp.float32)
    scratch = [*slots(task, dtypes).values(), tile, tile, mosaic_gpu.barrier(len(dtypes), 2)]

    def body(*refs: Any) -> None:
        count = len(dtypes)
        sources, held = dict(zip(dtypes, refs, strict=False)), dict(zip(dtypes, refs[count + 4 :], strict=False))
        rate, bias, end, total = refs[count : count + 4]
        delta, value, arrived = refs[2 * count + 4 :]
        stream = Stream(task, sources, held, arrived, last_first=gradient)
        _span(task, stream, SimpleNamespace(delta=delta, value=value), gradient, rate, bias, end, total)

    launched = mosaic_gpu.launch(
        body, out=out, **task.grid, scratch=scratch, name="selective_scan_spans", unsafe_no_auto_barriers=True
    )
    end, total = launched(*streamed.values(), rate, bias)
    return end, jnp.exp2(total[..., None] * rate)


def _span(task, stream, room, gradient, rate, bias, end, total) -> None:
    here = (jax.lax.axis_index("span"), jax.lax.axis_index("example"), warps())
    stream.start(0)
    rate, bias = load(rate.at[warps()], STATE), load(bias.at[warps()], OVER_TOKENS)

    def one_tile(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, sums = carry
        tile = stream.wait(i)
        _, delta = deltas(tile, bias, task)
        store(room.delta, delta)
        store(room.value, gradient_of_scan(tile, task) if gradient else delta * clean(tile, "u", task))
        synchronise()  # also: nobody reads tile i - 1 any more
        stream.start(i + 1)

        vectors = tile.c if gradient else tile.b

        def token(step: Array, h: Array) -> Array:
            t = task.within(TILE - 1 - step if gradient else step)
            delta, value = load(room.delta.at[t], BY_CHANNEL), load(room.value.at[t], BY_CHANNEL)
            own = over_states(value, task.states) * over_channels(load(vectors.at[t], BY_STATE))
            decay = decays(delta, rate)
            return decay * (h + own) if gradient else decay * h + own

        h = jax.lax.fori_loop(0, TILE, token, h, unroll=4)
        synchronise()  # delta and value are read
        return h, sums + cast(delta.sum(0), OVER_TOKENS)

    zero = cast(jnp.zeros((WARPS, PER_WARP, task.states), jnp.float32), STATE)
    row = cast(jnp.zeros((WARPS, PER_WARP), jnp.float32), OVER_TOKENS)
    h, sums = jax.lax.fori_loop(0, task.tiles, one_tile, (zero, row))
    store(end.at[here], h)
    store(total.at[here], sums)


def chain(end: Array, passed: Array, start: Array, *, last_first: bool = False) -> Array:
    """The states before all spans [spans, ...], given the first; or the states after them, given the last."""
    state, states = start, []
    order = range(len(end))[::-1] if last_first else range(len(end))
    for span in order:
        states.append(state)
        state = passed[span] * state + end[span]
    return jnp.stack(states[::-1] if last_first else states)
