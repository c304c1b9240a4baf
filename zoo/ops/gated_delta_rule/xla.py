"""The implementations by XLA, with a backward pass of their own, by chunks; forward by chunks or token by token."""

import dataclasses
import functools

import jax

from zoo.ops.gated_delta_rule import chunked, sequential
from zoo.ops.gated_delta_rule.common import Marks, Options, Problem
from zoo.typing import Array


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the sequence is cut up, and whether a forward pass without gradients goes token by token instead.

    Attributes:
      chunk_size: tokens per chunk, where the caller names none.
      chunks_per_block: chunks worked on at once; the state before each block is kept for the backward pass.
      by_token: True or False; None to decide by the size of the state.
    """

    chunk_size: int
    chunks_per_block: int
    by_token: bool | None = None


_CPU = Tiling(chunk_size=32, chunks_per_block=1)
# Larger chunks for matrix units, and enough of them to fill the device.
_ACCELERATOR = Tiling(chunk_size=64, chunks_per_block=16, by_token=False)


def default(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """By chunks, but on a CPU token by token where no gradient is asked for and the states fit the inner cache."""
    return _on_platform(problem, marks, options, None)


def by_chunks(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """By chunks, forward and backward."""
    return _on_platform(problem, marks, options, False)


def by_token(problem: Problem, marks: Marks, options: Options) -> tuple[Array, Array]:
    """Token by token forward, and by chunks backward."""
    return _on_platform(problem, marks, options, True)


def _on_platform(problem: Problem, marks: Marks, options: Options, by_token: bool | None) -> tuple[Array, Array]:
    cpu = dataclasses.replace(_CPU, by_token=by_token)
    accelerator = dataclasses.replace(_ACCELERATOR, by_token=bool(by_token))
    return jax.lax.platform_dependent(
        problem,
        marks,
        cpu=lambda problem, marks: tiled(problem, marks, options, cpu),
        default=lambda problem, marks: tiled(problem, marks, options, accelerator),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def tiled(problem: Problem, marks: Marks, options: Options, tiling: Tiling) -> tuple[Array, Array]:
    """The output [B, T, HV, V] in the dtype of v, and the state after the last token."""
    by_token = tiling.by_token
    if by_token is None:
        by_token = not _chunks_pay_off(problem)
    if by_token:
        return sequential.forward(problem, marks, options)
    return chunked.forward(problem, marks, options, _plan(problem, options, tiling))[:2]


def _chunks_pay_off(problem: Problem) -> bool:
    """Whether a CPU takes longer over all states, once per token, than over the additional products of the chunks."""
    key_width, value_width = problem.state.shape[2:]
    return key_width * value_width >= 2**12 and problem.state.size >= 2**14 and problem.q.shape[1] >= 64


def _plan(problem: Problem, options: Options, tiling: Tiling) -> chunked.Plan:
    return chunked.make_plan(problem.q.shape[1], options, tiling.chunk_size, tiling.chunks_per_block)


def _forward(problem: Problem, marks: Marks, options: Options, tiling: Tiling):
    y, state, states = chunked.forward(problem, marks, options, _plan(problem, options, tiling))
    found = sequential.forward(problem, marks, options) if tiling.by_token else (y, state)
    return found, (problem, marks, states)


def _backward(options: Options, tiling: Tiling, saved: tuple[Problem, Marks, Array], gradients: tuple[Array, Array]):
    plan = _plan(saved[0], options, tiling)
    return chunked.backward(*saved, *gradients, options, plan), Marks(None, None)


tiled.defvjp(_forward, _backward)
