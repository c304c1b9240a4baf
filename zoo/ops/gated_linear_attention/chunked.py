"""Gated linear attention by chunks: attention inside a chunk, the state between chunks, and their own backward pass.

A scan runs over blocks of chunks. All chunks of a block are worked on at once, which an accelerator wants; on a CPU a
block is one chunk, whose arrays stay in the cache. Kept for the backward pass are the inputs and the state before each
chunk; all else is computed again.
"""

import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.gated_linear_attention import per_channel, per_head
from zoo.ops.gated_linear_attention.common import (
    Chunk,
    Marks,
    Options,
    Problem,
    decay_factors,
    matmul_precision,
    where_real,
)
from zoo.typing import Array

_CHUNKS_PER_BLOCK = 16


class _Plan(NamedTuple):
    """T tokens as `blocks` of `chunks` of `size` tokens, padded behind."""

    blocks: int
    chunks: int
    size: int

    def split(self, x: Array) -> Array:
        """[B, T, ...] -> [blocks, B, chunks, size, ...]."""
        length = self.blocks * self.chunks * self.size
        x = jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], self.blocks, self.chunks, self.size, *x.shape[2:]), 1, 0)

    def join(self, x: Array, length: int) -> Array:
        """[blocks, B, chunks, size, ...] -> [B, T, ...]."""
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[4:])[:, :length]

    def split_states(self, states: Array) -> Array:
        """[N, B, ...] -> [blocks, chunks, B, ...]."""
        states = jnp.pad(states, [(0, self.blocks * self.chunks - states.shape[0])] + [(0, 0)] * (states.ndim - 1))
        return states.reshape(self.blocks, self.chunks, *states.shape[1:])


def _chunk_length(length: int, options: Options) -> int:
    """A power of two, no larger than it takes for all tokens."""
    return 1 << (min(options.chunk_size, length) - 1).bit_length()


def _plan(length: int, options: Options, chunks_per_block: int) -> _Plan:
    size = _chunk_length(length, options)
    chunks = math.ceil(length / size)
    blocks = math.ceil(chunks / chunks_per_block)
    return _Plan(blocks, math.ceil(chunks / blocks), size)


class _Frame(NamedTuple):
    """How a block of tokens [B, n, c, H, ...] is turned for work: [B, n, G, R, c, ...], in the order of processing."""

    groups: int
    reverse: bool

    def turn(self, x: Array, per_group: bool = False) -> Array:
        x = x[:, ::-1, ::-1] if self.reverse else x
        x = jnp.moveaxis(x, 2, 3)
        return x if per_group else x.reshape(*x.shape[:2], self.groups, -1, *x.shape[3:])

    def back(self, x: Array, per_group: bool = False) -> Array:
        x = x if per_group else x.reshape(*x.shape[:2], -1, *x.shape[4:])
        x = jnp.moveaxis(x, 3, 2)
        return x[:, ::-1, ::-1] if self.reverse else x


def _chunks(block: tuple, frame: _Frame, options: Options, dtype) -> Chunk:
    """The chunks of a block, [B, n, ...]."""
    q, k, v, log_decay, marks = block
    q, k, v = (where_real(x.astype(dtype), marks.real) for x in (q, k, v))
    factors = decay_factors(log_decay, marks, v, dtype)
    turned = None if factors is None else frame.turn(factors)
    return Chunk(frame.turn(q, True) * options.scale, frame.turn(k, True), frame.turn(v), turned)


def _over_chunks(function: Callable, dot: Callable) -> Callable:
    return jax.vmap(functools.partial(function, dot=dot), in_axes=1, out_axes=1)


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    return first[0] * second[0], second[0] * first[1] + second[1]


def _recur(factors: Array, terms: Array, start: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """x_{n+1} = factors_n x_n + terms_n along axis 1, from `start`: the x before each, and that after the last."""
    factors = jnp.broadcast_to(factors, (*terms.shape[:-2], *factors.shape[-2:]))
    total, sums = jax.lax.associative_scan(_compose, (factors, terms), axis=1, reverse=reverse)
    after = total * start[:, None] + sums
    if reverse:
        return jnp.concatenate([after[:, 1:], start[:, None]], axis=1), after[:, 0]
    return jnp.concatenate([start[:, None], after[:, :-1]], axis=1), after[:, -1]


def _form(problem: Problem) -> ModuleType:
    return per_channel if problem.log_decay is not None and problem.log_decay.ndim == 4 else per_head


def _setup(problem: Problem, marks: Marks, options: Options, chunks_per_block: int):
    q, k, v, log_decay, _ = problem
    plan = _plan(q.shape[1], options, chunks_per_block)
    blocks = jax.tree.map(plan.split, (q, k, v, log_decay, marks))
    dot = functools.partial(jnp.einsum, precision=matmul_precision(q, k, v))
    return plan, blocks, _Frame(q.shape[2], options.reverse), dot


def forward(problem: Problem, marks: Marks, options: Options, chunks_per_block: int = 1) -> tuple[Array, Array, Array]:
    """Output [B, T, H, V] in the dtype of v, the last state, and the states before each chunk [N, B, G, R, K, V]."""
    plan, blocks, frame, dot = _setup(problem, marks, options, chunks_per_block)
    form = _form(problem)
    batch, length, groups, _ = problem.q.shape
    state = problem.state.reshape(batch, groups, -1, *problem.state.shape[2:])

    def block(state: Array, now: tuple) -> tuple[Array, tuple[Array, Array]]:
        chunk = _chunks(now, frame, options, state.dtype)
        factors, terms = _over_chunks(form.advance, dot)(chunk)
        before, state = _recur(factors, terms, state)
        y = _over_chunks(form.outputs, dot)(chunk, before)
        before = jnp.moveaxis(before[:, ::-1] if options.reverse else before, 1, 0)
        return state, (frame.back(y).astype(problem.v.dtype), before)

    state, (y, states) = jax.lax.scan(block, state, blocks, reverse=options.reverse)
    states = states.reshape(-1, *states.shape[2:])[: math.ceil(length / plan.size)]
    return plan.join(y, length), state.reshape(problem.state.shape), states


def backward(
    problem: Problem,
    marks: Marks,
    states: Array,
    dy: Array,
    dstate: Array,
    options: Options,
    chunks_per_block: int = 1,
) -> Problem:
    """Gradients of the problem, from those of the output and of the last state."""
    plan, blocks, frame, dot = _setup(problem, marks, options, chunks_per_block)
    form = _form(problem)
    batch, length, groups, _ = problem.q.shape
    dtype = states.dtype
    dstate = dstate.astype(dtype).reshape(batch, groups, -1, *dstate.shape[2:])

    def block(dstate: Array, now: tuple) -> tuple[Array, tuple]:
        tokens, before, dy = now
        chunk = _chunks(tokens, frame, options, dtype)
        before = jnp.moveaxis(before, 0, 1)
        before = before[:, ::-1] if options.reverse else before
        dy = frame.turn(where_real(dy.astype(dtype), tokens[-1].real))
        factors, terms = _over_chunks(form.retreat, dot)(chunk, dy)
        dafter, dstate = _recur(factors, terms, dstate, reverse=True)
        dq, dk, dv, dlog = _over_chunks(form.gradients, dot)(chunk, before, dy, dafter)
        found = (frame.back(dq * options.scale, True), frame.back(dk, True), frame.back(dv))
        found = [where_real(x, tokens[-1].real) for x in found]
        dlog = None if dlog is None or tokens[3] is None else where_real(frame.back(dlog), tokens[-1].real)
        found = [*found, dlog]
        return dstate, tuple(None if x is None else x.astype(t.dtype) for x, t in zip(found, tokens, strict=False))

    now = (blocks, plan.split_states(states), plan.split(dy))
    dstate, found = jax.lax.scan(block, dstate, now, reverse=not options.reverse)
    dq, dk, dv, dlog = jax.tree.map(lambda x: plan.join(x, length), found)
    return Problem(dq, dk, dv, dlog, dstate.reshape(problem.state.shape))
