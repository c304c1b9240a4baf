"""Places for labels beside marks, without overlap."""

import dataclasses
import math
from collections.abc import Sequence

FONT = 12.0
_LINE = FONT + 2


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle: left, top, width, height in pixels."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: "Box", gap: float = 1.0, between: float = 1.0) -> bool:
        """Whether two boxes come closer than a gap, sideways than `between`."""
        return (
            self.x < other.x + other.width + between
            and other.x < self.x + self.width + between
            and self.y < other.y + other.height + gap
            and other.y < self.y + self.height + gap
        )

    def inside(self, other: "Box") -> bool:
        """Whether it lies in another box."""
        return (
            other.x <= self.x
            and other.y <= self.y
            and self.x + self.width <= other.x + other.width
            and self.y + self.height <= other.y + other.height
        )


def text_width(text: str, size: float = FONT) -> float:
    """Pixels that a text takes at most in a common sans-serif font, by the widths of its letters."""
    wide, narrow = sum(text.count(letter) for letter in "mwMW%@"), sum(text.count(letter) for letter in "fijlrt.,:' I|")
    return size * (0.9 * wide + 0.38 * narrow + 0.61 * (len(text) - wide - narrow))


def place(points: Sequence[tuple[float, float, float, str]], frame: Box, taken: Sequence[Box] = ()) -> list[Box | None]:
    """Boxes for the labels of round marks.

    Labels go to the nearest free place around their mark, first to the right; crowded marks choose first.

    Args:
      points: centre x, centre y, radius and label of each mark.
      frame: where labels may be.
      taken: where they may not be.

    Returns:
      For each point a box that meets no other label, no mark, and lies in the frame; None where there is no room.
    """
    marks = [Box(x - r, y - r, 2 * r, 2 * r) for x, y, r, _ in points]
    placed: list[Box | None] = [None] * len(points)
    for index in sorted(range(len(points)), key=lambda index: (-_crowd(points, index), points[index][1])):
        x, y, radius, label = points[index]
        width = text_width(label)
        for box in _candidates(x, y, radius, width):
            labels = [other for other in placed if other is not None]
            if not box.inside(frame) or any(box.meets(other) for other in (*marks, *taken)):
                continue
            if not any(box.meets(other, between=9) for other in labels):  # two names in a line read as one
                placed[index] = box
                break
    return placed


def _crowd(points: Sequence[tuple[float, float, float, str]], index: int) -> int:
    x, y = points[index][:2]
    return sum(math.hypot(other[0] - x, other[1] - y) < 70 for other in points)


def _candidates(x: float, y: float, radius: float, width: float):
    """Boxes at growing distances, in sixteen directions, those to the right and the left first."""
    turns = (0, 8, 2, 14, 6, 10, 4, 12, 1, 15, 7, 9, 3, 13, 5, 11)
    for away in (3, 10, 20, 32, 46, 62, 80, 100, 125, 155, 190, 230, 280):
        for turn in turns:
            angle = math.pi * turn / 8
            towards_x, towards_y = math.cos(angle), math.sin(angle)
            centre_x = x + towards_x * (radius + away + width / 2)
            if abs(towards_x) < 0.1:
                centre_x = x
            centre_y = y + towards_y * (radius + away + _LINE / 2)
            yield Box(centre_x - width / 2, centre_y - _LINE / 2, width, _LINE)


def spread(wanted: Sequence[float], top: float, bottom: float, gap: float = _LINE) -> list[float]:
    """Heights for labels in a column: near the wanted ones, in their order, at least a gap apart, within bounds.

    Where there are more than fit, they are evenly, and too closely, spread.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    if len(order) > 1:
        gap = min(gap, (bottom - top) / (len(order) - 1))
    heights, last = [], top - gap
    for index in order:
        last = max(wanted[index], last + gap)
        heights.append(last)
    limit = bottom
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], limit)
        limit = heights[number] - gap
    found = [0.0] * len(wanted)
    for number, index in enumerate(order):
        found[index] = heights[number]
    return found
