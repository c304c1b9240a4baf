"""Multi-query associative recall: key-value pairs, then keys in another order, each asking for its value."""

from typing import ClassVar, NamedTuple

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import Split
from zoo.tasks.generated import GeneratedTask, Size


class _Setting(NamedTuple):
    size: Size
    pairs: int
    vocab_size: int = 8_192


_SETTINGS = {
    "small": _Setting(Size(64), pairs=8, vocab_size=128),
    "64x4": _Setting(Size(64, 100_000, 3_000), pairs=4),
    "128x8": _Setting(Size(128, 100_000, 3_000), pairs=8),
    "256x16": _Setting(Size(256, 100_000, 3_000), pairs=16),
    "512x64": _Setting(Size(512, 100_000, 3_000), pairs=64),
}
# Exponent of the power law of the gaps, less one: 0.01 is the published figure, 1 would be uniform.
_POWER = 0.01


@register_task(
    "recall/mqar",
    title="Multi-query associative recall (MQAR)",
    paper="2312.04927",
    inputs=("tokens",),
    test_args={"source": "small"},
    notes="Sources: small, and LENGTHxPAIRS as published, with 8,192 ids: 64x4, 128x8, 256x16, 512x64.",
)
class MQAR(GeneratedTask):
    """Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927), as in their figure 2.

    A sequence is k pairs of a key and a value, then each key once more among zeros; after each of these the value is
    asked for, and nothing else is. Keys are different ids of the lower half of the vocabulary without 0, values
    different ids of the upper half. The key of a pair comes in one of the slots 0, 2, 4, ... after the pairs, chosen
    without replacement with weight (slot number)^(0.01 - 1): most queries come soon, some late.

    Sources: "small" (64 tokens, 8 pairs, 128 ids; minutes on a CPU), and the published "64x4", "128x8", "256x16" and
    "512x64" (length x pairs), each of 100,000 sequences for training and 3,000 held out.
    """

    name = "recall/mqar"
    sources = tuple(_SETTINGS)
    sizes: ClassVar = {name: setting.size for name, setting in _SETTINGS.items()}
    vocab_sizes: ClassVar = {name: setting.vocab_size for name, setting in _SETTINGS.items()}

    def _draw(self, draws, rows):
        setting = _SETTINGS[self.source]
        return draw(draws, rows, setting.size.length, setting.pairs, setting.vocab_size)

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Accuracy to expect of a random value of the vocabulary, and of a random value of those in the sequence."""
        setting = _SETTINGS[self.source]
        values = setting.vocab_size - setting.vocab_size // 2
        return {"random_value": 1 / values, "value_of_the_sequence": 1 / setting.pairs}


def draw(draws, rows: int, length: int, pairs: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, int16 [rows, length].

    Args:
      draws: `zoo.data.draws.Draws`.
      rows: number of sequences.
      length: tokens of each, even.
      pairs: key-value pairs of each, at most length / 4.
      vocab_size: number of ids.

    Raises:
      ValueError: the pairs and their queries do not fit the length, or the vocabulary the pairs.
    """
    half, slots = vocab_size // 2, (length - 2 * pairs) // 2
    if length % 2 or pairs > slots or pairs >= half:
        raise ValueError(f"{pairs} pairs and their queries do not fit {length} tokens of {vocab_size} ids.")
    keys = 1 + draws.subsets(half - 1, pairs, rows)
    values = half + draws.subsets(vocab_size - half, pairs, rows)
    weights = np.arange(1, slots + 1) ** (_POWER - 1)
    places = 2 * pairs + 2 * draws.weighted_subsets(weights, pairs, rows)
    inputs, labels = np.zeros((rows, length), np.int16), np.full((rows, length), -1, np.int16)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(inputs, places, keys, axis=1)
    np.put_along_axis(labels, places, values, axis=1)
    return inputs, labels
