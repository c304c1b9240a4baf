"""What a mixer computes: shapes, gradients, causality, padding, decoding, dropout, implementations, learning."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.testing.case import BATCH, Case, assert_close, assert_finite, leaves, mask_of

LARGE = 1e4


def check_shapes_and_dtypes(case: Case) -> None:
    """Output [B, T, D] in the input's dtype or the asked one; bfloat16 stays near float32."""
    for length in case.lengths:
        x = case.x(length).astype(jnp.bfloat16)
        y = case.run(case.params, x.astype(np.float32))
        assert y.shape == x.shape, f"T={length}: shape {y.shape}, not {x.shape}"
        assert y.dtype == jnp.float32, f"T={length}: float32 gave {y.dtype}"
        low = case.run(case.params, x)
        assert low.shape == x.shape, f"T={length}: shape {low.shape}, not {x.shape}"
        assert low.dtype == jnp.bfloat16, f"T={length}: bfloat16 gave {low.dtype}"
        assert_close(low, y, f"bfloat16 input against float32, T={length}", 2e-2)
    asked = jax.jit(case.apply(dtype=jnp.bfloat16))(case.params, x.astype(np.float32))
    assert asked.dtype == jnp.bfloat16, f"dtype=bfloat16 gave {asked.dtype}"
    error = np.sqrt(np.mean((np.asarray(asked, np.float32) - y) ** 2) / np.mean(y**2))
    assert error < 0.25, f"dtype=bfloat16: relative error {error:.2f} at T={case.lengths[-1]}"
    half = jax.eval_shape(lambda: _params_of_dtype(case, jnp.bfloat16))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in half), "param_dtype=bfloat16 left parameters in another dtype"


def _params_of_dtype(case: Case, dtype: Any) -> list[jax.Array]:
    """The parameters of the mixer made with `param_dtype`."""
    from zoo.interop import init_apply

    init, _ = init_apply(case.cls, **{**case.options, "param_dtype": dtype})
    return jax.tree.leaves(init(jax.random.key(0)))


def check_gradients(case: Case) -> None:
    """Every parameter has a finite gradient that is not identically zero.

    Not "not small": a bias of the keys, say, has none under softmax but for rounding. What this finds is a parameter
    that the output does not depend on, or a `stop_gradient`.
    """
    x = case.x()
    mask = np.ones(x.shape[:2], bool)
    _, (params, _) = case.vjp()(case.params, x, mask, case.x(seed=1))
    assert_finite(params, "gradient")
    for path, leaf in leaves(params).items():
        assert leaf.any(), f"no gradient reaches the parameter{path}"


def check_causality(case: Case) -> None:
    """Causal: no output moves with later inputs. Otherwise: some output does. Both: with earlier ones."""
    run = case.apply()
    x = jnp.asarray(case.x(batch=1)[0])
    jacobian = jax.jit(jax.jacrev(lambda x: run(case.params, x[None])[0]))(x)
    influence = np.abs(np.asarray(jacobian)).max((1, 3))  # [T outputs, T inputs]
    future, past = np.triu(influence, 1), np.tril(influence, -1)
    assert past.max() > 1e-3 * influence.max(), "no output depends on an earlier input: nothing is mixed along T"
    if not case.causal:
        assert future.max() > 1e-3 * influence.max(), "causal=False, but no output depends on a later input"
        return
    assert future.max() <= 1e-6 * influence.max(), f"causal=True, but outputs depend on later inputs:\n{influence}"
    # Choices that have no gradient, such as a top-k, can leak too: replace all inputs from position t on.
    length = case.lengths[0] if case.fixed_length else 32
    x = case.x(length, batch=1)
    later = np.arange(length)[None, :, None] >= np.arange(1, length)[:, None, None]  # [T - 1 edits, T, 1]
    edited = np.where(later, 10 * case.x(length, batch=length - 1, seed=1), x)
    y = case.run(case.params, np.concatenate([x, edited]))
    assert_close(np.where(later, 0, y[1:]), np.where(later, 0, y[:1]), "outputs before edited inputs", 1e-6)


def _masks(case: Case) -> np.ndarray:
    """Right padding, a hole with padding on the left, and no padding."""
    mask = np.ones((BATCH, case.length), bool)
    mask[0, case.length // 2 + 1 :] = False
    mask[1, 0] = mask[1, case.length // 2] = False
    return mask


def check_padding_content(case: Case) -> None:
    """What is written at masked positions changes no real output and no gradient; a mask of ones is no mask."""
    mask = _masks(case)
    x, ct = case.x(), case.x(seed=1) * mask[..., None]
    large = np.where(mask[..., None], x, LARGE * case.x(seed=2))
    run = case.vjp()
    y, (grad, dx) = run(case.params, x, mask, ct)
    y_large, (grad_large, dx_large) = run(case.params, large.astype(np.float32), mask, ct)
    real = mask[..., None]
    assert_finite(y_large, "output with large values in the padding")
    assert_close(np.where(real, y_large, 0), np.where(real, y, 0), "real outputs with other padding", 1e-6)
    assert_close(grad_large, grad, "gradients with other padding", 1e-5)
    assert_close(np.where(real, 0, dx_large), np.zeros_like(x), "gradient of the padding", 0)
    assert_close(np.where(real, dx_large, 0), np.where(real, dx, 0), "input gradients with other padding", 1e-5)
    ones = np.ones_like(mask)
    assert_close(run(case.params, x, ones, ct)[0], case.run(case.params, x), "a mask of ones against no mask", 2e-6)


def check_padding_amount(case: Case) -> None:
    """Padding on the right, little or much, changes no real output."""
    x = case.x()
    y = case.run(case.params, x)
    for total in (case.length + 5, 32):
        padded = np.concatenate([x, LARGE * case.x(total - case.length, seed=3)], axis=1).astype(np.float32)
        mask = mask_of([case.length] * BATCH, total)
        assert_close(case.run(case.params, padded, mask=mask)[:, : case.length], y, f"padded from 7 to {total}")


def check_fully_masked(case: Case) -> None:
    """An example without any real token stays finite, with finite gradients, and leaves its batch mates alone."""
    x = case.x()
    mask = mask_of([case.length, 0, 2], case.length)
    run = case.vjp()
    for ct in (np.ones_like(x), np.ones_like(x) * mask[..., None]):
        y, gradients = run(case.params, x, mask, ct)
        assert_finite(y, "output with a fully masked example")
        assert_finite(gradients, "gradient with a fully masked example")
    assert_close(y[0], case.run(case.params, x)[0], "the batch mate of a fully masked example", 2e-6)


def check_batch(case: Case) -> None:
    """Examples do not see each other: permuted, alone, or beside outliers, each gives the same output."""
    x = case.x()
    y = case.run(case.params, x)
    order = np.roll(np.arange(BATCH), 1)
    assert_close(case.run(case.params, x[order]), y[order], "permuted batch", 1e-6)
    assert_close(case.run(case.params, x[:1]), y[:1], "one example alone", 2e-6)
    beside = np.concatenate([x[:1], 1e3 * x[1:]])
    assert_close(case.run(case.params, beside)[0], y[0], "one example beside outliers", 1e-6)


def check_dropout(case: Case) -> None:
    """Evaluation repeats exactly; dropout differs by key, repeats with the same key, and is off when deterministic."""
    x = case.x()
    y = case.run(case.params, x)
    assert np.array_equal(y, case.run(case.params, x)), "two evaluations differ"
    dropping = case.apply(dropout=0.5)
    run = jax.jit(lambda key: dropping(case.params, x, dropout_key=key))
    first = run(jax.random.key(1))
    assert_finite(first, "output with dropout")
    assert np.array_equal(first, run(jax.random.key(1))), "dropout with the same key differs"
    assert not np.allclose(first, run(jax.random.key(2))), "dropout does not depend on the key"
    assert not np.allclose(first, y), "dropout=0.5 changes nothing"
    quiet = jax.jit(lambda key: dropping(case.params, x, dropout_key=key, deterministic=True))
    assert_close(quiet(jax.random.key(1)), y, "deterministic with dropout=0.5", 2e-6)
    module = case.make(dropout=0.5)
    module.eval()
    jax.eval_shape(module, x)  # needs no rngs


def check_step(case: Case) -> None:
    """One token at a time gives what the whole sequence gives; the state is float32 and batch first."""
    x = case.x()
    apply = case.apply()
    state = apply(case.params, BATCH, method="init_state")
    for path, leaf in _leaves_as_they_are(state).items():
        assert leaf.shape[:1] == (BATCH,), f"state{path}: the first axis of {leaf.shape} is not the batch"
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        assert not floating or leaf.dtype == jnp.float32, f"state{path}: {leaf.dtype}, not float32"

    @jax.jit
    def decode(params: Any, state: Any) -> Any:
        def one(state: Any, x_t: jax.Array) -> tuple[Any, jax.Array]:
            y_t, state = apply(params, x_t, state, method="step")
            return state, y_t

        return jnp.moveaxis(jax.lax.scan(one, state, jnp.moveaxis(x, 1, 0))[1], 0, 1)

    assert_close(decode(case.params, state), case.run(case.params, x), "step by step against the whole", 2e-5)


def _leaves_as_they_are(tree: Any) -> dict[str, jax.Array]:
    """Leaves by path, as they are."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {" at " + jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def _continue(case: Case) -> Any:
    apply = case.apply()
    run = jax.jit(lambda params, x, state, mask=None: apply(params, x, state=state, mask=mask, return_state=True))
    return lambda *args: jax.device_get(run(*args))


def check_chunks(case: Case) -> None:
    """A sequence given in chunks, with the state between, gives what the whole gives, and so does what follows."""
    x = case.x()
    y = case.run(case.params, x)
    run = _continue(case)
    empty = case.apply()(case.params, BATCH, method="init_state")
    first, state = run(case.params, x[:, :3], empty)
    second, _ = run(case.params, x[:, 3:], state)
    assert_close(np.concatenate([first, second], 1), y, "two chunks against the whole", 2e-5)
    whole, _ = run(case.params, x, empty)
    assert_close(whole, y, "the whole with a state against without", 2e-5)


def check_padded_prompt(case: Case) -> None:
    """Padding in a prompt does not enter the state: what follows continues the real tokens."""
    x = case.x()
    lengths = [3, 1, 2]
    prompt, rest = x[:, :3], x[:, 3:]
    mask = mask_of(lengths, 3)
    run = _continue(case)
    empty = case.apply()(case.params, BATCH, method="init_state")
    prompt = np.where(mask[..., None], prompt, LARGE).astype(np.float32)
    _, state = run(case.params, prompt, empty, mask)
    after, _ = run(case.params, rest, state)
    for row, length in enumerate(lengths):
        joined = np.concatenate([x[row, :length], rest[row]])
        padded = np.concatenate([joined, np.zeros_like(x[row, length:3])])[None].repeat(BATCH, 0)
        expected = case.run(case.params, padded)[row, length : length + rest.shape[1]]
        assert_close(after[row], expected, f"after a prompt of {length} tokens padded to 3", 2e-5)


def check_implementations(case: Case, lengths: tuple[int, ...] | None = None) -> None:
    """Each implementation, and the default, agrees with "reference": output and all gradients, at odd T."""
    names = getattr(case.cls, "implementations", ())
    assert "reference" in names, f"{case.cls.__name__}.implementations must name 'reference'; it is {names}"
    for length in lengths or ((case.length,) if case.fixed_length else (7, 63)):
        x, ct = case.x(length), case.x(length, seed=1)
        # The short one with padding, the long one without.
        mask = None
        if length == case.length and case.spec.padding_mask:
            mask = mask_of([length, max(1, length // 2), 1], length)
            ct = ct * mask[..., None]
        expected = case.vjp(implementation="reference")(case.params, x, mask, ct)
        expected = (expected[0] if mask is None else expected[0] * mask[..., None], expected[1])
        for name in (None, *(name for name in names if name != "reference")):
            run = case.vjp() if name is None else case.vjp(implementation=name)
            y, gradients = run(case.params, x, mask, ct)
            y = y if mask is None else y * mask[..., None]
            assert_close((y, gradients), expected, f"implementation={name!r} against reference, T={length}", 2e-5)


def check_overfits(case: Case) -> None:
    """Adam brings the loss on eight examples with arbitrary labels far down."""
    import optax

    x = jnp.asarray(case.x(batch=8))
    labels = jnp.arange(8) % 2
    apply = case.apply()
    optimizer = optax.adam(3e-2)

    def loss(params: Any) -> jax.Array:
        logits = apply(params, x).mean(1)[:, :2]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def train(params: Any) -> jax.Array:
        def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)[1]

    losses = np.asarray(train(case.params))
    assert losses[-1] < 0.3 * losses[0], (
        f"the loss on eight examples went from {losses[0]:.3f} to {losses[-1]:.3f} only"
    )


def check_errors(case: Case) -> None:
    """Wrong widths, wrong heads and directions that the mathematics excludes raise, with the reason."""
    wrong = np.zeros((BATCH, case.length, case.d_model + 1), np.float32)
    message = _message(lambda: jax.eval_shape(case.apply(), case.params, wrong), "x of the wrong width")
    assert str(case.d_model) in message, f"x of the wrong width: the message lacks d_model={case.d_model}: {message}"
    if "num_heads" in case.options and not case.options.get("d_head"):
        _message(lambda: case.make(num_heads=case.d_model - 1), "num_heads that does not divide d_model", ValueError)
    for claimed, causal in ((case.spec.causal, True), (case.spec.bidirectional, False)):
        if not claimed:
            message = _message(lambda causal=causal: case.make(causal=causal), f"causal={causal}", ValueError)
            assert "causal" in message, f"causal={causal}: the message does not say why: {message}"
            assert len(message.split()) > 5, f"causal={causal}: the message does not say why: {message}"


def check_wrong_shapes(case: Case) -> None:
    """What is misshapen raises while it is traced; the message names the argument, the axis, what is due and what came.

    `zoo.layers.shapes.check_shapes`, at the start of `__call__` and of `step`, does all of it.
    """
    x, run = case.x(), case.apply()
    (B, T, D) = x.shape
    wrong_x = [(T, D), (B, T, D, 1), (B, T, D + 1), (B, 0, D)]
    _refuses("x", lambda x: run(case.params, x), x.shape, wrong_x)
    if case.spec.padding_mask:
        # Broadcasting would take most of these.
        wrong_mask = [(T,), (B, T, 1), (1, T), (B, 1)]
        _refuses("mask", lambda mask: run(case.params, x, mask=mask), (B, T), wrong_mask, bool)
        message = _message(lambda: run(case.params, x, mask=np.ones((B, T), np.int32)), "a mask of integers")
        assert "mask" in message, f"a mask of integers: the message does not name it: {message}"
    if case.causal and case.spec.decode:
        state = run(case.params, B, method="init_state")
        wrong_x_t = [(D,), (B, 1, D), (B, D + 1)]
        _refuses("x_t", lambda x_t: run(case.params, x_t, state, method="step"), (B, D), wrong_x_t)


def _refuses(name: str, call: Any, due: tuple[int, ...], wrong: list[tuple[int, ...]], dtype: Any = np.float32) -> None:
    """`call` raises for every `wrong` shape of its argument, with what `due` and that shape make one expect to read."""
    for shape in wrong:
        what = f"{name} of shape {shape} instead of {due}"
        message = _message(lambda shape=shape: jax.eval_shape(call, np.zeros(shape, dtype)), what)
        if len(shape) == len(due):
            axis = next(axis for axis, size in enumerate(shape) if size != due[axis])
            expected = [name, f"axis {axis}", shape[axis], *([due[axis]] if shape[axis] else [])]
        else:
            expected = [name, *shape]
        missing = [str(part) for part in expected if not re.search(rf"\b{part}\b", message)]
        assert not missing, (
            f"{what}: the message lacks {', '.join(missing)} (zoo.layers.shapes.check_shapes has all): {message}"
        )


def _message(function: Any, what: str, kinds: Any = (ValueError, TypeError)) -> str:
    try:
        function()
    except kinds as error:
        return str(error)
    raise AssertionError(f"{what}: no error was raised")
