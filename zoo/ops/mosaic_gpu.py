"""The one module that touches Pallas' backend for Hopper, Mosaic GPU, whose API changes from one JAX to the next.

A kernel here is a function of references that one warpgroup (128 threads) of a CUDA block runs; its values are arrays
spread over the threads' registers by a layout. What follows hides what differs between JAX 0.10 and 0.12, and between
a device and the interpreter on a CPU, which knows no layouts::

    def body(x, y, tile, arrived):
        copy_in(x.at[pl.ds(0, 64)], tile, arrived)
        plgpu.barrier_wait(arrived)
        store(y, 2 * load(tile, MATRIX))

    launch(body, out=(jax.ShapeDtypeStruct(...),), grid=(1,), grid_names=("i",), scratch=(SMEM(...), barrier()))(x)

Where such a kernel runs is asked with `unavailable`; `interpreted` runs it anywhere, slowly, and `exporting` lets it be
lowered for a GPU where there is none. Importing this module imports the unstable API, so implementations that need it
are imported when they are called for.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from zoo.ops.backend import Backend
from zoo.typing import Array

__all__ = [
    "COLUMNS",
    "MATRIX",
    "MOST_BLOCKS",
    "ROWS",
    "SMEM",
    "Matrix",
    "barrier",
    "cast",
    "copy_in",
    "copy_out",
    "exporting",
    "held",
    "interpreted",
    "interpreting",
    "iota",
    "launch",
    "load",
    "pl",
    "plgpu",
    "products",
    "read_out",
    "require",
    "store",
    "synchronise",
    "tiled",
    "transposed",
    "unavailable",
    "usable",
]

# The compute capability from which on the kernels' copies (TMA) exist, and the only one that has WGMMA products.
_CAPABILITY = (9, 0)

# Of CUDA blocks along the first two axes of a grid of three.
MOST_BLOCKS = 2**16 - 1

SMEM = plgpu.SMEM
# [M, K] with M a multiple of 64 and K of 8: a warp has 16 of every 64 rows, and 4 of its threads share each of them.
MATRIX = plgpu.Layout.WGMMA
# [M], one value per row of a MATRIX, and [K], one value per column: what sums of a MATRIX over an axis have.
ROWS = MATRIX.reduce(1)
COLUMNS = MATRIX.reduce(0)

# JAX 0.10 asks for the index beside the reference, 0.11 warns of it, 0.12 has none.
_index = inspect.signature(plgpu.load).parameters.get("idx")
_LOAD_TAKES_INDEX = _index is not None and _index.default is inspect.Parameter.empty


def _missing(*, wgmma: bool = False) -> str | None:
    """Why kernels cannot run on the default device; `wgmma` is whether they use `products`, which Hopper alone has."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        return f"the default device is a {device.platform.upper()}, not a GPU of compute capability 9.0 or more"
    capability = getattr(device, "compute_capability", None)
    try:
        found = tuple(int(part) for part in str(capability).split("."))
    except ValueError:
        return f"{device.device_kind} has no CUDA compute capability"
    if found < _CAPABILITY:
        return f"{device.device_kind} has compute capability {capability}; 9.0 (Hopper) or more is needed"
    if wgmma and found[0] != _CAPABILITY[0]:
        return f"{device.device_kind} has compute capability {capability}; the products of Hopper, 9.0, are needed"
    return None


# Without a GPU in the process Mosaic GPU takes the target of `exporting` to be sm_90. With `detect_races=True` for
# `interpreted`, JAX 0.12 raises an error where shared memory is written, or copied into, that may still be read.
_BACKEND = Backend("mosaic_gpu", "Hopper GPUs", _missing)
interpreted, exporting, interpreting = _BACKEND.interpreted, _BACKEND.exporting, _BACKEND.interpreting
unavailable, require, usable = _BACKEND.unavailable, _BACKEND.require, _BACKEND.usable


def launch(
    body: Callable[..., None],
    *,
    out: Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int, ...],
    grid_names: tuple[str, ...],
    scratch: Sequence[Any] = (),
    name: str,
    approx_math: bool = True,
    semantics: str | None = None,
    **options: Any,
) -> Callable[..., tuple[Array, ...]]:
    """`body` as a function of arrays that runs one CUDA block per point of the grid.

    Args:
      body: takes a reference per input (in device memory), per output and per element of `scratch`, in this order.
      out: shapes and dtypes of the outputs.
      grid: blocks along each axis.
      grid_names: names of these axes, for `jax.lax.axis_index` in `body`.
      scratch: what a block has to itself: `SMEM(shape, dtype)`, `barrier()`.
      name: of the kernel, in profiles.
      approx_math: `exp2`, `log` and `rsqrt` by the special function unit, to 2 ulp or so, instead of exactly.
      semantics: "lane" or "warpgroup", who decides on layouts: the code, or an inference over it. None for "lane".
      options: further arguments of `plgpu.CompilerParams`, and `num_threads`, `thread_name`, `cluster`,
        `cluster_names` of the launch.

    Returns:
      A function of the inputs that returns a tuple of the outputs.

    Raises:
      ValueError: more blocks than CUDA has along an axis but the last.
    """
    if max(grid[:-1], default=0) > MOST_BLOCKS:
        raise ValueError(f"the kernel {name} has a grid of {grid}; along all axes but the last it may be {MOST_BLOCKS}")
    launching = {
        key: options.pop(key) for key in ("num_threads", "thread_name", "cluster", "cluster_names") if key in options
    }
    chosen = {"lane": "Lane", "warpgroup": "Warpgroup"}[semantics or "lane"]
    parameters = plgpu.CompilerParams(
        approx_math=approx_math, lowering_semantics=getattr(plgpu.LoweringSemantics, chosen), **options
    )
    return plgpu.kernel(
        body,
        out_type=tuple(out),
        scratch_types=tuple(scratch),
        compiler_params=parameters,
        grid=grid,
        grid_names=grid_names,
        kernel_name=name,
        interpret=_interpreter() if interpreting() else None,
        **launching,
    )


def _interpreter() -> Any:
    options = _BACKEND.interpreter_options()
    public = getattr(plgpu, "InterpretGPUParams", None)
    if public is not None:
        return public(**options)
    # JAX 0.10 has the interpreter, but not under a public name.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(**options)


def barrier(arrivals: int = 1, count: int = 1) -> Any:
    """A scratch type: `count` barriers, each of which completes after that many copies."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)


def copy_in(source: Any, target: Any, arrived: Any) -> None:
    """Starts a copy from device memory to shared memory, at whose end `arrived` counts one arrival."""
    plgpu.copy_gmem_to_smem(source, target, arrived)


def copy_out(source: Any, target: Any) -> None:
    """Starts a copy from shared memory to device memory of what the threads wrote before `synchronise`."""
    plgpu.copy_smem_to_gmem(source, target)


def read_out() -> None:
    """Waits until every `copy_out` has read its source, so that it may be written again after `synchronise`."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def synchronise() -> None:
    """The block's threads wait for each other; what they wrote to shared memory is there for them and for copies."""
    plgpu.commit_smem()


def tiled(tiles: Sequence[tuple[int, ...]], warps: tuple[int, ...], lanes: tuple[int, ...]) -> Any:
    """A layout of its own, in the terms of Mosaic GPU.

    Args:
      tiles: an array is cut into tiles of the first shape, the last axes of these into tiles of the second, and so on.
      warps: the axes, counted from the last, of what results that the 4 warps share out.
      lanes: those that the 32 threads of a warp share out. The last axis stays with a thread; all others are repeated.
    """
    return plgpu.Layout.TILED(plgpu.Tiling(tuple(tiles)), warp_dims=warps, lane_dims=lanes, vector_dim=-1)


def load(ref: Any, layout: Any = None) -> Array:
    """The values of `ref` (or of a part, `ref.at[...]`), in shared or device memory, spread over the threads so.

    Without a layout consecutive values go to consecutive threads; their number is a multiple of 128.
    """
    if interpreting():
        return ref[...]
    api: Any = plgpu  # the types are those of the JAX at hand
    index = ((),) if _LOAD_TAKES_INDEX else ()
    return api.load(ref, *index, layout=layout, optimized=False)


def store(ref: Any, value: Array) -> None:
    """Writes `value` to `ref` (or to a part, `ref.at[...]`); the threads wait for each other before and after.

    They do not wait if the kernel was launched with `unsafe_no_auto_barriers`; then `synchronise` is the caller's duty.
    """
    api: Any = plgpu
    if interpreting() or not hasattr(plgpu, "store"):
        ref[...] = value
    else:
        api.store(ref, value, optimized=False)


def iota(shape: tuple[int, ...], axis: int, layout: Any) -> Array:
    """int32 indices along an axis, spread over the threads so."""
    if interpreting():
        return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout)


def cast(value: Array, layout: Any) -> Array:
    """`value`, spread over the threads so."""
    return value if interpreting() else plgpu.layout_cast(value, layout)


class Matrix(NamedTuple):
    """An operand of `products`: a reference `ref` to a matrix in shared memory, or its part `ref.at[index]`.

    Attributes:
      ref, index: these. Or `ref` is a MATRIX in registers, see `held`.
      transposed: its transpose is meant.
      in_registers: whether it is.
    """

    ref: Any
    index: tuple[int, ...] = ()
    transposed: bool = False
    in_registers: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, columns]."""
        shape = self.ref.shape[len(self.index) :]
        return shape[::-1] if self.transposed else shape


def held(value: Array) -> Matrix:
    """A MATRIX in registers as a left operand of `products`."""
    return Matrix(value, in_registers=True)


def transposed(matrix: Any) -> Matrix:
    """The transpose of a reference to a matrix, or of a `Matrix`, as an operand of `products`."""
    matrix = _matrix(matrix)
    return matrix._replace(transposed=not matrix.transposed)


def products(*sums: Sequence[tuple[Any, Any]], onto: Sequence[Array | None] = ()) -> list[Array]:
    """Σ a @ b over the pairs of each of `sums`, by the tensor cores; all are begun before the first is awaited.

    Args:
      sums: pairs of matrices in shared memory, a [M, K] and b [K, N] of one 16-bit dtype, M and K multiples of 64, N of
        8, each a reference or a `Matrix`; a may be `held` in registers. What the threads wrote to shared memory must be
        committed (`plgpu.commit_smem`).
      onto: a float32 MATRIX for each of the sums, to whose registers it is added, or None; all None if there are none.

    Returns:
      A float32 MATRIX [M, N] for each of the sums.
    """
    matrices = [[(_matrix(a), _matrix(b)) for a, b in pairs] for pairs in sums]
    shapes = [(pairs[0][0].shape[0], pairs[0][1].shape[1]) for pairs in matrices]

    def run(*totals: Any) -> list[Array]:
        for total, pairs in zip(totals, matrices, strict=True):
            for a, b in pairs:
                plgpu.wgmma(total, _view(a), _view(b))
        return [total[...] for total in totals]

    def begin(totals: Sequence[Any]) -> None:
        run(*totals)

    starts = [cast(jnp.zeros(shape, jnp.float32), MATRIX) for shape in shapes] if onto else []
    starts = [zeros if given is None else given for zeros, given in zip(starts, onto, strict=bool(onto))]
    api: Any = plgpu  # the types are those of the JAX at hand
    accumulators = [api.ACC(shape, jnp.float32) for shape in shapes]
    if not interpreting():
        totals = (
            pl.run_state(begin)([api.ACC.init(start) for start in starts])
            if starts
            else pl.run_scoped(run, *accumulators)
        )
        # Or the compiler moves what reads them before the wait, sees that this is wrong, and waits after every product.
        return list(jax.lax.optimization_barrier(tuple(totals)))
    # The interpreter of JAX 0.10 knows no transposed operands, none knows operands in registers, or accumulators that
    # begin with a value.
    if jax.__version_info__ < (0, 12) or any(a.in_registers for pairs in matrices for a, _ in pairs):
        found = [sum((_value(a) @ _value(b) for a, b in pairs), jnp.zeros((), jnp.float32)) for pairs in matrices]
    else:
        found = pl.run_scoped(run, *accumulators)
    return [start + total for start, total in zip(starts, found, strict=True)] if starts else found


def _matrix(operand: Any) -> Matrix:
    return operand if isinstance(operand, Matrix) else Matrix(operand)


def _view(operand: Matrix) -> Any:
    if operand.in_registers:
        return operand.ref
    # The part is cut out where it is used: what is given to `run_state` from outside must not be a number.
    ref = operand.ref.at[operand.index] if operand.index else operand.ref
    if not operand.transposed:
        return ref
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))


def _value(operand: Matrix) -> Array:
    value = (operand.ref if operand.in_registers else operand.ref[operand.index or ...]).astype(jnp.float32)
    return value.T if operand.transposed else value
