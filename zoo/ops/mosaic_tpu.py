"""Pallas' backend for TPUs: where its kernels run, and what differs between a TPU and the interpreter on a CPU.

Where such a kernel runs is asked with `unavailable`; `interpreted` runs it anywhere, slowly, and `exporting` lets it be
lowered, or compiled by `libtpu`, where there is no TPU. Importing this module imports Pallas for TPUs, so
implementations that need it are imported when they are called for.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zoo.ops.backend import Backend

__all__ = [
    "exporting",
    "interpreted",
    "interpreting",
    "launch",
    "pl",
    "pltpu",
    "reciprocal",
    "require",
    "unavailable",
    "usable",
]


def _missing() -> str | None:
    platform = jax.devices()[0].platform
    return None if platform == "tpu" else f"the default device is a {platform.upper()}, not a TPU"


_BACKEND = Backend("mosaic_tpu", "TPUs", _missing)
interpreted, exporting, interpreting = _BACKEND.interpreted, _BACKEND.exporting, _BACKEND.interpreting
unavailable, require, usable = _BACKEND.unavailable, _BACKEND.require, _BACKEND.usable


# Exact, or faster with `full_range=False`, for numbers that are neither huge nor tiny; JAX 0.10 has it elsewhere.
reciprocal: Any = getattr(pltpu, "reciprocal", None) or pl.reciprocal


def launch(body: Any, *, name: str, semantics: tuple[str, ...], vmem_limit: int | None = None, **options: Any) -> Any:
    """`pl.pallas_call`, on a TPU or interpreted.

    Args:
      body: takes a reference per input, per output and per scratch.
      name: of the kernel, in profiles.
      semantics: of each axis of the grid: "parallel", or "arbitrary" where the order matters.
      vmem_limit: bytes of VMEM that the kernel may use; None for the compiler's choice.
      options: further arguments of `pl.pallas_call`: `out_shape`, `grid`, `in_specs`, `out_specs`, `scratch_shapes`.
    """
    api: Any = pltpu  # the types are those of the JAX at hand
    parameters = api.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=vmem_limit)
    # With options, the interpreter that has the memories of a TPU; else the much faster one that runs XLA's operations.
    chosen = _BACKEND.interpreter_options()
    interpret = api.InterpretParams(**chosen) if chosen else interpreting()
    call = pl.pallas_call(body, name=name, compiler_params=parameters, interpret=interpret, **options)

    def narrow(*arrays: Any) -> Any:
        with jax.enable_x64(False):  # a TPU counts in 32 bits
            return call(*arrays)

    return _batched_first(narrow)


def _batched_first(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, for which `jax.vmap` puts the axis first: anywhere else it may stand among the two that a TPU tiles."""
    function = jax.custom_batching.custom_vmap(lambda *arrays: call(*arrays))

    @function.def_vmap
    def _(size: int, batched: list[bool], *arrays: Any) -> tuple[Any, Any]:
        axes = [0 if one else None for one in batched]
        found = _batched_first(jax.vmap(call, in_axes=axes, axis_size=size))(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    return function
