"""Induction heads: what stood after the mark the first time is asked for when the mark comes again."""

from typing import ClassVar

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import Split
from zoo.tasks.generated import GeneratedTask, Size

# Ids: 0 is padding, 1 the mark, the alphabet follows.
_MARK, _FIRST, _ALPHABET = 1, 2, 16


@register_task(
    "recall/induction",
    title="Induction heads: what followed a mark when it comes again",
    paper="2209.11895; 2212.14052; 2312.00752",
    inputs=("tokens",),
    test_args={"source": "small"},
    notes="Sources: small (64 tokens), length_256 (as Mamba is trained), length_1024.",
)
class Induction(GeneratedTask):
    """Induction heads (Olsson et al. 2022, arXiv 2209.11895; as a task by Dao et al. 2022, arXiv 2212.14052).

    Random letters of an alphabet of 16; at a random place stands the mark, and the last token is the mark again. After
    that, and nowhere else, the letter that followed the first mark is asked for: a single answer a sequence.

    Sources: "small" (64 tokens), "length_256" (the length that Gu and Dao 2023, arXiv 2312.00752, train at) and
    "length_1024".
    """

    name = "recall/induction"
    sizes: ClassVar = {"small": Size(64), "length_256": Size(256), "length_1024": Size(1024, 20_000)}
    sources = tuple(sizes)
    vocab_sizes: ClassVar = dict.fromkeys(sizes, _FIRST + _ALPHABET)

    def _draw(self, draws, rows):
        length = self.sizes[self.source].length
        inputs = (_FIRST + draws.integers(_ALPHABET, (rows, length))).astype(np.int16)
        every, mark = np.arange(rows), draws.integers(length - 2, (rows,))
        inputs[every, mark] = inputs[:, -1] = _MARK
        labels = np.full((rows, length), -1, np.int16)
        labels[:, -1] = inputs[every, mark + 1]
        return inputs, labels

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Accuracy to expect of a random letter."""
        return {"random_letter": 1 / _ALPHABET}
