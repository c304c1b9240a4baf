"""Labels of Pathfinder images found anew: by following the kept curves, and from the pixels alone."""

from typing import Any

import numpy as np

from zoo.data.pathfinder import Drawing, Law


def traced_labels(law: Law, drawing: Drawing) -> np.ndarray:
    """Follows both target curves of each image from the first paddle to the last, and looks where the discs are.

    Args:
      law: by which the images were drawn.
      drawing: N images with their curves.

    Returns:
      1 where both discs are at the ends of one curve, 0 where they are at those of two, -1 where both curves end at the
      second disc (two paddles placed one after the other may overlap, as in the reference); int8 [N].

    Raises:
      ValueError: a curve is broken, bends more than the law allows, or leaves the image, or a disc is elsewhere than at
        the start (the first) or the end (the second) of one curve; the message names the image.
    """
    curves = drawing.targets.astype(np.int64)
    pivots, near, far = curves[..., 0, :], curves[..., 1, :], curves[..., 2, :]
    _require(((curves >= 0) & (curves < law.size)).all((1, 2, 3, 4)), "leaves the image")
    steps = far - pivots  # [N, 2, paddles, 2]
    angles = np.arctan2(steps[..., 0], steps[..., 1])
    margin = drawing.margins.astype(np.int64)[:, None, None]
    # From the second paddle on the direction is that between whole points, so the next pivot is known, but for a pixel;
    # that of a first paddle is known but for what rounding took twice.
    onward = np.stack([np.sin(angles), np.cos(angles)], -1) * (law.paddle_length + 2 * margin)[..., None]
    gap = pivots[:, :, 1:] - pivots[:, :, :-1]
    least = np.ceil(np.round(onward[:, :, :-1], 9))
    exact = (gap >= least) & (gap <= least + 1)  # one more where the error of a sine counted, see the tables
    _require(exact[:, :, 1:].all((1, 2, 3)), "is broken")
    _require((np.abs(gap - onward[:, :, :-1])[:, :, 0] <= 3).all((1, 2)), "is broken after its first paddle")
    radius = np.hypot(steps[..., 0], steps[..., 1])
    _require((np.abs(radius - law.paddle_length - margin) <= 2).all((1, 2)), "has a paddle off its pivot")
    apart = near[:, :, 1:] - far[:, :, :-1]
    _require((np.hypot(apart[..., 0], apart[..., 1]) <= 2 * margin + 4).all((1, 2)), "has a gap")
    turns = np.abs((np.diff(angles, axis=2) + np.pi) % (2 * np.pi) - np.pi)
    _require((turns[:, :, 1:] * law.continuity <= np.pi / 2).all((1, 2)), "turns too sharply")
    starts = (near[:, :, 0] == drawing.markers[:, None, 0]).all(-1)
    stops = (far[:, :, -1] == drawing.markers[:, None, 1]).all(-1)
    rows, first = np.arange(len(curves)), drawing.origins.astype(np.int64)
    _require(starts[rows, first] & stops.any(1), "has no disc at its start or end")
    return np.where(stops.all(1), -1, stops[rows, first]).astype(np.int8)


def _require(right: Any, what: str) -> None:
    if not right.all():
        raise ValueError(f"image {int(np.argmin(right))}: a curve {what}.")


def flood(images: np.ndarray, markers: np.ndarray, reach: int, *, bright: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Floods the bright pixels from the first disc: whether the second is reached, from the pixels alone.

    Bright pixels belong together where no more than `reach` - 1 rows and columns lie between them. A flood wide enough
    for the gaps of a curve may cross those between two curves as well. So where it does not arrive the discs are on two
    curves; where it does, they are on one if it took no more than one curve has.

    Args:
      images: uint8 [N, H, W].
      markers: a point of each disc, integer [N, 2, 2].
      reach: how far the flood leaps, in pixels.
      bright: least value of a bright pixel.

    Returns:
      Whether the second disc is reached, bool [N], and the number of pixels taken, int64 [N].
    """
    wet = np.zeros(images.shape, bool)
    rows = np.arange(len(images))
    ends = markers.astype(np.int64)
    wet[rows, ends[:, 0, 0], ends[:, 0, 1]] = True
    ground = images >= bright
    active = rows
    while len(active):
        before = wet[active]
        after = _spread(before, reach) & ground[active] | before
        wet[active] = after
        active = active[(after != before).any((1, 2))]
    return wet[rows, ends[:, 1, 0], ends[:, 1, 1]], wet.sum((1, 2))


def _spread(wet: np.ndarray, reach: int) -> np.ndarray:
    """Each pixel of [N, H, W] that has a wet one within `reach` rows and columns."""
    for axis in (1, 2):
        grown = wet.copy()
        for step in range(1, reach + 1):
            ahead = [slice(None)] * 3
            behind = [slice(None)] * 3
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= wet[tuple(behind)]
            grown[tuple(behind)] |= wet[tuple(ahead)]
        wet = grown
    return wet
