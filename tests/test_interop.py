"""Linen modules and plain functions of NNX modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import zoo
from zoo.registry import RegistryError

B, T, D = 2, 5, 8
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
MASK = np.arange(T)[None] < np.array([[T], [3]])


@pytest.fixture(autouse=True)
def light_compilation():
    """Compiles lightly: XLA's optimisations make JAX's random bits eight times slower to compile."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Running(nnx.Module):
    """A module with variables that are no parameters: statistics that calls update, and an integer table."""

    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(D, rngs=rngs)
        self.order = nnx.Variable(jax.random.permutation(rngs.params(), D))

    def __call__(self, x, *, deterministic=None):
        return self.norm(x, use_running_average=deterministic)[..., self.order[...]]


class Host(linen.Module):
    """A Linen module with a zoo mixer inside."""

    @linen.compact
    def __call__(self, x, mask, train):
        mixer = zoo.to_linen("softmax", D, num_heads=2, dropout=0.5, linen_name="mixer")
        return linen.Dense(D)(mixer(x, mask=mask, deterministic=not train))


def test_plain_functions_are_the_module():
    init, apply = zoo.init_apply("softmax", D, num_heads=2)
    params = init(jax.random.key(0))
    assert type(params["projections"]["query"]) is dict
    assert isinstance(params["projections"]["query"]["kernel"], jax.Array)
    module = zoo.create_mixer("softmax", D, num_heads=2, rngs=nnx.Rngs(jax.random.key(0)))
    np.testing.assert_allclose(apply(params, X, mask=MASK), module(X, mask=MASK), atol=1e-6)


def test_plain_functions_transform():
    init, apply = zoo.init_apply("softmax", D, num_heads=2)
    params = jax.jit(init)(jax.random.key(0))
    many = jax.vmap(init)(jax.random.split(jax.random.key(0), 3))
    y = jax.jit(jax.vmap(apply, (0, None)))(many, X)
    first = jax.tree.map(lambda leaf: leaf[0], many)
    np.testing.assert_allclose(y[0], apply(first, X), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda params: apply(params, X, mask=MASK).sum()))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert np.asarray(gradient["projections"]["value"]["kernel"]).any()


def test_plain_dropout():
    init, apply = zoo.init_apply("softmax", D, num_heads=2, dropout=0.5)
    params = init(jax.random.key(0))
    run = jax.jit(lambda seed: apply(params, X, dropout_key=jax.random.key(seed)))
    np.testing.assert_array_equal(run(1), run(1))
    assert not np.allclose(run(1), run(2))
    quiet = apply(params, X)
    assert not np.allclose(run(1), quiet)
    np.testing.assert_array_equal(apply(params, X, dropout_key=jax.random.key(1), deterministic=True), quiet)
    with pytest.raises(ValueError, match="rngs"):
        apply(params, X, deterministic=False)


def test_plain_decoding():
    init, apply = zoo.init_apply("softmax", D, num_heads=2, causal=True)
    params = init(jax.random.key(0))
    state = apply(params, B, max_len=T, method="init_state")
    step = jax.jit(lambda params, x_t, state: apply(params, x_t, state, method="step"))
    outputs = []
    for t in range(T):
        y_t, state = step(params, X[:, t], state)
        outputs.append(y_t)
    np.testing.assert_allclose(np.stack(outputs, 1), apply(params, X), atol=2e-6)
    with pytest.raises(TypeError, match="step takes no rngs"):
        apply(params, X[:, 0], state, method="step", dropout_key=jax.random.key(0))


def test_other_variables_travel_beside_the_parameters():
    init, apply = zoo.init_apply(Running)
    params, variables = init(jax.random.key(0), return_variables=True)
    assert set(params) == {"norm"}
    assert set(variables) == {"norm", "order"}
    assert jax.tree.structure(init(jax.random.key(0))) == jax.tree.structure(params)
    _, after = jax.jit(lambda params, variables: apply(
        params, X, variables=variables, return_variables=True, deterministic=False
    ))(params, variables)  # fmt: skip
    assert not np.allclose(after["norm"]["mean"], variables["norm"]["mean"])
    np.testing.assert_array_equal(after["order"], variables["order"])
    assert not np.asarray(variables["norm"]["mean"]).any()  # the argument is as it was
    assert not np.allclose(apply(params, X, variables=after), apply(params, X, variables=variables))
    gradient = jax.grad(lambda params: apply(params, X, variables=after).sum())(params)
    assert np.asarray(gradient["norm"]["scale"]).any()
    with pytest.raises(ValueError, match=r"missing \['norm/mean', 'norm/var', 'order'\].*return_variables=True"):
        apply(params, X)


def test_parameters_that_do_not_fit():
    init, apply = zoo.init_apply("softmax", D, num_heads=2)
    params = init(jax.random.key(0))
    params["projections"]["extra"] = params["projections"].pop("out")
    with pytest.raises(ValueError, match=r"missing \['projections/out/bias', .*unexpected \['projections/extra/bias'"):
        apply(params, X)


def test_linen_host():
    host = Host()
    variables = host.init(jax.random.key(0), X, MASK, True)  # without a dropout stream
    assert set(variables["params"]) == {"mixer", "Dense_0"}
    _, apply = zoo.init_apply("softmax", D, num_heads=2)
    inner, dense = variables["params"]["mixer"], variables["params"]["Dense_0"]
    expected = apply(inner, X, mask=MASK) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(host.apply(variables, X, MASK, False), expected, atol=2e-6)


def test_linen_dropout_comes_from_the_stream():
    host = Host()
    variables = host.init(jax.random.key(0), X, MASK, False)
    run = jax.jit(lambda variables, key: host.apply(variables, X, MASK, True, rngs={"dropout": key}))
    first, same, other = (run(variables, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    with pytest.raises(ValueError, match="rngs"):
        host.apply(variables, X, MASK, True)


def test_linen_trains():
    host = Host()
    params = host.init(jax.random.key(0), X, MASK, False)["params"]

    def loss(params):
        return (host.apply({"params": params}, X, MASK, True, rngs={"dropout": jax.random.key(1)}) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    assert np.asarray(gradient["mixer"]["projections"]["value"]["kernel"]).any()


def test_linen_other_methods():
    module = zoo.to_linen("softmax", D, num_heads=2, causal=True)
    variables = module.init(jax.random.key(0), X)
    state = module.apply(variables, B, max_len=3, nnx_method="init_state")
    y, state = module.apply(variables, X[:, 0], state, nnx_method="step")
    np.testing.assert_allclose(y, module.apply(variables, X[:, :1])[:, 0], atol=2e-6)
    np.testing.assert_array_equal(state.length, [1, 1])


def test_whole_models():
    options = {"num_classes": 3, "vocab_size": 11, "d_model": D, "num_layers": 1, "num_heads": 2, "max_len": T}
    init, apply = zoo.init_apply(zoo.create_model, "softmax", **options)
    tokens = np.arange(B * T).reshape(B, T) % 11
    params = init(jax.random.key(0))
    logits = jax.jit(apply)(params, tokens, mask=MASK)
    model = zoo.create_model("softmax", **options, rngs=nnx.Rngs(jax.random.key(0)))
    np.testing.assert_allclose(logits, model(tokens, mask=MASK, deterministic=True), atol=1e-5)


def test_linen_takes_the_parameters_of_the_plain_functions():
    config = zoo.EncoderConfig(vocab_size=11, d_model=D, num_layers=2, num_heads=2, max_len=T)
    init, apply = zoo.init_apply(zoo.SequenceClassifier, config, num_classes=3)
    module = zoo.to_linen(zoo.SequenceClassifier, config, num_classes=3)
    params = init(jax.random.key(0))
    tokens = np.arange(B * T).reshape(B, T) % 11
    made = module.init(jax.random.key(0), tokens)["params"]
    assert set(made["encoder"]["layers"]) == {"0", "1"}
    assert jax.tree.structure(made) == jax.tree.structure(params)
    logits = module.apply({"params": params}, tokens, deterministic=True)
    np.testing.assert_allclose(logits, apply(params, tokens), atol=1e-5)


@pytest.mark.parametrize("door", [zoo.init_apply, zoo.to_linen])
def test_errors(door):
    with pytest.raises(RegistryError, match="Did you mean softmax"):
        door("sofmax", D)
    with pytest.raises(TypeError, match="Did you mean num_heads"):
        door("softmax", D, num_head=2)


def test_dtype_follows_the_input():
    init, apply = zoo.init_apply("softmax", D, num_heads=2)
    assert apply(init(jax.random.key(0)), X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
