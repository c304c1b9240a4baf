"""The forward kernel: chunks from the first to the last, the states in VMEM."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from zoo.ops.mosaic_tpu import pl
from zoo.ops.selective_scan.tpu.block import (
    GROUP,
    GROUPS,
    Task,
    clean,
    decays,
    deltas,
    launch,
    over_channels,
    parts_shape,
    put_sum,
    row,
    sigmoid,
    spread,
    sums_of_group,
)
from zoo.typing import Array


def run(task: Task, given: dict[str, Array]) -> tuple[Array, Array, Array | None]:
    """Runs the kernel.

    Args:
      task: sizes and options.
      given: u, dt and, with a gate, z [B, T, E]; b, c [B, N, T] in float32, zero at padding; with a mask, mask
        [B, 1, T], one at real tokens; with packed sequences, follows [B, 1, T], zero where one begins; rate [N, E],
        A log2(e), and skip, bias [1, E], D and dt_bias, in float32; first [B, N, E], the states before the first token.

    Returns:
      y as u, the last states as `first`, and with `task.keep` those before each chunk, in the order of processing,
      [T / CHUNK, B, N, E].
    """
    states = jax.ShapeDtypeStruct((task.batch, task.states, task.width), jnp.float32)
    out = {"y": jax.ShapeDtypeStruct(given["u"].shape, given["u"].dtype), "state": states}
    if task.keep:
        out["bounds"] = jax.ShapeDtypeStruct((task.chunks, *states.shape), jnp.float32)
    scratch = dict.fromkeys(("delta", "du"), (GROUP, task.lanes)) | {"parts": parts_shape(task.lanes)}
    found = launch(
        task,
        functools.partial(_chunk, task),
        name="selective_scan",
        given=given,
        out=out,
        scratch=scratch,
        last_first=False,
    )
    return found["y"], found["state"], found.get("bounds")


def _chunk(task: Task, refs: SimpleNamespace) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        refs.state[...] = refs.first[...]

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        spread(task, refs)

    if task.keep:
        refs.bounds[...] = refs.state[...]
    rate, skip = refs.rate[...], refs.skip[...]

    def group(i: Array, h: Array) -> Array:
        rows = task.rows(i, last_first=False)
        u = clean(task, refs, "u", rows)
        delta = deltas(task, refs, rows)
        refs.delta[...], refs.du[...] = delta, delta * u
        for k in task.places(last_first=False):
            token = rows.start + k
            decay = decays(task, refs, rate, row(refs.delta, k, task.states), token)
            h = decay * h + row(refs.du, k, task.states) * over_channels(refs.b_columns[token], task.lanes)
            put_sum(refs.parts, k, h * over_channels(refs.c_columns[token], task.lanes))
        y = sums_of_group(refs.parts) + skip * u
        if task.gate:
            z = clean(task, refs, "z", rows)
            y = y * z * sigmoid(z)
        refs.y[rows, :] = y.astype(refs.y.dtype)
        return h

    refs.state[...] = jax.lax.fori_loop(0, GROUPS, group, refs.state[...])
