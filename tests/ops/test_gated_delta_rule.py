"""gated_delta_rule: the authors' recurrence by its arrays, and every implementation against the reference."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_step

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
IMPLEMENTATIONS = ("reference", "xla_sequential", "xla_chunked", None)


@pytest.fixture(autouse=True)
def kept(compilation_cache):
    """Programs kept from one run of the tests to the next."""


def error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["delta_rule_op", "delta_rule_op_state"])
def test_parity_with_the_authors(name, implementation):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}

    def ours(key):  # the authors' layout is [B, H, T, ...]
        return arrays[key] if "state" in key else arrays[key].swapaxes(1, 2)

    names = ["q", "k", "v", "beta"] + ["initial_state"] * ("in/initial_state" in arrays)

    def run(*values):
        state = values[4] if len(values) > 4 else None
        return gated_delta_rule(
            *values[:4], initial_state=state, return_state=True, implementation=implementation, chunk_size=16
        )

    (y, state), pull = jax.vjp(run, *(jnp.asarray(ours(f"in/{key}")) for key in names))
    assert error(y, ours("out/o")) <= 2e-6
    assert error(state, arrays["out/final_state"]) <= 2e-6
    grads = dict(zip(names, pull((jnp.asarray(ours("in/cotangent")), jnp.zeros_like(state))), strict=True))
    compared = [key for key in names if f"grad/{key}" in arrays]
    assert len(compared) >= 4
    for key in compared:
        assert error(grads[key], ours(f"grad/{key}")) <= 2e-6, key


def inputs(length=21, decay=True, seed=0):
    draw = np.random.default_rng(seed)
    q, k, v = (draw.normal(size=(2, length, 2, width)) for width in (3, 3, 4))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta = draw.uniform(0, 2, size=(2, length, 2))
    log_decay = -draw.exponential(0.3, size=beta.shape) if decay else None
    return (q, k, v, beta, log_decay, draw.normal(size=(2, 2, 3, 4)))


def run(arguments, implementation, **options):
    *rest, state = arguments
    return gated_delta_rule(*rest, initial_state=state, return_state=True, implementation=implementation, **options)


def grads(arguments, implementation, **options):
    def loss(arguments):
        outputs = run(arguments, implementation, **options)
        draw = np.random.default_rng(1)
        return sum((x * draw.normal(size=x.shape).astype(x.dtype)).sum() for x in outputs)

    return jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, arguments))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("decay", [False, True])
def test_values_and_every_gradient_in_float64(decay, implementation):
    with jax.enable_x64(True):
        mask = np.arange(21) < np.array([21, 13])[:, None]
        ours = grads(inputs(decay=decay), implementation, mask=mask, chunk_size=16)
        theirs = grads(inputs(decay=decay), "reference", mask=mask)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_reference_is_the_recurrence():
    with jax.enable_x64(True):
        q, k, v, beta, log_decay, state = inputs()
        y, last = run((q, k, v, beta, log_decay, state), "reference", scale=1.0)
        memory = state.copy()
        for t in range(21):
            memory *= np.exp(log_decay[:, t])[..., None, None]
            wrong = v[:, t] - np.einsum("bhkv,bhk->bhv", memory, k[:, t])
            memory += np.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t][..., None] * wrong)
            np.testing.assert_allclose(y[:, t], np.einsum("bhkv,bhk->bhv", memory, q[:, t]), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(last, memory, rtol=1e-11, atol=1e-11)


def test_steps_and_reverse():
    with jax.enable_x64(True):
        arguments = inputs()
        q, k, v, beta, log_decay, state = arguments
        whole, last = run(arguments, None)
        flipped = [x[:, ::-1] for x in (q, k, v, beta, log_decay)]
        y, end = run((*flipped, state), None, reverse=True)
        np.testing.assert_allclose(y[:, ::-1], whole, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(end, last, rtol=1e-10, atol=1e-10)
        for t in range(21):
            y, state = gated_delta_rule_step(state, q[:, t], k[:, t], v[:, t], beta[:, t], log_decay[:, t])
            np.testing.assert_allclose(y, whole[:, t], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("keys", ["identical", "alternating", "zero"])
def test_hard_keys_with_beta_2_neither_blow_up_nor_give_nan(keys, implementation):
    q, k, v, _, _, state = inputs(length=70)
    sign = {"identical": np.ones(70), "alternating": (-1.0) ** np.arange(70), "zero": np.zeros(70)}[keys]
    k = np.broadcast_to(k[:, :1] * sign[:, None, None], k.shape)
    arguments = tuple(
        None if x is None else np.asarray(x, np.float32) for x in (q, k, v, np.full(k.shape[:3], 2.0), None, state)
    )
    ours, theirs = grads(arguments, implementation), grads(arguments, "reference")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.isfinite(a).all()
        assert error(a, np.asarray(b)) <= 2e-4
