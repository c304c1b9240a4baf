"""What the generator of Pathfinder looks up: all that depends on an angle, worked out once for each law and margin."""

import functools
import math
from typing import NamedTuple

import numpy as np

from zoo.data.exact_trig import atan2, cos, sin
from zoo.data.pathfinder import GREY, Law
from zoo.data.pathfinder_shapes import SCALE, disc, lanczos, paddle, reach

ANGLES = 360
# A weight of 1, and the value of the weights and the free room of a pivot below which a curve has come to a dead end:
# 1e-4 in the reference, where room is from 0 to 1 and not to 255.
_ONE = 1 << 20
_DEAD_END = round(1e-4 * 255 * _ONE)


class Tables(NamedTuple):
    """Tables of one law and margin.

    A direction is one of 360 whole degrees from -180 (those of first paddles), or 360 + c: that from a pivot to the
    candidate point c. Offsets are (row, column) in pixels.

    Attributes:
      numbers: the law's whole numbers; see `_numbers`.
      marks, rooms: brightness and room of every paddle, uint8 [marks, w, w], around the point it is drawn from.
      mark: which of them a paddle of a direction has, int64 [directions].
      step: from the pivot of a paddle to that of the next, float64 [directions, 2]. Here and below, a number that is
        added to a coordinate before that is rounded.
      length: from the point that a paddle is drawn from to its other end, float64 [directions, 2].
      back: from the far end of a first paddle to its pivot, float64 [360, 2].
      candidates: from a pivot to the points where the paddle may end, int64 [candidates, 2].
      weights: of the candidates by the direction of the paddle before, int64 [directions, candidates].
      disc: offsets within the margin, int64 [n, 2].
      starts, bodies: `bodies[starts[d]:starts[d + 1]]` are offsets from the start of a first paddle of direction d that
        must be free, int64 [n, 2]; of a direction that no first paddle may have there are none.
      centre: first and last row, first and last column where the first target of a direction may start (the
        last before the first: nowhere), int64 [360, 4].
      other: from the start of the first target to that of the second, by angle, float64 [360, 2].
      first, filter: of `zoo.data.pathfinder_shapes.lanczos`, for the discs.
    """

    numbers: np.ndarray
    marks: np.ndarray
    rooms: np.ndarray
    mark: np.ndarray
    step: np.ndarray
    length: np.ndarray
    back: np.ndarray
    candidates: np.ndarray
    weights: np.ndarray
    disc: np.ndarray
    starts: np.ndarray
    bodies: np.ndarray
    centre: np.ndarray
    other: np.ndarray
    first: np.ndarray
    filter: np.ndarray


@functools.cache
def tables(law: Law, margin: int) -> Tables:
    """The tables of a law for one of its margins."""
    candidates = _candidates(law.paddle_length + margin)
    degrees = [_radians(degree - 180) for degree in range(ANGLES)]
    turned = [atan2(row, column) for row, column in candidates]
    # A paddle that is added is drawn backwards, from its far end.
    drawn = degrees + [_opposite(angle) for angle in turned]
    marks, rooms, mark = _marks(law, margin, drawn)
    starts, bodies = _bodies(law, margin, rooms, mark)
    first, weights = lanczos(SCALE * law.size, law.size)
    return Tables(
        numbers=_numbers(law, margin),
        marks=marks,
        rooms=rooms,
        mark=mark,
        step=_moves(degrees + turned, law.paddle_length + 2 * margin),
        length=_moves(drawn, law.paddle_length),
        back=_moves([_opposite(angle) for angle in degrees], law.paddle_length + margin),
        candidates=np.array(candidates, np.int64),
        weights=_weights(degrees + turned, turned, law.continuity),
        disc=disc(margin).astype(np.int64),
        starts=starts,
        bodies=bodies,
        centre=_centre(law, starts, bodies),
        other=_moves([_radians(angle) for angle in range(ANGLES)], law.seed_distance),
        first=first,
        filter=weights,
    )


def _numbers(law: Law, margin: int) -> np.ndarray:
    """size, padding, paddles of targets and of distractors, distractors, contrasts, reach, twice the radius, bound."""
    half = reach(law.paddle_length, law.thickness, margin)
    lengths = [law.contour_length, law.distractor_length, law.num_distractors]
    contrasts = [law.target_contrast, law.contrast, GREY]
    whole = [law.size, law.padding, *lengths, *contrasts, half, round(SCALE * law.marker_radius), _DEAD_END]
    return np.array(whole, np.int64)


def _radians(degrees: int) -> float:
    return degrees * math.pi / 180


def _opposite(angle: float) -> float:
    return angle + math.pi if angle < 0 else angle - math.pi


def _moves(angles: list[float], distance: int) -> np.ndarray:
    """Steps of a length, as the reference has them in floating point.

    It adds them to a pixel's coordinates and rounds up. So the errors of sines and cosines count where the sum should
    be whole: the cosine of a right angle is 6e-17, and a curve that runs straight up moves aside by a pixel where its
    column is below 4, and not where the sum swallows the error. Near the edges of 32 x 32 images that is seen in the
    shape of curves. So the errors are kept, and made those of correct rounding, which no machine need share.
    """
    return np.array([(distance * sin(angle), distance * cos(angle)) for angle in angles])


def _ends(angles: list[float], length: int, centre: int) -> list[tuple[int, int]]:
    """Where lines from the centre of a finer square end, as seen from there."""
    moved = np.ceil(centre + _moves(angles, length)).astype(int) - centre
    return [(int(row), int(column)) for row, column in moved]


def _candidates(radius: int) -> list[tuple[int, int]]:
    """The pixels that a circle around a pivot passes, at steps of one pixel, rounded down."""
    angles = [step / radius for step in range(math.ceil(2 * math.pi * radius))]
    points = np.floor(_moves(angles, radius)).astype(int)
    return sorted({(int(row), int(column)) for row, column in points})


def _weights(before: list[float], after: list[float], continuity: float) -> np.ndarray:
    turn = np.abs(np.array(before)[:, None] - np.array(after))
    bound = np.minimum(np.minimum(turn, 2 * np.pi - turn) * continuity, np.pi / 2)
    # Rounded far more coarsely than cosines differ between machines.
    return np.round(np.cos(bound) ** 2 * _ONE).astype(np.int64)


def _marks(law: Law, margin: int, angles: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different paddles among those of `angles`, and which each is."""
    centre = SCALE * reach(law.paddle_length, law.thickness, margin)
    ends = _ends(angles, SCALE * law.paddle_length, centre)
    different = sorted(set(ends))
    drawn = [paddle(law.paddle_length, law.thickness, margin, row, column) for row, column in different]
    which = np.array([different.index(end) for end in ends], np.int64)
    return np.stack([mark for mark, _ in drawn]), np.stack([room for _, room in drawn]), which


def _bodies(law: Law, margin: int, rooms: np.ndarray, mark: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets that must be free for a first paddle, by degree.

    The reference cuts the room of the paddle out of a square whose half side is `paddle_length + margin`, and puts its
    start one pixel beside the centre of that, both down and to the right. Where nothing of it stays inside the image
    at one of the corners, OpenCV's dilation has minus infinity there, which the reference takes for an image without
    any free pixel: in such a direction no first paddle is ever placed, and there are no offsets here.
    """
    half, side = rooms.shape[1] // 2, law.paddle_length + margin
    offsets = [np.argwhere(rooms[mark[degree]] == 255) - half + 1 for degree in range(ANGLES)]
    offsets = [points[(np.abs(points) <= side).all(1)] for points in offsets]
    offsets = [points if _covers_corners(points) else points[:0] for points in offsets]
    starts = np.concatenate([[0], np.cumsum([len(points) for points in offsets])]).astype(np.int64)
    return starts, np.concatenate(offsets).astype(np.int64)


def _covers_corners(points: np.ndarray) -> bool:
    return all(((points * side) <= 0).all(1).any() for side in ([1, 1], [1, -1], [-1, 1], [-1, -1]))


def _centre(law: Law, starts: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """Where the first target may start: its body stays twice the seed distance away from the edges."""
    low, high = 2 * law.seed_distance, law.size - 1 - 2 * law.seed_distance
    found = np.full((ANGLES, 4), (0, -1, 0, -1), np.int64)
    for degree in np.flatnonzero(np.diff(starts)):
        points = bodies[starts[degree] : starts[degree + 1]]
        least, most = points.min(0), points.max(0)
        found[degree] = low - least[0], high - most[0], low - least[1], high - most[1]
    return found
