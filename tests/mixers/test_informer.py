"""The Informer mixer: where its sample comes from, its options, the authors' decoder, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.mixers.informer import Informer
from zoo.ops.probsparse_attention import probsparse_attention

B, T, D = 3, 40, 8
pytestmark = pytest.mark.usefixtures("compilation_cache")


def build(**options):
    return Informer(D, **{"num_heads": 2, "factor": 1, **options}, rngs=nnx.Rngs(0))


@nnx.jit
def evaluate(mixer, x, mask=None):
    return mixer(x, mask=mask, deterministic=True)


@nnx.jit
def train(mixer, x, rngs):
    return mixer(x, deterministic=False, rngs=rngs)


def inputs(length=T, seed=0):
    return jax.random.normal(jax.random.key(seed), (B, length, D))


def relative(a, b):
    """max|a - b| / max(1, max|b|)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / max(1, np.abs(b).max())


def test_is_the_op_between_projections():
    mixer, x = build(causal=True), inputs()
    q, k, v = mixer.projections.split(x)
    y = probsparse_attention(q, k, v, key=jax.random.key(0), factor=1, causal=True)
    assert relative(evaluate(mixer, x), mixer.projections.merge(y)) <= 2e-6


def test_sample_is_drawn_in_training_only():
    mixer, x = build(), inputs()
    quiet = evaluate(mixer, x)
    np.testing.assert_array_equal(evaluate(mixer, x), quiet)
    assert (evaluate(build(sample_seed=1), x) != quiet).any()
    drawn = [train(mixer, x, nnx.Rngs(dropout=seed)) for seed in range(3)]
    np.testing.assert_array_equal(drawn[0], train(mixer, x, nnx.Rngs(dropout=0)))
    assert (drawn[0] != drawn[1]).any()
    # Its own stream, where there is one, goes first; without any, the sample is that of evaluation.
    same = [train(mixer, x, nnx.Rngs(sample=5, dropout=seed)) for seed in range(2)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != train(mixer, x, nnx.Rngs(sample=6, dropout=0))).any()
    np.testing.assert_array_equal(nnx.jit(lambda mixer, x: mixer(x, deterministic=False))(mixer, x), quiet)


def test_every_query_active_is_softmax_attention():
    for causal in (False, True):
        mixer, x = build(factor=T, causal=causal), inputs()
        expected = mixer.projections.merge(jax.nn.dot_product_attention(*mixer.projections.split(x), is_causal=causal))
        assert relative(evaluate(mixer, x), expected) <= 2e-6


def test_output_of_a_position_depends_on_its_own_query():
    """The merge of the heads of the authors' first version, `mix`, does not keep positions apart."""
    x = inputs()[:1, :16]

    def reach(mixer):
        """Which outputs depend on the query of position 3, [T]."""
        q, k, v = mixer.projections.split(x)

        def run(query):
            y = probsparse_attention(q.at[:, 3].set(query), k, v, key=jax.random.key(0), factor=16)
            y = y.swapaxes(1, 2).reshape(y.shape) if mixer.mix else y
            return mixer.projections.merge(y)[0]

        return np.abs(jax.jacobian(run)(q[:, 3])).max((1, 2, 3, 4)) > 1e-6

    assert np.flatnonzero(reach(build())).tolist() == [3]
    assert np.flatnonzero(reach(build(mix=True))).tolist() == [1, 9]


def test_mix_is_the_authors_view():
    mixer, x = build(mix=True, factor=T), inputs()
    heads = jax.nn.dot_product_attention(*mixer.projections.split(x)).swapaxes(1, 2)  # [B, H, T, K]
    assert relative(evaluate(mixer, x), mixer.projections.out(heads.reshape(B, T, D))) <= 2e-6
    with pytest.raises(ValueError, match="mix=True takes no mask"):
        mixer(x, mask=jnp.ones((B, T), bool))


def test_options_reach_the_op():
    x = inputs()
    base = evaluate(build(causal=True), x)
    for options in ({"sample": "shared"}, {"selection": "authors"}, {"causal_context": "cumsum"}, {"factor": 3}):
        assert relative(evaluate(build(causal=True, **options), x), base) > 1e-3, options
    assert relative(evaluate(build(causal=True, implementation="reference"), x), base) <= 2e-6


def test_is_equivariant_where_every_query_attends():
    """Used over variates, as iInformer does, an order of tokens means nothing."""
    mixer, x = build(factor=T), inputs()
    order = np.random.default_rng(0).permutation(T)
    assert relative(evaluate(mixer, x[:, order]), evaluate(mixer, x)[:, order]) <= 2e-6


def test_dropout_is_on_the_output():
    mixer, x = build(dropout=0.5), inputs()
    dropped = train(mixer, x, nnx.Rngs(dropout=1, sample=0))
    assert 0.4 < (np.asarray(dropped) != 0).mean() < 0.6
    mixer.eval()
    np.testing.assert_array_equal(nnx.jit(lambda mixer, x: mixer(x))(mixer, x), evaluate(build(), x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "factor=0"),
        ({"sample": "none"}, "per_query, shared"),
        ({"selection": "all"}, "causal, authors"),
        ({"causal_context": "last"}, "mean, cumsum"),
        ({"num_heads": 3}, "not divisible"),
    ],
    ids=str,
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_keeps_no_state():
    assert not hasattr(Informer, "step")
