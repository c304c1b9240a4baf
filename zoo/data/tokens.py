"""Datasets whose labels are tokens: one for each position, below 0 where nothing is asked."""

from typing import Any

import numpy as np

NOT_ASKED = -1


class TokenSource:
    """Rows of one length in memory, with a label at each position.

    Args:
      inputs: integer [N, L], token ids.
      labels: integer [N, L], the token asked for after each position, below 0 where none is.

    Raises:
      ValueError: the shapes differ, are not [N, L], or there are no rows.
    """

    def __init__(self, inputs: Any, labels: Any):
        self.inputs, self.labels = np.asarray(inputs), np.asarray(labels)
        if self.inputs.ndim != 2 or self.inputs.shape != self.labels.shape or not self.inputs.size:
            raise ValueError(
                f"inputs and labels must have one shape [N, L], got {self.inputs.shape} and {self.labels.shape}."
            )
        self.lengths = np.full(len(self.inputs), self.inputs.shape[1], np.int32)

    def __len__(self) -> int:
        return len(self.inputs)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `zoo.data.source.Source.gather`; `label` is int32 [b, length]."""
        kept = min(length, self.inputs.shape[1])
        inputs = np.zeros((len(indices), length), np.int32)
        label = np.full((len(indices), length), NOT_ASKED, np.int32)
        inputs[:, :kept], label[:, :kept] = self.inputs[indices, :kept], self.labels[indices, :kept]
        mask = np.broadcast_to(np.arange(length) < kept, inputs.shape)
        return {"inputs": inputs, "mask": mask, "label": label}


class WindowSource:
    """One long sequence, cut into windows for language modelling: each token but the first is asked for exactly once.

    Row i has the inputs `stream[i * L : (i + 1) * L]` and as labels the same one place later, so a window begins with
    the last token of the one before as its only context. The last row may be shorter. Tokens of id 0, which begin
    documents, are read and never asked for.

    Args:
      stream: integer [total], at least two tokens.
      window: L.

    Raises:
      ValueError: the stream is too short or not one-dimensional, or `window` is below 1.
    """

    def __init__(self, stream: Any, window: int):
        self.stream, self.window = np.asarray(stream), window
        if self.stream.ndim != 1 or len(self.stream) < 2:
            raise ValueError(f"a stream needs two tokens or more, [total], got shape {self.stream.shape}.")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        total = len(self.stream) - 1
        self.lengths = np.minimum(window, total - np.arange(0, total, window)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns a padded batch, see `zoo.data.source.Source.gather`; `label` is int32 [b, length]."""
        inputs = np.zeros((len(indices), length), np.int32)
        label = np.full((len(indices), length), NOT_ASKED, np.int32)
        lengths = np.minimum(self.lengths[indices], length)
        for row, start, count in zip(range(len(indices)), np.asarray(indices) * self.window, lengths, strict=True):
            inputs[row, :count] = self.stream[start : start + count]
            label[row, :count] = self.stream[start + 1 : start + 1 + count]
        label[label == 0] = NOT_ASKED
        return {"inputs": inputs, "mask": np.arange(length) < lengths[:, None], "label": label}
