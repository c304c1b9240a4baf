"""The Flowformer layer; what every mixer must do is tested by the contract, the authors' arrays by test_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.mixers.flowformer import FLOWFORMER_PRESETS, Flowformer
from zoo.ops.flow_attention import flow_attention
from zoo.registry import get, spec

D, T = 8, 9


@pytest.fixture(autouse=True)
def light_compilation():
    """Halves the time to compile; what is tested does not depend on XLA's optimisations."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make(**options):
    return Flowformer(D, num_heads=2, rngs=nnx.Rngs(0), **options)


call = nnx.jit(lambda layer, x: layer(x))
step = nnx.jit(lambda layer, x_t, state: layer.step(x_t, state))


def values(length=T, seed=0):
    return np.random.default_rng(seed).standard_normal((2, length, D)).astype(np.float32)


def test_lra_legacy():
    """Against the formula written out: relu features, no clamp, the softmax over heads, times T; no biases."""
    layer = make(d_head=3, **FLOWFORMER_PRESETS["lra_legacy"])
    assert {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))} == {
        f"projections/{name}/kernel" for name in ("query", "key", "value", "out")
    }
    x, eps = values().astype(np.float64), 1e-6
    kernels = {name: np.asarray(getattr(layer.projections, name).kernel) for name in ("query", "key", "value", "out")}
    q, k, v = ((x @ kernels[name]).reshape(2, T, 2, 3) for name in ("query", "key", "value"))
    q, k = np.maximum(q, 0) + eps, np.maximum(k, 0) + eps
    incoming = ((q + eps) * (k.sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    outgoing = ((k + eps) * (q.sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    conserved_sink = ((q + eps) * ((k / outgoing).sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    conserved_source = ((k + eps) * ((q / incoming).sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    competition = T * np.exp(conserved_source) / np.exp(conserved_source).sum(2, keepdims=True)
    y = np.einsum("bthk,bshk,bshv->bthv", q / incoming, k, v * competition) / (1 + np.exp(-conserved_sink))
    expected = y.reshape(2, T, -1) @ kernels["out"]
    assert np.abs(call(layer, values()) - expected).max() / max(1, np.abs(expected).max()) <= 2e-6


def test_options_reach_the_call_and_the_step():
    options = {"feature_map": "relu", "source_clamp": 0.5, "eps": 0.1}
    layer = make(causal=True, **options)
    x = values(length=4)
    y = call(layer, x)
    run = jax.jit(functools.partial(flow_attention, causal=True, implementation="reference", **options))
    heads = run(*layer.projections.split(x))
    np.testing.assert_allclose(y, layer.projections.merge(heads), atol=2e-6)
    state = layer.init_state(2)
    for t in range(4):
        y_t, state = step(layer, x[:, t], state)
        np.testing.assert_allclose(y_t, y[:, t], atol=2e-6)


def test_dtypes_and_state():
    layer = make(causal=True, dtype=jnp.bfloat16, chunk_size=4)
    x = values()
    y, state = nnx.jit(lambda layer, x: layer(x, return_state=True))(layer, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, layer.init_state(2))
    y_t, state = step(layer, x[:, 0], state)
    assert y_t.dtype == jnp.bfloat16
    assert call(make(), x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert layer.projections.query.kernel.dtype == jnp.float32


def test_dropout_is_on_the_output():
    layer = make(dropout=0.5)
    x = values()
    y = np.asarray(nnx.jit(lambda layer, x: layer(x, deterministic=True))(layer, x))
    dropped = np.asarray(nnx.jit(lambda layer, x, rngs: layer(x, rngs=rngs))(layer, x, nnx.Rngs(dropout=1)))
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(dropped[kept], 2 * y[kept], rtol=1e-6)
    layer.eval()
    np.testing.assert_allclose(call(layer, x), y, rtol=1e-6)


def test_errors_say_what_is_wrong():
    for options, message in (
        ({"feature_map": "elu"}, "feature_map='elu'"),
        ({"source_clamp": -1.0}, "source_clamp=-1.0"),
        ({"causal": True, **FLOWFORMER_PRESETS["lra_legacy"]}, "no causal form"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    layer = make()
    with pytest.raises(ValueError, match=r"init_state needs causal=True"):
        layer.init_state(2)
    with pytest.raises(ValueError, match=r"step needs causal=True"):
        layer.step(values()[:, 0], None)
    for options in ({"return_state": True}, {"state": make(causal=True).init_state(2)}):
        with pytest.raises(ValueError, match="causal=True"):
            layer(values(), **options)


def test_registered():
    facts = spec("flowformer", "mixer")
    assert get("flowformer") is Flowformer
    assert facts.causal
    assert facts.bidirectional
    assert facts.padding_mask
    assert facts.decode
    assert not facts.fixed_length


@pytest.mark.parametrize(
    ("name", "limit"),
    [("core", 1.0), ("series", None), ("gpt", 1.0), ("translation", 5.0), ("reinforcement", 10.0)],
)
def test_presets(name, limit):
    """The clamp of each, where it matters: one key takes all the flow."""
    preset = FLOWFORMER_PRESETS[name]
    layer, x = make(**preset), values()
    q, k, v = layer.projections.split(x)
    k = k.at[:, :-1].add(-12)
    options = {"causal": preset.get("causal", False), "implementation": "reference"}
    run = functools.partial(flow_attention, q, k, v, **options)
    heads = flow_attention(q, k, v, **{**preset, "implementation": "xla"})
    np.testing.assert_allclose(heads, run(source_clamp=limit), rtol=1e-5, atol=1e-5)
    for other in {1.0, 5.0} - {limit}:
        assert not np.allclose(heads, run(source_clamp=other), rtol=1e-4, atol=1e-4)
    assert set(FLOWFORMER_PRESETS) == {"core", "series", "gpt", "translation", "reinforcement", "lra_legacy"}
