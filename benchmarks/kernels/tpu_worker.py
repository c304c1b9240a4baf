"""Compiles one pass of an op for a TPU, where there is none: `python -m benchmarks.kernels.tpu_worker REQUEST OUT`.

REQUEST is `dataclasses.asdict` of a `Request`, as JSON. OUT, a folder, receives `program.hlo`, the optimized program,
and `facts.json`: temporary bytes and seconds. What libtpu dumps of the kernels goes where its options say. Where
REQUEST is `{"about": true}`, only `facts.json` is written, with commit, processor and versions.
"""

import dataclasses
import functools
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.kernels.cases import LARGE, WIDE, Sizes, make_inputs
from benchmarks.kernels.prepare import FORWARD

# Names of topologies by those of devices: of those with one core, for which schedules can be followed.
DEVICES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
KERNELS = "mosaic_tpu"
# Each op's implementations: ours by kernels, and XLA's forms.
OPS = {
    "selective_scan": (KERNELS, "xla_chunked", "xla_sequential"),
    "gated_delta_rule": (KERNELS, "xla_chunked"),
}
DTYPES = ("bfloat16", "float32")
LENGTH = 4096
# Small, but of widths that the kernels take.
TINY, TINY_LENGTH = Sizes(batch=1, width=128, states=8, heads=2, key=64, value=64), 256


@dataclasses.dataclass(frozen=True)
class Request:
    """What is compiled: a pass ("forward" or "training") of an op's implementation, for a device."""

    op: str
    implementation: str
    dtype: str
    which: str
    device: str
    tiny: bool = False

    def __str__(self) -> str:
        return f"{self.op} {self.implementation} {self.dtype} {self.which} for {self.device}"

    @property
    def sizes(self) -> Sizes:
        """The shapes, but for T."""
        return TINY if self.tiny else LARGE

    @property
    def length(self) -> int:
        """T."""
        return TINY_LENGTH if self.tiny else LENGTH


def shapes(request: Request) -> tuple[dict[str, tuple[tuple[int, ...], str]], tuple[tuple[int, ...], str]]:
    """Shape and dtype of each of the op's arrays, and of the cotangent of its output.

    The delta rule has decays, and gets [B, T, H K], as a layer's projections leave it.
    """
    arrays, cotangent = make_inputs(request.op, 1, dataclasses.replace(request.sizes, batch=1))
    tokens = (request.sizes.batch, request.length)

    def wide(shape: tuple[int, ...]) -> tuple[int, ...]:
        flat = (shape[2] * shape[3],) if len(shape) == 4 else shape[2:]
        return (*tokens, *flat)

    found = {
        name: (wide(x.shape), request.dtype) if name in WIDE else (x.shape, "float32") for name, x in arrays.items()
    }
    if request.op == "gated_delta_rule":
        found["log_decay"] = ((*tokens, request.sizes.heads), "float32")
    return found, (wide(cotangent.shape), request.dtype)


def function(request: Request) -> Any:
    """The op, of arrays by name as `shapes` has them, and its output likewise."""
    if request.op == "selective_scan":
        from zoo.ops.selective_scan import selective_scan

        return functools.partial(selective_scan, implementation=request.implementation)
    from zoo.ops.gated_delta_rule import gated_delta_rule

    def rule(**given: Any) -> Any:
        tokens, heads = given["q"].shape[:2], request.sizes.heads
        given |= {name: given[name].reshape(*tokens, heads, -1) for name in ("q", "k", "v")}
        y: Any = gated_delta_rule(**given, qk_l2norm=True, implementation=request.implementation)
        return y.reshape(*tokens, -1)

    return rule


def compiled(request: Request) -> tuple[Any, float]:
    """The executable, and the seconds that tracing, lowering and compiling took."""
    import jax
    from jax.experimental import topologies

    from zoo.ops import mosaic_tpu

    device = topologies.get_topology_desc(DEVICES[request.device], "tpu").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    struct = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    op = function(request)

    def forward(given: Any) -> Any:
        return op(**given)

    def training(given: Any, cotangent: Any) -> Any:
        y, pull = jax.vjp(forward, given)
        return y, pull(cotangent)[0]

    arrays, cotangent = shapes(request)
    given = {name: struct(*array) for name, array in arrays.items()}
    began = time.perf_counter()
    with mosaic_tpu.exporting():
        if request.which == FORWARD:
            lowered = jax.jit(forward).lower(given)
        else:
            lowered = jax.jit(training).lower(given, struct(*cotangent))
        executable = lowered.compile()
    return executable, time.perf_counter() - began


def about() -> dict[str, Any]:
    """Where and with what is compiled."""
    from zoo.training.run import environment

    found = environment()
    names = ("zoo", "commit", "python", "jax", "jaxlib", "processor", "date")
    return {name: found[name] for name in names} | {"libtpu": importlib.metadata.version("libtpu")}


def main() -> None:
    asked, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    if asked.get("about"):
        facts = about()
    else:
        executable, seconds = compiled(Request(**asked))
        (out / "program.hlo").write_text(executable.as_text(), encoding="utf-8")
        bytes_ = executable.memory_analysis().temp_size_in_bytes
        facts = {"temporary_bytes": bytes_, "compile_seconds": round(seconds, 1)}
    (out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
