"""Plots as inline SVG: accuracy against speed, and curves. Colours come from the page's style sheet."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.lra.reporting.labels import FONT, Box, place, spread, text_width

COLORS = 12
WIDTHS = {"wide": 580, "narrow": 350}


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: its title, whether it is logarithmic, how its ticks are written, and where they are if not anywhere."""

    title: str
    log: bool = False
    write: Callable[[float], str] = lambda value: f"{value:g}"
    ticks: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point of `scatter`: size is what its area shows; low and high are the ends of its whisker."""

    label: str
    x: float
    y: float
    size: float
    color: int
    link: str
    title: str
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve of `curves`; those with one label are drawn in one colour (that of text if it is -1) and named once."""

    label: str
    points: tuple[tuple[float, float], ...]
    color: int
    link: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A horizontal line with a name."""

    label: str
    y: float


class _Scale:
    """Values of an axis to pixels."""

    def __init__(self, axis: Axis, values: Sequence[float], first: float, last: float, margin: float = 0.06):
        self.axis, self.first, self.last = axis, first, last
        low, high = min(values), max(values)
        if axis.log:
            low, high = math.log10(low), math.log10(high)
        width = (high - low) or (0.3 if axis.log else abs(high) * 0.1 or 1.0)
        self.low, self.high = low - margin * width, high + margin * width
        if high == low:
            self.low, self.high = low - width / 2, high + width / 2

    def __call__(self, value: float) -> float:
        number = math.log10(value) if self.axis.log else value
        return self.first + (number - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self, most: int) -> list[float]:
        """Round values within the axis, at most so many."""
        if self.axis.ticks:
            return list(self.axis.ticks[:: max(1, math.ceil(len(self.axis.ticks) / most))])
        if not self.axis.log:
            return _linear_ticks(self.low, self.high, most)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [
                digit * 10.0**power
                for power in range(math.floor(self.low), math.ceil(self.high) + 1)
                for digit in digits
            ]
            found = [value for value in found if self.low <= math.log10(value) <= self.high]
            if len(found) <= most:
                break
        if len(found) < 2:
            found = [value for value in _linear_ticks(10**self.low, 10**self.high, most) if value > 0]
        return found[:: max(1, math.ceil(len(found) / most))]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def scatter(marks: Sequence[Mark], x: Axis, y: Axis, size: str, write: Callable[[float], str], *, name: str,
            rules: Sequence[Rule] = ()) -> str:  # fmt: skip
    """Marks whose area shows a third quantity, each with a label of its own, drawn for a wide and for a narrow page.

    Args:
      marks: at least one.
      x, y: the axes.
      size: what the area shows, for the legend; `write` puts it in words.
      name: of the plot, for who cannot see it.
      rules: horizontal lines; those beyond the marks' range are left out.
    """
    return _both(lambda width: _scatter(marks, x, y, size, write, name, rules, width))


def curves(lines: Sequence[Line], x: Axis, y: Axis, *, name: str, rules: Sequence[Rule] = ()) -> str:
    """Curves named at their right ends, drawn for a wide and for a narrow page."""
    return _both(lambda width: _curves(lines, x, y, name, rules, width))


def _both(draw: Callable[[int], str]) -> str:
    return "".join(f'<div class="plot {name}">{draw(width)}</div>' for name, width in WIDTHS.items())


def _scatter(
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    size: str,
    write: Callable[[float], str],
    name: str,
    rules: Sequence[Rule],
    width: int,
) -> str:
    height = 440 if width > 500 else 410
    top = 44 if width > 500 else 58
    largest = max(mark.size for mark in marks)
    most = 16 if width > 500 else 12

    def radius(value: float) -> float:
        return max(3.0, most * math.sqrt(value / largest))

    ends = [end for mark in marks for end in (mark.low, mark.high, mark.y) if end is not None]
    up = _Scale(y, ends, height - 46, top, 0.15)
    left = _left(up)
    frame = Box(left, top, width - left - 12, height - top - 46)
    across = _Scale(x, [mark.x for mark in marks], frame.x, frame.x + frame.width, 0.12)
    points = [(across(mark.x), up(mark.y), radius(mark.size), mark.label) for mark in marks]
    named = _rules(rules, up, frame, [Box(cx - r, cy - r, 2 * r, 2 * r) for cx, cy, r, _ in points])
    boxes = place(points, frame, [box for _, box in named if box])
    parts = [*_axes(across, up, frame), *(text for text, _ in named)]
    order = sorted(range(len(marks)), key=lambda index: -marks[index].size)  # the small ones on top
    parts += [_mark(marks[index], *points[index][:3], boxes[index], up) for index in order]
    parts.append(_size_legend(size, write, largest, radius, frame))
    return _svg(width, height, name, parts)


def _mark(mark: Mark, x: float, y: float, radius: float, box: Box | None, up: _Scale) -> str:
    shapes = ""
    if mark.low is not None and mark.high is not None:
        shapes += f'<path class="whisker" d="M{x:.1f} {up(mark.low):.1f}V{up(mark.high):.1f}"/>'
    shapes += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
    if box is not None:
        shapes += _leader(x, y, radius, box)
        shapes += f'<text class="label" x="{box.x:.1f}" y="{box.y + FONT:.1f}">{escape(mark.label)}</text>'
    return _group(f"mark c{mark.color % COLORS}", shapes, mark.link, mark.title)


def _leader(x: float, y: float, radius: float, box: Box) -> str:
    """A line from a mark to its label where that is not close by."""
    to_x = min(max(x, box.x), box.x + box.width)
    to_y = min(max(y, box.y + 2), box.y + box.height - 2)
    length = math.hypot(to_x - x, to_y - y)
    if length < radius + 9:
        return ""
    from_x, from_y = x + (to_x - x) * radius / length, y + (to_y - y) * radius / length
    return f'<path class="leader" d="M{from_x:.1f} {from_y:.1f}L{to_x:.1f} {to_y:.1f}"/>'


def _size_legend(
    size: str, write: Callable[[float], str], largest: float, radius: Callable[[float], float], frame: Box
) -> str:
    """Circles above the plot that say what a mark's area is."""
    x, y, parts = frame.x, frame.y - 24, []
    if frame.y > 50:  # two lines where it is narrow
        parts.append(f'<text class="tick" x="{x:.1f}" y="12">{escape(size)}:</text>')
    else:
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 4:.1f}">{escape(size)}:</text>')
        x += text_width(f"{size}:", 11) + 10
    for value in (largest / 16, largest / 4, largest):
        r, text = radius(value), write(value)
        if x + 2 * r + text_width(text, 11) > frame.x + frame.width + 10:
            break
        parts.append(f'<circle class="size" cx="{x + r:.1f}" cy="{y:.1f}" r="{r:.1f}"/>')
        parts.append(f'<text class="tick" x="{x + 2 * r + 4:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
        x += 2 * r + text_width(text, 11) + 14
    return "".join(parts)


def _curves(lines: Sequence[Line], x: Axis, y: Axis, name: str, rules: Sequence[Rule], width: int) -> str:
    labels = list(dict.fromkeys(line.label for line in lines))
    room = min(max(text_width(label) for label in labels) + 22, 0.4 * width)
    height = max(380 if width > 500 else 330, 90 + 14 * len(labels))
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    up = _Scale(y, ys, height - 46, 14)
    left = _left(up)
    frame = Box(left, 14, width - left - room, height - 14 - 46)
    across = _Scale(x, xs, frame.x, frame.x + frame.width, 0.02)
    parts = [*_axes(across, up, frame), *(text for text, _ in _rules(rules, up, frame))]
    ends = []
    for label in labels:
        mine = [line for line in lines if line.label == label]
        ends.append(sum(up(line.points[-1][1]) for line in mine) / len(mine))
    heights = spread(ends, frame.y + 4, frame.y + frame.height)
    for label, end, at in zip(labels, ends, heights, strict=True):
        mine = [line for line in lines if line.label == label]
        color = f"c{mine[0].color % COLORS}" if mine[0].color >= 0 else "plain"
        color += " dashed" if mine[0].color >= COLORS else ""
        shapes = ""
        for line in mine:
            where = [(across(a), up(b)) for a, b in line.points]
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in where)
            shapes += f'<path class="curve" d="M{path}"/>' + (_dots(where) if len(where) <= 12 else "")
        right = max(across(line.points[-1][0]) for line in mine)
        edge = frame.x + frame.width
        shapes += f'<path class="leader" d="M{right:.1f} {end:.1f}L{edge + 12:.1f} {at:.1f}"/>'
        shapes += f'<text class="label" x="{edge + 15:.1f}" y="{at + 4:.1f}">{escape(_cut(label, room - 16))}</text>'
        parts.append(_group(f"series {color}", shapes, mine[0].link, mine[0].title or label))
    return _svg(width, height, name, parts)


def _dots(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in points)


def _cut(label: str, room: float) -> str:
    while len(label) > 4 and text_width(label) > room + 2:
        label = label.rstrip("…")[:-1] + "…"
    return label


def _heights(up: _Scale) -> list[float]:
    """The ticks of a vertical axis."""
    return up.ticks(max(2, int(abs(up.first - up.last) / 45)))


def _left(up: _Scale) -> float:
    """Where a plot begins, so that the name of its vertical axis and its ticks have room."""
    return 32 + max((text_width(up.axis.write(value), 11) for value in _heights(up)), default=20.0)


def _axes(across: _Scale, up: _Scale, frame: Box) -> list[str]:
    bottom, right = frame.y + frame.height, frame.x + frame.width
    parts = [f'<path class="axis" d="M{frame.x} {frame.y}V{bottom}H{right}"/>']
    texts = [across.axis.write(value) for value in across.ticks(99)]
    widest = max((text_width(text, 11) for text in texts), default=20.0)
    for value in across.ticks(max(2, int(frame.width / (widest + 24)))):
        at = across(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {frame.y}V{bottom}"/>')
        text = escape(across.axis.write(value))
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    for value in _heights(up):
        at = up(value)
        parts.append(f'<path class="grid" d="M{frame.x} {at:.1f}H{right}"/>')
        text = escape(up.axis.write(value))
        parts.append(f'<text class="tick" x="{frame.x - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    middle, side = frame.x + frame.width / 2, frame.y + frame.height / 2
    places = (f'x="{middle:.1f}" y="{bottom + 36}"', f'transform="translate(13 {side:.1f}) rotate(-90)"')
    for place_of, axis in zip(places, (across.axis, up.axis), strict=True):
        parts.append(f'<text class="axis-name" {place_of} text-anchor="middle">{escape(axis.title)}</text>')
    return parts


def _rules(rules: Sequence[Rule], up: _Scale, frame: Box, taken: Sequence[Box] = ()) -> list[tuple[str, Box | None]]:
    """Lines within the frame and the boxes of their names, which give way to one another and to what is there."""
    found: list[tuple[str, Box | None]] = []
    for rule in rules:
        if not up.low <= rule.y <= up.high:
            continue
        at, width = up(rule.y), text_width(rule.label, 11)
        text, chosen = f'<path class="rule" d="M{frame.x} {at:.1f}H{frame.x + frame.width}"/>', None
        for x in (frame.x + 4, frame.x + frame.width - width - 4, frame.x + (frame.width - width) / 2):
            box = Box(x, at - 15, width, 13)
            others = [*taken, *(other for _, other in found if other)]
            if box.inside(frame) and not any(box.meets(other) for other in others):
                chosen = box
                text += f'<text class="rule-name" x="{x:.1f}" y="{at - 4:.1f}">{escape(rule.label)}</text>'
                break
        found.append((text, chosen))
    return found


def _group(classes: str, shapes: str, link: str, title: str) -> str:
    inner = f'<g class="{classes}"><title>{escape(title)}</title>{shapes}</g>'
    return f'<a href="#{escape(link)}" aria-label="{escape(title)}">{inner}</a>' if link else inner


def _svg(width: int, height: float, name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="group" '
        f'aria-label="{escape(name)}">{"".join(parts)}</svg>'
    )
