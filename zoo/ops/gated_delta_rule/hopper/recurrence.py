"""The recurrence over chunks on a Hopper GPU: the mathematics of `chunk`, the state in registers, products by wgmma.

One warpgroup works on the columns of one head's state that belong to 64 values, S [K, 64], from the first chunk to the
last or back. What needs no state is given: T, and A = Q K^T ∘ D. With the names of `chunk`, for 64 tokens, and without
the scale, which is a factor of the outputs, or of their gradients before they come here::

    X = diag(beta) (V - E K S)      N = T X      Y = E Q S + A N      S' = exp(g_63) S + K^T (F N)

    dN = A^T dY + F K dS'           dX = T^T dN
    dS = exp(g_63) dS' + Q^T (E dY) - K^T (beta E dX)

Sums, decays and the state are float32, operands as in `pieces`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule.hopper.layout import (
    BETA,
    CHUNK,
    END,
    START,
    VALUES,
    WHOLE,
    Pairs,
    Tokens,
    of_chunks,
    of_tokens,
)
from zoo.ops.gated_delta_rule.hopper.loop import Input, Plan, Site, run
from zoo.ops.gated_delta_rule.hopper.pieces import multiply, read, row, turned, write
from zoo.ops.mosaic_gpu import MATRIX, SMEM, copy_out, load, read_out, store, synchronise
from zoo.typing import Array


def forward(tokens: Tokens, pairs: Pairs, v: Array, state: Array, scale: float) -> tuple[Array, Array]:
    """The outputs [B, T, HV, V] in the dtype of `v`, and the state after the last chunk.

    Args:
      tokens, pairs: see there.
      v: [B, T, HV, V], V a multiple of 64.
      state: float32 [B, HV, K, V], before the first chunk.
      scale: of the outputs.
    """
    plan = Plan(tokens, v.shape[-1])
    inputs = [*_operands(plan, pairs), Input(v[None], plan.values, (CHUNK, VALUES))]
    own = [_operand(plan, plan.width), _operand(plan), _operand(plan), SMEM((CHUNK, VALUES), v.dtype)]
    body = functools.partial(_forward, plan, scale)
    y, last = run("delta_rule", body, plan, inputs, state, own, [jax.ShapeDtypeStruct(v.shape, v.dtype)])
    return y, last


def states(tokens: Tokens, pairs: Pairs, v: Array, state: Array) -> tuple[Array, Array]:
    """The state before each chunk [P, n, B, HV, K, V], and N [P, B, T, HV, V]; arguments as of `forward`."""
    plan = Plan(tokens, v.shape[-1])
    _, k, _, *others = _operands(plan, pairs)
    inputs = [k, *others, Input(v[None], plan.values, (CHUNK, VALUES))]
    own = [_operand(plan, plan.width), _operand(plan), _operand(plan)]
    out = [of_chunks(tokens, plan.width, plan.columns), of_tokens(tokens, plan.columns)]
    befores, n, _ = run("delta_rule_states", functools.partial(_states, plan), plan, inputs, state, own, out)
    return befores, n


def backward(tokens: Tokens, pairs: Pairs, dy: Array, dstate: Array) -> tuple[Array, Array, Array]:
    """The gradients of X, of the state after each chunk, and of the state before the first.

    Args:
      tokens, pairs: see there.
      dy: gradient of the outputs, times the scale, in pieces, [P, B, T, HV, V].
      dstate: gradient of the state after the last chunk, float32 [B, HV, K, V].

    Returns:
      dX [P, B, T, HV, V], dS' [P, n, B, HV, K, V], float32 [B, HV, K, V].
    """
    plan = Plan(tokens, dy.shape[-1])
    inputs = [*_operands(plan, pairs), Input(dy, plan.values, (CHUNK, VALUES))]
    own = [_operand(plan, plan.width), *(_operand(plan) for _ in range(3))]
    out = [of_tokens(tokens, plan.columns), of_chunks(tokens, plan.width, plan.columns)]
    body = functools.partial(_backward, plan)
    dx, dafters, dfirst = run("delta_rule_backward", body, plan, inputs, dstate, own, out, to_first=True)
    return dx, dafters, dfirst


def _operands(plan: Plan, pairs: Pairs) -> list[Input]:
    q, k, rows = plan.tokens
    return [
        *(Input(x, plan.keys, (CHUNK, plan.width)) for x in (q, k)),
        *(Input(x, plan.own, (CHUNK, CHUNK)) for x in pairs),
        Input(rows[None], plan.own, rows.shape[-2:]),
    ]


def _operand(plan: Plan, rows: int = CHUNK) -> Any:
    return SMEM((plan.tokens.pieces, rows, VALUES), jnp.bfloat16)


# --- one chunk


def _forward(plan: Plan, scale: float, site: Site, tiles, own, out, state: Array) -> Array:
    q, k, attention, inverse, rows, v = tiles
    before, x, n, outputs = own
    write(before, state)
    synchronise()
    ks, qs = multiply((k, before), (q, before))
    to_end = _learn(plan, rows, v, inverse, ks, x, n)
    qs = qs * row(rows, START, qs.shape) if plan.tokens.gated else qs
    y, state = multiply((attention, n), (turned(k), to_end), onto=(qs, _decayed(plan, rows, state)))
    read_out()  # the outputs of the chunk before
    store(outputs, (scale * y).astype(outputs.dtype))
    synchronise()
    copy_out(outputs, out[0].at[site.of_tokens])
    return state


def _states(plan: Plan, site: Site, tiles, own, out, state: Array) -> Array:
    k, inverse, rows, v = tiles
    before, x, n = own
    read_out()  # what the chunk before has given
    write(before, state)
    synchronise()
    _give(before, out[0], site.of_chunks)
    (ks,) = multiply((k, before))
    to_end = _learn(plan, rows, v, inverse, ks, x, n)
    _give(n, out[1], site.of_tokens)
    (state,) = multiply((turned(k), to_end), onto=(_decayed(plan, rows, state),))
    return state


def _backward(plan: Plan, site: Site, tiles, own, out, dstate: Array) -> Array:
    q, k, attention, inverse, rows, dy = tiles
    dafter, dn, dx, dx_start = own
    gated = plan.tokens.gated
    read_out()  # what the chunk after has given
    write(dafter, dstate)
    synchronise()
    _give(dafter, out[1], site.of_chunks)
    if gated:
        from_outputs, from_state = multiply((turned(attention), dy), (k, dafter))
        write(dn, from_outputs + from_state * row(rows, END, from_state.shape))
    else:
        (both,) = multiply([(turned(attention), dy), (k, dafter)])
        write(dn, both)
    synchronise()
    (found,) = multiply((turned(inverse), dn))
    write(dx, found)
    dks, dqs = -row(rows, BETA, found.shape) * found, dy
    if gated:
        start = row(rows, START, found.shape)
        dks = dks * start
        dqs = dn  # which is no longer needed
        write(dqs, start * read(dy))
    write(dx_start, dks)
    synchronise()
    _give(dx, out[0], site.of_tokens)
    (dstate,) = multiply([(turned(q), dqs), (turned(k), dx_start)], onto=(_decayed(plan, rows, dstate),))
    return dstate


def _learn(plan: Plan, rows: Any, v: Any, inverse: Any, ks: Array, x: Any, n: Any) -> Any:
    """N, committed to `n` in shared memory, by way of X in `x`; returns F N, which then is in `x`, or `n` itself."""
    gated = plan.tokens.gated
    ks = ks * row(rows, START, ks.shape) if gated else ks
    write(x, row(rows, BETA, ks.shape) * (load(v.at[0], MATRIX).astype(jnp.float32) - ks))
    synchronise()
    (found,) = multiply((inverse, x))
    write(n, found)
    if gated:
        write(x, found * row(rows, END, found.shape))
    synchronise()
    return x if gated else n


def _decayed(plan: Plan, rows: Any, state: Array) -> Array:
    return state * rows[0, WHOLE, 0] if plan.tokens.gated else state


def _give(ref: Any, out: Any, place: tuple[Any, ...]) -> None:
    """Starts the copy of a tile to its place in an output, after that for the piece."""
    for i in range(ref.shape[0]):
        copy_out(ref.at[i], out.at[(i, *place)])
