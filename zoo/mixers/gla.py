"""Gated linear attention: a memory whose key channels decay by gates of the input (Yang et al. 2023, 2312.06635)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import kernel_initializer
from zoo.layers.key_value_memory import KeyValueMemory
from zoo.layers.short_conv import ShortConvs
from zoo.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoo.ops.linear_attention import FEATURE_MAPS, FeatureMap, feature_map
from zoo.registry import register_mixer
from zoo.typing import Array, DType

_INIT_STD = 0.02
GLAInit = Literal["official", "paper", "torch"]
_INITIALIZERS: dict[str, nnx.Initializer] = {
    "official": initializers.normal(_INIT_STD),
    "paper": initializers.variance_scaling(2.0**-5, "fan_avg", "uniform"),
    "torch": kernel_initializer("torch"),
}
_MAPS = tuple(name for name in FEATURE_MAPS if name not in ("dpfp", "taylor"))


class _Direction(nnx.Module):
    """What a layer has once per direction: the last map to the decays and, if there are any, the convolutions.

    Args:
      rank: width in front of the decays.
      widths: of q, k and v, all heads together.
      conv_size: taps of the convolutions; None for no convolutions.
      conv_bias: their bias.
      kernel_init: of the map.
      implementation: "reference", or None.
      dtype, param_dtype: of computation and parameters.
      rngs: for the initial parameters.
    """

    def __init__(
        self,
        rank: int,
        widths: tuple[int, int, int],
        *,
        conv_size: int | None,
        conv_bias: bool,
        kernel_init: nnx.Initializer,
        implementation: str | None,
        dtype: DType | None,
        param_dtype: DType,
        rngs: nnx.Rngs,
    ):
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.decay = nnx.Linear(rank, widths[1], kernel_init=kernel_init, **dtypes, rngs=rngs)
        self.convs = ShortConvs(
            widths,
            conv_size,
            activations=(None if conv_size is None else "silu",) * 3,
            use_bias=conv_bias,
            init_std=_INIT_STD,
            implementation=implementation,
            **dtypes,
            rngs=rngs,
        )


@register_mixer(
    "gla",
    title="GLA: linear attention with a data-dependent decay per key channel",
    paper="arXiv:2312.06635 (ICML 2024)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2, "gate_rank": 4},
    notes="Bidirectional as in ViG (arXiv:2405.18425): a second pass from the end with decays of its own, averaged.",
)
class GLA(KeyValueMemory):
    """Gated linear attention, the layer of flash-linear-attention (commit 0c4ada1).

    With q, k, v, g linear maps of x, and per head::

        α_t = sigmoid(W_2 W_1 x_t + b)^(1/τ)      S_t = diag(α_t) S_{t-1} + k_t v_t^T      o_t = S_t^T q_t / sqrt(K)
        y_t = W_O (RMSNorm_h(o_t) * swish(g_t))

    The initial values are those of its language model: normal with standard deviation 0.02, biases zero, norms one. The
    paper's own code (berlino/gated_linear_attention) has Xavier's uniform with gain 2^-2.5, a bias of g, and a norm of
    mean and variance without parameters: `init="paper"` is
    the first of these.

    Bidirectionally the outputs of a pass from the start and one from the end are averaged before the norm. As in ViG,
    the maps are shared except for W_2 and b, which the second pass has of its own (and its own short convolutions, if
    any); both start alike.

    Args:
      d_model: D.
      num_heads: H.
      num_kv_heads: heads of keys, values and decays, each shared by H / num_kv_heads heads of queries; None for H.
      expand_k: queries have expand_k * D channels in all.
      expand_v: H heads of values have expand_v * D channels in all.
      gate_rank: width between W_1 and W_2.
      gate_normalizer: τ: the larger, the slower the memory decays at the start.
      clamp_min: least log decay; None for no limit.
      feature_map: of queries and keys, "elu", "relu", "squared_relu" or "identity"; None for none.
      use_output_gate: whether there is g.
      norm_affine: whether the norm has a scale.
      norm_eps: of the norm.
      use_short_conv: causal convolutions with SiLU of q, k and v before anything else.
      conv_size: their taps.
      conv_bias: their biases.
      chunk_size: tokens per chunk; speed and memory only.
      init: of all maps: "official", normal with standard deviation 0.02; "paper", see above; or "torch", PyTorch's
        default of linear layers.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer.
      implementation: of the op, "xla", "xla_sequential", "xla_chunked", "reference" or None.
      dtype: computation dtype; None follows `x`. Decays, sums and states are float32 in any case.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range, or the heads do not divide the channels.
    """

    # For the contract. It takes gradients, and then the default, "xla", is "xla_chunked".
    implementations = ("xla_sequential", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        clamp_min: float | None = None,
        feature_map: FeatureMap | None = None,
        use_output_gate: bool = True,
        norm_affine: bool = True,
        norm_eps: float = 1e-5,
        use_short_conv: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        chunk_size: int | None = None,
        init: GLAInit = "official",
        causal: bool = False,
        dropout: float = 0.0,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        key_width, value_width = int(d_model * expand_k), int(d_model * expand_v)
        shared = num_heads if num_kv_heads is None else num_kv_heads
        for name, width in (("expand_k", key_width), ("expand_v", value_width)):
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(
                    f"d_model={d_model} times {name} is {width} channels, not divisible by num_heads={num_heads}."
                )
        if shared < 1 or num_heads % shared:
            raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}.")
        if feature_map is not None and feature_map not in _MAPS:
            raise ValueError(f"feature_map={feature_map!r} is not known; there are {', '.join(_MAPS)}, None.")
        if init not in _INITIALIZERS:
            raise ValueError(f"init={init!r} is not known; there are {', '.join(_INITIALIZERS)}.")
        if gate_rank < 1 or gate_normalizer <= 0 or (clamp_min is not None and clamp_min > 0):
            raise ValueError(
                f"gate_rank={gate_rank} and gate_normalizer={gate_normalizer} must be positive, clamp_min={clamp_min} "
                "must not be."
            )
        self.d_model, self.causal, self.dtype = d_model, causal, dtype
        self.num_heads, self.num_kv_heads = num_heads, shared
        self.heads = _, d_key, d_value = num_heads, key_width // num_heads, value_width // num_heads
        self.gate_normalizer, self.clamp_min = gate_normalizer, clamp_min
        self.feature_map: FeatureMap | None = feature_map
        self.chunk_size, self.implementation = chunk_size, implementation
        kernel_init = _INITIALIZERS[init]
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        widths = (key_width, d_key * shared, d_value * shared)

        def linear(d_in: int, d_out: int) -> nnx.Linear:
            return nnx.Linear(d_in, d_out, use_bias=False, kernel_init=kernel_init, **dtypes, rngs=rngs)

        def direction() -> _Direction:
            return _Direction(
                gate_rank,
                widths,
                conv_size=conv_size if use_short_conv else None,
                conv_bias=conv_bias,
                kernel_init=kernel_init,
                implementation="reference" if implementation == "reference" else None,
                **dtypes,
                rngs=rngs,
            )

        self.query, self.key, self.value = (linear(d_model, width) for width in widths)
        self.gate = linear(d_model, value_width) if use_output_gate else None
        self.decay_rank = linear(d_model, gate_rank)
        self.direction = direction()
        self.backward_direction = None if causal else direction()
        self.norm = nnx.RMSNorm(d_value, epsilon=norm_eps, use_scale=norm_affine, **dtypes, rngs=rngs)
        self.out = linear(value_width, d_model)
        self.dropout = Dropout(dropout)

    def _pass(self, arrays: tuple[Array, ...], direction: _Direction, x: Array, **options: Any) -> Any:
        return gated_linear_attention(*self._qkv(arrays, direction.decay(self.decay_rank(x))), **options)

    def _token(
        self, memory: Array, arrays: tuple[Array, ...], direction: _Direction, x_t: Array
    ) -> tuple[Array, Array]:
        decay = direction.decay(self.decay_rank(x_t))
        return gated_linear_attention_step(memory, *self._qkv(arrays, decay))

    def _qkv(self, arrays: tuple[Array, ...], logits: Array) -> tuple[Array, Array, Array, Array]:
        """q, k, v [..., H, K or V] and the log decays [..., H, K]."""
        _, d_key, d_value = self.heads
        widths = (d_key, d_key, d_value)
        q, k, v = (x.reshape(*x.shape[:-1], -1, width) for x, width in zip(arrays, widths, strict=True))
        if self.feature_map is not None:
            q, k = feature_map(q, self.feature_map), feature_map(k, self.feature_map)
        logits = logits.reshape(*logits.shape[:-1], -1, d_key)
        decay = jax.nn.log_sigmoid(logits.astype(jnp.promote_types(logits.dtype, jnp.float32))) / self.gate_normalizer
        decay = decay if self.clamp_min is None else jnp.maximum(decay, self.clamp_min)
        if self.num_kv_heads < self.num_heads:
            k, v, decay = (jnp.repeat(x, self.num_heads // self.num_kv_heads, axis=-2) for x in (k, v, decay))
        return q, k, v, decay
