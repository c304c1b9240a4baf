"""Draws whole sets of Pathfinder images: in parallel, and resumable."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.chunks import available_cores, chunk_path, make_chunks, read_chunk
from zoo.data.pathfinder import Law, draw
from zoo.data.progress import Progress


def make_chunk(chunk: int, *, law: Mapping[str, Any], seed: int, count: int) -> bytes:
    """Images `chunk * count` to `chunk * count + count - 1` and their labels, compressed; what worker processes run."""
    drawing = draw(Law(**law), seed, range(chunk * count, (chunk + 1) * count))
    return zlib.compress(drawing.labels.tobytes() + drawing.images.tobytes(), level=1)


def draw_images(
    law: Law,
    total: int,
    folder: Path,
    *,
    seed: int,
    chunk_size: int,
    workers: int | None = None,
    progress: str | None = None,
) -> None:
    """Draws the images 0 to `total` - 1 of a set into chunks; those that are there already are kept.

    Args:
      law: of the images.
      total: how many.
      folder: where the chunks go.
      seed: of the generator.
      chunk_size: images of a chunk. The images do not depend on it.
      workers: number of processes; None for one per core.
      progress: the title under which to report progress, or None for silence.

    Raises:
      ValueError: no curves of this law fit into its images.
      ModuleNotFoundError: numba is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-total // chunk_size))
    missing = [chunk for chunk in chunks if not chunk_path(folder, chunk).exists()]
    if workers is None:
        workers = available_cores()
    if missing:
        draw(law, seed, [0])  # compiles, once for all workers, and says what is missing or cannot be
    done = (len(chunks) - len(missing)) * chunk_size
    with Progress(progress or "", len(chunks) * chunk_size, "images", done=done, enabled=progress is not None) as bar:
        arguments = {"law": dataclasses.asdict(law), "seed": seed, "count": chunk_size}
        function = f"{make_chunk.__module__}:{make_chunk.__name__}"
        make_chunks(function, arguments, missing, folder, workers=workers, on_done=lambda _: bar.advance(chunk_size))


def read_images(
    law: Law, first: int, last: int, folder: Path, *, seed: int, chunk_size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """The images `first` to `last` - 1 that `draw_images` left, uint8 [size, size], each with its label.

    A chunk that is missing or damaged is drawn anew.
    """
    for chunk in range(first // chunk_size, -(-last // chunk_size)):
        data = read_chunk(folder, chunk)
        if data is None:
            data = make_chunk(chunk, law=dataclasses.asdict(law), seed=seed, count=chunk_size)
        values = np.frombuffer(zlib.decompress(data), np.uint8)
        images = values[chunk_size:].reshape(chunk_size, law.size, law.size)
        for place in range(max(first - chunk * chunk_size, 0), min(last - chunk * chunk_size, chunk_size)):
            yield images[place], int(values[place])
