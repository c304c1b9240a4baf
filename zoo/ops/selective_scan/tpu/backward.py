"""The backward kernel: chunks from the last to the first, and in each the states once more.

With h_t the state after token t, w_{t+1} the cotangent that its successors give it, and g_t = w_{t+1} + C_t dy_t::

    w_t = exp(delta_t A) g_t
    d(delta_t u_t) = Σ_n B_t g_t              dB_t = Σ_e delta_t u_t g_t
    d delta_t (by the decay) = Σ_n A w_t h_{t-1}    dC_t = Σ_e h_t dy_t      dA = Σ_t delta_t w_t h_{t-1}

The forward kernel left the states before each chunk. From them those of every token of the chunk go to VMEM, and are
used up backwards. Sums over time and over channels are added up in VMEM, in a fixed order, so the results are the same
to the bit in every run.
"""

import functools
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops.mosaic_tpu import pl
from zoo.ops.selective_scan.tpu.block import (
    CHUNK,
    GROUP,
    GROUPS,
    LANES,
    Task,
    clean,
    decays,
    deltas,
    launch,
    only_real,
    over_channels,
    parts_shape,
    put_sum,
    raw_deltas,
    row,
    sigmoid,
    spread,
    sums_of_group,
    tree_sum,
)
from zoo.typing import Array

_LN2 = math.log(2)


def run(task: Task, given: dict[str, Array]) -> dict[str, Array]:
    """Runs the kernel.

    Args:
      task: sizes and options.
      given: as of the forward kernel without `first`; and the cotangent of y, dout [B, T, E], the states before each
        chunk, bounds [T / CHUNK, B, N, E], and the cotangent of the last states, last [B, N, E].

    Returns:
      The cotangents by name, du, ddt and, with a gate, dz as these are, db and dc [B, N, T]; w, of the states before
      the first token, and drate, of A, for each example [B, N, E]; dskip and dbias for each example [B, 1, E].
    """
    states = jax.ShapeDtypeStruct((task.batch, task.states, task.width), jnp.float32)
    total = jax.ShapeDtypeStruct((task.batch, 1, task.width), jnp.float32)
    out = {f"d{name}": given[name] for name in ("u", "dt", "z", "b", "c") if name in given}
    out = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in out.items()}
    out |= {"w": states, "drate": states, "dskip": total, "dbias": total}
    scratch = {
        **dict.fromkeys(("delta", "drive"), (CHUNK, task.lanes)),
        **dict.fromkeys(("dy", "slope"), (GROUP, task.lanes)),
        **dict.fromkeys(("by_du", "by_delta", "by_y"), parts_shape(task.lanes)),
        "states": (CHUNK + 1, task.states, task.lanes),
    }
    return launch(
        task,
        functools.partial(_chunk, task),
        name="selective_scan_backward",
        given=given,
        out=out,
        scratch=scratch,
        last_first=True,
    )


def _chunk(task: Task, refs: SimpleNamespace) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        refs.w[...] = refs.last[...]
        refs.drate[...] = jnp.zeros((task.states, task.lanes), jnp.float32)
        for total in (refs.dskip, refs.dbias):
            total[...] = jnp.zeros((1, task.lanes), jnp.float32)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        spread(task, refs)
        for total in (refs.db, refs.dc):
            total[...] = jnp.zeros((task.states, CHUNK), jnp.float32)

    _states(task, refs)

    def group(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        return _group(task, refs, i, *carry)

    carry = tuple(ref[...] for ref in (refs.w, refs.drate, refs.dskip, refs.dbias))
    carry = jax.lax.fori_loop(0, GROUPS, group, carry)
    for ref, value in zip((refs.w, refs.drate, refs.dskip, refs.dbias), carry, strict=True):
        ref[...] = value


def _states(task: Task, refs: SimpleNamespace) -> None:
    """The states before the chunk and after each of its tokens, in the order of processing, and delta and delta u."""
    rate = refs.rate[...]
    refs.states[0] = refs.bounds[...]

    def group(i: Array, h: Array) -> Array:
        rows = task.rows(i, last_first=False)
        delta = deltas(task, refs, rows)
        refs.delta[rows, :], refs.drive[rows, :] = delta, delta * clean(task, refs, "u", rows)
        for step, k in enumerate(task.places(last_first=False)):
            token = rows.start + k
            decay = decays(task, refs, rate, row(refs.delta, token, task.states), token)
            gained = row(refs.drive, token, task.states) * over_channels(refs.b_columns[token], task.lanes)
            h = decay * h + gained
            refs.states[i * GROUP + step + 1] = h
        return h

    jax.lax.fori_loop(0, GROUPS, group, refs.bounds[...])


def _group(
    task: Task, refs: SimpleNamespace, i: Array, w: Array, drate: Array, dskip: Array, dbias: Array
) -> tuple[Array, ...]:
    rows = task.rows(i, last_first=True)
    rate = refs.rate[...]
    db, dc = refs.db[...], refs.dc[...]
    _prepare(task, refs, rows)
    for step, k in enumerate(task.places(last_first=True)):
        token, number = rows.start + k, CHUNK - 1 - (i * GROUP + step)
        before, after = refs.states[number], refs.states[number + 1]
        delta, du = (row(ref, token, task.states) for ref in (refs.delta, refs.drive))
        dy = row(refs.dy, k, task.states)
        b, c = (over_channels(ref[token], task.lanes) for ref in (refs.b_columns, refs.c_columns))
        g = w + dy * c
        w = decays(task, refs, rate, delta, token) * g
        through = w * before
        drate = drate + through * delta
        put_sum(refs.by_delta, k, through * rate)
        put_sum(refs.by_du, k, g * b)
        if task.gate:  # y is wanted for the gradient of z alone
            put_sum(refs.by_y, k, after * c)
        db, dc = _put_column(db, token, g * du), _put_column(dc, token, after * dy)
    refs.db[...], refs.dc[...] = db, dc
    own_skip, own_bias = _finish(task, refs, rows)
    return w, drate, dskip + own_skip, dbias + own_bias


def _prepare(task: Task, refs: SimpleNamespace, rows: Any) -> None:
    """The cotangent of y = Σ_n C h + D u of a group, and what makes that of z from y, go to scratch."""
    dout = clean(task, refs, "dout", rows)
    if not task.gate:
        refs.dy[...] = dout
        return
    z = clean(task, refs, "z", rows)
    gate = sigmoid(z)
    refs.dy[...] = dout * z * gate
    refs.slope[...] = dout * gate * (1.0 + z * (1.0 - gate))


def _put_column(total: Array, token: Any, x: Array) -> Array:
    """[N, CHUNK] with the sums of x [N, lanes] over the channels added to the token's column."""
    tiles = tree_sum([x[:, n : n + LANES] for n in range(0, x.shape[1], LANES)])
    lane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
    return jnp.where(lane == token, total + tiles.sum(1, keepdims=True), total)


def _finish(task: Task, refs: SimpleNamespace, rows: Any) -> tuple[Array, Array]:
    """Writes a group's cotangents of u, dt and z; returns its sums for D and dt_bias [1, lanes]."""
    skip = refs.skip[...]
    u, dy, ddu = clean(task, refs, "u", rows), refs.dy[...], sums_of_group(refs.by_du)
    ddelta = _LN2 * sums_of_group(refs.by_delta) + ddu * u
    if task.dt_softplus:
        ddelta = ddelta * sigmoid(raw_deltas(task, refs, rows))
    ddelta = only_real(task, refs, ddelta, rows)
    if task.gate:
        refs.dz[rows, :] = (refs.slope[...] * (sums_of_group(refs.by_y) + skip * u)).astype(refs.dz.dtype)
    refs.du[rows, :] = (ddu * refs.delta[rows, :] + skip * dy).astype(refs.du.dtype)
    refs.ddt[rows, :] = ddelta.astype(refs.ddt.dtype)
    return (dy * u).sum(0, keepdims=True), ddelta.sum(0, keepdims=True)
