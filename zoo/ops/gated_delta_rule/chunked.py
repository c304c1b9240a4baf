"""The gated delta rule by chunks: `chunk` inside blocks of chunks, the state from block to block, and back again.

All chunks of a block are worked on at once but for the state, which is what an accelerator wants; on a CPU a block is
one chunk, whose arrays stay in the cache. For the backward pass the state before each block is kept besides the inputs;
all else is computed again. Blocks are cut out of the inputs, and laid into the outputs, where they lie: what is in
memory beyond inputs, outputs and those states belongs to one block.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.ops.gated_delta_rule import chunk as one
from zoo.ops.gated_delta_rule.chunk import Chunk, Parts, Path
from zoo.ops.gated_delta_rule.common import (
    Marks,
    Options,
    Problem,
    inverse_norm,
    matmul_precision,
    ready_log_decay,
    where,
)
from zoo.typing import Array, DType


class Plan(NamedTuple):
    """T tokens as `blocks` of `chunks` of `size` tokens, with at least one block of tokens.

    The last block ends at the last token, so it may begin with tokens of the one before, which then count as padding.
    """

    blocks: int
    chunks: int
    size: int
    length: int
    reverse: bool

    @property
    def width(self) -> int:
        """Tokens per block."""
        return self.chunks * self.size

    def place(self, block: Array) -> Array:
        """Where in the sequence the block's slice starts."""
        start = jnp.minimum(block * self.width, self.length - self.width)
        return self.length - self.width - start if self.reverse else start

    def fresh(self, block: Array) -> Array | None:
        """[1, width], in the order of processing: False at tokens of the block before; None if there never are any."""
        if not self.length % self.width:
            return None
        skipped = block * self.width - (self.length - self.width)
        return (jnp.arange(self.width) >= skipped)[None]

    def cut(self, x: Array, block: Array) -> Array:
        """[B, T, ...] -> [B, width, ...], in the order of processing."""
        x = jax.lax.dynamic_slice_in_dim(x, self.place(block), self.width, axis=1)
        return x[:, ::-1] if self.reverse else x

    def lay(self, x: Array, into: Array, block: Array) -> Array:
        """The opposite of `cut`, which leaves tokens that are not fresh as they are."""
        fresh = self.fresh(block)
        if fresh is not None:
            x = where(fresh, x, self.cut(into, block))
        x = x[:, ::-1] if self.reverse else x
        return jax.lax.dynamic_update_slice_in_dim(into, x, self.place(block), axis=1)

    def split(self, x: Array) -> Array:
        """[B, width, H, ...] -> [chunks, B, H, size, ...], or [B, H, size, ...] if there is one chunk."""
        if self.chunks == 1:
            return jnp.moveaxis(x, 2, 1)
        x = x.reshape(x.shape[0], self.chunks, self.size, *x.shape[2:])
        return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 3, 2)

    def join(self, x: Array) -> Array:
        """The opposite of `split`."""
        if self.chunks == 1:
            return jnp.moveaxis(x, 1, 2)
        x = jnp.moveaxis(jnp.moveaxis(x, 2, 3), 0, 1)
        return x.reshape(x.shape[0], self.width, *x.shape[3:])

    def scan(self, function: Callable, start: Array, xs: Any, *, reverse: bool = False) -> tuple[Array, Any]:
        """`jax.lax.scan` over the chunks of what `split` gave."""
        return function(start, xs) if self.chunks == 1 else jax.lax.scan(function, start, xs, reverse=reverse)


def make_plan(length: int, options: Options, chunk_size: int, chunks_per_block: int) -> Plan:
    """The plan for a `chunk_size` that `options` may replace; its length is more than `length` if that is too short.

    Chunks are made no longer than it takes to have as many, in eights of tokens, so that the last block is about full.
    """
    largest = min(options.chunk_size or chunk_size, length)
    chunks = math.ceil(length / largest)
    blocks = math.ceil(chunks / chunks_per_block)
    chunks = math.ceil(chunks / blocks)
    size = min(largest, math.ceil(length / (blocks * chunks * 8)) * 8)
    return Plan(blocks, chunks, size, max(length, chunks * size), options.reverse)


@functools.partial(jax.jit, static_argnames=("options", "plan"))  # traced once for all layers of a model
def forward(problem: Problem, marks: Marks, options: Options, plan: Plan) -> tuple[Array, Array, Array]:
    """Output [B, T, HV, V] in the dtype of v, the last state, the states before each block [blocks, B, HV, K, V]."""
    problem, marks, length = padded(problem, marks, plan)
    dot = functools.partial(jnp.einsum, precision=matmul_precision(*problem[:3]))

    def block(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        state, y, states = carry
        states = jax.lax.dynamic_update_index_in_dim(states, state, i, axis=0)
        chunks, real, _ = load(problem, marks, options, plan, i, state.dtype)
        parts = one.parts(chunks, dot)
        befores, ns, state = _states(parts.path, state, plan, dot)
        found = plan.join(one.outputs(chunks.q, parts, befores, ns, dot)).astype(y.dtype)
        return state, plan.lay(where(real, found), y, i), states

    state = problem.state
    start = state, jnp.zeros_like(problem.v), jnp.zeros((plan.blocks, *state.shape), state.dtype)
    state, y, states = jax.lax.fori_loop(0, plan.blocks, block, start)
    return unpadded(y, length, plan), state, states


@functools.partial(jax.jit, static_argnames=("options", "plan"))
def backward(
    problem: Problem, marks: Marks, states: Array, dy: Array, dstate: Array, options: Options, plan: Plan
) -> Problem:
    """Gradients of the problem, from those of the output and of the last state."""
    problem, marks, length = padded(problem, marks, plan)
    dy = pad(dy, plan)
    dot = functools.partial(jnp.einsum, precision=matmul_precision(*problem[:3]))
    dtype = states.dtype

    def block(j: Array, carry: tuple[list[Array | None], Array]) -> tuple[list[Array | None], Array]:
        found, dstate = carry
        i = plan.blocks - 1 - j
        chunks, real, raw = load(problem, marks, options, plan, i, dtype)
        parts = one.parts(chunks, dot)
        befores, ns, _ = _states(parts.path, states[i], plan, dot)
        dys = plan.split(where(real, plan.cut(dy, i).astype(dtype)))
        dns, dafters, dstate = _gradients_of_states(chunks, parts, dys, dstate, plan, dot)
        dxs = dot("...ij,...iv->...jv", parts.inverse, dns)
        gradients = one.gradients(chunks, parts, befores, ns, dys, dxs, dafters, dot)
        new = unload(gradients, real, raw, options, plan)
        return [lay(plan, x, into, i) for x, into in zip(new, found, strict=True)], dstate

    found = [None if x is None else jnp.zeros_like(x) for x in problem[:-1]]
    found, dstate = jax.lax.fori_loop(0, plan.blocks, block, (found, dstate.astype(dtype)))
    dq, dk, dv, dbeta, dlog = (None if x is None else unpadded(x, length, plan) for x in found)
    return Problem(dq, dk, dv, dbeta, dlog, dstate)  # pyright: ignore[reportArgumentType]


def lay(plan: Plan, x: Array | None, into: Array | None, block: Array) -> Array | None:
    """`Plan.lay` in the dtype of `into`; None where there is nothing to lay."""
    return None if x is None or into is None else plan.lay(x.astype(into.dtype), into, block)


def pad(x: Array, plan: Plan) -> Array:
    """[B, T, ...] padded to the plan's length, where processing ends."""
    more = plan.length - x.shape[1]
    return jnp.pad(x, [(0, 0), (more, 0) if plan.reverse else (0, more)] + [(0, 0)] * (x.ndim - 2)) if more else x


def unpadded(x: Array, length: int, plan: Plan) -> Array:
    """The opposite of `pad`."""
    return x[:, plan.length - length :] if plan.reverse else x[:, :length]


def padded(problem: Problem, marks: Marks, plan: Plan) -> tuple[Problem, Marks, int]:
    """The problem and marks of a length that suits the plan, and their own length. Zeros leave the state as it is."""
    *arrays, state = problem
    longer = (None if x is None else pad(x, plan) for x in (*arrays, *marks))
    q, k, v, beta, log_decay, real, starts = longer
    return Problem(q, k, v, beta, log_decay, state), Marks(real, starts), problem.q.shape[1]  # pyright: ignore


def load(
    problem: Problem, marks: Marks, options: Options, plan: Plan, block: Array, dtype: DType
) -> tuple[Chunk, Array | None, tuple[Array, Array]]:
    """The block's chunks as after `split`; bool [B, width], which of its tokens count; q and k as they were."""
    raw_log, real, starts = (None if x is None else plan.cut(x, block) for x in (problem.log_decay, *marks))
    fresh = plan.fresh(block)
    if fresh is not None:
        real = jnp.broadcast_to(fresh, (problem.q.shape[0], plan.width)) if real is None else real & fresh
    q, k, v, beta = (where(real, plan.cut(x, block).astype(dtype)) for x in problem[:4])
    log_decay = ready_log_decay(raw_log, Marks(real, starts), beta, dtype)
    raw = q, k
    if options.l2norm:
        q, k = (x * inverse_norm(x) for x in raw)
    heads = v.shape[2] // q.shape[2]
    if heads > 1:
        q, k = (jnp.repeat(x, heads, axis=2) for x in (q, k))
    log_decay = None if log_decay is None else plan.split(log_decay)
    chunk = Chunk(plan.split(q * options.scale), plan.split(k), plan.split(v), plan.split(beta)[..., None], log_decay)
    return chunk, real, raw


def unload(
    gradients: Chunk, real: Array | None, raw: tuple[Array, Array], options: Options, plan: Plan
) -> tuple[Array, Array, Array, Array, Array | None]:
    """The gradients [B, width, ...] of what `load` was given."""
    dq, dk, dv = (plan.join(x) for x in gradients[:3])
    dbeta = plan.join(gradients.beta[..., 0])
    dlog = None if gradients.log_decay is None else where(real, plan.join(gradients.log_decay))
    dq = dq * options.scale
    if dv.shape[2] > raw[0].shape[2]:
        dq, dk = (x.reshape(*x.shape[:2], raw[0].shape[2], -1, x.shape[-1]).sum(3) for x in (dq, dk))
    if options.l2norm:
        dq, dk = (through_norm(x, dx) for x, dx in zip(raw, (dq, dk), strict=True))
    return where(real, dq), where(real, dk), where(real, dv), where(real, dbeta), dlog


def through_norm(x: Array, dy: Array) -> Array:
    """The gradient of x, from that of y = x / sqrt(x·x + eps)."""
    r = inverse_norm(x)
    y = x * r
    return r * (dy - y * (y * dy).sum(-1, keepdims=True))


def _states(paths: Path, state: Array, plan: Plan, dot: functools.partial) -> tuple[Array, Array, Array]:
    """The state before each chunk and N of each, as after `split`, and the state after the last chunk."""

    def chunk(state: Array, path: Path) -> tuple[Array, tuple[Array, Array]]:
        n, after = one.advance(path, state, dot)
        return after, (state, n)

    state, (befores, ns) = plan.scan(chunk, state, paths)
    return befores, ns, state


def _gradients_of_states(
    chunks: Chunk, parts: Parts, dys: Array, dstate: Array, plan: Plan, dot: functools.partial
) -> tuple[Array, Array, Array]:
    """The gradients of N of each chunk and of the state after it, and of the state before the first."""

    def chunk(dstate: Array, now: tuple[Path, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        path, dn, from_outputs = now
        dn, before = one.retreat(path, dn, dstate, from_outputs, dot)
        return before, (dn, dstate)

    now = (parts.path, *one.from_outputs(chunks, parts, dys, dot))
    dstate, (dns, dafters) = plan.scan(chunk, dstate, now, reverse=True)
    return dns, dafters, dstate
