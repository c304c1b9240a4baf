"""Text and other token sequences out of language models: one compiled loop from a prompt's state.

The state is what the variant keeps: of constant size for recurrent ones, keys and values with room for the whole
sequence for softmax attention.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers.shapes import check_shapes
from zoo.models.causal_lm import CausalLM
from zoo.typing import Array, Bool, Float, Int, PRNGKeyArray


def generate(
    model: CausalLM,
    prompt: Int[Array, "B T"],
    *,
    max_new_tokens: int,
    mask: Bool[Array, "B T"] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: PRNGKeyArray | None = None,
    stop_token: int | None = None,
) -> Int[Array, "B N"]:
    """Continues every row of a batch of prompts, without dropout.

    The prompt goes in whole; then each token costs one `step`. Greedily, token i is the argmax of the full forward pass
    over the prompt and the tokens before i. Sampling draws token i with `fold_in(key, i)`: the same key gives the same
    tokens, and the first of a longer answer are those of a shorter one.

    It is compiled once for each shape of the prompt, `max_new_tokens`, `top_k` and `stop_token`, and for temperature
    zero or not; other temperatures and values of `top_p` need no compilation.

    Args:
      model: a language model whose mixer decodes.
      prompt: token ids, at least one a row.
      max_new_tokens: N.
      mask: True at real tokens of the prompt; None where all are. Rows of unequal length are padded on the right or on
        the left (the mixer's own contract allows no gaps inside): each is continued exactly as if it were alone.
      temperature: divides the logits; 0 for the likeliest token, which needs no key.
      top_k: draw among the k likeliest tokens only; None for all.
      top_p: draw among the fewest tokens whose probabilities, after `temperature` and among those of `top_k`, sum to at
        least p (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751); None for all.
      key: a `jax.random.key`; needed where the temperature is not 0.
      stop_token: a row ends with it: all that follows is `stop_token` again. The loop ends when all rows have.

    Returns:
      The new tokens, int32 [B, N], without the prompt.

    Raises:
      ValueError: an argument is out of range or misshapen; the mixer keeps no state; prompt and answer exceed the
        model's `max_len` (positions "none" know no such limit); or a row of the prompt is all padding, where that can
        be known.
      TypeError: `mask` is not boolean.
    """
    greedy = _check_sampling(temperature, top_k, top_p, key)
    prompt = jnp.asarray(prompt)
    check_shapes("generate", "prompt [B, T]", prompt, mask)
    _check_prompt(model, prompt, mask, max_new_tokens)
    return _generate(
        model,
        prompt,
        mask,
        None if greedy else jnp.asarray(temperature, jnp.float32),
        None if top_p is None or greedy else jnp.asarray(top_p, jnp.float32),
        None if greedy else key,
        top_k=None if greedy else top_k,
        max_new_tokens=max_new_tokens,
        stop_token=stop_token,
    )


@functools.partial(jax.jit, static_argnames=("top_k", "max_new_tokens", "stop_token"))
def _generate(model, prompt, mask, temperature, top_p, key, *, top_k, max_new_tokens, stop_token):
    def choose(logits, index):
        if temperature is None:
            return logits.argmax(-1).astype(jnp.int32)
        drawing = jax.random.fold_in(key, index)
        return sample(drawing, logits, temperature=temperature, top_k=top_k, top_p=top_p)

    # The last new token is not fed back, so there is no room for it.
    state = model.init_state(prompt.shape[0], prompt.shape[1] + max_new_tokens - 1)
    logits, state = model.prefill(prompt, state, mask=mask)
    first = choose(logits, 0)
    filler = 0 if stop_token is None else stop_token
    tokens = jnp.full((prompt.shape[0], max_new_tokens), filler, jnp.int32).at[:, 0].set(first)
    done = jnp.zeros(prompt.shape[0], bool) if stop_token is None else first == stop_token

    def goes_on(carry):
        index, _, _, _, done = carry
        return (index < max_new_tokens) & ~done.all()

    def more(carry):
        index, last, state, tokens, done = carry
        logits, state = model.step(last, state)
        token = choose(logits, index)
        if stop_token is not None:
            token = jnp.where(done, stop_token, token)
            done = token == stop_token
        return index + 1, token, state, tokens.at[:, index].set(token), done

    return jax.lax.while_loop(goes_on, more, (1, first, state, tokens, done))[3]


def sample(
    key: PRNGKeyArray,
    logits: Float[Array, "... V"],
    *,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: Any = None,
) -> Int[Array, "..."]:
    """Draws one token from each distribution; see `generate` for the arguments, of which none is checked here.

    Equal logits at the edge of `top_k` or `top_p` count in order of their ids: never more than k tokens remain, and
    always at least one.
    """
    logits = logits.astype(jnp.float32) / temperature
    if top_k is None and top_p is None:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    values, order = jax.lax.top_k(logits, logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1]))
    if top_p is not None:
        probabilities = jax.nn.softmax(values)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        before = before.at[..., 0].set(-1.0)
        values = jnp.where(before < top_p, values, -jnp.inf)
    drawn = jax.random.categorical(key, values)
    return jnp.take_along_axis(order, drawn[..., None], axis=-1)[..., 0].astype(jnp.int32)


def generate_text(
    run: str | Path,
    prompt: str = "",
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    which: Literal["best", "last"] = "best",
) -> str:
    """Continues a text by the language model of a run directory. What `zoo generate` prints.

    Args:
      run: a run directory of a task that reads text, such as `lm/bytes`.
      prompt: the beginning; "" to begin as a document does.
      tokens: how many to add.
      temperature, top_k, top_p: see `generate`.
      seed: of the draws.
      which: the parameters that did best on validation, or the last ones saved.

    Returns:
      The new text, without the prompt.

    Raises:
      ValueError: the run is of a task that is no text, or an argument is out of range; see `generate`.
      RunError, CheckpointError: see `zoo.load_run`.
    """
    from zoo.training.run import load_run

    _check_sampling(temperature, top_k, top_p, key="given by seed")
    loaded = load_run(run, which)
    task = loaded.task
    if not (isinstance(loaded.model, CausalLM) and hasattr(task, "encode")):
        raise ValueError(f"{run} is a run of {task.name}, which is no task of text to go on with; lm/bytes is one.")
    new = generate(
        loaded.model,
        jnp.asarray(task.encode(prompt))[None],
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(seed),
    )
    return task.decode(np.asarray(new[0]))


def _check_sampling(temperature: Any, top_k: int | None, top_p: Any, key: Any) -> bool:
    """Raises ValueError where these are out of range, as far as can be known; whether to take the likeliest token."""
    greedy = False
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (the likeliest token) or more, got {temperature}.")
        greedy = bool(temperature == 0)
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, or None for all tokens, got {top_p}.")
    if not greedy and key is None:
        raise ValueError(f"temperature={temperature} draws at random: give key=jax.random.key(...).")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all tokens, got {top_k}.")
    return greedy


def _check_prompt(model: CausalLM, prompt: Array, mask: Array | None, max_new_tokens: int) -> None:
    if not isinstance(model, CausalLM):
        raise ValueError(f"generate takes a zoo.models.causal_lm.CausalLM, got {type(model).__name__}.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    config = model.encoder.config
    needed = prompt.shape[1] + max_new_tokens - 1
    if config.positions != "none" and needed > config.max_len:
        raise ValueError(
            f"a prompt of {prompt.shape[1]} tokens and {max_new_tokens} new ones take {needed} positions, and this "
            f"model has {config.max_len} (positions={config.positions!r}, max_len={config.max_len})."
        )
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if prompt.min() < 0 or prompt.max() >= (config.vocab_size or 0):
            raise ValueError(
                f"the prompt has token ids from {prompt.min()} to {prompt.max()}; the model has 0 to "
                f"{(config.vocab_size or 0) - 1}."
            )
        if mask is not None and not bool(mask.any(axis=1).all()):
            row = int(jnp.argmin(mask.any(axis=1)))
            raise ValueError(f"row {row} of the prompt has no real token; begin with a token that begins a sequence.")
