"""Baselines that need no model of a sequence: the most frequent label, and a logistic regression on a bag of tokens."""

from typing import Any

import numpy as np

from zoo.tasks.base import ClassificationTask, Split

_AT_ONCE = 1_024
_MOST_FITTED = 50_000
_MOST_CELLS = 1 << 28  # of all rows that it is fitted on
_SCORED_AT_ONCE = 10_000
_BYTES = 257  # ids of bytes and of pixels are below it


def majority_accuracy(train_labels: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy on `labels` (integer [N]) of the most frequent of `train_labels` (integer [M])."""
    return float((labels == np.bincount(train_labels).argmax()).mean())


def token_counts(source: Any, length: int, vocab_size: int, rows: np.ndarray | None = None) -> np.ndarray:
    """How often each token comes in each row.

    Args:
      source: of tokens (`zoo.data.source.Source`).
      length: what is beyond it in a row is cut, as for a model.
      vocab_size: V.
      rows: integer [N], which of the source's; None for all.

    Returns:
      float64 [N, V]; padding is not counted.
    """
    rows = np.arange(len(source)) if rows is None else rows
    counts = np.zeros((len(rows), vocab_size))
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        batch = source.gather(some, length)
        cells = batch["inputs"] + vocab_size * np.arange(len(some))[:, None]
        found = np.bincount(cells[batch["mask"]], minlength=len(some) * vocab_size)
        counts[first : first + len(some)] = found.reshape(len(some), vocab_size)
    return counts


def pair_counts(source: Any, length: int, vocab_size: int, rows: np.ndarray | None = None) -> np.ndarray:
    """How often each token comes in both texts of a pair, and how much more often in one of them.

    Args:
      source: `zoo.data.pairs.PairSource`.
      length, vocab_size, rows: as for `token_counts`.

    Returns:
      float64 [N, 2 V].
    """
    from zoo.data.rows import ByteSource

    pairs = source.pairs if rows is None else source.pairs[rows]
    used, places = np.unique(pairs, return_inverse=True)
    documents = source.documents
    texts = ByteSource(documents.tokens, documents.offsets, documents.labels)
    one, two = token_counts(texts, length, vocab_size, used)[places.reshape(pairs.shape)].swapaxes(0, 1)
    return np.concatenate([np.minimum(one, two), np.abs(one - two)], axis=1)


def length_percentiles(lengths: np.ndarray) -> dict[str, float]:
    """Smallest, largest and percentiles between of lengths, integer [N]."""
    names = ("min", "p5", "p25", "p50", "p75", "p95", "max")
    return {
        name: float(value)
        for name, value in zip(names, np.percentile(lengths, [0, 5, 25, 50, 75, 95, 100]), strict=True)
    }


class BagOfTokens:
    """Multinomial logistic regression on log(1 + count) of every token, standardised.

    The order of tokens is lost on it: what a model has above it comes from the order. Fitted by a bound of the Hessian
    that holds everywhere (Böhning 1992), so that every iteration lowers the loss without any step size; nothing is
    drawn.

    Args:
      counts: float [N, V], see `token_counts`.
      labels: integer [N], from 0 to C - 1.
      num_classes: C.
      ridge: half the squared weights count that many times, beside the sum of cross-entropies; biases do not.
      iterations: the most there are; it ends where ten of them change the loss by less than 1e-6 an example.
    """

    def __init__(
        self, counts: np.ndarray, labels: np.ndarray, num_classes: int, *, ridge: float = 10.0, iterations: int = 200
    ):
        logs = np.log1p(counts)
        self._mean, deviation = logs.mean(0), logs.std(0)
        # Of tokens that never vary in training nothing can be learned; rounding leaves some deviation there as well.
        varies = deviation > 1e-9
        self._scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
        features = self._features(counts)
        penalty = np.full(features.shape[1], ridge)
        penalty[-1] = 1e-6  # the bias
        # The eigenvalues of diag(p) - p p' are at most 1/2.
        bound = 0.5 * features.T @ features + np.diag(penalty)
        inverse = np.linalg.inv(bound)
        target = np.eye(num_classes)[labels]
        self.weights, losses = np.zeros((features.shape[1], num_classes)), []
        # Nesterov's momentum, which a bound allows, begun anew where the loss rises (O'Donoghue & Candès 2015).
        ahead, momentum = self.weights, 1.0
        for _ in range(iterations):
            loss, slope = _loss_and_slope(ahead, features, target, penalty)
            after = ahead - inverse @ slope
            if losses and loss > losses[-1]:
                momentum = 1.0
            losses.append(loss)
            if len(losses) > 10 and abs(losses[-11] - loss) < 1e-6 * len(labels):
                break
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = after + (momentum - 1) / following * (after - self.weights)
            self.weights, momentum = after, following

    def accuracy(self, counts: np.ndarray, labels: np.ndarray) -> float:
        """The share of rows (counts [N, V], labels integer [N]) whose likeliest label is theirs."""
        return float(((self._features(counts) @ self.weights).argmax(1) == labels).mean())

    def _features(self, counts: np.ndarray) -> np.ndarray:
        return np.concatenate([(np.log1p(counts) - self._mean) * self._scale, np.ones((len(counts), 1))], 1)


def _loss_and_slope(
    weights: np.ndarray, features: np.ndarray, target: np.ndarray, penalty: np.ndarray
) -> tuple[float, np.ndarray]:
    """The sum of cross-entropies and ridge, and its gradient [V + 1, C]."""
    logits = features @ weights
    logits -= logits.max(1, keepdims=True)
    odds = np.exp(logits)
    total = odds.sum(1, keepdims=True)
    decay = penalty[:, None] * weights
    loss = np.log(total).sum() - (logits * target).sum() + (decay * weights).sum() / 2
    return float(loss), features.T @ (odds / total - target) + decay


class ShortcutTask(ClassificationTask):
    """A classification task that is held against its most frequent label and a bag of its tokens."""

    _bag: BagOfTokens | None = None

    @property
    def bag_name(self) -> str:
        """What the second baseline is called."""
        return "bag_of_bytes"

    def baselines(self, split: Split = "test") -> dict[str, float]:
        """Accuracy (0..1) on `split` of two rules fitted on the training split.

        Returns:
          "majority": the most frequent label. "bag_of_bytes" (or as `bag_name` says): a logistic regression on how
          often each token comes in what a model sees of a row, of pairs on how often it comes in both texts and how
          much more often in one; see `BagOfTokens`. It is fitted on 50,000 rows, evenly spaced, where there are more,
          and on fewer very long ones.
        """
        train, scored = self._tokens("train"), self._tokens(split)
        if self._bag is None:
            most = min(len(train), _MOST_FITTED, max(1, _MOST_CELLS // self.info.max_len))
            rows = np.unique(np.linspace(0, len(train) - 1, most).astype(int))
            self._bag = BagOfTokens(self._counts(train, rows), train.labels[rows], self.info.num_classes)
        right = 0.0
        for first in range(0, len(scored), _SCORED_AT_ONCE):
            rows = np.arange(first, min(first + _SCORED_AT_ONCE, len(scored)))
            right += self._bag.accuracy(self._counts(scored, rows), scored.labels[rows]) * len(rows)
        return {"majority": majority_accuracy(train.labels, scored.labels), self.bag_name: right / len(scored)}

    def _tokens(self, split: Split) -> Any:
        """The split's rows as tokens, with `labels`, whatever models read."""
        return self.split(split)

    def _counts(self, source: Any, rows: np.ndarray) -> np.ndarray:
        """The bag of tokens of some rows, [N, V]."""
        count = pair_counts if self.info.pairs else token_counts
        return count(source, self.info.max_len, self.info.vocab_size or _BYTES, rows)
