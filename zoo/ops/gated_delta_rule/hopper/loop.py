"""The loop of a kernel over the chunks of a sequence: where their tiles are, and how they come into shared memory."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from zoo.ops.gated_delta_rule.hopper.layout import CHUNK, VALUES, Tokens
from zoo.ops.mosaic_gpu import MATRIX, SMEM, barrier, copy_in, launch, load, pl, plgpu, store, synchronise
from zoo.typing import Array

# The multiprocessors of an H100 or H200. A launch of more blocks than that has, if operands are of one piece, two at a
# time on each, of which one computes while the other waits for memory; else there is shared memory for the next chunk's
# tiles.
_MULTIPROCESSORS = 132


class Site(NamedTuple):
    """Where a block is now: indices and slices of the arrays in device memory."""

    batch: Array
    head: Array
    values: Any
    chunk: Array
    tokens: Any

    @property
    def of_tokens(self) -> tuple[Any, ...]:
        """In an array [B, T, HV, V]."""
        return self.batch, self.tokens, self.head, self.values

    @property
    def of_chunks(self) -> tuple[Any, ...]:
        """In an array [n, B, HV, K, V]."""
        return self.chunk, self.batch, self.head, slice(None), self.values


class Input(NamedTuple):
    """An array [pieces, ...] in device memory of which each chunk has a tile.

    Attributes:
      array: itself.
      part: takes a reference to it, a piece and a site; returns the tile there.
      tile: shape of the tile.
    """

    array: Array
    part: Callable[[Any, int, Site], Any]
    tile: tuple[int, ...]


class Plan(NamedTuple):
    """What is known of a launch before: the tokens, and V, the columns of the state."""

    tokens: Tokens
    columns: int

    @property
    def width(self) -> int:
        """K."""
        return self.tokens.k.shape[-1]

    @property
    def grid(self) -> tuple[int, int, int]:
        """(B, HV, V / 64)."""
        return (*self.tokens.of_heads[1:], self.columns // VALUES)

    @property
    def stages(self) -> int:
        """For how many chunks there are tiles in shared memory."""
        batch, heads, columns = self.grid
        return 2 if self.tokens.pieces == 1 and batch * heads * columns <= _MULTIPROCESSORS else 1

    def keys(self, ref: Any, piece: int, site: Site) -> Any:
        """The tile of an array [P, B, T, H, K]."""
        return ref.at[piece, site.batch, site.tokens, site.head // self.tokens.group]

    def values(self, ref: Any, piece: int, site: Site) -> Any:
        """The tile of an array [P, B, T, HV, V]."""
        return ref.at[(piece, *site.of_tokens)]

    def own(self, ref: Any, piece: int, site: Site) -> Any:
        """The tile of an array [P, n, B, HV, rows, columns]."""
        return ref.at[piece, site.chunk, site.batch, site.head]


def run(
    name: str,
    body: Callable[..., Array],
    plan: Plan,
    inputs: Sequence[Input],
    state: Array,
    own: Sequence[Any],
    out: Sequence[jax.ShapeDtypeStruct],
    *,
    to_first: bool = False,
) -> tuple[Array, ...]:
    """Launches a kernel that takes a state from chunk to chunk, from the last `to_first` or from the first to the last.

    Args:
      name: of the kernel.
      body: takes the site, the inputs' tiles, `own`, the outputs, and the state; returns the state for the next chunk.
      plan: of the launch.
      inputs: what each chunk has tiles of.
      state: float32 [B, HV, K, V], for the first chunk of the loop.
      own: shared memory of the body.
      out: outputs of the body.
      to_first: whether the last chunk comes first.

    Returns:
      The body's outputs and what it returned at the end.
    """
    count, stages = plan.tokens.of_heads[0], plan.stages
    arrivals = sum(one.array.shape[0] for one in inputs)

    def kernel(*refs: Any) -> None:
        refs, arrived = refs[:-1], refs[-1]
        sources, (start,), outs, (end,), tiles, mine = _cut(refs, (len(inputs), 1, len(out), 1, len(inputs), len(own)))
        batch, head, column = (jax.lax.axis_index(axis) for axis in ("batch", "head", "column"))

        def site(step: Any) -> Site:
            chunk = count - 1 - step if to_first else step
            return Site(batch, head, pl.ds(column * VALUES, VALUES), chunk, pl.ds(chunk * CHUNK, CHUNK))

        def at(tile: Any, slot: Any) -> Any:
            return tile.at[slot] if stages > 1 else tile

        def fetch(step: Any, slot: Any) -> None:
            for one, source, tile in zip(inputs, sources, tiles, strict=True):
                for piece in range(one.array.shape[0]):
                    copy_in(one.part(source, piece, site(step)), at(tile, slot).at[piece], arrived.at[slot])

        def chunk(step: Array, state: Array) -> Array:
            slot = jax.lax.rem(step, stages)
            plgpu.barrier_wait(arrived.at[slot])
            state = body(site(step), [at(tile, slot) for tile in tiles], mine, outs, state)
            synchronise()  # all threads have read the tiles
            pl.when(step + stages < count)(lambda: fetch(step + stages, slot))
            return state

        for step in range(min(stages, count)):
            fetch(step, step)
        first = load(start.at[batch, head, :, site(0).values], MATRIX)
        state = jax.lax.fori_loop(0, count, chunk, first)
        store(end.at[batch, head, :, site(0).values], state)
        plgpu.wait_smem_to_gmem(0)

    several = (stages,) if stages > 1 else ()
    tiles = [SMEM((*several, one.array.shape[0], *one.tile), one.array.dtype) for one in inputs]
    return launch(
        kernel,
        out=[*out, jax.ShapeDtypeStruct(state.shape, state.dtype)],
        grid=plan.grid,
        grid_names=("batch", "head", "column"),
        scratch=[*tiles, *own, barrier(arrivals, stages)],
        name=name,
        semantics="warpgroup",
    )(*(one.array for one in inputs), state)


def _cut(refs: Sequence[Any], lengths: Sequence[int]) -> list[Sequence[Any]]:
    found, start = [], 0
    for length in lengths:
        found.append(refs[start : start + length])
        start += length
    return found
