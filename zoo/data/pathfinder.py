"""Pathfinder: two long dashed curves among short ones, and whether the two marked ends belong to the same curve.

The images are those of the Long Range Arena (Tay et al. 2020, arXiv:2011.04006), after Linsley et al. 2018
(arXiv:1805.08315) and Kim et al. 2020 (arXiv:1906.01558). The law is that of the authors' generator
(drewlinsley/pathfinder at ab9c130, `snakes2`) with the values that LRA's builders name (google-research/
long-range-arena at cd31e5c, `pathfinder.py`). That generator has no seed; this one has, and image `i` depends on the
law, the seed and `i` alone: not on the machine, the version of any library or the number of processes.

A curve ("snake") is a chain of short bars ("paddles"). Both target curves start near the middle and grow in turn, a
paddle each; a dead end of either begins both anew, which one attempt in some hundreds or thousands escapes. Then come
distractors, shorter and as many as find room, and a disc at the start of one target and at the end of it or of the
other.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Difficulty = Literal["easy", "intermediate", "hard"]
DIFFICULTIES: dict[str, int] = {"easy": 6, "intermediate": 9, "hard": 14}
"""Paddles of a target curve by difficulty."""
GENERATOR_VERSION = 1
"""Part of every image's seed: raise it when what is drawn changes."""
GREY = 20
"""Contrasts are counted in units of 1 / 20."""


@dataclasses.dataclass(frozen=True)
class Law:
    """What the images of one set are like. `law` has those of the Long Range Arena.

    Attributes:
      size: side of the image, in pixels, as all lengths here.
      padding: rows and columns at each edge that stay empty.
      paddle_length, thickness: of a paddle; twice the thickness is a whole number.
      margins: free room around a paddle, one of these for each image.
      marker_radius: of the two discs; twice it is a whole number.
      contour_length, distractor_length: paddles of a target curve and of a distractor.
      num_distractors: how many distractors are tried.
      seed_distance: between the starts of the two target curves.
      continuity: how strongly the turning angle between two paddles is bound; at most a quarter turn by this.
      target_contrast, contrast: of the paddles of targets and of distractors, in units of 1 / 20; discs have 20.

    Raises:
      ValueError: a value makes no sense; the message names it.
    """

    size: int
    padding: int
    paddle_length: int
    thickness: float
    margins: tuple[int, ...]
    marker_radius: float
    contour_length: int
    distractor_length: int
    num_distractors: int
    seed_distance: int
    continuity: float
    target_contrast: int
    contrast: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "margins", tuple(self.margins))  # a list, where it comes out of JSON
        for name in ("thickness", "marker_radius"):
            if not (2 * getattr(self, name)).is_integer() or getattr(self, name) <= 0:
                raise ValueError(f"{name} must be a positive multiple of 0.5, got {getattr(self, name)}.")
        for name in ("padding", "paddle_length", "contour_length", "distractor_length", "target_contrast", "contrast"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.margins or min(self.margins) < 1:
            raise ValueError(f"margins must be one or more numbers from 1, got {self.margins}.")
        if not 1 <= self.seed_distance <= (self.size - 2) // 4:
            raise ValueError(
                f"seed_distance must lie in 1..{(self.size - 2) // 4} for images of {self.size} pixels a side, "
                f"got {self.seed_distance}."
            )
        if self.continuity < 1 or self.num_distractors < 0:
            raise ValueError(
                "continuity must be at least 1 and num_distractors at least 0, "
                f"got {self.continuity} and {self.num_distractors}."
            )

    def key(self) -> str:
        """The law as text, the same on every machine; part of every image's seed."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return "/".join(value.hex() if isinstance(value, float) else str(value).replace(" ", "") for value in values)


# By size: padding, paddle_length, thickness, margins, marker_radius, seed_distance, continuity, contrasts of targets
# and distractors, and how many paddles the distractors have together. At 32 the targets alone are dimmed.
_SETS: dict[int, tuple[Any, ...]] = {
    32: (1, 2, 0.5, (1,), 1.5, 7, 1.0, 30, 40, 20),
    64: (1, 5, 1.0, (1,), 2.5, 12, 1.8, 16, 16, 22),
    128: (1, 5, 1.5, (2, 3), 3.0, 20, 1.8, 18, 18, 35),
    256: (22, 5, 2.0, (3,), 5.0, 27, 1.8, 20, 20, 30),
}
SIZES = tuple(_SETS)


def law(size: int = 32, difficulty: Difficulty = "hard") -> Law:
    """The law of one of the Long Range Arena's sets; "hard" are the ones that it is scored on.

    Args:
      size: 32, 64, 128 ("Path-X") or 256.
      difficulty: "easy", "intermediate" or "hard": curves of 6, 9 or 14 paddles.

    Raises:
      ValueError: there is no such set.
    """
    if size not in _SETS:
        raise ValueError(f"Pathfinder has images of {', '.join(map(str, _SETS))} pixels a side, not {size!r}.")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"Pathfinder has the difficulties {', '.join(DIFFICULTIES)}, not {difficulty!r}.")
    padding, length, thickness, margins, radius, distance, continuity, targets, distractors, paddles = _SETS[size]
    contour = DIFFICULTIES[difficulty]
    return Law(
        size=size,
        padding=padding,
        paddle_length=length,
        thickness=thickness,
        margins=margins,
        marker_radius=radius,
        contour_length=contour,
        distractor_length=contour // 3,
        # Counted anew for every difficulty, as LRA's builders have it; the authors' own wrapper counts for "easy" once.
        num_distractors=paddles // (contour // 3),
        seed_distance=distance,
        continuity=continuity,
        target_contrast=targets,
        contrast=distractors,
    )


@dataclasses.dataclass(frozen=True)
class Drawing:
    """N images and how they were made. Points are (row, column), integer, in pixels.

    Attributes:
      images: uint8 [N, size, size].
      labels: 1 where both discs are on the same curve, else 0; uint8 [N].
      markers: where the discs are, at the start of a curve and at the end of one, int16 [N, 2, 2].
      origins: which of the two target curves the first disc is at, uint8 [N].
      targets: the paddles of both target curves from start to end, int16 [N, 2, contour_length, 3, 2]. The three points
        of a paddle: the pivot about which it was turned, the end that faces the paddle before, and the far end.
      distractors: the same of distractors, int16 [N, num_distractors, distractor_length, 3, 2]; -1 where none is.
      num_distractors: how many were drawn, uint8 [N].
      margins: the margin of each image, uint8 [N].
      attempts: how often the two targets were begun, int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray
    markers: np.ndarray
    origins: np.ndarray
    targets: np.ndarray
    distractors: np.ndarray
    num_distractors: np.ndarray
    margins: np.ndarray
    attempts: np.ndarray


def draw(law: Law, seed: int, indices: Sequence[int] | np.ndarray | range) -> Drawing:
    """Draws the images of a set that have these numbers; each is the same whichever others are drawn with it.

    The first call in a process compiles, which takes some seconds, or loads what was compiled before.

    Args:
      law: of the set.
      seed: any integer; another seed is another set.
      indices: numbers from 0, integer [N].

    Raises:
      ValueError: no curves of this law fit into its images, or an index is below 0.
      ModuleNotFoundError: numba is not installed.
    """
    paint = _kernel()
    from zoo.data.pathfinder_tables import tables

    wanted = [int(index) for index in indices]
    if wanted and min(wanted) < 0:
        raise ValueError(f"indices must be at least 0, got {min(wanted)}.")
    found = _empty(law, len(wanted))
    choices = tuple(tables(law, margin) for margin in law.margins)
    for place, index in enumerate(wanted):
        state = _state(law, seed, index)
        which = int(state[0] % np.uint64(len(choices)))
        counts = paint(state, choices[which], *(getattr(found, name)[place] for name in _ARRAYS))
        if counts[3] < 0:
            raise ValueError(f"{law} has found no pair of curves in {-counts[3]:,} attempts; make it roomier.")
        found.margins[place] = law.margins[which]
        found.labels[place], found.origins[place], found.num_distractors[place], found.attempts[place] = counts
    return found


_ARRAYS = ("images", "markers", "targets", "distractors")


def _empty(law: Law, count: int) -> Drawing:
    return Drawing(
        images=np.zeros((count, law.size, law.size), np.uint8),
        labels=np.zeros(count, np.uint8),
        markers=np.zeros((count, 2, 2), np.int16),
        origins=np.zeros(count, np.uint8),
        targets=np.zeros((count, 2, law.contour_length, 3, 2), np.int16),
        distractors=np.full((count, law.num_distractors, law.distractor_length, 3, 2), -1, np.int16),
        num_distractors=np.zeros(count, np.uint8),
        margins=np.zeros(count, np.uint8),
        attempts=np.zeros(count, np.int32),
    )


def _state(law: Law, seed: int, index: int) -> np.ndarray:
    """The start of an image's own stream of random bits, uint64 [4]."""
    text = f"pathfinder/{GENERATOR_VERSION}/{law.key()}/{seed}/{index}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u8").astype(np.uint64)


def _kernel() -> Any:
    from zoo.data.pathfinder_kernel import numba, paint

    if numba is None:
        raise ModuleNotFoundError("drawing Pathfinder needs numba: pip install 'seqzoo[pathfinder]'.")
    return paint
