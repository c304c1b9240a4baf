"""Copying: a random string, then the same again; or the few tokens that stood among many blanks."""

from typing import ClassVar, NamedTuple

import numpy as np

from zoo.registry import register_task
from zoo.tasks.base import Split
from zoo.tasks.generated import GeneratedTask, Size

# Ids: 0 is padding and the blank, 1 asks for the copy, the alphabet follows.
_MARK, _FIRST = 1, 2


class _Setting(NamedTuple):
    size: Size
    copied: int
    alphabet: int
    selective: bool = False


_SETTINGS = {
    "small": _Setting(Size(32), copied=16, alphabet=26),
    "letters_128": _Setting(Size(256), copied=128, alphabet=26),
    "selective": _Setting(Size(64), copied=8, alphabet=14, selective=True),
    "selective_4096": _Setting(Size(4096 + 16, 20_000), copied=16, alphabet=14, selective=True),
}


@register_task(
    "recall/copy",
    title="Copying a random string, or the tokens among blanks (selective copying)",
    paper="2402.01032; 2312.00752",
    inputs=("tokens",),
    test_args={"source": "small"},
    notes="Sources: small (16 letters), letters_128, selective (8 letters among blanks), selective_4096 (as Mamba's).",
)
class Copy(GeneratedTask):
    """Copying (Jelassi et al. 2024, arXiv 2402.01032) and selective copying (Gu and Dao 2023, arXiv 2312.00752).

    Plain: n random letters, a mark, and the first n - 1 letters again; from the mark on, the next letter is asked for.
    With the letters before it in the input, an induction head can copy; the state must hold n letters.

    Selective: n letters at random places among blanks (id 0), then n marks, each of which asks for the next letter in
    their order. The answers are not in the input, and where the letters stand differs from sequence to sequence.

    Sources: "small" (16 of 26 letters), "letters_128" (128 of 26 letters), "selective" (8 of 14 letters among 56
    positions) and "selective_4096" (16 of 14 letters among 4,096 positions, as in Mamba's table 1: 16 ids in all).
    """

    name = "recall/copy"
    sources = tuple(_SETTINGS)
    sizes: ClassVar = {name: setting.size for name, setting in _SETTINGS.items()}
    vocab_sizes: ClassVar = {name: _FIRST + setting.alphabet for name, setting in _SETTINGS.items()}

    def _draw(self, draws, rows):
        size, copied, alphabet, selective = _SETTINGS[self.source]
        letters = _FIRST + draws.integers(alphabet, (rows, copied))
        inputs, labels = np.zeros((rows, size.length), np.int16), np.full((rows, size.length), -1, np.int16)
        labels[:, -copied:] = letters
        if selective:
            places = np.sort(draws.subsets(size.length - copied, copied, rows), axis=1)
            np.put_along_axis(inputs, places, letters, axis=1)
            inputs[:, -copied:] = _MARK
        else:
            inputs[:, :copied], inputs[:, copied] = letters, _MARK
            inputs[:, copied + 1 :] = letters[:, :-1]
        return inputs, labels

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Accuracy to expect of a random letter."""
        return {"random_letter": 1 / _SETTINGS[self.source].alphabet}
