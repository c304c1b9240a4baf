"""Floating-point operations of a forward pass, by formulas: a product and its sum count two.

XLA counts the body of a loop once, so that what it says of a recurrence, or of anything in chunks, is too little by the
number of rounds. The formulas count what the papers' equations ask for, whatever form computes them: every map of a
token (its kernel's size, twice), and what a mixer does besides. Elementwise work counts only where it is the mixer's
arithmetic, as in the recurrences; norms, activations, softmax's own sums and the embedding's look-up do not, which is a
few percent at usual widths. A training step is taken for three forward passes: the gradient of a product is two.

A causal layer is counted as it is computed by a full product, with all pairs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.ops.linear_attention import feature_map
from zoo.ops.probsparse_attention.common import budget

TRAINING = 3


def _softmax(mixer: Any, length: int) -> float:
    heads = mixer.projections
    return 4 * length**2 * heads.num_heads * heads.d_head


def _linear_attention(mixer: Any, length: int) -> float:
    heads = mixer.projections
    width = jax.eval_shape(lambda x: feature_map(x, mixer.feature_map), jnp.zeros(heads.d_head)).shape[-1]
    # The normaliser is one more column of values.
    return 4 * length * heads.num_heads * width * (heads.d_head + bool(mixer.normalize))


def _flowformer(mixer: Any, length: int) -> float:
    heads = mixer.projections
    # Besides values under keys and their reading: four sums over tokens, of which each token takes a product.
    return length * heads.num_heads * (4 * heads.d_head**2 + 16 * heads.d_head)


def _nystromformer(mixer: Any, length: int) -> float:
    heads, marks = mixer.projections, mixer.num_landmarks
    pairs = 4 * length**2 * heads.d_head
    if marks < length:
        inverse = 8 * mixer.pinv_iterations * marks**3
        pairs = 8 * length * marks * heads.d_head + 4 * marks**2 * heads.d_head + inverse
    taps = 0 if mixer.conv_kernel is None else mixer.conv_kernel.shape[0]
    return heads.num_heads * (pairs + 2 * length * taps * heads.d_head)


def _informer(mixer: Any, length: int) -> float:
    heads, number = mixer.projections, budget(length, mixer.factor)
    # Each query meets so many keys to be measured, and so many queries meet all keys, and all values.
    return (2 + 4) * length * number * heads.num_heads * heads.d_head


def _axial(mixer: Any, length: int) -> float:
    grid = mixer._grid(length)
    pairs = math.prod(grid) * sum(grid)
    heads = mixer.axes[0].projections
    return 4 * pairs * heads.num_heads * heads.d_head


def _memory(operations: int) -> Callable[[Any, int], float]:
    """Of a memory [K, V] for each head, so many operations per entry and token."""

    def count(mixer: Any, length: int) -> float:
        heads, keys, values = mixer.heads
        return _directions(mixer) * operations * length * heads * keys * values

    return count


def _retnet(mixer: Any, length: int) -> float:
    values = mixer.value_width + bool(mixer.normalize_scores)
    return (1 if mixer.causal else 2) * 5 * length * mixer.num_heads * mixer.key_width * values


def _mamba(mixer: Any, length: int) -> float:
    # delta A; delta x B, with the first product once per channel; decay and sum; the product with C and its sum.
    entries = mixer.width * mixer.ssm.d_state
    return _directions(mixer) * 6 * length * entries


def _mamba2(mixer: Any, length: int) -> float:
    heads, (_, states) = mixer.ssd.heads, mixer.ssd.keys
    return _directions(mixer) * 5 * length * math.prod(heads) * states


def _directions(mixer: Any) -> int:
    return 1 if mixer.causal else 2


# Operations on each entry of a memory: decay 1, prediction from it 2, update 2, reading 2.
MIXING: dict[str, Callable[[Any, int], float]] = {
    "softmax": _softmax,
    "linear_attention": _linear_attention,
    "flowformer": _flowformer,
    "nystromformer": _nystromformer,
    "informer": _informer,
    "axial": _axial,
    "retnet": _retnet,
    "gla": _memory(5),
    "deltanet": _memory(6),
    "gated_deltanet": _memory(7),
    "mamba": _mamba,
    "mamba2": _mamba2,
}


def mixer_flops(name: str, mixer: nnx.Module, length: int) -> float | None:
    """Of one mixer on one sequence, its maps included; None for one that has no formula.

    Args:
      name: as it is registered.
      mixer: the module; its arrays are not looked at, only their shapes.
      length: T.
    """
    mixing = MIXING.get(name)
    return None if mixing is None else 2 * length * _kernel_sizes(mixer) + mixing(mixer, length)


def model_flops(name: str, model: Any, length: int) -> float | None:
    """Of a classifier or language model of this zoo on one sequence, without its head; None without a formula.

    Args:
      name: of the mixer, or of the whole model.
      model: built, or abstract (`nnx.eval_shape`).
      length: T.
    """
    if name == "itransformer":  # its tokens are rows of the sequence
        rows = math.ceil(length / model.row_length)
        body = _body_flops(model.config.mixer, model, rows)
        return None if body is None else body + 2 * rows * _kernel_sizes(model.row)
    encoder = model.encoder
    tokens = length + bool(encoder.config.cls_token)
    return _body_flops(name, encoder, tokens)


def decode_flops(name: str, model: Any, length: int) -> float | None:
    """Of one more token after `length` for one sequence, with a causal model; None without a formula.

    Softmax meets all keys of its cache; the others do for one token what they do for each.
    """
    whole = model_flops(name, model, length)
    return None if whole is None else whole / length


def _body_flops(name: str, body: Any, length: int) -> float | None:
    mixing = MIXING.get(name)
    if mixing is None or not isinstance(body.layers, nnx.List):
        return None
    return sum(2 * length * _kernel_sizes(block) + mixing(block.mixer, length) for block in body.layers)


def _kernel_sizes(module: nnx.Module) -> int:
    """Numbers in all maps that are applied to each token: Linears, and the taps of short convolutions."""
    total = 0
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Param))):
        if jax.tree_util.keystr(path[-1:]).strip("[']") == "kernel":
            total += math.prod(leaf.shape)
    return total
