"""Draws whole sets of ListOps expressions: in parallel, resumable, and without two equal ones."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.chunks import available_cores, chunk_path, make_chunks, read_chunk
from zoo.data.listops import Law, generate
from zoo.data.progress import Progress

Expressions = list[tuple[bytes, int]]
# After so many chunks in a row without a new expression the law is taken to have no more of them.
_MAX_IDLE_CHUNKS = 4


def make_chunk(chunk: int, *, law: Mapping[str, Any], seed: int, count: int) -> bytes:
    """One chunk of expressions as bytes; what the worker processes run."""
    rows = generate(Law(**law), seed, chunk, count)
    lengths = np.array([len(tokens) for tokens, _ in rows], "<u4").tobytes()
    return lengths + bytes(label for _, label in rows) + b"".join(tokens for tokens, _ in rows)


def _read_rows(data: bytes, count: int) -> Iterator[tuple[bytes, int]]:
    position = 5 * count
    for length, label in zip(np.frombuffer(data, "<u4", count).tolist(), data[4 * count : position], strict=True):
        yield data[position : position + length], label
        position += length


def draw_splits(
    law: Law,
    sizes: Mapping[str, int],
    folder: Path,
    *,
    seed: int,
    chunk_size: int,
    workers: int | None = None,
    progress: str | None = None,
) -> dict[str, Expressions]:
    """Draws the expressions of all splits; no two are equal, within a split or between splits.

    Args:
      law: the law of the expressions.
      sizes: number of expressions of each split, in the order in which they are dealt out.
      folder: where chunks are kept as they are finished; those found there are used.
      seed: of the generator.
      chunk_size: expressions per independent stream.
      workers: number of processes; None for one per core.
      progress: the title under which to report progress, or None for silence.

    Returns:
      Tokens and label of each expression, by split. The order is that of the draws.

    Raises:
      ValueError: the law has not enough different expressions.
    """
    total = sum(sizes.values())
    arguments = {"law": dataclasses.asdict(law), "seed": seed, "count": chunk_size}
    # A dict keeps the order of the draws, so that the result does not depend on hashing.
    unique: dict[bytes, int] = {}
    first = idle = 0
    folder.mkdir(parents=True, exist_ok=True)
    while len(unique) < total:
        chunks = range(first, first + -(-(total - len(unique)) // chunk_size))
        _make_missing(arguments, chunks, folder, workers, progress)
        for chunk in chunks:
            before = len(unique)
            data = read_chunk(folder, chunk) or make_chunk(chunk, **arguments)
            for tokens, label in _read_rows(data, chunk_size):
                unique.setdefault(tokens, label)
            idle = idle + 1 if len(unique) == before else 0
            if idle >= _MAX_IDLE_CHUNKS:
                raise ValueError(f"{law} has too few expressions: {len(unique):,} of {total:,} were found.")
        first = chunks.stop
    rows = iter(unique.items())
    return {split: list(itertools.islice(rows, size)) for split, size in sizes.items()}


def _make_missing(
    arguments: Mapping[str, Any], chunks: range, folder: Path, workers: int | None, progress: str | None
) -> None:
    missing = [chunk for chunk in chunks if not chunk_path(folder, chunk).exists()]
    if not missing:
        return
    if workers is None:
        # A process takes a moment to start: a handful of chunks is not worth one.
        workers = min(available_cores(), 1 + len(missing) // 8)
    size = arguments["count"]
    done = (len(chunks) - len(missing)) * size
    with Progress(progress or "", len(chunks) * size, "expressions", done=done, enabled=progress is not None) as bar:
        function = f"{make_chunk.__module__}:{make_chunk.__name__}"
        make_chunks(function, arguments, missing, folder, workers=workers, on_done=lambda _: bar.advance(size))
