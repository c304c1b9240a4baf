"""The forward kernel: chunks from the first to the last, the states in VMEM."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops import mosaic_tpu
from zoo.ops.mosaic_tpu import pl, pltpu
from zoo.ops.selective_scan.tpu.block import (
    CHUNK,
    GROUP,
    GROUPS,
    SEMANTICS,
    Task,
    clean,
    decays,
    deltas,
    over_channels,
    own,
    parts_shape,
    put_sum,
    row,
    sigmoid,
    spread,
    sums_of_group,
)
from zoo.typing import Array

KINDS = {
    **dict.fromkeys(("u", "dt", "z"), "wide"),
    **dict.fromkeys(("b", "c"), "narrow"),
    **dict.fromkeys(("mask", "follows"), "flags"),
    "rate": "rate",
    **dict.fromkeys(("skip", "bias"), "channel"),
    "first": "state",
}


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
    specs = task.specs(last_first=False)
    shape = (task.batch, task.states, task.width)
    out = {"y": ("wide", given["u"].shape, given["u"].dtype), "state": ("state", shape, jnp.float32)}
    if task.keep:
        out["bounds"] = ("bounds", (task.chunks, *shape), jnp.float32)
    scratch = task.room() | dict.fromkeys(("delta", "du"), (GROUP, task.lanes)) | {"parts": parts_shape(task.lanes)}

    def body(*refs: Any) -> None:
        _chunk(task, own(task, dict(zip([*given, *out, *scratch], refs, strict=True))))

    y, last, *bounds = mosaic_tpu.launch(
        body,
        name="selective_scan",
        semantics=SEMANTICS,
        grid=task.grid,
        in_specs=[specs[KINDS[name]] for name in given],
        out_specs=[specs[kind] for kind, _, _ in out.values()],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in out.values()],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
    )(*given.values())
    return y, last, bounds[0] if bounds else None


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
