"""Generation: what it must equal, what it draws, and what it refuses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import registry
from zoo.encoder import EncoderConfig
from zoo.generation import generate, sample
from zoo.models.causal_lm import CausalLM
from zoo.models.sequence_classifier import SequenceClassifier

V, T, N = 13, 5, 9
CONFIG = EncoderConfig(
    d_model=16, num_layers=2, num_heads=2, d_ff=16, vocab_size=V, max_len=16, norm_kind="rms", positions="none"
)
PROMPT = jnp.asarray(np.random.default_rng(0).integers(0, V, (3, T)))
KEY = jax.random.key(3)
# The contract holds the steps of every mixer to its parallel form; here a cache and two kinds of state stand for all.
SOME = ("softmax", "flowformer", "mamba")
DECODE = [
    spec.name if spec.name in SOME else pytest.param(spec.name, marks=pytest.mark.slow)
    for spec in registry.list_specs(kind="mixer", causal=True, decode=True)
]

pytestmark = pytest.mark.usefixtures("compilation_cache")


def make(mixer="flowformer", **options) -> Any:
    """A model in which what comes next depends on what was."""
    known = registry.option_names(registry.get(mixer, "mixer"))
    own = {name: value for name, value in registry.spec(mixer).test_args.items() if name in known and name != "d_model"}
    config = dataclasses.replace(CONFIG, mixer=mixer, mixer_options=own, **options)
    model = CausalLM(config, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(1)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p: p + 0.3 * draw.normal(size=p.shape).astype(np.float32), params))
    return model


@pytest.fixture(scope="module")
def model():
    return make()


@jax.jit
def forward(model, tokens):
    return model(tokens, deterministic=True)


@pytest.mark.parametrize("mixer", DECODE)
def test_greedy_is_the_argmax_of_the_full_forward(mixer):
    model = make(mixer)
    new = generate(model, PROMPT, max_new_tokens=N)
    assert new.shape == (3, N)
    assert new.dtype == jnp.int32
    # Causal, so one pass over prompt and answer has every pass over a beginning in it.
    logits = forward(model, jnp.concatenate([PROMPT, new[:, :-1]], axis=1))[:, T - 1 :]
    best = jnp.take_along_axis(logits, new[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(best, logits.max(-1), atol=1e-4)
    assert len(np.unique(new)) > 2


def test_each_token_is_what_a_pass_over_all_before_it_gives(model):
    new = np.asarray(generate(model, PROMPT, max_new_tokens=N))
    tokens = jnp.zeros((3, T + N - 1), int).at[:, :T].set(PROMPT)
    for index in range(N):
        # What is not there yet is zeros, which nothing before them sees.
        chosen = forward(model, tokens)[:, T + index - 1].argmax(-1)
        np.testing.assert_array_equal(new[:, index], chosen)
        tokens = tokens.at[:, T + index].set(chosen, mode="drop")


def test_sampling_equals_drawing_from_the_full_forward(model):
    options: dict[str, Any] = {"temperature": 0.7, "top_k": 6, "top_p": 0.9}
    new = generate(model, PROMPT, max_new_tokens=N, key=KEY, **options)
    logits = forward(model, jnp.concatenate([PROMPT, new[:, :-1]], axis=1))[:, T - 1 :]
    for index in range(N):
        expected = sample(jax.random.fold_in(KEY, index), logits[:, index], **options)
        np.testing.assert_array_equal(new[:, index], expected)


def test_a_key_decides_and_more_tokens_change_none(model):
    new = generate(model, PROMPT, max_new_tokens=N, temperature=1.0, key=KEY)
    np.testing.assert_array_equal(new, generate(model, PROMPT, max_new_tokens=N, temperature=1.0, key=KEY))
    other = generate(model, PROMPT, max_new_tokens=N, temperature=1.0, key=jax.random.key(4))
    assert (np.asarray(new) != np.asarray(other)).any()
    np.testing.assert_array_equal(generate(model, PROMPT, max_new_tokens=4, temperature=1.0, key=KEY), new[:, :4])
    one = generate(model, PROMPT, max_new_tokens=1, temperature=1.0, key=KEY)
    np.testing.assert_array_equal(one, new[:, :1])


def test_other_temperatures_compile_nothing_new(model):
    from zoo.generation import _generate

    generate(model, PROMPT, max_new_tokens=4, temperature=1.0, top_p=0.5, key=KEY)
    compiled = _generate._cache_size()
    for temperature, top_p in ((0.5, 0.9), (2, 1), (np.float32(0.1), 0.1)):
        generate(model, PROMPT, max_new_tokens=4, temperature=temperature, top_p=top_p, key=KEY)
    again = nnx.clone(model)
    generate(again, PROMPT, max_new_tokens=4, temperature=1.0, top_p=0.5, key=KEY)
    assert _generate._cache_size() == compiled


def test_training_mode_does_not_matter():
    model = make("softmax", dropout=0.5)
    model.train()
    new = generate(model, PROMPT, max_new_tokens=4)
    model.eval()
    np.testing.assert_array_equal(new, generate(model, PROMPT, max_new_tokens=4))


def test_it_runs_inside_jit(model):
    inner = jax.jit(
        lambda model, prompt, t, p, key: generate(model, prompt, max_new_tokens=4, temperature=t, top_p=p, key=key)
    )
    expected = generate(model, PROMPT, max_new_tokens=4, temperature=0.7, top_p=0.8, key=KEY)
    np.testing.assert_array_equal(inner(model, PROMPT, 0.7, 0.8, KEY), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_unequal_length(side):
    """Every row goes on as if it were alone."""
    model = make("softmax", positions="learned")
    lengths = np.array([2, 5, 1])
    real = np.arange(T) < lengths[:, None]
    mask = real if side == "right" else real[:, ::-1]
    prompt = np.full((3, T), 7)
    prompt[mask] = np.asarray(PROMPT)[real]
    new = generate(model, jnp.asarray(prompt), max_new_tokens=6, mask=jnp.asarray(mask))
    for row, length in enumerate(lengths):
        alone = generate(model, PROMPT[row : row + 1, :length], max_new_tokens=6)
        np.testing.assert_array_equal(new[row], alone[0])


def test_a_row_ends_with_the_stop_token(model):
    free = np.asarray(generate(model, PROMPT, max_new_tokens=N, temperature=1.0, key=KEY))
    stop = int(free[0, 3])
    new = np.asarray(generate(model, PROMPT, max_new_tokens=N, temperature=1.0, key=KEY, stop_token=stop))
    for row in range(3):
        where = np.flatnonzero(free[row] == stop)
        end = where[0] if len(where) else N
        np.testing.assert_array_equal(new[row, :end], free[row, :end])
        assert (new[row, end:] == stop).all()
    assert (new[0, 3:] == stop).all()


def test_the_loop_ends_with_the_last_row():
    """With the stop token first of all, no step is taken: there is nothing that could be NaN."""
    model = make("softmax", positions="learned")
    first = generate(model, PROMPT[:1], max_new_tokens=1)
    new = generate(model, PROMPT[:1], max_new_tokens=12, stop_token=int(first[0, 0]))
    np.testing.assert_array_equal(new, np.full((1, 12), first))


def frequencies(logits, draws=40_000, **options):
    """How often each token is drawn."""
    drawn = sample(KEY, jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits))), **options)
    return np.bincount(np.asarray(drawn), minlength=len(logits)) / draws


PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.9}, [1, 3, 4, 2]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        # Among the two likeliest, the first has 0.4 / 0.65 of the mass.
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"top_k": 2, "top_p": 0.7}, [1, 3]),
    ],
)
def test_top_k_and_top_p_draw_from_what_they_keep(options, kept):
    expected = np.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    found = frequencies(np.log(PROBABILITIES) + 3, **options)
    assert (found[expected == 0] == 0).all()
    # Five standard deviations.
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(40_000))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_a_power_of_the_probabilities(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    found = frequencies(np.log(PROBABILITIES), temperature=temperature)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=5 * 0.5 / np.sqrt(40_000))
    # Nucleus after temperature: at 0.5 the likeliest has 0.16 / 0.2725 of the mass.
    if temperature == 0.5:
        assert frequencies(np.log(PROBABILITIES), temperature=temperature, top_p=0.58)[1] == 1


def test_ties_keep_k():
    found = frequencies([1.0, 1.0, 1.0, 0.0], top_k=2)
    assert (found > 0).sum() == 2
    assert frequencies([1.0, 1.0, 1.0, 0.0], top_p=1e-6)[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0, "key": KEY}, r"temperature must be 0 \(the likeliest token\) or more, got -1.0"),
        ({"temperature": float("nan"), "key": KEY}, "temperature must be 0"),
        ({"temperature": 0.8}, r"temperature=0.8 draws at random: give key=jax.random.key"),
        ({"temperature": 1.0, "top_k": 0, "key": KEY}, "top_k must be at least 1, or None for all tokens, got 0"),
        ({"temperature": 1.0, "top_p": 0.0, "key": KEY}, "top_p must be above 0 and at most 1, or None"),
        ({"temperature": 1.0, "top_p": 1.1, "key": KEY}, "top_p must be above 0 and at most 1"),
        ({"mask": jnp.ones((3, T), bool).at[1].set(False)}, "row 1 of the prompt has no real token"),
        ({"mask": jnp.ones((3, 4), bool)}, r"generate takes mask \[B, T\].*axis 1 \(T\) of mask is 4"),
        ({"prompt": PROMPT[0]}, r"generate takes prompt \[B, T\]; prompt has 1 axes"),
        ({"prompt": PROMPT[:, :0]}, r"needs at least one token; axis 1 \(T\) of prompt is 0"),
        ({"prompt": PROMPT.at[0, 0].set(V)}, "the prompt has token ids from 0 to 13; the model has 0 to 12"),
        ({"prompt": PROMPT.at[0, 0].set(-1)}, "the prompt has token ids from -1"),
    ],
)
def test_wrong_requests_say_what_would_be_right(options, message, model):
    arguments = {"prompt": PROMPT, "max_new_tokens": 3, **options}
    with pytest.raises(ValueError, match=message):
        generate(model, **arguments)


def test_positions_end_where_the_model_says():
    model = make("softmax", positions="learned")
    assert generate(model, PROMPT, max_new_tokens=12).shape == (3, 12)
    with pytest.raises(
        ValueError, match=r"5 tokens and 13 new ones take 17 positions, and this model has 16 \(positio"
    ):
        generate(model, PROMPT, max_new_tokens=13)
    assert generate(make("softmax"), PROMPT, max_new_tokens=13).shape == (3, 13)


def test_what_cannot_generate():
    classifier: Any = SequenceClassifier(dataclasses.replace(CONFIG, causal=True), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"generate takes a zoo.models.causal_lm.CausalLM, got SequenceClassifier"):
        generate(classifier, PROMPT, max_new_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", DECODE)
def test_a_thousand_tokens(mixer):
    """The state does not grow, and the logits of the last step are those of the parallel pass."""
    model = make(mixer)
    new = generate(model, PROMPT[:1], max_new_tokens=1000, temperature=1.0, key=KEY)
    tokens = jnp.concatenate([PROMPT[:1], new], axis=1)
    whole, _ = model(tokens, return_state=True, state=model.init_state(1, tokens.shape[1]), deterministic=True)

    @jax.jit
    def by_steps(model, tokens):
        def one(state, token):
            logits, state = model.step(token, state)
            return state, logits

        return jax.lax.scan(one, model.init_state(1, tokens.shape[1]), tokens.T)

    state, logits = by_steps(model, tokens)
    np.testing.assert_allclose(logits.swapaxes(0, 1), whole, atol=1e-4)
    if mixer != "softmax":
        before, after = model.init_state(1), jax.eval_shape(lambda: state)
        assert jax.tree.map(lambda leaf: leaf.shape, before) == jax.tree.map(lambda leaf: leaf.shape, after)
