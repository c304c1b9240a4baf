"""The checks of the contract find what they are for: a correct mixer passes all, each broken one fails its own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import testing
from zoo.layers.shapes import check_shapes
from zoo.registry import Spec

SPEC = Spec("average", "mixer", "Mean of what is seen", causal=True, decode=True, test_args={"num_heads": 2})


class Average(nnx.Module):
    """y_t = W_o (v_t + mean of the v that t sees), v = W_v x: small, correct, with everything the contract asks for."""

    implementations = ("loop", "reference")

    def __init__(self, d_model, *, num_heads=1, causal=False, dropout=0.0, implementation=None, dtype=None,
                 param_dtype=jnp.float32, rngs):  # fmt: skip
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}.")
        self.d_model, self.causal, self.dtype, self.implementation = d_model, causal, dtype, implementation
        self.value = nnx.Linear(d_model, d_model, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.out = nnx.Linear(d_model, d_model, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x, *, mask=None, deterministic=None, rngs=None, state=None, return_state=False):
        check_shapes("average", "x [B, T, D]", x, mask, D=self.d_model)
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
        v = self.value(x).astype(jnp.float32)
        total, count = self.init_state(x.shape[0]) if state is None else state
        weight = self.weight(mask, state)
        total = total[:, None] + jnp.cumsum(v * weight[..., None], 1)
        count = count[:, None] + jnp.cumsum(weight, 1)
        state = total[:, -1], count[:, -1]
        mean = self.mean(total, count)
        y = self.out((v + mean).astype(self.dtype or x.dtype))
        y = self.dropout(self.finish(x, y), deterministic=deterministic, rngs=rngs).astype(self.dtype or x.dtype)
        return (y, state) if return_state else y

    def weight(self, mask, state):
        return mask.astype(jnp.float32)

    def mean(self, total, count):
        mean = total / jnp.maximum(count, 1)[..., None]
        return mean if self.causal else jnp.broadcast_to(mean[:, -1:], mean.shape)

    def finish(self, x, y):
        return y

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, self.d_model)), jnp.zeros(batch_size)

    def step(self, x_t, state):
        check_shapes("average", "x_t [B, D]", x_t, D=self.d_model)
        y, state = self(x_t[:, None], state=state, return_state=True, deterministic=True)
        return y[:, 0], state


class Float32(Average):
    def __call__(self, x, **kwargs):
        return super().__call__(x, **kwargs).astype(jnp.float32)


class UnusedParameter(Average):
    def __init__(self, d_model, **kwargs):
        super().__init__(d_model, **kwargs)
        self.unused = nnx.Linear(d_model, 1, rngs=kwargs["rngs"])


class Frozen(Average):
    def finish(self, x, y):
        return jax.lax.stop_gradient(y)


class SeesAll(Average):
    def mean(self, total, count):
        return jnp.broadcast_to(total[:, -1:] / jnp.maximum(count[:, -1:], 1)[..., None], total.shape)


class SeesThePast(Average):
    def mean(self, total, count):
        return total / jnp.maximum(count, 1)[..., None]


class SeesItself(Average):
    def mean(self, total, count):
        return jnp.zeros_like(total)


class ChoosesByTheFuture(Average):
    def finish(self, x, y):
        return y * jnp.where(x.max(axis=(1, 2), keepdims=True) > 5, 2.0, 1.0)


class IgnoresTheMask(Average):
    def weight(self, mask, state):
        return jnp.ones(mask.shape)


class CountsPadding(Average):
    def finish(self, x, y):
        return y * x.shape[1]


class DividesByNothing(Average):
    def mean(self, total, count):
        return (total / count[..., None])[:, -1:] + jnp.zeros_like(total)


class MixesTheBatch(Average):
    def finish(self, x, y):
        return y + y.mean(0)


class NeverDrops(Average):
    def __init__(self, d_model, *, dropout=0.0, **kwargs):
        super().__init__(d_model, **kwargs)


class DropsTheSame(Average):
    def __call__(self, x, *, deterministic=None, rngs=None, **kwargs):
        return super().__call__(x, deterministic=deterministic, rngs=nnx.Rngs(dropout=0), **kwargs)


class ForgetsTheState(Average):
    def __call__(self, x, *, state=None, **kwargs):
        return super().__call__(x, **kwargs)


class KeepsPadding(Average):
    def weight(self, mask, state):
        return super().weight(mask if state is None else jnp.ones_like(mask), state)


class OneOff(Average):
    def finish(self, x, y):
        return y + 1e-3 * (self.implementation == "loop")


class TakesAnyWidth(Average):
    def __call__(self, x, **kwargs):
        return super().__call__(x[..., : self.d_model], **kwargs)


class TakesAnyMask(Average):
    def __call__(self, x, *, mask=None, **kwargs):
        return super().__call__(x, mask=None if mask is None else jnp.broadcast_to(mask, x.shape[:2]), **kwargs)


class CastsTheMask(Average):
    def __call__(self, x, *, mask=None, **kwargs):
        return super().__call__(x, mask=None if mask is None else mask.astype(bool), **kwargs)


class StepsWithAnyWidth(Average):
    def step(self, x_t, state):
        return super().step(x_t[..., : self.d_model], state)


class SaysLittle(Average):
    def __call__(self, x, **kwargs):
        if x.shape[-1] != self.d_model:
            raise ValueError(f"x has {x.shape[-1]} features, not d_model={self.d_model}.")
        return super().__call__(x, **kwargs)


class Impure(Average):
    count = itertools.count()

    def finish(self, x, y):
        return y * (1 + next(self.count))


class Shares(Average):
    def __init__(self, d_model, **kwargs):
        super().__init__(d_model, **kwargs)
        self.again = self.value


BROKEN = [
    (Float32, "shapes_and_dtypes"),
    (UnusedParameter, "gradients"),
    (Frozen, "gradients"),
    (Frozen, "overfits"),
    (SeesAll, "causality"),
    (SeesItself, "causality"),
    (ChoosesByTheFuture, "causality"),
    (IgnoresTheMask, "padding_content"),
    (CountsPadding, "padding_amount"),
    (DividesByNothing, "fully_masked"),
    (MixesTheBatch, "batch"),
    (NeverDrops, "dropout"),
    (DropsTheSame, "dropout"),
    (SeesAll, "step"),
    (ForgetsTheState, "step"),
    (ForgetsTheState, "chunks"),
    (KeepsPadding, "padded_prompt"),
    (OneOff, "implementations"),
    (TakesAnyWidth, "errors"),
    (TakesAnyWidth, "wrong_shapes"),
    (TakesAnyMask, "wrong_shapes"),
    (CastsTheMask, "wrong_shapes"),
    (StepsWithAnyWidth, "wrong_shapes"),
    (SaysLittle, "wrong_shapes"),
    (Impure, "jit"),
    (Impure, "vmap"),
    (Impure, "remat"),
    (Impure, "scan"),
    (Impure, "plain_functions"),
    (Impure, "linen"),
    (Shares, "nnx_modes"),
]


@pytest.mark.parametrize(("cls", "check"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_broken_mixers_are_found(cls, check):
    case = testing.Case(SPEC, cls, causal=True)
    with pytest.raises((AssertionError, ValueError)):
        testing.checks(case)[check](case)


@pytest.mark.parametrize(("cls", "check"), [(SeesThePast, "causality"), (IgnoresTheMask, "padding_amount")])
def test_broken_bidirectional_mixers_are_found(cls, check):
    case = testing.Case(SPEC, cls, causal=False)
    with pytest.raises(AssertionError, match=r"later input|padded from"):
        testing.checks(case)[check](case)


def test_claims_of_the_facts_are_held():
    case = testing.Case(Spec("average", "mixer", "", causal=False), Average, causal=False)
    with pytest.raises(AssertionError, match="no error"):
        testing.checks(case)["errors"](case)


@pytest.mark.parametrize("causal", [False, True])
def test_correct_mixer_passes(causal):
    case = testing.Case(SPEC, Average, causal)
    checks = testing.checks(case)
    assert ("step" in checks) == causal
    for check in checks.values():
        check(case)


def test_checks_follow_the_facts():
    spec = Spec("average", "mixer", "", padding_mask=False, fixed_length=True, test_args={"max_len": 9})
    case = testing.Case(spec, Average, causal=False)
    assert not {"padding_content", "padding_amount", "fully_masked", "step"} & set(testing.checks(case))
    assert case.lengths == (9,)
    assert case.x().shape == (3, 9, 16)
    assert np.isfinite(case.x()).all()


def test_check_mixer_names_the_case_and_the_check(monkeypatch):
    monkeypatch.setattr(testing, "cases", lambda name: [testing.Case(SPEC, OneOff, causal=True)])
    only = {"implementations": testing.checks(testing.Case(SPEC, OneOff, causal=True))["implementations"]}
    monkeypatch.setattr(testing, "checks", lambda case: only)
    with pytest.raises(
        AssertionError, match=r"average-causal, implementations: implementation='loop' against reference"
    ):
        testing.check_mixer("average")
