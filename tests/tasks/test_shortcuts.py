"""Baselines without a model: against scipy's optimiser, on tokens that tell and on tokens that do not."""

import numpy as np
import pytest
from scipy.optimize import minimize

from zoo.data.rows import ByteSource
from zoo.tasks.shortcuts import BagOfTokens, majority_accuracy, token_counts


def test_majority():
    assert majority_accuracy(np.array([0, 2, 2, 1]), np.array([2, 2, 0, 1, 2])) == 0.6


def test_counts_are_of_what_a_model_sees():
    source = ByteSource.from_rows([b"aab", b"", b"bbbba"], [0, 1, 1])
    counts = token_counts(source, 4, 257)
    assert counts.shape == (3, 257)
    assert (counts[0, 98], counts[0, 99], counts[2, 98], counts[2, 99]) == (2, 1, 0, 4)
    assert counts.sum(1).tolist() == [3, 0, 4]
    many = ByteSource.from_rows([bytes([number % 256]) for number in range(1500)], np.zeros(1500, int))
    np.testing.assert_array_equal(token_counts(many, 1, 257).argmax(1), np.arange(1500) % 256 + 1)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_regression_is_at_the_optimum(classes):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (300, 6)).astype(float)
    counts[:, 5] = 2  # never varies
    labels = (counts[:, 0] - counts[:, 1] + rng.normal(size=300) > np.arange(1 - classes, 2)[:classes, None]).sum(0) - 1
    labels = np.clip(labels, 0, classes - 1)
    found = BagOfTokens(counts, labels, classes, ridge=3.0)
    logs = np.log1p(counts[:, :5])
    features = np.concatenate([(logs - logs.mean(0)) / logs.std(0), np.ones((300, 1))], 1)

    def loss(flat):
        weights = flat.reshape(6, classes)
        logits = features @ weights
        total = np.log(np.exp(logits).sum(1)) - logits[np.arange(300), labels]
        return total.sum() + 1.5 * (weights[:-1] ** 2).sum() + 0.5e-6 * (weights[-1] ** 2).sum()

    best = minimize(loss, np.zeros(6 * classes), method="BFGS", options={"gtol": 1e-4})
    used = np.delete(found.weights, 5, axis=0)
    assert loss(used.ravel()) == pytest.approx(best.fun, abs=1e-3)
    assert not found.weights[5].any()
    again = BagOfTokens(counts, labels, classes, ridge=3.0)
    np.testing.assert_array_equal(again.weights, found.weights)


def test_order_is_lost_on_it():
    """ "ab" against "ba" is chance, "aab" against "abb" is not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    order = ByteSource.from_rows([b"ab" if label else b"ba" for label in labels], labels)
    counts = token_counts(order, 9, 257)
    bag = BagOfTokens(counts[:200], labels[:200], 2)
    assert abs(bag.accuracy(counts[200:], labels[200:]) - 0.5) < 0.1
    content = ByteSource.from_rows([b"aab" if label else b"abb" for label in labels], labels)
    counts = token_counts(content, 9, 257)
    assert BagOfTokens(counts[:200], labels[:200], 2).accuracy(counts[200:], labels[200:]) == 1
