"""The language model of every mixer that decodes: whole, in chunks, token by token, padded, scanned."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo import registry
from zoo.encoder import EncoderConfig
from zoo.functional import count_parameters
from zoo.models.causal_lm import CausalLM

V = 11
T = 8
CONFIG = EncoderConfig(
    d_model=16, num_layers=2, num_heads=2, d_ff=16, vocab_size=V, max_len=12, norm_kind="rms", positions="none"
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, T)))
# The contract holds the steps of every mixer to its parallel form; here a cache and two kinds of state stand for all.
SOME = ("softmax", "flowformer", "mamba")
DECODE = [
    spec.name if spec.name in SOME else pytest.param(spec.name, marks=pytest.mark.slow)
    for spec in registry.list_specs(kind="mixer", causal=True, decode=True)
]

pytestmark = pytest.mark.usefixtures("compilation_cache")


def make(mixer="softmax", *, tie_embeddings=False, seed=0, **options) -> Any:
    """A model whose parameters are all away from special values, in evaluation mode."""
    known = registry.option_names(registry.get(mixer, "mixer"))
    own = {name: value for name, value in registry.spec(mixer).test_args.items() if name in known}
    own.pop("d_model", None)
    config = dataclasses.replace(CONFIG, mixer=mixer, mixer_options=own, **options)
    model = CausalLM(config, tie_embeddings=tie_embeddings, rngs=nnx.Rngs(seed))
    model.eval()
    draw = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p: p + 0.1 * draw.normal(size=p.shape).astype(np.float32), params))
    return model


@jax.jit
def forward(model, tokens, mask=None):
    return model(tokens, mask=mask)


@jax.jit
def resume(model, tokens, state, mask=None):
    return model(tokens, mask=mask, state=state, return_state=True)


@jax.jit
def by_steps(model, tokens, state):
    """Logits [B, T, V] of one step a token, and the state at the end."""

    def one(state, token):
        logits, state = model.step(token, state)
        return state, logits

    state, logits = jax.lax.scan(one, state, tokens.T)
    return logits.swapaxes(0, 1), state


def sizes(state):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)


@pytest.mark.parametrize("mixer", DECODE)
def test_chunks_steps_and_the_whole_agree(mixer):
    model = make(mixer)
    whole = forward(model, TOKENS)
    assert whole.shape == (2, T, V)
    assert whole.dtype == jnp.float32
    state = model.init_state(2)
    first, middle = resume(model, TOKENS[:, :4], state)
    second, end = resume(model, TOKENS[:, 4:], middle)  # as long as the first: compiled once
    chunks = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(chunks, whole, atol=1e-4)
    steps, after = by_steps(model, TOKENS, state)
    np.testing.assert_allclose(steps, whole, atol=1e-4)
    # Constant size, or that of the cache: in no case does it grow.
    assert sizes(end) == sizes(after) == sizes(state)
    np.testing.assert_array_equal(after.length, [T, T])


@pytest.mark.parametrize("mixer", DECODE)
def test_logits_see_the_past_only(mixer):
    model = make(mixer)
    changed = TOKENS.at[:, 5].set((TOKENS[:, 5] + 1) % V)
    before, after = forward(model, TOKENS), forward(model, changed)
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-6)
    assert float(abs(after[:, 5:] - before[:, 5:]).max(axis=(1, 2)).min()) > 1e-4


@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal"])
@pytest.mark.parametrize("mixer", ["softmax", "flowformer"])
def test_positions_go_on_where_the_state_is(mixer, positions):
    model = make(mixer, positions=positions)
    whole = forward(model, TOKENS)
    chunk, state = resume(model, TOKENS[:, :4], model.init_state(2))
    np.testing.assert_allclose(chunk, whole[:, :4], atol=1e-4)
    np.testing.assert_allclose(by_steps(model, TOKENS[:, 4:], state)[0], whole[:, 4:], atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mixer", DECODE)
def test_padding_of_a_prompt_changes_nothing(mixer, side):
    """Logits after the prompt, and after what follows, are those of each row alone; whatever the padding holds."""
    model = make(mixer, positions="learned")
    total = 7
    lengths = np.array([3, 7])
    real = np.arange(total) < lengths[:, None]
    mask = jnp.asarray(real if side == "right" else real[:, ::-1])
    prompt = np.zeros((2, total), int)
    prompt[np.asarray(mask)] = np.asarray(TOKENS[:, :total])[real]
    rest = TOKENS[:, :2]
    start = model.init_state(2)
    prefill = jax.jit(lambda model, tokens, state, mask: model.prefill(tokens, state, mask=mask))
    for filling in (0, 5):
        last, state = prefill(model, jnp.where(mask, prompt, filling), start, mask)
        np.testing.assert_array_equal(state.length, lengths)
        follows, _ = by_steps(model, rest, state)
        for row, length in enumerate(lengths):
            alone = jnp.concatenate([TOKENS[row : row + 1, :length], rest[row : row + 1]], axis=1)
            expected = forward(model, alone)[0]
            np.testing.assert_allclose(last[row], expected[length - 1], atol=1e-4)
            np.testing.assert_allclose(follows[row], expected[length:], atol=1e-4)


def test_a_row_without_a_real_token_asks_nothing():
    model = make()
    logits, state = model.prefill(TOKENS, model.init_state(2), mask=jnp.zeros((2, T), bool).at[1].set(True))
    assert bool(jnp.isnan(logits[0]).all())
    assert bool(jnp.isfinite(logits[1]).all())
    np.testing.assert_array_equal(state.length, [0, T])


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("mixer", ["softmax", "flowformer"])
def test_scanned_layers_keep_the_same_state(mixer, remat):
    model, scanned = make(mixer), make(mixer, scan_layers=True, remat=remat)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(layer) for layer in model.encoder.layers))
    nnx.update(scanned.encoder.layers, stacked)
    for part in ("embedding", "norm"):
        nnx.update(getattr(scanned.encoder, part), nnx.state(getattr(model.encoder, part)))
    scanned.kernel[...] = model.kernel[...]
    whole = forward(model, TOKENS)
    state = scanned.init_state(2)
    chunk, state = resume(scanned, TOKENS[:, :4], state)
    np.testing.assert_allclose(chunk, whole[:, :4], atol=1e-5)
    steps, state = by_steps(scanned, TOKENS[:, 4:], state)
    np.testing.assert_allclose(steps, whole[:, 4:], atol=1e-5)
    _, expected = resume(model, TOKENS, model.init_state(2))
    jax.tree.map(
        lambda got, *layers: np.testing.assert_allclose(got, np.stack(layers), atol=1e-4),
        state.layers,
        *expected.layers,
    )


def test_gradients_flow_through_the_state():
    """Two chunks with the state between have the gradient of the whole, in a loop and recomputed."""
    graph, params, rest = nnx.split(make("flowformer", num_layers=1), nnx.Param, ...)

    def loss(params, chunks):
        model = nnx.merge(graph, params, rest)
        if not chunks:
            return jnp.square(model(TOKENS)).mean()
        first, state = model(TOKENS[:, :4], return_state=True)
        second, _ = model(TOKENS[:, 4:], state=state, return_state=True)
        return jnp.square(jnp.concatenate([first, second], axis=1)).mean()

    whole, chunks = (jax.jit(jax.grad(loss), static_argnums=1)(params, split) for split in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), chunks, whole)


def test_low_precision_gives_float32_logits_near_the_exact_ones():
    exact, low = make(), make(dtype="bfloat16")
    logits = forward(low, TOKENS)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, forward(exact, TOKENS), atol=0.15)
    steps, _ = by_steps(low, TOKENS, low.init_state(2))
    np.testing.assert_allclose(steps, logits, atol=0.05)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head(tied):
    model = make(tie_embeddings=tied)
    hidden = model.encoder(TOKENS)
    kernel = model.encoder.embedding.table.embedding[...].T if tied else model.kernel[...]
    np.testing.assert_allclose(model(TOKENS), hidden @ kernel, atol=1e-5)
    other = count_parameters(nnx.state(make(tie_embeddings=not tied), nnx.Param))
    assert other - count_parameters(nnx.state(model, nnx.Param)) == (
        CONFIG.d_model * V if tied else -CONFIG.d_model * V
    )


def test_a_fresh_head_is_near_uniform():
    model = CausalLM(CONFIG, rngs=nnx.Rngs(0))
    log_p = jax.nn.log_softmax(model(TOKENS))
    np.testing.assert_allclose(log_p, -np.log(V), atol=0.4)


def test_by_name():
    model = zoo.create_model(
        "flowformer", output="token", vocab_size=V, d_model=8, num_layers=1, num_heads=2, tie_embeddings=True, max_len=6
    )
    assert isinstance(model, CausalLM)
    assert model.encoder.config.causal
    assert model(TOKENS[:, :6]).shape == (2, 6, V)
    with pytest.raises(TypeError, match="A flowformer language model needs vocab_size"):
        zoo.create_model("flowformer", output="token")
    with pytest.raises(TypeError, match="A flowformer language model has no option 'num_classes'"):
        zoo.create_model("flowformer", output="token", vocab_size=V, num_classes=3)
    with pytest.raises(TypeError, match=r"no option 'tie_embedding'.* Did you mean tie_embeddings"):
        zoo.create_model("flowformer", output="token", vocab_size=V, tie_embedding=True)
    with pytest.raises(ValueError, match="unknown output 'tokens'; there are label, token"):
        zoo.create_model("flowformer", output="tokens", vocab_size=V)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "scalars", "vocab_size": None}, "a language model reads tokens, got inputs='scalars'"),
        ({"cls_token": True}, "a language model has no CLS vector"),
        ({"mixer": "nystromformer"}, "causal"),
    ],
)
def test_what_cannot_be_a_language_model(options, message):
    with pytest.raises(ValueError, match=message):
        CausalLM(dataclasses.replace(CONFIG, **options), rngs=nnx.Rngs(0))


def test_wrong_shapes_say_which_axis():
    model = make()
    state = model.init_state(2)
    with pytest.raises(ValueError, match=r"causal_lm takes token \[B\]; token has 2 axes"):
        model.step(TOKENS[:, :1], state)
    with pytest.raises(ValueError, match="the state is that of a batch of 2, the inputs are 1"):
        model.step(TOKENS[:1, 0], state)
    with pytest.raises(ValueError, match="the state is that of a batch of 2, the inputs are 1"):
        model(TOKENS[:1], state=state)
    with pytest.raises(ValueError, match=r"axis 1 \(T\) of mask is 3"):
        model(TOKENS, mask=jnp.ones((2, 3), bool))
