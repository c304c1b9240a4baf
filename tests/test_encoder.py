"""The one backbone: its parts by hand, and the ways to run it that must not change what it computes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo.encoder
from zoo import registry
from zoo.encoder import Block, Encoder, EncoderConfig, make_mixer
from zoo.functional import Functional, count_parameters
from zoo.tasks.base import TaskInfo
from zoo.training.build import model_maker
from zoo.training.recipe import load_recipe

CONFIG = EncoderConfig(d_model=8, num_layers=2, num_heads=2, d_ff=12, vocab_size=7, max_len=6)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 7, (2, 6)))
MASK = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], bool)

# A generator that compiles in a tenth of the time of JAX's default.
KEY = jax.random.key(1, impl="unsafe_rbg")

pytestmark = pytest.mark.usefixtures("compilation_cache")


class Spy(nnx.Module):
    """A mixer that keeps what it was made with and adds the sum over the sequence."""

    def __init__(self, d_model, *, num_heads, max_len, dropout=0.0, width=1, rngs):
        self.made_with = {"d_model": d_model, "num_heads": num_heads, "max_len": max_len, "dropout": dropout}
        self.width = width
        self.scale = nnx.Param(jnp.ones(d_model))

    def __call__(self, x, *, mask=None, deterministic=None, rngs=None):
        real = jnp.ones(x.shape[:2], bool) if mask is None else mask
        return (jnp.where(real[..., None], x, 0) * self.scale[...]).sum(axis=1, keepdims=True) + 0 * x


class Recorder(nnx.Module):
    """A mixer that gives zeros and notes which of 64 coins its dropout stream shows."""

    def __init__(self, seen, layer):
        self.note = lambda coins: seen.append((layer, np.array(coins)))

    def __call__(self, x, *, mask=None, deterministic=None, rngs: Any = None):
        self.note(jax.random.bernoulli(rngs.dropout(), shape=(64,)))
        return 0 * x


class Normed(nnx.Module):
    """A mixer with running statistics, which a training call changes."""

    def __init__(self, d_model, *, rngs):
        self.norm = nnx.BatchNorm(d_model, momentum=0.5, rngs=rngs)

    def __call__(self, x, *, mask=None, deterministic=None, rngs=None):
        return self.norm(x, use_running_average=deterministic)


@pytest.fixture
def spy():
    registry.register_mixer("spy", title="Spy")(Spy)
    yield "spy"
    del registry._registered["spy"]


@pytest.fixture(scope="module")
def normed():
    registry.register_mixer("normed", title="Batch norm")(Normed)
    yield "normed"
    del registry._registered["normed"]


def mixer_of(config, rngs) -> Any:
    return make_mixer(config, rngs)


def run_all(config):
    """Parameters, loss, hidden vectors, gradients and the other variables after the call, with dropout."""
    functional = Functional(lambda rngs: Encoder(config, rngs=rngs))
    params, rest = functional.init(jax.random.key(0))

    @jax.jit
    def run(params):
        def loss(params):
            module = functional.module(params, rest)
            y = module(TOKENS, mask=MASK, deterministic=False, rngs=nnx.Rngs(dropout=KEY))
            return jnp.square(jnp.where(MASK[..., None], y, 0)).mean() + y[0, 0, 0], (y, functional.rest(module))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (y, rest)), grads = run(params)
    return params, loss, y, grads, rest


def stack(tree):
    """The parameters of a loop as those of a scan."""
    layers = tree["layers"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[layers[str(i)] for i in range(len(layers))])
    return {**tree, "layers": stacked}


@pytest.fixture(scope="module")
def loop():
    return run_all(dataclasses.replace(CONFIG, dropout=0.2))


@pytest.mark.parametrize(("scan", "remat"), [(True, "none"), (False, "full"), (True, "dots")])
def test_scan_and_recomputation_change_nothing(scan, remat, loop):
    params, loss, y, grads, rest = run_all(dataclasses.replace(CONFIG, dropout=0.2, scan_layers=scan, remat=remat))
    expected = [stack(tree) if scan else tree for tree in (loop[0], loop[3])]
    jax.tree.map(np.testing.assert_array_equal, params, expected[0])
    np.testing.assert_allclose(loss, loop[1], rtol=1e-5)
    np.testing.assert_allclose(y, loop[2], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected[1])
    assert rest == {}


@pytest.fixture(scope="module")
def normed_loop(normed):
    return run_all(dataclasses.replace(CONFIG, mixer=normed, dropout=0.2))


@pytest.mark.parametrize(("scan", "remat"), [(True, "none"), (False, "full"), (True, "full")])
def test_running_statistics_come_out_of_scan_and_recomputation(scan, remat, normed, normed_loop):
    expected = [stack(tree) if scan else tree for tree in normed_loop[3:]]
    config = dataclasses.replace(CONFIG, mixer=normed, dropout=0.2, scan_layers=scan, remat=remat)
    _, loss, y, grads, rest = run_all(config)
    np.testing.assert_allclose(loss, normed_loop[1], rtol=1e-5)
    np.testing.assert_allclose(y, normed_loop[2], atol=1e-5)
    for tree, other in zip((grads, rest), expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tree, other)
    for leaf in jax.tree.leaves(rest):  # means start at 0, variances at 1
        assert float(jnp.minimum(abs(leaf), abs(leaf - 1)).max(axis=-1).min()) > 1e-2


@pytest.mark.parametrize("graph", [True, False])
def test_running_statistics_stay_in_the_module(graph, normed):
    """Called as it is, twice; then in evaluation, which reads them and writes nothing."""
    results = []
    for scan, remat in ((False, "none"), (True, "none"), (False, "full"), (True, "full")):
        config = dataclasses.replace(CONFIG, mixer=normed, ffn="none", scan_layers=scan, remat=remat)
        with nnx.set_graph_mode(graph), nnx.set_graph_updates(graph):
            module = Encoder(config, rngs=nnx.Rngs(0))
            fresh = module(TOKENS, deterministic=True)
            for tokens in (TOKENS, TOKENS[:1]):
                module(tokens, deterministic=False)
            # The module is a constant of the trace, where it cannot be written to.
            y = jax.jit(lambda tokens, module=module: module(tokens, deterministic=True))(TOKENS)
        assert float(abs(y - fresh).max()) > 1e-2
        rest = Functional.rest(module)
        results.append((y, rest if scan else stack(rest)))
    for result in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, results[0])


@pytest.mark.parametrize(("scan", "remat"), [(True, "none"), (False, "full"), (True, "full")])
def test_what_no_block_changes_leaves_no_block(scan, remat, normed):
    """Each scanned or recomputed block gives its hidden vectors only, if nothing changes."""
    config = dataclasses.replace(CONFIG, mixer=normed, ffn="none", scan_layers=scan, remat=remat)
    module = Encoder(config, rngs=nnx.Rngs(0))
    for training, outputs in ((False, 1), (True, 3)):
        program = jax.make_jaxpr(lambda tokens, t=training: nnx.clone(module)(tokens, deterministic=not t))(TOKENS)
        blocks = [eqn for eqn in program.eqns if eqn.primitive.name in ("scan", "checkpoint", "remat", "remat2")]
        assert [len(eqn.outvars) for eqn in blocks] == [outputs] * (1 if scan else config.num_layers)


def test_every_layer_and_every_key_drops_others(spy):
    """With one input everywhere and no mixing, what differs between layers and keys is the dropout."""
    module: Any = Encoder(
        dataclasses.replace(CONFIG, mixer=spy, dropout=0.5, num_layers=2, ffn="none"), rngs=nnx.Rngs(0)
    )
    seen = []
    for layer, block in enumerate(module.layers):
        block.mixer = Recorder(seen, layer)
    for seed in (0, 0, 1):
        module(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=seed))
    first, again, other = [dict(seen[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for one, two in ((first[0], first[1]), (first[0], other[0]), (first[1], other[1])):
        assert 0.3 < (one != two).mean() < 0.7


def test_train_and_eval_set_the_mode(spy):
    module = Encoder(dataclasses.replace(CONFIG, mixer=spy, num_layers=1, dropout=0.5), rngs=nnx.Rngs(0))
    module.eval()
    quiet = module(TOKENS)
    np.testing.assert_array_equal(quiet, module(TOKENS, deterministic=True))
    module.train()
    drawn = module(TOKENS, rngs=nnx.Rngs(dropout=0))
    np.testing.assert_array_equal(drawn, module(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=0)))
    assert float(abs(drawn - quiet).max()) > 0.1


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("ffn", ["mlp", "glu", "none"])
def test_a_block_by_hand(norm, ffn, spy):
    config = dataclasses.replace(CONFIG, mixer=spy, norm=norm, ffn=ffn, num_layers=1, positions="none")
    block: Any = Block(config, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 8)), jnp.float32)

    def normal(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def mix(x):
        return np.where(MASK[..., None], x, 0).sum(1, keepdims=True) + 0 * x

    expected = np.array(x, np.float64)
    expected = expected + mix(normal(expected)) if norm == "pre" else normal(expected + mix(expected))
    if ffn == "none":
        assert block.ffn is None
    elif norm == "pre":
        expected = expected + block.ffn(jnp.asarray(normal(expected), jnp.float32))
    else:
        expected = normal(expected + np.array(block.ffn(jnp.asarray(expected, jnp.float32))))
    np.testing.assert_allclose(block(x, mask=MASK), expected, atol=2e-5)
    assert (block.ffn is not None and block.ffn.gate is not None) == (ffn == "glu")


def test_only_pre_norm_has_a_norm_at_the_end(spy):
    pre, post = (
        Encoder(dataclasses.replace(CONFIG, mixer=spy, norm=norm, ffn="none", num_layers=1), rngs=nnx.Rngs(0))
        for norm in ("pre", "post")
    )
    assert post.norm is None
    hidden = np.array(pre(TOKENS))
    np.testing.assert_allclose(hidden.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(hidden.std(-1), 1, atol=1e-3)


def test_a_mixer_gets_what_it_takes_and_its_options_win(spy):
    config = dataclasses.replace(CONFIG, mixer=spy, dropout=0.1, cls_token=True, mixer_options={"width": 3})
    mixer = mixer_of(config, nnx.Rngs(0))
    assert mixer.made_with == {"d_model": 8, "num_heads": 2, "max_len": 7, "dropout": 0.1}
    assert mixer.width == 3
    mixer = mixer_of(dataclasses.replace(config, mixer_options={"num_heads": 5}), nnx.Rngs(0))
    assert mixer.made_with["num_heads"] == 5
    assert mixer_of(CONFIG, nnx.Rngs(0)).projections.num_heads == 2


def test_options_reach_the_shipped_mixers():
    config = dataclasses.replace(
        CONFIG, use_bias=False, kernel_init="torch", dropout=0.3, attention_dropout=0.1, causal=True, dtype="bfloat16"
    )
    mixer = mixer_of(config, nnx.Rngs(0))
    assert mixer.projections.query.bias is None
    assert (mixer.dropout.rate, mixer.attention_dropout.rate, mixer.causal) == (0.3, 0.1, True)
    assert mixer.projections.query.dtype == jnp.bfloat16
    assert float(abs(mixer.projections.query.kernel[...]).max()) <= 8**-0.5
    assert mixer_of(dataclasses.replace(CONFIG, dropout=0.3), nnx.Rngs(0)).attention_dropout.rate == 0.3


def test_the_depth_reaches_mixers_that_start_by_it():
    """Mamba's out-projection starts within 1 / sqrt(width * layers), as in the authors' language model."""
    for layers in (1, 4):
        config = dataclasses.replace(CONFIG, mixer="mamba", num_layers=layers, causal=True)
        kernel = mixer_of(config, nnx.Rngs(0)).out_proj.kernel[...]
        assert 0.9 < float(abs(kernel).max()) * (16 * layers) ** 0.5 <= 1


def test_the_past_does_not_see_the_future():
    module = Encoder(dataclasses.replace(CONFIG, causal=True, num_layers=2), rngs=nnx.Rngs(0))
    changed = TOKENS.at[:, 4].set(TOKENS[:, 4] % 6 + 1)
    before, after = module(TOKENS), module(changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert float(abs(before[:, 4:] - after[:, 4:]).min(axis=-1).max()) > 1e-4


def test_low_precision_computes_low_and_keeps_parameters_high():
    config = dataclasses.replace(CONFIG, num_layers=1, cls_token=True)
    low = Encoder(dataclasses.replace(config, dtype="bfloat16"), rngs=nnx.Rngs(0))
    y, exact = low(TOKENS, mask=MASK), Encoder(config, rngs=nnx.Rngs(0))(TOKENS, mask=MASK)
    assert y.dtype == jnp.bfloat16
    assert y.shape == exact.shape == (2, 7, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(low))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.1)
    assert float(abs(y.astype(jnp.float32) - exact).max()) > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be from 1 to 1048576, got 0"),
        ({"num_layers": 0}, ValueError, "num_layers must be from 1 to 1000"),
        ({"d_ff": 0}, ValueError, "d_ff must be from 1 to 16777216, or null for 4"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, ValueError, r"attention_dropout must be in \[0, 1\)"),
        ({"norm": "Pre"}, ValueError, "unknown norm 'Pre'; there are pre, post"),
        ({"ffn": "swiglu"}, ValueError, "unknown ffn 'swiglu'; there are mlp, glu, none"),
        ({"remat": "dot"}, ValueError, "unknown remat 'dot'; there are none, full, dots"),
        ({"dtype": "float64"}, ValueError, "unknown dtype 'float64'; there are float32, bfloat16"),
        ({"num_heads": 3}, ValueError, "d_model=8 is not divisible by num_heads=3"),
        ({"mixer": "sofmax"}, registry.RegistryError, "no mixer named 'sofmax'. Did you mean softmax"),
        ({"mixer_options": {"use_bais": 1}}, TypeError, "softmax has no option 'use_bais'. Did you mean use_bias"),
        ({"mixer_options": {"d_model": 4}}, TypeError, "softmax has no option 'd_model'"),
        ({"mixer": "nystromformer", "causal": True}, ValueError, "causal"),
    ],
)
def test_wrong_settings_say_what_would_be_right(options, error, message):
    with pytest.raises(error, match=message):
        Encoder(dataclasses.replace(CONFIG, **options), rngs=nnx.Rngs(0))


def test_a_mixer_that_sees_the_future_cannot_be_causal_by_silence(spy):
    with pytest.raises(ValueError, match="spy has no option causal"):
        mixer_of(dataclasses.replace(CONFIG, mixer=spy, causal=True), nnx.Rngs(0))


def test_wrong_inputs_say_which_axis(spy):
    module = Encoder(dataclasses.replace(CONFIG, mixer=spy, num_layers=1), rngs=nnx.Rngs(0))
    for mask, error, message in (
        (
            MASK[:, :5],
            ValueError,
            r"encoder takes mask \[B, T\] with B = 2, T = 6, as in inputs; axis 1 \(T\) of mask is 5",
        ),
        (MASK[:1], ValueError, r"axis 0 \(B\) of mask is 1"),
        (MASK[..., None], ValueError, "mask has 3 axes"),
        (MASK.astype(int), TypeError, "the dtype of mask is int"),
    ):
        with pytest.raises(error, match=message):
            module(TOKENS, mask=mask)
    for inputs, message in (
        (jnp.ones((2, 7), int), r"axis 1 \(T\) of inputs is 7, more than max_len=6"),
        (jnp.ones((2, 0), int), r"axis 1 \(T\) of inputs is 0"),
        (TOKENS[0], r"encoder takes inputs \[B, T\]; inputs has 1 axes"),
        (TOKENS.astype(float), "inputs='tokens' needs integers, got float32"),
    ):
        with pytest.raises(ValueError, match=message):
            module(inputs)
    reals = Encoder(dataclasses.replace(CONFIG, mixer=spy, num_layers=1, inputs="scalars"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"inputs has 3 axes instead of 0 \(B\), 1 \(T\)"):
        reals(jnp.ones((2, 6, 1)), mask=MASK)


def test_the_original_recipe_has_as_many_parameters_as_the_original():
    # 4 layers, 512 wide, 8 heads, feed-forward 1024, no attention biases, 17 ids, CLS vector, head 512 -> 1024 -> 10.
    info = TaskInfo(inputs="tokens", vocab_size=17, num_classes=10, max_len=2000)
    functional = Functional(model_maker(load_recipe("lra/original/listops", variant="softmax"), info))
    assert count_parameters(functional.abstract_params) == 8_948_746


def test_the_small_recipe_has_as_many_parameters_as_its_shapes_say():
    # Tables 17 x 64, 2048 x 64; 2 blocks of 4 projections, 2 norms, 64 -> 128 -> 64; a norm; head 64 -> 128 -> 10.
    block = 4 * (64 * 64 + 64) + 2 * 2 * 64 + (64 * 128 + 128) + (128 * 64 + 64)
    total = (17 + 2048) * 64 + 2 * block + 2 * 64 + (64 * 128 + 128) + (128 * 10 + 10)
    info = TaskInfo(inputs="tokens", vocab_size=17, num_classes=10, max_len=2048)
    for variant, more in (("softmax", 0), ("nystromformer", 2 * 2 * 35)):
        functional = Functional(model_maker(load_recipe("lra/small/listops", variant=variant), info))
        assert count_parameters(functional.abstract_params) == total + more


def test_rms_norm_has_no_mean_and_no_bias(spy):
    config = dataclasses.replace(CONFIG, mixer=spy, norm_kind="rms", norm_eps=1e-5, num_layers=1, positions="none")
    module: Any = Encoder(config, rngs=nnx.Rngs(0))
    block = module.layers[0]
    x = jnp.asarray(np.random.default_rng(1).normal(2, 1, size=(2, 6, 8)), jnp.float32)
    np.testing.assert_allclose(
        block.mixer_norm(x), x / np.sqrt(np.square(np.float64(x)).mean(-1, keepdims=True) + 1e-5), atol=1e-5
    )
    for norm in (block.mixer_norm, block.ffn_norm, module.norm):
        assert isinstance(norm, nnx.RMSNorm)
        assert list(nnx.to_flat_state(nnx.state(norm)).paths) == [("scale",)]


def test_a_state_goes_into_a_block_that_keeps_one_and_comes_out():
    """A call with and one without a state agree, and what the caller holds is not changed."""
    module: Any = Encoder(dataclasses.replace(CONFIG, causal=True, positions="learned"), rngs=nnx.Rngs(0))
    whole = module(TOKENS)
    fresh, state = module(TOKENS[:, :2], return_state=True)
    again = module(TOKENS[:, :2], state=module.init_state(2))
    np.testing.assert_allclose(fresh, whole[:, :2], atol=1e-5)
    np.testing.assert_array_equal(fresh, again)
    for _ in range(2):
        more, after = module(TOKENS[:, 2:], state=state, return_state=True)
        np.testing.assert_allclose(more, whole[:, 2:], atol=1e-5)
        np.testing.assert_array_equal(state.length, [2, 2])
        np.testing.assert_array_equal(after.length, [6, 6])


def test_beyond_the_last_position_there_is_nothing():
    module: Any = Encoder(dataclasses.replace(CONFIG, causal=True), rngs=nnx.Rngs(0))
    _, state = module(TOKENS, state=module.init_state(2, max_len=8), return_state=True)
    beyond, _ = module.step(TOKENS[:, 0], state)
    assert bool(jnp.isnan(beyond).all())
    module = Encoder(dataclasses.replace(CONFIG, causal=True, positions="none"), rngs=nnx.Rngs(0))
    longer = jnp.tile(TOKENS, (1, 2))
    hidden, _ = module(longer, state=module.init_state(2, max_len=12), return_state=True)
    assert bool(jnp.isfinite(hidden).all())
    assert module(longer).shape == (2, 12, 8)
    module = Encoder(dataclasses.replace(CONFIG, causal=True), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"axis 1 \(T\) of inputs is 12, more than max_len=6"):
        module(longer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": False}, "keeps a state only with causal=True"),
        ({"cls_token": True, "causal": True}, "CLS vector in front of the sequence keeps no state"),
        ({"mixer": "spy"}, "spy keeps no state, so that this encoder cannot go on from one"),
    ],
)
def test_encoders_without_a_state_say_why(options, message, spy):
    module: Any = Encoder(dataclasses.replace(CONFIG, **options), rngs=nnx.Rngs(0))
    if options.get("mixer") == spy:
        module.config = dataclasses.replace(module.config, causal=True)
    for call in (
        lambda: module.init_state(2),
        lambda: module(TOKENS, return_state=True),
        lambda: module.step(TOKENS[:, 0], zoo.encoder.EncoderState(jnp.zeros(2, jnp.int32), ())),
    ):
        with pytest.raises(ValueError, match=message):
            call()
