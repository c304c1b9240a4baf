"""The implementations by XLA, with their own backward pass: by chunks always; forward by chunks or token by token."""

import functools

import jax

from zoo.ops.gated_linear_attention import chunked, sequential
from zoo.ops.gated_linear_attention.common import Marks, Options, Problem
from zoo.typing import Array

# Chunks worked on at once: on an accelerator enough to fill it, on a CPU one, which stays in the cache.
_CHUNKS_PER_BLOCK = 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def default(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """Token by token on a CPU as long as no gradient is asked for, otherwise by chunks."""
    run = functools.partial(sequential.forward, options=options)
    return jax.lax.platform_dependent(problem, marks, cpu=run, default=functools.partial(_by_chunks, options=options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_chunks(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """By chunks, forward and backward."""
    return _by_chunks(problem, marks, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_token(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """Token by token forward, and by chunks backward."""
    return sequential.forward(problem, marks, options)


def _by_chunks(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    return _forward(problem, marks, options)[:2]


def _forward(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array, Array]:
    return jax.lax.platform_dependent(
        problem,
        marks,
        cpu=functools.partial(chunked.forward, options=options, chunks_per_block=1),
        default=functools.partial(chunked.forward, options=options, chunks_per_block=_CHUNKS_PER_BLOCK),
    )


def _forward_and_save(problem: Problem, marks: Marks, options: Options):
    y, state, states = _forward(problem, marks, options)
    return (y, state), (problem, marks, states)


def _forward_by_token_and_save(problem: Problem, marks: Marks, options: Options):
    return sequential.forward(problem, marks, options), (problem, marks, _forward(problem, marks, options)[2])


def _backward(options: Options, saved: tuple[Problem, Marks, Array], gradients: tuple[Array, Array]):
    problem = jax.lax.platform_dependent(
        *saved,
        *gradients,
        cpu=functools.partial(chunked.backward, options=options, chunks_per_block=1),
        default=functools.partial(chunked.backward, options=options, chunks_per_block=_CHUNKS_PER_BLOCK),
    )
    return problem, Marks(None, None)


default.defvjp(_forward_and_save, _backward)
by_chunks.defvjp(_forward_and_save, _backward)
by_token.defvjp(_forward_by_token_and_save, _backward)
