"""Gated linear attention by chunks: attention inside a chunk, the state between chunks, and their own backward pass.

A scan runs over blocks of chunks. All chunks of a block are worked on at once, which an accelerator wants; on a CPU a
block is one chunk, whose arrays stay in the cache. Blocks are read where they stand and results are written in place,
so nothing is laid out anew for the whole sequence. Only the inputs are kept for the backward pass, which computes the
state before each chunk again; nothing larger than the inputs or than these states is ever made.
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
from zoo.typing import Array, DType, PyTree


class _Layout(NamedTuple):
    """T tokens as `blocks` of `chunks` of `size` tokens; and how a block is turned for work.

    Inside, tokens come after heads and in the order of processing: [B, n, G, R, c, ...], or [B, n, G, c, ...] for what
    heads of a group share.
    """

    blocks: int
    chunks: int
    size: int
    groups: int
    reverse: bool

    def pad(self, x: Array) -> Array:
        """[B, T, ...] with zeros behind, to whole blocks."""
        missing = self.blocks * self.chunks * self.size - x.shape[1]
        return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x

    def read(self, tree: PyTree, block: Array) -> PyTree:
        """The tokens [B, n, c, ...] of one block, from arrays [B, T, ...]."""
        size = self.chunks * self.size

        def one(x: Array) -> Array:
            x = jax.lax.dynamic_slice_in_dim(x, block * size, size, axis=1)
            return x.reshape(x.shape[0], self.chunks, self.size, *x.shape[2:])

        return jax.tree.map(one, tree)

    def write(self, whole: PyTree, tree: PyTree, block: Array) -> PyTree:
        """The inverse of `read`: the arrays `whole` with this block replaced."""

        def one(x: Array, part: Array) -> Array:
            part = part.reshape(part.shape[0], -1, *part.shape[3:]).astype(x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(x, part, block * self.chunks * self.size, axis=1)

        return jax.tree.map(one, whole, tree)

    def turn(self, x: Array, *, shared: bool = False) -> Array:
        """[B, n, c, H, ...] (if `shared` [B, n, c, G, ...]) for work."""
        x = jnp.moveaxis(x[:, ::-1, ::-1] if self.reverse else x, 2, 3)
        return x if shared else x.reshape(*x.shape[:2], self.groups, -1, *x.shape[3:])

    def back(self, x: Array, *, shared: bool = False) -> Array:
        """The inverse of `turn`."""
        x = jnp.moveaxis(x if shared else x.reshape(*x.shape[:2], -1, *x.shape[4:]), 3, 2)
        return x[:, ::-1, ::-1] if self.reverse else x

    def by_group(self, state: Array) -> Array:
        """[B, H, K, V] -> [B, G, R, K, V]."""
        return state.reshape(state.shape[0], self.groups, -1, *state.shape[2:])


def _layout(problem: Problem, options: Options) -> _Layout:
    length = problem.q.shape[1]
    size = 1 << (min(options.chunk_size, length) - 1).bit_length()
    chunks = math.ceil(length / size)
    blocks = math.ceil(chunks / options.chunks_per_block)
    return _Layout(blocks, math.ceil(chunks / blocks), size, problem.q.shape[2], options.reverse)


def _form(problem: Problem) -> ModuleType:
    return per_channel if problem.log_decay is not None and problem.log_decay.ndim == 4 else per_head


def _over_chunks(function: Callable, problem: Problem) -> Callable:
    """`function` of arrays [B, ...] as one of arrays [B, n, ...], with the products of this problem's precision."""
    dot = functools.partial(jnp.einsum, precision=matmul_precision(*problem[:3]))
    return jax.vmap(functools.partial(function, dot=dot), in_axes=1, out_axes=1)


def _chunks(block: tuple[Problem, Marks], layout: _Layout, options: Options, dtype: DType) -> Chunk:
    """The chunks of a block, [B, n, ...]."""
    (q, k, v, log_decay, _), marks = block
    q, k, v = (where_real(x.astype(dtype), marks.real) for x in (q, k, v))
    factors = decay_factors(log_decay, marks, v, dtype)
    factors = None if factors is None else layout.turn(factors)
    q, k = layout.turn(q, shared=True) * options.scale, layout.turn(k, shared=True)
    return Chunk(q, k, layout.turn(v), factors)


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    return first[0] * second[0], second[0] * first[1] + second[1]


def _recur(steps: tuple[Array, Array], start: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """x_{n+1} = factor_n x_n + term_n along axis 1, from `start`: the x before each, and that after the last."""
    factors, terms = steps
    factors = jnp.broadcast_to(factors, (*terms.shape[:-2], *factors.shape[-2:]))
    total, sums = jax.lax.associative_scan(_compose, (factors, terms), axis=1, reverse=reverse)
    after = total * start[:, None] + sums
    if reverse:
        return jnp.concatenate([after[:, 1:], start[:, None]], axis=1), after[:, 0]
    return jnp.concatenate([start[:, None], after[:, :-1]], axis=1), after[:, -1]


def _tokens(problem: Problem, marks: Marks, layout: _Layout) -> tuple[Problem, Marks]:
    return jax.tree.map(layout.pad, (problem._replace(state=None), marks))


def _states(problem: Problem, marks: Marks, options: Options) -> Array:
    """The state before each chunk of each block, [blocks, B, n, G, R, K, V]."""
    layout, form = _layout(problem, options), _form(problem)
    tokens = _tokens(problem, marks, layout)

    def block(state: Array, index: Array) -> tuple[Array, Array]:
        chunks = _chunks(layout.read(tokens, index), layout, options, state.dtype)
        before, state = _recur(_over_chunks(form.advance, problem)(chunks), state)
        return state, before

    start = layout.by_group(problem.state)
    return jax.lax.scan(block, start, jnp.arange(layout.blocks), reverse=options.reverse)[1]


@functools.partial(jax.jit, static_argnames=("options",))  # traced once for all layers of a model
def forward(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """The output [B, T, H, V] in the dtype of v, and the state after the last token."""
    layout, form = _layout(problem, options), _form(problem)
    tokens = _tokens(problem, marks, layout)

    def block(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        state, y = carry
        chunks = _chunks(layout.read(tokens, index), layout, options, state.dtype)
        before, state = _recur(_over_chunks(form.advance, problem)(chunks), state)
        here = _over_chunks(form.outputs, problem)(chunks, before)
        return (state, layout.write(y, layout.back(here), index)), None

    carry = layout.by_group(problem.state), jnp.zeros_like(tokens[0].v)
    (state, y), _ = jax.lax.scan(block, carry, jnp.arange(layout.blocks), reverse=options.reverse)
    return y[:, : problem.v.shape[1]], state.reshape(problem.state.shape)


@functools.partial(jax.jit, static_argnames=("options",))
def backward(problem: Problem, marks: Marks, dy: Array, dstate: Array, options: Options) -> Problem:
    """Gradients of the problem, from those of the output and of the last state."""
    layout, form, dtype = _layout(problem, options), _form(problem), problem.state.dtype
    tokens, dy = _tokens(problem, marks, layout), layout.pad(dy)

    def block(carry: tuple[Array, Problem], now: tuple[Array, Array]) -> tuple[tuple[Array, Problem], None]:
        (dstate, found), (index, before) = carry, now
        here, marks = layout.read(tokens, index)
        chunks = _chunks((here, marks), layout, options, dtype)
        dy_here = layout.turn(where_real(layout.read(dy, index).astype(dtype), marks.real))
        dafter, dstate = _recur(_over_chunks(form.retreat, problem)(chunks, dy_here), dstate, reverse=True)
        dq, dk, dv, dlog = _over_chunks(form.gradients, problem)(chunks, before, dy_here, dafter)
        dq, dk = layout.back(dq * options.scale, shared=True), layout.back(dk, shared=True)
        dlog = None if here.log_decay is None else layout.back(dlog)
        part = jax.tree.map(
            lambda x: where_real(x, marks.real), here._replace(q=dq, k=dk, v=layout.back(dv), log_decay=dlog)
        )
        return (dstate, layout.write(found, part, index)), None

    carry = layout.by_group(dstate.astype(dtype)), jax.tree.map(jnp.zeros_like, tokens[0])
    now = jnp.arange(layout.blocks), _states(problem, marks, options)
    (dstate, found), _ = jax.lax.scan(block, carry, now, reverse=not options.reverse)
    found = jax.tree.map(lambda x: x[:, : problem.v.shape[1]], found)
    return found._replace(state=dstate.reshape(problem.state.shape))
