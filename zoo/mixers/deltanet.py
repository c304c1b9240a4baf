"""DeltaNet: linear attention whose memory is corrected by the delta rule (Yang et al. 2024, arXiv:2406.06484)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import kernel_initializer
from zoo.layers.key_value_memory import KeyValueMemory
from zoo.layers.short_conv import ShortConvs
from zoo.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from zoo.ops.linear_attention import feature_map
from zoo.registry import register_mixer
from zoo.typing import Array, DType

DeltaNetInit = Literal["official", "torch"]
QKActivation = Literal["silu", "relu", "elu", "identity"]
QKNorm = Literal["l2", "sum"]
_OFFICIAL_STD = 0.02


class _Direction(nnx.Module):
    """What a layer has once per direction: the convolutions and, if there is one, the map to beta.

    Args:
      convs: of q, k and v.
      beta: the map, or None.
    """

    def __init__(self, convs: ShortConvs, beta: nnx.Linear | None):
        self.convs, self.beta = convs, beta


@register_mixer(
    "deltanet",
    title="DeltaNet: linear attention with the delta rule",
    paper="arXiv:2406.06484 (NeurIPS 2024)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2},
    notes="Bidirectional by a second pass from the end, with convolutions and beta of its own, averaged.",
)
class DeltaNet(KeyValueMemory):
    """The delta rule, the layer of flash-linear-attention (commit bc3b101).

    With q, k, v linear maps of x, each followed by a short causal convolution and SiLU, and per head::

        q_t, k_t divided by their lengths      beta_t = sigmoid(w·x_t)
        S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T      o_t = S_t^T q_t / sqrt(K)
        y_t = W_O RMSNorm_h(o_t)

    The initial values are those of its language model: maps and convolutions normal with standard deviation 0.02, norms
    one. There are no biases.

    Bidirectionally the outputs of a pass from the start and one from the end are averaged before the norm. The second
    has convolutions and a map to beta of its own, which start as those of the first do; the other maps are shared. The
    authors publish no such layer; it follows ViG's (arXiv:2405.18425) for gated linear attention.

    Args:
      d_model: D.
      num_heads: H.
      expand_k, expand_v: queries and keys have expand_k * D channels in all, values expand_v * D.
      use_beta: False for beta = 1.
      allow_neg_eigval: twice that beta, so that what is stored under a key can be reflected (arXiv:2411.12537).
      use_gate: y_t = W_O (RMSNorm_h(o_t) * silu(W_G x_t)).
      use_short_conv: without the convolutions their activations remain. The authors advise against it.
      conv_size: W, taps of the convolutions.
      conv_bias: their biases.
      qk_activation: of queries and keys, "silu", "relu", "elu" (elu(x) + 1) or "identity". Values always have SiLU.
      qk_norm: queries and keys are divided by their lengths, "l2", or by their sums, "sum", for activations that are
        not negative.
      norm_eps: of the RMSNorm.
      init: "official", or "torch" for PyTorch's defaults of maps and convolutions, with which a layer of
        flash-linear-attention starts outside of its models.
      chunk_size: tokens per chunk; speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer. The authors have none.
      implementation: of the op, "xla", "xla_sequential", "xla_chunked", "mosaic_gpu" (kernels for Hopper
        GPUs), "mosaic_gpu_or_xla", "mosaic_tpu" (kernels for TPUs), "mosaic_tpu_or_xla", "reference" or None.
      dtype: computation dtype; None follows `x`. beta, sums and states are float32 in any case.
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
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        use_beta: bool = True,
        allow_neg_eigval: bool = False,
        use_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        qk_activation: QKActivation = "silu",
        qk_norm: QKNorm = "l2",
        norm_eps: float = 1e-5,
        init: DeltaNetInit = "official",
        chunk_size: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        key_width, value_width = int(d_model * expand_k), int(d_model * expand_v)
        for name, width in (("expand_k", key_width), ("expand_v", value_width)):
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(
                    f"d_model={d_model} times {name} is {width} channels, not divisible by num_heads={num_heads}."
                )
        for name, value, known in (
            ("qk_activation", qk_activation, ("silu", "relu", "elu", "identity")),
            ("qk_norm", qk_norm, ("l2", "sum")),
            ("init", init, ("official", "torch")),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not known; there are {', '.join(known)}.")
        self.d_model, self.num_heads, self.causal, self.dtype = d_model, num_heads, causal, dtype
        self.heads = (num_heads, key_width // num_heads, value_width // num_heads)
        self.allow_neg_eigval = allow_neg_eigval
        self.qk_activation: QKActivation = qk_activation
        self.qk_norm: QKNorm = qk_norm
        self.chunk_size, self.implementation = chunk_size, implementation
        official = init == "official"
        kernel_init = initializers.normal(_OFFICIAL_STD) if official else kernel_initializer("torch")
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        qk_conv = "silu" if qk_activation == "silu" else None

        def linear(d_out: int, d_in: int = d_model) -> nnx.Linear:
            return nnx.Linear(d_in, d_out, use_bias=False, kernel_init=kernel_init, **dtypes, rngs=rngs)

        def direction() -> _Direction:
            convs = ShortConvs(
                (key_width, key_width, value_width),
                conv_size if use_short_conv else None,
                activations=(qk_conv, qk_conv, "silu"),
                use_bias=conv_bias,
                init_std=_OFFICIAL_STD if official else None,
                implementation="reference" if implementation == "reference" else None,
                **dtypes,
                rngs=rngs,
            )
            return _Direction(convs, linear(num_heads) if use_beta else None)

        self.query, self.key, self.value = linear(key_width), linear(key_width), linear(value_width)
        self.gate = linear(value_width) if use_gate else None
        self.direction = direction()
        self.backward_direction = None if causal else direction()
        self.norm = nnx.RMSNorm(self.heads[2], epsilon=norm_eps, **dtypes, rngs=rngs)
        self.out = linear(d_model, value_width)
        self.dropout = Dropout(dropout)

    def _pass(self, arrays: tuple[Array, ...], direction: _Direction, x: Array, **options: Any) -> Any:
        beta = self._beta(direction, x)
        return gated_delta_rule(*self._qkv(arrays), beta, qk_l2norm=self.qk_norm == "l2", **options)

    def _token(
        self, memory: Array, arrays: tuple[Array, ...], direction: _Direction, x_t: Array
    ) -> tuple[Array, Array]:
        beta = self._beta(direction, x_t)
        return gated_delta_rule_step(memory, *self._qkv(arrays), beta, qk_l2norm=self.qk_norm == "l2")

    def _qkv(self, arrays: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        """q, k, v [..., H, K or V] as the op takes them, from the outputs of the convolutions."""
        q, k, v = (x.reshape(*x.shape[:-1], self.num_heads, -1) for x in arrays)
        if self.qk_activation != "silu":
            q, k = feature_map(q, self.qk_activation), feature_map(k, self.qk_activation)
        if self.qk_norm == "sum":
            q, k = _divided_by_sum(q), _divided_by_sum(k)
        return q, k, v

    def _beta(self, direction: _Direction, x: Array) -> Array:
        """[..., H], in float32 or, for float64, in that."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        if direction.beta is None:
            beta = jnp.ones((*x.shape[:-1], self.num_heads), dtype)
        else:
            beta = jax.nn.sigmoid(direction.beta(x).astype(dtype))
        return 2 * beta if self.allow_neg_eigval else beta


def _divided_by_sum(x: Array) -> Array:
    """x over its sum; zeros, such as those of relu and of padding, stay."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total = wide.sum(-1, keepdims=True)
    return (wide / jnp.where(total == 0, 1, total)).astype(x.dtype)
