"""What the generator of Pathfinder looks up: all that depends on an angle, worked out once for each law and margin."""

import functools
import math
from typing import NamedTuple

import numpy as np

from zoo.data.pathfinder import GREY, Law
from zoo.data.pathfinder_shapes import SCALE, disc, lanczos, paddle, reach, round_robustly

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
      step: from the pivot of a paddle to that of the next, int64 [directions, 2].
      length: from the point that a paddle is drawn from to its other end, int64 [directions, 2].
      back: from the far end of a first paddle to its pivot, int64 [360, 2].
      candidates: from a pivot to the points where the paddle may end, int64 [candidates, 2].
      weights: of the candidates by the direction of the paddle before, int64 [directions, candidates].
      disc: offsets within the margin, int64 [n, 2].
      starts, bodies: `bodies[starts[d]:starts[d + 1]]` are offsets from the start of a first paddle of direction d that
        must be free, int64 [n, 2]; of a direction that no first paddle may have there are none.
      centre: first and last row, first and last column where the first target of a direction may start (the
        last before the first: nowhere), int64 [360, 4].
      other: twice the offset from the start of the first target to that of the second, by angle, int64 [360, 2].
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
    degrees = [math.radians(degree - 180) for degree in range(ANGLES)]
    turned = [math.atan2(row, column) for row, column in candidates]
    # A paddle that is added is drawn backwards, from its far end.
    drawn = degrees + [angle + math.pi for angle in turned]
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
        back=_moves([angle + math.pi for angle in degrees], law.paddle_length + margin),
        candidates=np.array(candidates, np.int64),
        weights=_weights(degrees + turned, turned, law.continuity),
        disc=disc(margin).astype(np.int64),
        starts=starts,
        bodies=bodies,
        centre=_centre(law, starts, bodies),
        other=np.array([_twice(math.radians(angle), law.seed_distance) for angle in range(ANGLES)], np.int64),
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


def _move(angle: float, distance: float) -> tuple[int, int]:
    """A step as the reference takes it: both coordinates rounded up."""
    row, column = distance * math.sin(angle), distance * math.cos(angle)
    return round_robustly(row, up=True), round_robustly(column, up=True)


def _moves(angles: list[float], distance: float) -> np.ndarray:
    return np.array([_move(angle, distance) for angle in angles], np.int64)


def _twice(angle: float, distance: float) -> tuple[int, int]:
    """Twice the nearest whole offsets; odd where an offset lies half-way, which is decided where it is added."""

    def one(value: float) -> int:
        near = round(2 * value)
        return near if near % 2 and abs(2 * value - near) < 1e-9 else 2 * round(value)

    return one(distance * math.sin(angle)), one(distance * math.cos(angle))


def _candidates(radius: int) -> list[tuple[int, int]]:
    """The pixels that a circle around a pivot passes, at steps of one pixel, rounded down."""
    angles = [step / radius for step in range(math.ceil(2 * math.pi * radius))]
    found = {
        (
            round_robustly(radius * math.sin(angle), up=False),
            round_robustly(radius * math.cos(angle), up=False),
        )
        for angle in angles
    }
    return sorted(found)


def _weights(before: list[float], after: list[float], continuity: float) -> np.ndarray:
    turn = np.abs(np.array(before)[:, None] - np.array(after))
    bound = np.minimum(np.minimum(turn, 2 * np.pi - turn) * continuity, np.pi / 2)
    return np.round(np.cos(bound) ** 2 * _ONE).astype(np.int64)


def _marks(law: Law, margin: int, angles: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different paddles among those of `angles`, and which each is."""
    ends = [_move(angle, SCALE * law.paddle_length) for angle in angles]
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
