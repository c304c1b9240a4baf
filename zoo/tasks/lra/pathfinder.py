"""LRA Pathfinder and Path-X: whether two discs are on the same curve, read pixel by pixel."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.registry import did_you_mean, register_task
from zoo.tasks.base import SPLITS, Split, TaskInfo
from zoo.tasks.prepared import PreparedTask, cut_caution
from zoo.tasks.shortcuts import ShortcutTask

if TYPE_CHECKING:
    from zoo.data.pathfinder import Drawing
    from zoo.data.prepared import Prepared
    from zoo.data.rows import PixelSource
    from zoo.data.source import RaggedSource

# Mean and deviation that bring a pixel to 0..1, as S4 reads them, or to -1..1, as S5 and Mega do.
_SCALES = {"unit": (0.0, 255.0), "centred": (127.5, 127.5)}
_IN_MEMORY = 1 << 28
_PACKED = 1 << 32


@register_task(
    "lra/pathfinder",
    title="Are two discs on the same dashed curve, pixel by pixel (LRA Pathfinder)",
    paper="2011.04006",
    inputs=("tokens", "scalars"),
    test_args={"source": "smoke"},
    notes=(
        "Sources: full (160,000/20,000/20,000, drawn here), smoke (a few), published (the release's PNG files). "
        "Options size=32|64|128|256, difficulty=easy|intermediate|hard; LRA's are the hard ones."
    ),
)
class Pathfinder(PreparedTask, ShortcutTask):
    """LRA's Pathfinder (Tay et al. 2020, arXiv:2011.04006), after Linsley et al. 2018 (arXiv:1805.08315).

    Two long dashed curves wind among short ones; a disc is at the start of one and at the end of the same (label 1) or
    of the other (label 0). Images are read row by row; as tokens, a pixel's id is its value: 256 ids, none of them
    padding. The pixels' order apart, nothing tells the labels: see `baselines`.

    The original code takes every token 0 for padding, and so leaves black pixels (two thirds at 32, 86 % at 128) out of
    attention. Here every pixel is real, unless `black_is_padding`.

    Args:
      source: "full" (200,000 images by the law of the release, drawn here, see `zoo.data.pathfinder`: 80 % to train on,
        10 % for validation and for test), "smoke" (5,000 of these at size 32, 1,000 at others) or "published" (the
        release's own files, in the order and the splits of the original).
      max_len: None or the number of pixels.
      data_dir: the folder of all data; None for `$ZOO_DATA` or `~/.cache/zoo`.
      seed: of the generator; another seed is another data set.
      size: side of the images in pixels: 32, 64, 128 ("Path-X") or 256; None for the task's own.
      difficulty: "hard" (curves of 14 paddles, LRA's), "intermediate" (9) or "easy" (6).
      inputs: "tokens", or "scalars" scaled by `scale`.
      scale: "unit" (value / 255, as S4) or "centred" (value / 127.5 - 1, as S5 and Mega).
      black_is_padding: leave black pixels out of the mask.
      archive: for "published": the folder `pathfinder<size>` or one that it is in, where it lies elsewhere.

    Raises:
      ValueError: an argument is none of these.
    """

    name = "lra/pathfinder"
    sources = ("full", "smoke", "published")
    default_size = 32

    def __init__(
        self,
        source: str = "full",
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        size: int | None = None,
        difficulty: Literal["easy", "intermediate", "hard"] = "hard",
        inputs: Literal["tokens", "scalars"] = "tokens",
        scale: Literal["unit", "centred"] = "unit",
        black_is_padding: bool = False,
        archive: str | Path | None = None,
    ):
        from zoo.data.pathfinder_sets import get_config

        if source not in self.sources:
            raise ValueError(f"{self.name} has no source {source!r}. {did_you_mean(source, self.sources)}")
        self.size = self.default_size if size is None else size
        self.source, self.difficulty, self._data_dir, self._archive = source, difficulty, data_dir, archive
        self._config = get_config(self.size, difficulty, source, seed)
        length = self.size**2
        if max_len not in (None, length):
            raise ValueError(f"{self.name} has {length:,} pixels, which max_len={max_len} cannot change.")
        if inputs not in ("tokens", "scalars"):
            raise ValueError(f"{self.name}: inputs must be 'tokens' or 'scalars', got {inputs!r}.")
        if scale not in _SCALES:
            raise ValueError(f"{self.name}: scale must be {' or '.join(map(repr, _SCALES))}, got {scale!r}.")
        self._scale = None if inputs == "tokens" else _SCALES[scale]
        self._black_is_padding = bool(black_is_padding)
        self.info = TaskInfo(inputs, vocab_size=256 if inputs == "tokens" else None, num_classes=2, max_len=length)

    @property
    def prepared(self) -> "Prepared":
        """The prepared data: a folder, or a pack."""
        from zoo.data.pathfinder_sets import prepared

        return prepared(self.size, self._config, self._data_dir)

    def _build(self, **options: Any) -> Path:
        """Draws the images, or reads the released ones.

        Raises:
          ModuleNotFoundError: the extra `pathfinder` is not installed.
        """
        from zoo.data.builders.pathfinder import prepare

        return prepare(self.size, self._config, self._data_dir, archive=self._archive, **options)

    def stored_splits(self) -> tuple[str, ...]:
        """The names under which images are stored; for `zoo.tasks.packing.pack`.

        Raises:
          ValueError: a pack is made and read in memory, which these images would fill.
        """
        splits = self._manifest()["splits"]
        total = self.info.max_len * sum(part["examples"] for part in splits.values())
        if total > _PACKED:
            raise ValueError(f"{self.name}, size {self.size}, has {total / 1e9:.1f} GB of pixels, too many for a pack.")
        return tuple(splits)

    def cut(
        self, splits: dict[str, "RaggedSource"], *, examples: int | None, max_len: int | None
    ) -> dict[str, "RaggedSource"]:
        """Fewer training images; for `zoo.tasks.packing.pack`.

        Raises:
          ValueError: a part of an image has not its label.
        """
        if max_len is not None:
            raise ValueError(f"{self.name}: a part of an image has not its label; leave out max_len.")
        return splits if examples is None else {**splits, "train": splits["train"].part(0, examples)}

    def drawing(self, name: Split, rows: Sequence[int]) -> "Drawing":
        """Some images of a split drawn again, with the curves that they are made of: for studying errors.

        Raises:
          ValueError: unknown split or row, or the images were not drawn here.
          ModuleNotFoundError: numba is not installed.
        """
        from zoo.data.pathfinder import draw, law
        from zoo.data.pathfinder_sets import split_bounds

        if self._config.published:
            raise ValueError(f"{self.name}/published was not drawn here; its curves are not known.")
        if name not in SPLITS:
            raise ValueError(f"{self.name} has no split {name!r}; there are {', '.join(SPLITS)}.")
        first, last = split_bounds(self._config.examples)[name]
        wrong = [row for row in rows if not 0 <= row < last - first]
        if wrong:
            raise ValueError(f"{self.name}: {name} has rows 0 to {last - first - 1}, not {wrong[0]}.")
        return draw(law(self.size, self._config.difficulty), self._config.seed, [first + row for row in rows])

    def cautions(self) -> list[str]:
        """What must be said with every result: an easier set than LRA's, or released files that nobody can check.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        found = cut_caution(self._manifest())
        if self.difficulty != "hard":
            found.append(f"the {self.difficulty} set; LRA's results are on the hard one")
        if self._config.published:
            from zoo.data.pathfinder_published import EXAMPLES

            examples = sum(part["examples"] for part in self._manifest()["splits"].values())
            found.append("unverified data: the release passed the checks of its content, but has no checksum")
            if examples < EXAMPLES - 1:  # one file of the release is empty
                found.append(f"an incomplete release: {examples:,} of {EXAMPLES:,} images")
        return found

    @property
    def bag_name(self) -> str:
        """What the baseline without the pixels' order is called."""
        return "bag_of_pixels"

    def describe(self) -> dict[str, Any]:
        """Path, origin, law, seed, cautions, checksum, and for each split its size and label counts.

        Raises:
          DataError: the data is not prepared, or damaged.
        """
        manifest = self._manifest()
        facts = {key: manifest[key] for key in ("dataset", "origin", "seed", "law", "splits") if key in manifest}
        return {**facts, "cautions": self.cautions(), **self._facts()}

    def _read_split(self, name: Split) -> "PixelSource":
        return self._source(name, self._scale, self._black_is_padding)

    def _source(self, name: Split, scale: tuple[float, float] | None, black_is_padding: bool) -> "PixelSource":
        from zoo.data.pathfinder_sets import labels_path
        from zoo.data.rows import LazyPixelSource, PixelSource

        data, options = self.prepared, {"scale": scale, "black_is_padding": black_is_padding}
        if not data.packed:
            labels = np.load(labels_path(data.folder, name))
            if len(labels) * self.info.max_len > _IN_MEMORY:
                from zoo.data.builders.base import RecordRows

                rows = RecordRows(data.folder, name, data.feature, mend=data.mend)
                return LazyPixelSource(rows, self.info.max_len, labels, **options)
        rows = data.rows(name)
        return PixelSource(rows.tokens.reshape(len(rows), -1), rows.labels, **options)

    def _tokens(self, split: Split) -> "PixelSource":
        self.split(split)  # which checks the files
        return self._source(split, None, False)

    def _manifest(self, *, verify: bool = False) -> dict[str, Any]:
        from zoo.data.pathfinder_sets import open_dataset

        return open_dataset(self.size, self._config, self._data_dir, verify=verify)
