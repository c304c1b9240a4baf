"""Makes a peer callable on given arrays: its forward pass, its training step, and what these need.

A training step is the output and the gradient of every array, for a given cotangent of the output. Calls return when
the device is done.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.kernels.cases import WIDE, Arrays, Peer

FORWARD, TRAINING = "forward", "training"
PASSES = (FORWARD, TRAINING)


@dataclasses.dataclass(frozen=True)
class Call:
    """One pass of one peer.

    Attributes:
      run: computes on the device and waits.
      fetch: the same, as NumPy arrays by name: "y", and in a training step the gradients.
      compile_seconds: tracing, lowering and compiling; None where there is no such thing.
      temporary_bytes: what the compiler plans beside inputs and outputs; None where there is no such plan.
    """

    run: Callable[[], object]
    fetch: Callable[[], Arrays]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


def prepare(peer: Peer, which: str, arrays: Arrays, cotangent: np.ndarray, function=None) -> Call:
    """Compiles (JAX) or wraps (torch) one pass of a peer.

    Args:
      peer: the implementation.
      which: "forward" or "training".
      arrays: the op's arrays by name, float32; the peer is given them in the dtype that it takes.
      cotangent: that of the output, likewise.
      function: instead of `peer.load()`.
    """
    function = function or peer.load()
    make = _prepare_torch if peer.framework == "torch" else _prepare_jax
    return make(function, which, arrays, cotangent, peer.takes)


def reference(op: str, arrays: Arrays, cotangent: np.ndarray, implementation: str = "reference") -> Arrays:
    """The output and all gradients by an implementation of `zoo.ops` in float64."""
    import jax

    from benchmarks.kernels.peers_jax import ZOO

    with jax.enable_x64(True):
        step = jax.jit(_training(functools.partial(ZOO[op], implementation=implementation)))
        return _named(step({name: x.astype(np.float64) for name, x in arrays.items()}, cotangent.astype(np.float64)))


def torch_device() -> str:
    """Where torch computes: where JAX does.

    Raises:
      RuntimeError: JAX computes on a GPU that this torch cannot use.
    """
    import jax
    import torch

    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("JAX computes on a GPU that this torch cannot use.")
    return "cuda"


def _named(result) -> Arrays:
    """("y", gradients) of a step as NumPy arrays."""
    y, gradients = result if isinstance(result, tuple) else (result, {})
    named = {"y": np.asarray(y)} | {f"d{name}": np.asarray(gradient) for name, gradient in gradients.items()}
    return {name: x.astype(np.float32) if x.dtype.itemsize == 2 else x for name, x in named.items()}


def _training(function):
    def step(arrays: Mapping, cotangent):
        import jax

        y, back = jax.vjp(lambda arrays: function(**arrays), arrays)
        return y, back(cotangent)[0]

    return step


def _prepare_jax(function, which: str, arrays: Arrays, cotangent: np.ndarray, takes: str) -> Call:
    import jax

    dtype = jax.numpy.dtype(takes)
    given = {name: x.astype(dtype) if name in WIDE else x for name, x in arrays.items()}
    arguments = jax.device_put((given, cotangent.astype(dtype)) if which == TRAINING else (given,))
    step = _training(function) if which == TRAINING else lambda arrays: function(**arrays)
    began = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    plan = compiled.memory_analysis()
    return Call(
        run=lambda: jax.block_until_ready(compiled(*arguments)),
        fetch=lambda: _named(compiled(*arguments)),
        compile_seconds=seconds,
        temporary_bytes=None if plan is None else int(plan.temp_size_in_bytes),
    )


def _prepare_torch(function, which: str, arrays: Arrays, cotangent: np.ndarray, takes: str) -> Call:
    import torch

    device = torch_device()
    dtype = getattr(torch, takes)
    given = {name: torch.from_numpy(x).to(device, dtype if name in WIDE else None) for name, x in arrays.items()}
    tensors = {name: x.requires_grad_(which == TRAINING) for name, x in given.items()}
    dy = torch.from_numpy(cotangent).to(device, dtype)

    def training():
        y = function(**tensors)
        gradients = torch.autograd.grad(y, list(tensors.values()), dy)
        return y.detach(), dict(zip(tensors, gradients, strict=True))

    def forward():
        with torch.no_grad():
            return function(**tensors), {}

    step = training if which == TRAINING else forward

    def run():
        result = step()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    def fetch() -> Arrays:
        y, gradients = step()
        return _named((y.float().cpu(), {name: gradient.float().cpu() for name, gradient in gradients.items()}))

    return Call(run=run, fetch=fetch)
