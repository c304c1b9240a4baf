"""What is measured: the ops, their shapes and arrays, and the list of peers. Imports neither JAX nor torch."""

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

# The arrays with an axis T, but for log decays.
WIDE = ("u", "dt", "B", "C", "z", "q", "k", "v", "beta")

OURS = "zoo"
SCAN = "jax.lax.scan"
LOOP = "torch loop"
DELTA_CHUNKED = "torch chunked"
BFLOAT16 = "bfloat16"
# Products of float32 numbers as three of bfloat16: to 16 bits.
BFLOAT16_X3 = "3 x bfloat16"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes, but for T: channels and states of the scan, heads of the matrix-valued recurrences, taps."""

    batch: int = 4
    width: int = 256
    states: int = 16
    heads: int = 4
    key: int = 64
    value: int = 64
    taps: int = 4


TINY = Sizes(batch=2, width=6, states=3, heads=2, key=4, value=4, taps=3)
# What GPUs are compared at by the authors of their kernels, with T = 4096.
LARGE = Sizes(batch=8, width=2048, heads=16, key=128, value=128)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One implementation of one op.

    Attributes:
      op: the op of `zoo.ops`.
      name: as it appears in the tables.
      framework: "jax" or "torch".
      function: "module:function" in this package; takes the op's arrays by name, returns the output.
      needs: the modules that must be installed.
      backward_up_to: the longest T whose training step is measured (None: any), with `reason`.
      devices: JAX's names of the kinds that alone it runs on; empty for any.
      dtype: what it computes in; what it takes is cast.
      takes: the dtype that the arrays of `WIDE` are given in, so that casts are not timed.
      implementation: of ours, the name of one of its implementations (None: its choice), or `KERNELS` for that of the
        device's kernels.
    """

    op: str
    name: str
    framework: str
    function: str
    needs: tuple[str, ...] = ()
    backward_up_to: int | None = None
    reason: str = ""
    devices: tuple[str, ...] = ()
    dtype: str = "float32"
    implementation: str | None = None
    takes: str = "float32"

    def load(self) -> Callable[..., Any]:
        """Imports the function, and with it the framework."""
        module, name = self.function.split(":")
        function = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        if self.implementation is None:
            return function
        import jax

        implementation = _KERNELS_OF[jax.default_backend()] if self.implementation == KERNELS else self.implementation
        return functools.partial(function, implementation=implementation)

    def missing(self) -> list[str]:
        """The modules that this Python does not have."""
        needs = self.needs + (("torch",) if self.framework == "torch" else ())
        return [module for module in needs if importlib.util.find_spec(module) is None]


KERNELS = "kernels"
_KERNELS_OF = {"gpu": "mosaic_gpu", "tpu": "mosaic_tpu"}
ACCELERATORS = tuple(_KERNELS_OF)
PEERS = (
    Peer("selective_scan", OURS, "jax", "peers_jax:selective_scan_zoo"),
    *(
        Peer(
            "selective_scan",
            ", ".join([OURS, *(["kernels"] if implementation else []), *([dtype] if dtype == BFLOAT16 else [])]),
            "jax",
            "peers_jax:selective_scan_zoo",
            devices=ACCELERATORS,
            dtype=dtype,
            takes=dtype,
            implementation=implementation,
        )
        for implementation, dtype in ((KERNELS, "float32"), (KERNELS, BFLOAT16), (None, BFLOAT16))
    ),
    Peer("selective_scan", SCAN, "jax", "peers_jax:selective_scan_scan"),
    Peer("selective_scan", "jax.lax.associative_scan", "jax", "peers_jax:selective_scan_associative"),
    Peer("selective_scan", LOOP, "torch", "peers_torch:selective_scan_loop"),
    Peer(
        "selective_scan",
        "transformers, slow path",
        "torch",
        "peers_torch:selective_scan_transformers",
        needs=("transformers",),
        backward_up_to=256,
        reason="its backward pass takes minutes beyond T = 256",
    ),
    Peer("selective_scan", "mambapy pscan", "torch", "peers_torch:selective_scan_mambapy", needs=("mambapy",)),
    *(
        Peer(
            "selective_scan",
            name,
            "torch",
            "peers_gpu:selective_scan_mamba_ssm",
            needs=("mamba_ssm",),
            devices=("gpu",),
            dtype=dtype,
            takes=dtype,
        )
        for name, dtype in (("mamba-ssm", "float32"), (f"mamba-ssm, {BFLOAT16}", BFLOAT16))
    ),
    Peer("gated_delta_rule", OURS, "jax", "peers_jax:delta_rule_zoo"),
    *(
        Peer(
            "gated_delta_rule",
            name,
            "jax",
            "peers_jax:delta_rule_zoo",
            devices=ACCELERATORS,
            dtype=dtype,
            takes="float32" if dtype == BFLOAT16_X3 else dtype,
            implementation=implementation,
        )
        for name, dtype, implementation in (
            (f"{OURS}, kernels", BFLOAT16_X3, KERNELS),
            (f"{OURS}, kernels, {BFLOAT16}", BFLOAT16, KERNELS),
            (f"{OURS}, {BFLOAT16}", BFLOAT16, None),
        )
    ),
    Peer("gated_delta_rule", SCAN, "jax", "peers_jax:delta_rule_scan"),
    Peer("gated_delta_rule", DELTA_CHUNKED, "torch", "peers_torch:delta_rule_chunked"),
    Peer(
        "gated_delta_rule",
        "transformers, chunked",
        "torch",
        "peers_torch:delta_rule_transformers",
        needs=("transformers",),
    ),
    Peer(
        "gated_delta_rule",
        "flash-linear-attention",
        "torch",
        "peers_gpu:delta_rule_fla",
        needs=("fla",),
        devices=("gpu",),
        dtype=BFLOAT16,
        takes=BFLOAT16,
    ),
    Peer("gated_linear_attention", OURS, "jax", "peers_jax:linear_attention_zoo"),
    Peer("gated_linear_attention", SCAN, "jax", "peers_jax:linear_attention_scan"),
    Peer("gated_linear_attention", "torch chunked", "torch", "peers_torch:linear_attention_chunked"),
    Peer(
        "gated_linear_attention",
        "flash-linear-attention",
        "torch",
        "peers_gpu:linear_attention_fla",
        needs=("fla",),
        devices=("gpu",),
        dtype=BFLOAT16,
        takes=BFLOAT16,
    ),
    Peer("causal_conv1d", OURS, "jax", "peers_jax:conv_zoo"),
    Peer("causal_conv1d", "jax.lax.conv_general_dilated", "jax", "peers_jax:conv_lax"),
    Peer("causal_conv1d", "torch conv1d", "torch", "peers_torch:conv_torch"),
    Peer("causal_conv1d", "causal-conv1d", "torch", "peers_gpu:conv_cuda", needs=("causal_conv1d",), devices=("gpu",)),
)
# 4 GB of float64.
_MOST_STATES = 2**29
OPS = tuple(dict.fromkeys(peer.op for peer in PEERS))


def peers_of(op: str, implementations: Sequence[str] = ()) -> list[Peer]:
    """The peers of an op, ours first, then ours by the names of implementations."""
    ours, *others = (peer for peer in PEERS if peer.op == op)
    named = [dataclasses.replace(ours, name=f"{OURS}, {name}", implementation=name) for name in implementations]
    return [ours, *named, *others]


def reference_of(op: str, length: int, sizes: Sizes) -> str:
    """The implementation that results are compared with, in float64: "reference", but by chunks where it has no room.

    The gradients of the reference keep every token's state.
    """
    states = {
        "selective_scan": sizes.width * sizes.states,
        "gated_delta_rule": sizes.heads * sizes.key * sizes.value,
        "gated_linear_attention": sizes.heads * sizes.key * sizes.value,
    }
    return "xla_chunked" if sizes.batch * length * states.get(op, 0) > _MOST_STATES else "reference"


def make_inputs(op: str, length: int, sizes: Sizes, seed: int = 0) -> tuple[Arrays, np.ndarray]:
    """Draws the op's arrays, float32, by name, and the cotangent of its output.

    Their distributions are those at the start of training: step sizes from 0.001 to 0.1 and A = -1 ... -N for the scan,
    keys and queries of length one and beta in (0, 1) for the delta rule, decays around 0.95 for linear attention.
    """
    arrays, cotangent = _draw(op, length, sizes, np.random.default_rng(seed))
    single = lambda x: np.ascontiguousarray(x, np.float32)  # noqa: E731
    return {name: single(x) for name, x in arrays.items()}, single(cotangent)


def _draw(op: str, length: int, sizes: Sizes, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    normal = rng.standard_normal
    if op == "selective_scan":
        shape, state = (sizes.batch, length, sizes.width), (sizes.batch, length, sizes.states)
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), sizes.width))
        arrays = {
            "u": normal(shape),
            "dt": 0.5 * normal(shape),
            "A": -np.tile(np.arange(1.0, sizes.states + 1), (sizes.width, 1)),
            "B": normal(state),
            "C": normal(state),
            "D": np.ones(sizes.width),
            "z": normal(shape),
            "dt_bias": step + np.log(-np.expm1(-step)),
        }
        return arrays, normal(shape)
    if op == "causal_conv1d":
        shape = (sizes.batch, length, sizes.width)
        arrays = {"x": normal(shape), "w": rng.uniform(-0.5, 0.5, (sizes.taps, sizes.width)), "b": normal(sizes.width)}
        return arrays, normal(shape)
    heads = (sizes.batch, length, sizes.heads)
    q, k, v = normal((*heads, sizes.key)), normal((*heads, sizes.key)), normal((*heads, sizes.value))
    if op == "gated_delta_rule":
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        arrays = {"q": unit(q), "k": unit(k), "v": v, "beta": 1 / (1 + np.exp(-normal(heads)))}
    elif op == "gated_linear_attention":
        arrays = {"q": q, "k": k, "v": v, "log_decay": -np.log1p(np.exp(normal(heads) - 3))}
    else:
        raise ValueError(f"no op {op!r}; there are {', '.join(OPS)}.")
    return arrays, normal(v.shape)
