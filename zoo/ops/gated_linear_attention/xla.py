"""The implementations by XLA, with their own backward pass: by chunks always; forward by chunks or token by token."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from zoo.ops.gated_linear_attention import chunked, sequential
from zoo.ops.gated_linear_attention.common import Marks, Options, Problem
from zoo.typing import Array

# (chunk_size, chunks_per_block). On a CPU what a chunk needs stays in the cache; an accelerator wants much at once.
_CPU = (32, 1)
_ACCELERATOR = (64, 16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def default(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """Token by token on a CPU as long as no gradient is asked for, otherwise by chunks."""
    return _per_platform(sequential.forward, chunked.forward, options)(problem, marks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_chunks(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """By chunks, forward and backward."""
    return _per_platform(chunked.forward, chunked.forward, options)(problem, marks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_token(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """Token by token forward, and by chunks backward."""
    return sequential.forward(problem, marks, options)


def _per_platform(cpu: Callable, accelerator: Callable, options: Options) -> Callable[..., Any]:
    """One function for all platforms, which becomes `cpu` or `accelerator` when it is compiled for one."""

    def ready(function: Callable, chunk_size: int, chunks_per_block: int) -> Callable:
        size = options.chunk_size or chunk_size
        here = dataclasses.replace(options, chunk_size=size, chunks_per_block=chunks_per_block)
        return functools.partial(function, options=here)

    return functools.partial(
        jax.lax.platform_dependent, cpu=ready(cpu, *_CPU), default=ready(accelerator, *_ACCELERATOR)
    )


def _saving(run: Callable, problem: Problem, marks: Marks, options: Options):
    return run(problem, marks, options), (problem, marks)


def _backward(options: Options, saved: tuple[Problem, Marks], gradients: tuple[Array, Array]):
    problem = _per_platform(chunked.backward, chunked.backward, options)(*saved, *gradients)
    return problem, Marks(None, None)


default.defvjp(functools.partial(_saving, by_chunks), _backward)
by_chunks.defvjp(functools.partial(_saving, by_chunks), _backward)
by_token.defvjp(functools.partial(_saving, by_token), _backward)
