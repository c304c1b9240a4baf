"""The generator of Pathfinder images, compiled by Numba.

All machines draw the same: there are integers only, and floating point where a single addition is rounded.

`zoo.data.pathfinder.draw` is the way to call it; the law is told there, the tables in `zoo.data.pathfinder_tables`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.data.pathfinder_tables import ANGLES, Tables

_FREE = 76  # of 255: the reference takes a pixel for free up to a room of 0.3
_CROSSING = 459  # of 255: two paddles may overlap up to a sum of 1.8
_PADDLE_TRIES = 3
_DISTRACTOR_TRIES = 5
_GUESSES = 64
_MOST_ATTEMPTS = 20_000_000
_FULL = 255
# Typed, so that what takes them is compiled once.
_ANGLES, _TWO = np.int64(ANGLES), np.int64(2)


try:
    import numba
except ModuleNotFoundError:  # the extra `pathfinder`; `zoo.data.pathfinder.draw` asks for it
    numba = None


def _compiled(function: Callable) -> Any:
    if numba is None:
        return function
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # no folder that can be written to: then every process compiles anew
        return numba.njit(function)


@_compiled
def _bits(state):
    """The next 64 bits of the generator SFC64 (Doty-Humphrey 2010, PractRand)."""
    out = state[0] + state[1] + state[3]
    state[3] += np.uint64(1)
    state[0] = state[1] ^ (state[1] >> np.uint64(11))
    state[1] = state[2] + (state[2] << np.uint64(3))
    state[2] = ((state[2] << np.uint64(24)) | (state[2] >> np.uint64(40))) + out
    return out


@_compiled
def _below(state, bound):
    """Uniform in 0..bound - 1; the remainder's bias is below bound / 2**64."""
    return np.int64(_bits(state) % np.uint64(bound))


@_compiled
def _inside(y, x, size):
    return 0 <= y < size and 0 <= x < size


@_compiled
def _copy(into, values):
    """`into[:] = values` of two axes; a tenth of its compilation."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            into[i, j] = values[i, j]


@_compiled
def _note(snake, row):
    for i in range(5):
        row[i] = snake[i]


@_compiled
def _moved(start, step):
    """A coordinate after a step, rounded up as the reference does; an addition, which all machines round alike."""
    return np.int64(np.ceil(start + step))


@_compiled
def _occupy(room, mark, y, x, size, reach):
    """Takes the room of a paddle; nothing outside the image."""
    for i in range(max(-reach, -y), min(reach, size - 1 - y) + 1):
        for j in range(max(-reach, -x), min(reach, size - 1 - x) + 1):
            value = mark[reach + i, reach + j]
            if value > room[reach + y + i, reach + x + j]:
                room[reach + y + i, reach + x + j] = value


@_compiled
def _fits(room, mark, y, x):
    """Whether a paddle overlaps nothing too much; the room has a rim as wide as a mark reaches."""
    width = mark.shape[0]
    for i in range(width):
        most = 0
        for j in range(width):
            most = max(most, np.int32(room[y + i, x + j]) + np.int32(mark[i, j]))
        if most >= _CROSSING:
            return False
    return True


@_compiled
def _extend(state, tables, room, snake, sums):
    """Adds a paddle to a curve, if it can; the room of the paddle before is taken then.

    `snake` is the row and column of the pivot, the direction, and the point that the last paddle was drawn from.
    """
    size, reach = tables.numbers[0], tables.numbers[8]
    direction = snake[2]
    row = _moved(snake[0], tables.step[direction, 0])
    column = _moved(snake[1], tables.step[direction, 1])
    total = np.int64(0)
    for c in range(len(sums)):
        weight = tables.weights[direction, c]
        y, x = row + tables.candidates[c, 0], column + tables.candidates[c, 1]
        if weight > 0 and _inside(y, x, size):
            taken = np.int64(0)
            for k in range(len(tables.disc)):
                taken = max(taken, np.int64(room[reach + y + tables.disc[k, 0], reach + x + tables.disc[k, 1]]))
            total += weight * (_FULL - taken)
        sums[c] = total
    if total < tables.numbers[10]:
        return False
    for _ in range(_PADDLE_TRIES):
        drawn = _below(state, total)
        c = 0
        while sums[c] <= drawn:
            c += 1
        y, x = row + tables.candidates[c, 0], column + tables.candidates[c, 1]
        if _fits(room, tables.rooms[tables.mark[ANGLES + c]], y, x):
            _occupy(room, tables.rooms[tables.mark[direction]], snake[3], snake[4], size, reach)
            snake[0], snake[1], snake[2], snake[3], snake[4] = row, column, ANGLES + c, y, x
            return True
    return False


@_compiled
def _begin(tables, snake, y, x, degree):
    """The first paddle of a curve that starts at a point; whether it lies in the image."""
    size = tables.numbers[0]
    far_y, far_x = _moved(y, tables.length[degree, 0]), _moved(x, tables.length[degree, 1])
    row, column = _moved(far_y, tables.back[degree, 0]), _moved(far_x, tables.back[degree, 1])
    snake[0], snake[1], snake[2], snake[3], snake[4] = row, column, degree, y, x
    return _inside(far_y, far_x, size) and _inside(row, column, size)


@_compiled
def _begin_targets(state, tables, snakes):
    """The first paddles of both targets; whether there is room for them."""
    for tries in range(_PADDLE_TRIES + 1):
        if tries == _PADDLE_TRIES:
            return False
        degree = _below(state, _ANGLES)
        area = tables.centre[degree]
        if area[1] < area[0] or area[3] < area[2]:
            return False
        y = area[0] + _below(state, area[1] - area[0] + 1)
        x = area[2] + _below(state, area[3] - area[2] + 1)
        if _begin(tables, snakes[0], y, x, degree):
            break
    for _ in range(_PADDLE_TRIES):
        degree, angle = _below(state, _ANGLES), _below(state, _ANGLES)
        y = np.int64(np.rint(snakes[0, 3] + tables.other[angle, 0]))
        x = np.int64(np.rint(snakes[0, 4] + tables.other[angle, 1]))
        if _begin(tables, snakes[1], y, x, degree):
            return True
    return False


@_compiled
def _is_free(tables, room, y, x, degree):
    size, reach = tables.numbers[0], tables.numbers[8]
    for k in range(tables.starts[degree], tables.starts[degree + 1]):
        i, j = y + tables.bodies[k, 0], x + tables.bodies[k, 1]
        if _inside(i, j, size) and room[reach + i, reach + j] > _FREE:
            return False
    return True


@_compiled
def _free_point(state, tables, room, degree):
    """A pixel, uniform among those where a first paddle of this direction is free; -1 where there is none."""
    size = tables.numbers[0]
    if tables.starts[degree] == tables.starts[degree + 1]:
        return np.int64(-1)
    for _ in range(_GUESSES):
        point = _below(state, size * size)
        if _is_free(tables, room, point // size, point % size, degree):
            return point
    count = np.int64(0)
    for point in range(size * size):
        count += _is_free(tables, room, point // size, point % size, degree)
    if count == 0:
        return np.int64(-1)
    wanted = _below(state, count)
    point = np.int64(-1)
    while wanted >= 0:
        point += 1
        wanted -= _is_free(tables, room, point // size, point % size, degree)
    return point


@_compiled
def _begin_distractor(state, tables, room, snake):
    size = tables.numbers[0]
    for _ in range(_PADDLE_TRIES):
        degree = _below(state, _ANGLES)
        point = _free_point(state, tables, room, degree)
        if point < 0:
            return False
        if _begin(tables, snake, point // size, point % size, degree):
            return True
    return False


@_compiled
def _is_full(room, size, reach):
    """Whether less than a hundredth of the image is free."""
    free = 0
    for y in range(reach, reach + size):
        for x in range(reach, reach + size):
            free += room[y, x] <= _FREE
    return 100 * free < size * size


@_compiled
def _keep(tables, snake, points):
    """Writes down the pivot, the near and the far end of a curve's last paddle."""
    direction, y, x = snake[2], snake[3], snake[4]
    other_y, other_x = _moved(y, tables.length[direction, 0]), _moved(x, tables.length[direction, 1])
    points[0, 0], points[0, 1] = snake[0], snake[1]
    if direction < ANGLES:
        points[1, 0], points[1, 1], points[2, 0], points[2, 1] = y, x, other_y, other_x
    else:
        points[1, 0], points[1, 1], points[2, 0], points[2, 1] = other_y, other_x, y, x


@_compiled
def _draw_targets(state, tables, room, empty, snakes, trace, points, sums):
    """Draws both targets; returns the number of attempts, negative where they were given up."""
    for attempt in range(1, _MOST_ATTEMPTS + 1):
        if not _begin_targets(state, tables, snakes):
            continue
        _copy(room, empty)
        done = True
        for i in range(trace.shape[1]):
            for k in range(2):
                if i > 0:
                    done = done and _extend(state, tables, room, snakes[k], sums)
                _note(snakes[k], trace[k, i])
            if not done:
                break
        if done:
            # Of the last two paddles the reference takes the room of the second curve's alone.
            last = snakes[1]
            _occupy(room, tables.rooms[tables.mark[last[2]]], last[3], last[4], tables.numbers[0], tables.numbers[8])
            for k in range(2):
                for i in range(trace.shape[1]):
                    _keep(tables, trace[k, i], points[k, i])
            return attempt
    return -_MOST_ATTEMPTS


@_compiled
def _draw_distractors(state, tables, room, before, canvas, trace, points, sums):
    """Draws distractors, as many as find room; returns how many."""
    size, contrast, reach = tables.numbers[0], tables.numbers[6], tables.numbers[8]
    count, snake = 0, np.zeros(5, np.int64)
    for _ in range(points.shape[0]):
        if _is_full(room, size, reach):
            break
        for _ in range(_DISTRACTOR_TRIES):
            _copy(before, room)
            done = _begin_distractor(state, tables, room, snake)
            for i in range(trace.shape[0]):
                if i > 0:
                    done = done and _extend(state, tables, room, snake, sums)
                _note(snake, trace[i])
            if done:
                _occupy(room, tables.rooms[tables.mark[snake[2]]], snake[3], snake[4], size, reach)
                for i in range(trace.shape[0]):
                    _stamp(canvas, tables, trace[i], contrast)
                    _keep(tables, trace[i], points[count, i])
                count += 1
                break
            _copy(room, before)
    return count


@_compiled
def _stamp(canvas, tables, snake, contrast):
    """Paints the last paddle of a curve, by maximum."""
    size, reach = tables.numbers[0], tables.numbers[8]
    mark, y, x = tables.marks[tables.mark[snake[2]]], snake[3], snake[4]
    for i in range(max(-reach, -y), min(reach, size - 1 - y) + 1):
        for j in range(max(-reach, -x), min(reach, size - 1 - x) + 1):
            value = contrast * np.int64(mark[reach + i, reach + j])
            if value > canvas[y + i, x + j]:
                canvas[y + i, x + j] = value


@_compiled
def _filtered(total):
    """The byte that a sum of weights of 2**-22 stands for."""
    return min(max((total + (1 << 21)) >> 22, 0), _FULL)


@_compiled
def _stamp_disc(canvas, tables, y, x):
    """Paints a disc around a pixel: drawn on a grid twice as fine, then filtered along rows and along columns."""
    size, grey, radius = tables.numbers[0], tables.numbers[7], tables.numbers[9]
    taps = tables.filter.shape[1]
    near = radius // 2 + 4  # the filter reaches three pixels beyond the disc
    top, bottom = max(y - near, 0), min(y + near, size - 1)
    left, right = max(x - near, 0), min(x + near, size - 1)
    first = max(2 * y - radius, 0)
    rows = np.zeros((min(2 * y + radius, 2 * size - 1) - first + 1, right - left + 1), np.int64)
    for i in range(rows.shape[0]):
        across = radius * radius - (first + i - 2 * y) ** 2
        for j in range(rows.shape[1]):
            total = np.int64(0)
            for t in range(taps):
                if (tables.first[left + j] + t - 2 * x) ** 2 <= across:
                    total += _FULL * tables.filter[left + j, t]
            rows[i, j] = _filtered(total)
    for i in range(top, bottom + 1):
        for j in range(rows.shape[1]):
            total = np.int64(0)
            for t in range(taps):
                row = tables.first[i] + t - first
                if 0 <= row < rows.shape[0]:
                    total += rows[row, j] * tables.filter[i, t]
            value = grey * _filtered(total)
            if value > canvas[i, left + j]:
                canvas[i, left + j] = value


@_compiled
def _develop(canvas, image):
    """Scales what was painted to 0..255, as the reference's way of saving does."""
    most = canvas.max()
    for i in range(canvas.shape[0]):
        for j in range(canvas.shape[1]):
            image[i, j] = (2 * _FULL * canvas[i, j] + most) // (2 * most)


@_compiled
def paint(state: np.ndarray, tables: Tables, image: np.ndarray, markers: np.ndarray, targets, distractors):
    """Draws one image; see `zoo.data.pathfinder.Drawing` for what is written into the arrays.

    Args:
      state: uint64 [4], the seed; used up.
      tables: of the law.
      image: uint8 [size, size].
      markers: int16 [2, 2].
      targets, distractors: int16 [.., paddles, 3, 2].

    Returns:
      The label, the curve that the first disc is at, the number of distractors, and of attempts (negative: given up).
    """
    size, padding, reach = tables.numbers[0], tables.numbers[1], tables.numbers[8]
    for _ in range(12):  # mixes the seed
        _bits(state)
    label = _below(state, _TWO)
    # Around the image lies a rim that counts as free, as wide as marks reach.
    empty = np.zeros((size + 2 * reach, size + 2 * reach), np.uint8)
    empty[reach : reach + size, reach : reach + size] = _FULL
    empty[reach + padding : reach + size - padding, reach + padding : reach + size - padding] = 0
    room, sums = empty.copy(), np.zeros(len(tables.candidates), np.int64)
    snakes, trace = np.zeros((2, 5), np.int64), np.zeros((2, targets.shape[1], 5), np.int64)
    attempts = _draw_targets(state, tables, room, empty, snakes, trace, targets, sums)
    if attempts < 0:
        return label, np.int64(0), np.int64(0), attempts
    canvas = np.zeros((size, size), np.int64)
    for k in range(2):
        for i in range(targets.shape[1]):
            _stamp(canvas, tables, trace[k, i], tables.numbers[5])
    chain = np.zeros((distractors.shape[1], 5), np.int64)
    count = _draw_distractors(state, tables, room, empty, canvas, chain, distractors, sums)
    origin = _below(state, _TWO)
    end = origin if label == 1 else 1 - origin
    markers[0], markers[1] = targets[origin, 0, 1], targets[end, targets.shape[1] - 1, 2]
    for k in range(2):
        _stamp_disc(canvas, tables, np.int64(markers[k, 0]), np.int64(markers[k, 1]))
    _develop(canvas, image)
    return label, origin, count, np.int64(attempts)
