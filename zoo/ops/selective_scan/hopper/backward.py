"""The backward kernel: tiles from the last to the first, and in each the states once more.

With h_t the state after token t, w_{t+1} the cotangent that its successors give it, and g_t = w_{t+1} + C_t dy_t::

    w_t = exp(delta_t A) g_t
    d(delta_t u_t) = Σ_n B_t g_t              dB_t = Σ_e delta_t u_t g_t
    d delta_t (by the decay) = Σ_n A w_t h_{t-1}    dC_t = Σ_e h_t dy_t      dA = Σ_t delta_t w_t h_{t-1}

The forward kernel left the state before each tile. From it the states before every few tokens (`Task.sub`) go to shared
memory; then, from the last of these stretches to the first, a stretch's states and decays come to be in registers, and
are used up backwards. So a decay costs two exponentials in all, and no state inside a stretch goes through memory.

The gradients of B and C are sums over all channels. A block adds those of its 64 in a fixed order and writes them by
themselves; the sum over blocks is XLA's. Without atomic additions the results are the same to the bit in every run.
"""

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_gpu
from zoo.ops.mosaic_gpu import SMEM, cast, copy_out, load, read_out, store, synchronise
from zoo.ops.selective_scan.hopper.block import (
    BY_CHANNEL,
    BY_STATE,
    BY_WARP,
    CHANNELS,
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
    gradient_of_scan,
    over_channels,
    over_states,
    over_tokens,
    put,
    real,
    sigmoid,
    slots,
    warps,
)
from zoo.typing import Array

_LN2 = math.log(2)
_OUTPUTS = ("u", "dt", "z", "b", "c", "rate", "skip", "bias", "first")
_ROOM = ("delta", "du", "dy", "starts", "parts")


def run(task: Task, streamed: dict[str, Array], rate: Array, skip: Array, bias: Array, last: Array) -> dict[str, Array]:
    """Runs the kernel.

    Args:
      task, rate, skip, bias: as of the forward kernel.
      streamed: as of the forward kernel, and the cotangent of y, dout [B, T, E / 16, 16], and the states before each
        tile, bounds [T / TILE, B, E / 16, 16, N].
      last: the cotangents of the states after each span [spans, B, E / 16, 16, N].

    Returns:
      The cotangents u, dt and, with a gate, z, as these are; b and c of each block [E / 64, B, T, N]; of each span and
      example, of A, rate [spans, B, E / 16, 16, N], of D and dt_bias, skip and bias [spans, B, E / 16, 16]; and of the
      states before each span, first, as `last`.
    """
    dtypes = {name: x.dtype for name, x in streamed.items()}
    out = {
        name: jax.ShapeDtypeStruct(streamed[name].shape, streamed[name].dtype)
        for name in ("u", "dt", "z")
        if name in streamed
    }
    by_block = (task.width // CHANNELS, task.batch, task.length, task.states)
    out |= {name: jax.ShapeDtypeStruct(by_block, jnp.float32) for name in ("b", "c")}
    shape = task.states_shape(task.spans)
    out |= {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in ("rate", "first")}
    out |= {name: jax.ShapeDtypeStruct(shape[:-1], jnp.float32) for name in ("skip", "bias")}
    out = {name: out[name] for name in _OUTPUTS if name in out}
    room = {name: SMEM((TILE, WARPS, PER_WARP), jnp.float32) for name in ("delta", "du", "dy")}
    room["starts"] = SMEM((TILE // task.sub, WARPS, PER_WARP, task.states), jnp.float32)
    room["parts"] = SMEM((2, WARPS, TILE, task.states), jnp.float32)

    def body(*refs: Any) -> None:
        rest = iter(refs)
        sources = {name: next(rest) for name in dtypes}
        given = SimpleNamespace(**{name: next(rest) for name in ("rate", "skip", "bias", "last")})
        outputs = SimpleNamespace(**{name: next(rest) for name in out})
        held = {name: next(rest) for name in dtypes}
        scratch = SimpleNamespace(**{name: next(rest) for name in _ROOM})
        _span(task, Stream(task, sources, held, next(rest), last_first=True), scratch, given, outputs)

    scratch = [*slots(task, dtypes).values(), *room.values(), mosaic_gpu.barrier(len(dtypes), 2)]
    launched = mosaic_gpu.launch(
        body,
        out=list(out.values()),
        **task.grid,
        scratch=scratch,
        name="selective_scan_backward",
        unsafe_no_auto_barriers=True,
    )
    return dict(zip(out, launched(*streamed.values(), rate, skip, bias, last), strict=True))


def _span(task: Task, stream: Stream, room: Any, given: Any, out: Any) -> None:
    here = (jax.lax.axis_index("span"), jax.lax.axis_index("example"), warps())
    stream.start(0)
    rate = load(given.rate.at[warps()], STATE)
    skip, bias = load(given.skip.at[warps()], OVER_TOKENS), load(given.bias.at[warps()], OVER_TOKENS)

    def one_tile(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        w, drate, dskip, dbias = carry
        tile = stream.wait(i)
        _prepare(task, tile, room, bias)
        read_out()
        synchronise()  # also: the outputs of tile i - 1 have left the slot of tile i + 1
        stream.start(i + 1)

        _starts(task, tile, room, rate)
        stretches = TILE // task.sub
        w, drate = jax.lax.fori_loop(
            0, stretches, lambda n, carry: _stretch(task, tile, room, rate, stretches - 1 - n, *carry), (w, drate)
        )
        synchronise()
        own_skip, own_bias = _finish(task, tile, room, skip, bias)
        _sum_parts(room, stream.part("b", out.b.at[jax.lax.axis_index("block")], i), 0)
        _sum_parts(room, stream.part("c", out.c.at[jax.lax.axis_index("block")], i), 1)
        synchronise()
        for name in ("u", "dt", "z") if task.gate else ("u", "dt"):
            copy_out(getattr(tile, name), stream.part(name, getattr(out, name), i))
        return w, drate, dskip + own_skip, dbias + own_bias

    zeros = cast(jnp.zeros((WARPS, PER_WARP, task.states), jnp.float32), STATE)
    row = cast(jnp.zeros((WARPS, PER_WARP), jnp.float32), OVER_TOKENS)
    carry = (load(given.last.at[here], STATE), zeros, row, row)
    w, drate, dskip, dbias = jax.lax.fori_loop(0, task.tiles, one_tile, carry)
    for ref, value in ((out.first, w), (out.rate, drate), (out.skip, dskip), (out.bias, dbias)):
        store(ref.at[here], value)
    read_out()


def _prepare(task: Task, tile: SimpleNamespace, room: Any, bias: Array) -> None:
    """What the scan reads of each token goes to shared memory."""
    _, delta = deltas(tile, bias, task)
    store(room.delta, delta)
    store(room.du, delta * clean(tile, "u", task))
    store(room.dy, gradient_of_scan(tile, task))


def _starts(task: Task, tile: SimpleNamespace, room: Any, rate: Array) -> None:
    """The states before each stretch of the tile, in the order of processing."""

    def stretch(n: Array, h: Array) -> Array:
        for k in range(task.sub):
            t = task.within(n * task.sub + k)
            delta, du = load(room.delta.at[t], BY_CHANNEL), load(room.du.at[t], BY_CHANNEL)
            b = over_channels(load(tile.b.at[t], BY_STATE))
            h = decays(delta, rate) * h + over_states(du, task.states) * b
        store(room.starts.at[n + 1], h)
        return h

    h = load(tile.bounds, STATE)
    store(room.starts.at[0], h)
    jax.lax.fori_loop(0, TILE // task.sub - 1, stretch, h)


def _stretch(
    task: Task, tile: SimpleNamespace, room: Any, rate: Array, number: Array, w: Array, drate: Array
) -> tuple[Array, Array]:
    """Goes through a stretch forwards, keeping states and decays, and then backwards.

    Returns w and the sum for A. To shared memory go, in the place of delta, du and dy, Σ_n w h A log2(e), Σ_n B g and
    Σ_n C h; and each warp's part of dB and dC.
    """
    places = [task.within(number * task.sub + k) for k in range(task.sub)]

    # Operands are loaded where they are used, twice if need be: registers are what there is least of.
    def channel(ref: Any, k: int) -> Array:
        return over_states(load(ref.at[places[k]], BY_CHANNEL), task.states)

    def state(ref: Any, k: int) -> Array:
        return over_channels(load(ref.at[places[k]], BY_STATE))

    h, decay = [load(room.starts.at[number], STATE)], []
    for k in range(task.sub):
        decay.append(jnp.exp2(channel(room.delta, k) * rate))
        h.append(decay[k] * h[k] + channel(room.du, k) * state(tile.b, k))
    sums: dict[str, list[Array]] = {name: [] for name in ("delta", "du", "dy", "b", "c")}
    for k in reversed(range(task.sub)):
        dy, c, b = channel(room.dy, k), state(tile.c, k), state(tile.b, k)
        g = w + dy * c
        w = decay[k] * g
        through = w * h[k]
        drate = drate + through * channel(room.delta, k)
        sums["delta"].append(cast((through * rate).sum(2), BY_CHANNEL))
        sums["du"].append(cast((g * b).sum(2), BY_CHANNEL))
        sums["b"].append(cast((g * channel(room.du, k)).sum(1), BY_WARP))
        sums["c"].append(cast((h[k + 1] * dy).sum(1), BY_WARP))
        if task.gate:  # y is wanted for the gradient of z alone
            sums["dy"].append(cast((h[k + 1] * c).sum(2), BY_CHANNEL))
    synchronise()  # all have read what is overwritten now
    for name in ("delta", "du", "dy") if task.gate else ("delta", "du"):
        put(getattr(room, name), places[::-1], sums[name])
    for place, b_sum, c_sum in zip(places[::-1], sums["b"], sums["c"], strict=True):
        store(room.parts.at[0, :, place, :], b_sum)
        store(room.parts.at[1, :, place, :], c_sum)
    return w, drate


def _finish(task: Task, tile: SimpleNamespace, room: Any, skip: Array, bias: Array) -> tuple[Array, Array]:
    """Puts the cotangents of u, dt and z in their places; returns the tile's sums for D and dt_bias [4, 16]."""
    u, dy = clean(tile, "u", task), gradient_of_scan(tile, task)
    raw, delta = deltas(tile, bias, task)
    ddu = load(room.du, TOKENS)
    ddelta = _LN2 * load(room.delta, TOKENS) + ddu * u
    draw = ddelta * sigmoid(raw) if task.dt_softplus else ddelta
    draw = jnp.where(real(tile), draw, 0.0) if task.masked else draw
    if task.gate:
        z = clean(tile, "z", task)
        gate = sigmoid(z)
        y = load(room.dy, TOKENS) + over_tokens(skip) * u
        dz = clean(tile, "dout", task) * y * gate * (1.0 + z * (1.0 - gate))
        store(tile.z, dz.astype(tile.z.dtype))
    store(tile.u, (ddu * delta + over_tokens(skip) * dy).astype(tile.u.dtype))
    store(tile.dt, draw.astype(tile.dt.dtype))
    return cast((dy * u).sum(0), OVER_TOKENS), cast(draw.sum(0), OVER_TOKENS)


def _sum_parts(room: Any, out: Any, which: int) -> None:
    """The sum over warps of dB or dC [TILE, N]."""
    part = [load(room.parts.at[which, warp]) for warp in range(WARPS)]
    store(out, (part[0] + part[1]) + (part[2] + part[3]))
