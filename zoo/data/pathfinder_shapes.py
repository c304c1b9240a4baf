"""The marks that Pathfinder images are made of, as small tables of bytes: lines, discs, their masks, and down-sampling.

The reference generator draws at twice the size with Pillow and has it down-sampled by Lanczos' filter. Here the same
bytes come from integer arithmetic, so that they depend on no version of any library; a test compares with Pillow.
"""

import functools
import math

import numpy as np

SCALE = 2
"""How many times finer marks are drawn than they are shown."""
_WHITE = 255
_TAPS = 3  # half the width of Lanczos' filter
_BITS = 22  # of its fixed point


def disc(radius: float) -> np.ndarray:
    """Offsets (row, column) of the points of a grid no farther than `radius` from one of them, integer [N, 2]."""
    reach = math.floor(radius)
    axis = np.arange(-reach, reach + 1)
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    return np.argwhere(rows**2 + columns**2 <= radius**2) - reach


def dilate(image: np.ndarray, radius: int) -> np.ndarray:
    """Each point's greatest value within `radius`, as [H, W]; nothing lies beyond the edges."""
    padded = np.pad(image, radius)
    height, width = image.shape
    shifted = [padded[radius + dy :, radius + dx :][:height, :width] for dy, dx in disc(radius)]
    return np.max(shifted, axis=0)


def line(half: int, row: int, column: int, width: int) -> np.ndarray:
    """A white line from the centre of a black square, uint8 [2 half + 1, 2 half + 1].

    Args:
      half: half the side, without the centre.
      row, column: where it ends, from the centre.
      width: in points. A width of 1 is Bresenham's line; a wider one is a quadrilateral whose corners are rounded as
        Pillow rounds them, filled row by row.
    """
    canvas = np.zeros((2 * half + 1, 2 * half + 1), np.uint8)
    points = _thin(row, column) if width == 1 else _wide(row, column, width)
    for y, x in points:
        canvas[half + y, half + x] = _WHITE
    return canvas


def _thin(row: int, column: int) -> list[tuple[int, int]]:
    long, short = max(abs(row), abs(column)), min(abs(row), abs(column))
    points, minor, error = [], 0, 2 * short - long
    for major in range(long + 1):
        y, x = (minor, major) if abs(column) > abs(row) else (major, minor)
        points.append((y if row >= 0 else -y, x if column >= 0 else -x))
        if error >= 0 and short:
            minor, error = minor + 1, error - 2 * long
        error += 2 * short
    return points


def _away(value: float) -> int:
    """Rounded to the nearest whole number, halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _toward(value: float) -> int:
    """Rounded to the nearest whole number, halves towards zero."""
    return int(math.copysign(math.ceil(abs(value) - 0.5), value))


def _wide(row: int, column: int, width: int) -> list[tuple[int, int]]:
    length = math.hypot(row, column)
    more, less = _away((width - 1) / 2) / length, _toward((width - 1) / 2) / length
    left, right = _toward(less * row), _toward(more * row)
    top, bottom = _away(less * column), _away(more * column)
    corners = [(bottom, -left), (row + bottom, column - left), (row - top, column + right), (-top, right)]
    edges = list(zip(corners, corners[1:] + corners[:1], strict=True))
    points = []
    for y in range(min(corners)[0], max(corners)[0] + 1):
        found = []
        for (y0, x0), (y1, x1) in edges:
            if y0 == y1 == y:
                found += [x0, x1]
            elif y0 != y1 and min(y0, y1) <= y <= max(y0, y1):
                found.append(x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        points += [(y, x) for x in range(math.floor(min(found) + 0.5), math.ceil(max(found) - 0.5) + 1)]
    return points


@functools.cache
def lanczos(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The filter that brings `old` points to `new`, fewer, ones.

    Returns:
      The first of the old points that each new one is made of, int64 [new], and the weights of those from there on, in
      units of 2**-22, int64 [new, taps]; beyond the last old point they are 0.
    """
    scale = old / new
    support = _TAPS * scale
    taps = math.ceil(support) * 2 + 1
    first, weights = np.zeros(new, np.int64), np.zeros((new, taps), np.int64)
    for index in range(new):
        centre = (index + 0.5) * scale
        start, stop = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old)
        exact = [_window((point - centre + 0.5) / scale) for point in range(start, stop)]
        total = sum(exact)
        first[index] = start
        weights[index, : len(exact)] = [math.floor(value / total * 2**_BITS + 0.5) for value in exact]
    return first, weights


def _window(x: float) -> float:
    if abs(x) >= _TAPS:
        return 0.0
    return _sinc(x) * _sinc(x / _TAPS)


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """A square of bytes [L, L] brought to [size, size] by Lanczos' filter, first along rows, then along columns."""
    first, weights = lanczos(len(image), size)
    places = np.minimum(first[:, None] + np.arange(weights.shape[1]), len(image) - 1)
    for _ in range(2):
        total = np.einsum("rst,st->sr", image[:, places].astype(np.int64), weights)
        # Transposed on the way, so that the second round does the other axis and sets it right.
        image = np.clip((total + (1 << (_BITS - 1))) >> _BITS, 0, _WHITE)
    return image.astype(np.uint8)


@functools.cache
def paddle(length: int, thickness: float, margin: int, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A paddle as it is shown, and the room that it takes.

    Args:
      length, thickness, margin: of the paddle, in pixels.
      row, column: where the line ends, from where it starts, in units of half a pixel.

    Returns:
      Brightness and room around the start, uint8 [2 h + 1, 2 h + 1] each; see `reach` for h.
    """
    half = reach(length, thickness, margin)
    fine = line(SCALE * half, row, column, round(SCALE * thickness))
    size = 2 * half + 1
    return shrink(fine, size), shrink(dilate(fine, SCALE * margin), size)


def reach(length: int, thickness: float, margin: int) -> int:
    """How far, in pixels, the square of a paddle's mark reaches from where the paddle starts."""
    return length + math.ceil(thickness) + margin
