"""The forward kernel: states in registers from the first token of a span to its last."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_gpu
from zoo.ops.mosaic_gpu import SMEM, cast, copy_out, load, read_out, store, synchronise
from zoo.ops.selective_scan.hopper import block
from zoo.ops.selective_scan.hopper.block import (
    BY_CHANNEL,
    BY_STATE,
    OVER_TOKENS,
    PER_WARP,
    STATE,
    TILE,
    TOKENS,
    WARPS,
    Stream,
    Task,
    clean,
    decays,
    deltas,
    over_channels,
    over_states,
    over_tokens,
    put,
    sigmoid,
    slots,
    warps,
)
from zoo.typing import Array


def run(task: Task, streamed: dict[str, Array], rate: Array, skip: Array, bias: Array, first: Array):
    """Runs the kernel.

    Args:
      task: what it is made for.
      streamed: u, dt and, with a gate, z [B, T, E / 16, 16]; b and c [B, T, N] in float32, zero at padding; with a
        mask, mask [B, T] in float32.
      rate: A log2(e) [E / 16, 16, N].
      skip, bias: D and dt_bias [E / 16, 16], in float32.
      first: the states before each span [spans, B, E / 16, 16, N].

    Returns:
      y as u, the states after each span as `first`, and with `task.keep` those before each tile, in the order of
      processing, [T / TILE, B, E / 16, 16, N].
    """
    dtypes = {name: x.dtype for name, x in streamed.items()}
    out = [
        jax.ShapeDtypeStruct(streamed["u"].shape, streamed["u"].dtype),
        jax.ShapeDtypeStruct(task.states_shape(task.spans), jnp.float32),
    ]
    if task.keep:
        out.append(jax.ShapeDtypeStruct(task.states_shape(task.length // TILE), jnp.float32))
    tile = SMEM((TILE, WARPS, PER_WARP), jnp.float32)
    scratch = [*slots(task, dtypes).values(), tile, tile, tile, mosaic_gpu.barrier(len(dtypes), 2)]

    def body(*refs: Any) -> None:
        count, outputs = len(dtypes), len(out)
        sources, (rate, skip, bias, first) = refs[:count], refs[count : count + 4]
        y, last, *bounds = refs[count + 4 : count + 4 + outputs]
        held = refs[count + 4 + outputs :]
        stream = Stream(
            task,
            dict(zip(dtypes, sources, strict=True)),
            dict(zip(dtypes, held[:count], strict=True)),
            held[-1],
        )
        delta, du, sums = held[count:-1]
        room = SimpleNamespace(delta=delta, du=du, sums=sums)
        _span(task, stream, room, rate, skip, bias, first, y, last, bounds[0] if bounds else None)

    launched = mosaic_gpu.launch(
        body, out=out, **task.grid, scratch=scratch, name="selective_scan", unsafe_no_auto_barriers=True
    )
    y, last, *bounds = launched(*streamed.values(), rate, skip, bias, first)
    return y, last, bounds[0] if bounds else None


def _span(task, stream, room, rate, skip, bias, first, y, last, bounds) -> None:
    span, example = jax.lax.axis_index("span"), jax.lax.axis_index("example")
    stream.start(0)
    rate = load(rate.at[warps()], STATE)
    skip, bias = load(skip.at[warps()], OVER_TOKENS), load(bias.at[warps()], OVER_TOKENS)

    def one_tile(i: Array, h: Array) -> Array:
        tile = stream.wait(i)
        if bounds is not None:
            store(bounds.at[stream.number(i), example, warps()], h)
        _, delta = deltas(tile, bias, task)
        store(room.delta, delta)
        store(room.du, delta * clean(tile, "u", task))
        read_out()
        synchronise()  # also: the outputs of tile i - 1 have left the slot of tile i + 1
        stream.start(i + 1)

        h = jax.lax.fori_loop(0, TILE // block.TOGETHER, lambda part, h: _tokens(task, tile, room, rate, part, h), h)
        synchronise()
        store(tile.u, _outputs(task, tile, room, skip).astype(tile.u.dtype))
        synchronise()
        copy_out(tile.u, stream.part("u", y, i))
        return h

    h = jax.lax.fori_loop(0, task.tiles, one_tile, load(first.at[span, example, warps()], STATE))
    store(last.at[span, example, warps()], h)
    read_out()


def _tokens(task: Task, tile: SimpleNamespace, room: SimpleNamespace, rate: Array, part: Array, h: Array) -> Array:
    places = [task.within(part * block.TOGETHER + k) for k in range(block.TOGETHER)]
    sums = []
    for t in places:
        delta, du = load(room.delta.at[t], BY_CHANNEL), load(room.du.at[t], BY_CHANNEL)
        b, c = over_channels(load(tile.b.at[t], BY_STATE)), over_channels(load(tile.c.at[t], BY_STATE))
        h = decays(delta, rate) * h + over_states(du, task.states) * b
        sums.append(cast((h * c).sum(2), BY_CHANNEL))
    put(room.sums, places, sums)
    return h


def _outputs(task: Task, tile: SimpleNamespace, room: SimpleNamespace, skip: Array) -> Array:
    """(Σ_n C h + D u) silu(z); zero at padding, where u, z and C are."""
    out = load(room.sums, TOKENS) + over_tokens(skip) * clean(tile, "u", task)
    if not task.gate:
        return out
    z = clean(tile, "z", task)
    return out * z * sigmoid(z)
