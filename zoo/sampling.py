"""Images out of density models, and the grid in which they are shown."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

# Images drawn at once; and what the side of the smaller ones is brought to, in pixels.
_AT_ONCE = 64
_SHOWN = 64


def sample_images(
    run: str | Path,
    *,
    count: int = 16,
    temperature: float = 1.0,
    seed: int = 0,
    which: Literal["best", "last"] = "best",
) -> np.ndarray:
    """Draws images from the density model of a run directory.

    Args:
      run: a run directory of a task that has images, such as `density/shapes`.
      count: N.
      temperature: divides the logits; 0 takes the likeliest value each time.
      seed: of the draws.
      which: the parameters that did best on validation, or the last ones saved.

    Returns:
      Values from 0 to V - 1, int32 [N, H, W, C].

    Raises:
      ValueError: the run is of another kind of task, or an argument is out of range.
      RunError, CheckpointError: see `zoo.load_run`.
    """
    return _draw(_load(run, which), count=count, temperature=temperature, seed=seed)


def sample_png(
    run: str | Path,
    path: str | Path,
    *,
    count: int = 16,
    temperature: float = 1.0,
    seed: int = 0,
    which: Literal["best", "last"] = "best",
) -> Path:
    """Draws images as `sample_images` does and writes them as one PNG. What `zoo sample` does.

    Raises:
      ValueError, RunError, CheckpointError: as `sample_images` does.
      ModuleNotFoundError: matplotlib is not installed.
    """
    loaded = _load(run, which)
    _imsave()  # what is missing is said before anything is computed
    images = _draw(loaded, count=count, temperature=temperature, seed=seed)
    return write_png(images, path, num_values=loaded.task.info.num_values)


def write_png(images: np.ndarray, path: str | Path, *, num_values: int = 256) -> Path:
    """Writes images [N, H, W, C] of values 0 to `num_values` - 1 beside and below one another, small ones enlarged.

    One channel is grey, three are red, green and blue; of two, and of more, the first are shown as such.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    imsave = _imsave()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("partial-" + path.name)
    imsave(temporary, image_grid(images, num_values=num_values), format="png")
    temporary.replace(path)
    return path


def image_grid(images: np.ndarray, *, num_values: int = 256) -> np.ndarray:
    """Images [N, H, W, C] as one, uint8 [rows, columns, 3], on a grid as square as can be; see `write_png`."""
    count, height, width, channels = images.shape
    bright = np.round(np.asarray(images, np.float64) * (255 / (num_values - 1))).astype(np.uint8)
    bright = bright.repeat(3, -1) if channels == 1 else bright[..., :3]
    bright = np.pad(bright, [(0, 0)] * 3 + [(0, 3 - bright.shape[-1])])
    times = max(1, _SHOWN // max(height, width))
    bright = bright.repeat(times, 1).repeat(times, 2)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = max(1, times // 2)
    step_down, step_right = height * times + gap, width * times + gap
    grid = np.full((rows * step_down + gap, columns * step_right + gap, 3), 255, np.uint8)
    for index, image in enumerate(bright):
        top, left = gap + index // columns * step_down, gap + index % columns * step_right
        grid[top : top + height * times, left : left + width * times] = image
    return grid


def _imsave() -> Any:
    try:
        from matplotlib.image import imsave
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a PNG needs matplotlib: pip install 'seqzoo[plot]'.") from error
    return imsave


def _load(run: str | Path, which: Literal["best", "last"]) -> Any:
    from zoo.training.run import load_run

    loaded = load_run(run, which)
    if loaded.task.info.output != "image" or not hasattr(loaded.model, "sample"):
        raise ValueError(f"{run} is a run of {loaded.task.name}, which draws no images; give one of a density/* task.")
    return loaded


def _draw(loaded: Any, *, count: int, temperature: float, seed: int) -> np.ndarray:
    import jax

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    key = jax.random.key(seed)
    # All parts of one size, so that one program draws them.
    size = min(count, _AT_ONCE)
    parts = [
        np.asarray(loaded.model.sample(size, key=jax.random.fold_in(key, index), temperature=temperature))
        for index in range(math.ceil(count / size))
    ]
    return np.concatenate(parts)[:count]
