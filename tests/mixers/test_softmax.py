"""The softmax mixer: against Flax's own layer, its cache, its options. The contract is tested with all mixers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.mixers.softmax import DEFAULT_CACHE_LEN, Softmax

B, T, D, H = 2, 7, 12, 3


@pytest.fixture(autouse=True)
def light_compilation():
    """Compiles lightly: XLA's optimisations make JAX's random bits eight times slower to compile."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make(**options):
    mixer = Softmax(D, **{"num_heads": H, "rngs": nnx.Rngs(0), "bias_init": nnx.initializers.normal(0.3), **options})
    mixer.eval()
    return mixer


def x_of(length=T, seed=0, batch=B):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, D)), jnp.float32)


def flax_twin(mixer):
    """Flax's layer with the same parameters."""
    projections = mixer.projections
    twin = nnx.MultiHeadAttention(
        H, D, qkv_features=H * projections.d_head, decode=False, deterministic=True, rngs=nnx.Rngs(1)
    )
    heads = (H, projections.d_head)
    for name in ("query", "key", "value"):
        mine, theirs = getattr(projections, name), getattr(twin, name)
        theirs.kernel[...] = mine.kernel[...].reshape(D, *heads)
        theirs.bias[...] = mine.bias[...].reshape(heads)
    twin.out.kernel[...] = projections.out.kernel[...].reshape(*heads, D)
    twin.out.bias[...] = projections.out.bias[...]
    return twin


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d_head", [None, 5])
def test_equals_flax(causal, d_head):
    mixer = make(causal=causal, d_head=d_head)
    mask = np.arange(T)[None] < np.array([[T], [4]])
    pairs = nnx.make_attention_mask(mask, mask)
    if causal:
        pairs = nnx.combine_masks(pairs, nnx.make_causal_mask(mask))
    expected = flax_twin(mixer)(x_of(), mask=pairs)
    y = mixer(x_of(), mask=jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(y)[mask], np.asarray(expected)[mask], atol=2e-6)


def test_chunks_of_queries_change_nothing():
    np.testing.assert_allclose(make(query_chunk_size=3)(x_of()), make()(x_of()), atol=2e-6)


def test_biases():
    assert make(use_bias=False).projections.out.bias is None
    mixer = make(use_bias=False, out_bias=True)
    assert mixer.projections.query.bias is None
    assert mixer.projections.out.bias is not None


def test_attention_dropout_is_the_output_dropout_unless_given():
    assert make(dropout=0.2).attention_dropout.rate == 0.2
    mixer = make(dropout=0.2, attention_dropout=0.0)
    assert (mixer.dropout.rate, mixer.attention_dropout.rate) == (0.2, 0.0)


def test_attention_dropout_alone():
    mixer = make(attention_dropout=0.5)
    quiet = mixer(x_of())
    mixer.train()
    with pytest.raises(ValueError, match="dropout=key"):
        mixer(x_of())
    first, same, other = (mixer(x_of(), rngs=nnx.Rngs(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    assert not np.allclose(first, quiet)
    assert np.asarray(first).all()  # weights are dropped, not outputs
    np.testing.assert_array_equal(mixer(x_of(), deterministic=True), quiet)


def test_cache_of_the_wanted_size():
    mixer = make(causal=True)
    state = mixer.init_state(B, max_len=9)
    assert state.key.shape == state.value.shape == (B, 9, H, D // H)
    assert mixer.init_state(B).key.shape[1] == DEFAULT_CACHE_LEN
    y, state = mixer(x_of(), return_state=True, state=state)
    np.testing.assert_allclose(y, mixer(x_of()), atol=2e-6)
    np.testing.assert_array_equal(state.length, [T, T])
    y, state = mixer(x_of(), return_state=True)  # a new cache
    assert state.key.shape[1] == DEFAULT_CACHE_LEN


def test_full_cache_raises():
    mixer = make(causal=True)
    state = mixer.init_state(B, max_len=8)
    _, state = mixer(x_of(), state=state, return_state=True)
    _, state = mixer.step(x_of()[:, 0], state)
    with pytest.raises(ValueError, match=r"8 places.*hold 9"):
        mixer.step(x_of()[:, 0], state)
    with pytest.raises(ValueError, match="chunk of 9 tokens does not fit"):
        jax.eval_shape(lambda x: mixer(x, state=mixer.init_state(B, max_len=8)), x_of(9))


def test_full_cache_under_jit_gives_nan_for_what_did_not_fit():
    mixer = make(causal=True)

    @jax.jit
    def run(x, state, mask):
        return mixer(x, state=state, mask=mask, return_state=True)

    state = mixer.init_state(B, max_len=5)
    mask = jnp.asarray(np.arange(T)[None] < np.array([[T], [4]]))
    y, state = run(x_of(), state, mask)
    expected = mixer(x_of(), mask=mask)
    np.testing.assert_allclose(y[0, :5], expected[0, :5], atol=2e-6)
    assert np.isnan(y[0, 5:]).all()
    np.testing.assert_allclose(y[1, :4], expected[1, :4], atol=2e-6)  # padding takes no room
    np.testing.assert_array_equal(state.length, [7, 4])
    assert np.isfinite(state.key).all()


def test_empty_chunk_leaves_the_state():
    mixer = make(causal=True)
    _, state = mixer(x_of(), return_state=True, state=mixer.init_state(B, 9))
    y, after = mixer(x_of(0), return_state=True, state=state)
    assert y.shape == (B, 0, D)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_low_precision_decoding_equals_the_whole():
    mixer = make(causal=True, dtype=jnp.bfloat16)
    x = x_of().astype(jnp.bfloat16)
    state = mixer.init_state(B, 9)
    assert state.key.dtype == jnp.float32
    first, state = mixer(x[:, :3], state=state, return_state=True)
    second, _ = mixer(x[:, 3:], state=state, return_state=True)
    y = jnp.concatenate([first, second], 1)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), mixer(x).astype(jnp.float32), atol=2e-2)


def test_errors():
    with pytest.raises(ValueError, match="only with causal=True"):
        make().init_state(B)
    with pytest.raises(ValueError, match="only with causal=True"):
        make()(x_of(), return_state=True)
    with pytest.raises(ValueError, match="max_len=0"):
        make(causal=True).init_state(B, 0)
    with pytest.raises(ValueError, match=r"D = 12; axis 2 \(D\) of x is 11 \(its shape is \(2, 7, 11\)\)"):
        make()(x_of()[..., :-1])
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        make(implementation="fast")
    with pytest.raises(ValueError, match="cannot drop attention weights"):
        make(implementation="xla", dropout=0.1)
    make(implementation="xla", dropout=0.1, attention_dropout=0.0)
    with pytest.raises(ValueError, match="attention_dropout=1"):
        make(attention_dropout=1)
    with pytest.raises(ValueError, match="not divisible"):
        make(num_heads=5)
