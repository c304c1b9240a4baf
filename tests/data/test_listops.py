"""The grammar of ListOps against an independent evaluator, the authors' labels, and the law's exact and known facts."""

import gzip
import hashlib
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from zoo.data.listops import (
    OOV_ID,
    VOCAB_SIZE,
    VOCABULARY,
    Law,
    detokenize,
    evaluate,
    generate,
    to_source,
    tokenize,
)

TINY = Law(max_depth=5, max_args=5, min_length=10, max_length=60)
# Counts among 24,000 expressions of an independent implementation of the published generator: labels 0 to 9, lengths in
# bins of 100 from 500 to 2000, and shares of 2 to 10 arguments of the root.
REFERENCE_LABELS = [4113, 2195, 1833, 1989, 2182, 2048, 1856, 1763, 2029, 3992]
REFERENCE_LENGTHS = [2995, 2924, 2523, 2376, 2082, 1896, 1650, 1430, 1273, 1087, 936, 904, 731, 649, 544]
REFERENCE_ROOT_ARITIES = [0.0425, 0.06538, 0.08104, 0.099, 0.12217, 0.13025, 0.14608, 0.15004, 0.16354]


def value_of_pairs(source):
    """An evaluator of its own: reads the published form as nested pairs, and reduces a pair as Nangia & Bowman do."""
    functions = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda values: int(np.median(values)),
        "[SM": lambda values: sum(values) % 10,
    }
    words = source.split()

    def read(i):
        if words[i] != "(":
            word = words[i]
            return ([functions[word], []] if word in functions else word), i + 1
        left, i = read(i + 1)
        right, i = read(i)
        assert words[i] == ")"
        if right == "]":
            return str(left[0](left[1])), i + 1
        return [left[0], [*left[1], int(right)]], i + 1

    value, end = read(0)
    assert end == len(words)
    return int(value)


def test_vocabulary_order_is_fixed():
    assert list(VOCABULARY) == ["<pad>", "[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789", "<oov>"]
    assert VOCAB_SIZE == 17
    assert OOV_ID == 16


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 8 ]", 2),
        ("[MAX 4 2 8 ]", 8),
        ("[MED 9 1 4 ]", 4),
        ("[MED 1 2 ]", 1),
        ("[MED 1 4 ]", 2),
        ("[MED 9 3 0 4 ]", 3),
        ("[MED 9 9 0 0 8 9 ]", 8),
        ("[SM 9 9 9 ]", 7),
        ("[SM 5 5 ]", 0),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM 1 [MED 3 [MAX 1 2 ] 8 ] 9 ]", 3),
    ],
)
def test_values_and_forms(plain, value):
    tokens = tokenize(plain)
    assert tokens.dtype == np.uint8
    assert evaluate(plain) == evaluate(tokens) == evaluate(tokens.tobytes()) == evaluate(tokens.tolist()) == value
    assert detokenize(tokens) == plain
    assert evaluate(to_source(tokens)) == value


def test_published_form():
    assert to_source(tokenize("[MAX 2 9 ]")) == "( ( ( [MAX 2 ) 9 ) ] )"
    assert to_source(tokenize("[SM [MIN 1 2 ] 9 ]")) == "( ( ( [SM ( ( ( [MIN 1 ) 2 ) ] ) ) 9 ) ] )"
    assert detokenize([2, 8, 15, 5, 0, 0]) == "[MAX 2 9 ]"


def test_generated_expressions_round_trip_and_agree_with_an_independent_evaluator():
    rows = generate(Law(), 7, 0, 40) + generate(TINY, 7, 0, 400)
    for tokens, label in rows:
        source = to_source(tokens)
        assert tokenize(source).tobytes() == tokenize(detokenize(tokens)).tobytes() == tokens
        assert label == evaluate(tokens) == evaluate(source) == value_of_pairs(source)


def test_agrees_with_the_authors_labels(shared_path):
    with gzip.open(shared_path("data", "listops_nyu_test_d20s.tsv.gz"), "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    assert len(rows) == 10_000
    assert sum(evaluate(source) == int(label) for label, source in rows) == 10_000
    assert all(to_source(tokenize(source)) == source for _, source in rows)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "is empty"),
        ("[MAX 2 9", r"breaks off after token 3: '\[MAX' at token 1 is not closed"),
        ("[MAX 2 [MIN 3 4 ]", r"'\[MAX' at token 1 is not closed"),
        ("2 ]", r"token 2 is '\]' but no operator is open"),
        ("[MAX [MIN ] 2 ]", "operator at token 2 is closed at token 3 without arguments"),
        ("[MAX 2 9 ] 4", "ends at token 4, but '4' follows"),
        ("3 4", "ends at token 1, but '4' follows"),
        ("[MAX 2 9 ] [MIN 1 2 ]", r"ends at token 4, but '\[MIN' follows"),
        ("[MAX 2 eleven ]", "token 3 is 'eleven'"),
        ("[MAX 2 12 ]", "token 3 is '12'"),
        ("( ( ( [MAX 2 ) 9 ) ] ", "9 tokens .*, where 10 belong"),
        ("( ( [MAX 2 ) 9 ) ] )", r"token 3 .* is '\[MAX', where '\(' belongs"),
        ("( ( ( [MAX 2 9 ) ) ] )", r"token 6 .* is '9', where '\)' belongs"),
        ([2, 8, 0, 5], "token 3 is '<pad>'"),
        ([2, 8, 16, 5], "token 3 is '<oov>'"),
        ([2, 8, 17, 5], "token 3 has id 17"),
        ([2, -1, 5], "token 2 has id -1"),
    ],
)
def test_malformed_expressions_are_refused_with_the_position(expression, message):
    with pytest.raises(ValueError, match=message):
        evaluate(expression)


def test_unknown_tokens():
    assert tokenize("[MAX 2 x ]", strict=False).tolist() == [2, 8, OOV_ID, 5]
    with pytest.raises(ValueError, match="token 3 is 'x'"):
        tokenize("[MAX 2 x ]")
    with pytest.raises(ValueError, match="not closed"):
        to_source([2, 8])


@pytest.mark.parametrize(
    "bounds",
    [
        {"max_depth": 1},
        {"max_args": 1},
        {"min_length": 0},
        {"min_length": 100, "max_length": 101},
        {"p_operator": 0.0},
        {"p_operator": 1.0},
    ],
)
def test_senseless_laws_are_refused(bounds):
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Law(**bounds)


def test_a_law_that_accepts_nothing_says_so():
    with pytest.raises(ValueError, match="accepts none"):
        generate(Law(max_depth=2, max_args=3, min_length=100, max_length=200), 0, 0, 1)


def test_bounds_of_length_depth_and_arity_are_kept_and_reached():
    law = Law(max_depth=4, max_args=3, min_length=6, max_length=14)
    lengths, depths, arities = set(), set(), set()
    for tokens, _ in generate(law, 0, 0, 2000):
        lengths.add(len(tokens))
        depth = np.cumsum((np.frombuffer(tokens, np.uint8) <= 4).astype(int) - (np.frombuffer(tokens, np.uint8) == 5))
        depths.add(depth.max())
        arities.add(detokenize(tokens).count(" ") - 1 if depth.max() == 1 else 0)
    assert lengths == set(range(7, 14))  # both bounds are exclusive
    assert depths <= {1, 2, 3}  # operators reach one level less than the leaves
    assert depths >= {2, 3}


def test_law_of_one_operator_is_uniform():
    """At depth 2 all 4 * 10 * 10 expressions of arity two are equally likely, and arity three a fixed share."""
    rows = generate(Law(max_depth=2, max_args=3, min_length=1, max_length=10), 0, 0, 16_000)
    pairs = Counter(tokens for tokens, _ in rows if len(tokens) == 4)
    assert len(pairs) == 400
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3
    assert stats.binomtest(sum(pairs.values()), len(rows), 0.5).pvalue > 1e-3


def test_law_of_nesting_and_of_the_bound():
    """At depth 3 with two arguments: lengths 4, 7, 10 with binomial chances; a bound only removes the longest."""
    counts = Counter(len(t) for t, _ in generate(Law(3, 2, 1, 100), 1, 0, 8000))
    expected = {4: 0.75**2, 7: 2 * 0.25 * 0.75, 10: 0.25**2}
    assert set(counts) == set(expected)
    assert stats.chisquare([counts[n] for n in expected], [8000 * p for p in expected.values()]).pvalue > 1e-3
    bounded = Counter(len(t) for t, _ in generate(Law(3, 2, 1, 10), 1, 0, 8000))
    assert set(bounded) == {4, 7}
    assert stats.binomtest(bounded[4], 8000, 0.5625 / 0.9375).pvalue > 1e-3


def same_law_p_values(rows):
    """p-values of chi-square and Kolmogorov-Smirnov tests of expressions against the reference counts."""
    lengths = np.array([len(tokens) for tokens, _ in rows])
    labels = np.bincount([label for _, label in rows], minlength=10)
    edges = np.arange(500, 2001, 100)
    histogram = np.histogram(lengths, edges)[0]
    assert histogram.sum() == len(rows)
    n, m = len(rows), sum(REFERENCE_LENGTHS)
    gap = np.abs(np.cumsum(histogram) / n - np.cumsum(REFERENCE_LENGTHS) / m).max()
    arities = Counter(root_arity(tokens) for tokens, _ in rows)
    assert set(arities) == set(range(2, 11))
    shares = np.array(REFERENCE_ROOT_ARITIES) / sum(REFERENCE_ROOT_ARITIES)
    return {
        "labels": stats.chi2_contingency([labels, REFERENCE_LABELS]).pvalue,
        "lengths": stats.chi2_contingency([histogram, REFERENCE_LENGTHS]).pvalue,
        "lengths, KS": stats.kstwobign.sf(gap * np.sqrt(n * m / (n + m))),
        "root operators": stats.chisquare(np.bincount([t[0] for t, _ in rows], minlength=5)[1:]).pvalue,
        "root arities": stats.chi2_contingency([[arities[k] for k in range(2, 11)], np.round(shares * m)]).pvalue,
    }


def root_arity(tokens):
    tokens = np.frombuffer(tokens, np.uint8)
    depth = np.cumsum((tokens <= 4).astype(int) - (tokens == 5))
    return int(((depth == 1) & (tokens > 4)).sum())  # root leaves, and the closing brackets of nested operators


def test_full_law_has_the_known_distribution():
    p_values = same_law_p_values([row for chunk in range(3) for row in generate(Law(), 0, chunk, 1000)])
    assert min(p_values.values()) > 1e-3, p_values


@pytest.mark.slow
def test_full_law_has_the_known_distribution_at_20_000():
    p_values = same_law_p_values([row for chunk in range(20) for row in generate(Law(), 0, chunk, 1000)])
    assert min(p_values.values()) > 1e-3, p_values


def test_another_law_fails_that_test():
    rows = [row for chunk in range(2) for row in generate(Law(p_operator=0.26), 0, chunk, 1000)]
    assert min(same_law_p_values(rows).values()) < 1e-3


def test_streams_depend_on_seed_and_chunk_and_on_nothing_else():
    digest = hashlib.sha256(b"".join(tokens + bytes([label]) for tokens, label in generate(Law(), 0, 0, 20)))
    # The same on every machine and Python: changing it changes every data set, and needs a new GENERATOR_VERSION.
    assert digest.hexdigest() == "df57528132a07ac2ed92f1b1970922a1ae35b1b08d67d9eed9b7d20c5ce84cb5"
    first = generate(TINY, 0, 0, 50)
    assert generate(TINY, 0, 0, 50) == first
    assert generate(TINY, 0, 0, 20) == first[:20]
    assert generate(TINY, 1, 0, 50) != first
    assert generate(TINY, 0, 1, 50) != first
