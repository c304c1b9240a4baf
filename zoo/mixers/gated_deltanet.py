"""Gated DeltaNet: the delta rule on a memory that decays (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464)."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import kernel_initializer, time_step_bias
from zoo.layers.key_value_memory import KeyValueMemory
from zoo.layers.short_conv import ShortConvs
from zoo.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from zoo.registry import register_mixer
from zoo.typing import Array, DType

GatedDeltaNetInit = Literal["official", "torch"]
_OFFICIAL_STD = 0.02
_MAX_RATE = 16.0


class _Direction(nnx.Module):
    """What a layer has once per direction: the convolutions, the map to beta, and the decays.

    Args:
      convs: of q, k and v.
      beta: the map to the logits of beta.
      decay: the map to the time steps.
      param_dtype: of the others.
      rngs: for the initial parameters.
    """

    def __init__(self, convs: ShortConvs, beta: nnx.Linear, decay: nnx.Linear, *, param_dtype: DType, rngs: nnx.Rngs):
        heads = (decay.out_features,)
        self.convs, self.beta, self.decay = convs, beta, decay
        self.dt_bias = nnx.Param(time_step_bias()(rngs.params(), heads, param_dtype))
        # The authors draw from [0, 16); of its two ends it is 0 that has no logarithm.
        rates = _MAX_RATE * (1 - jax.random.uniform(rngs.params(), heads))
        self.A_log = nnx.Param(jnp.log(rates).astype(param_dtype))

    def gates(self, x: Array) -> tuple[Array, Array]:
        """sigmoid of beta's logits, and the log decays, [..., HV], in float32 or, for float64, in that."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        time_step = jax.nn.softplus(self.decay(x).astype(dtype) + self.dt_bias[...].astype(dtype))
        return jax.nn.sigmoid(self.beta(x).astype(dtype)), -jnp.exp(self.A_log[...].astype(dtype)) * time_step


@register_mixer(
    "gated_deltanet",
    title="Gated DeltaNet: the delta rule with decay",
    paper="arXiv:2412.06464 (ICLR 2025)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2},
    notes="Bidirectional by a second pass from the end, with convolutions, beta and decays of its own, averaged. A_log "
    "and dt_bias are not weight-decayed by the authors.",
)
class GatedDeltaNet(KeyValueMemory):
    """The gated delta rule, the layer of flash-linear-attention (commit bc3b101).

    With q, k, v linear maps of x, each followed by a short causal convolution and SiLU, and per head::

        q_t, k_t divided by their lengths      beta_t = sigmoid(w_b·x_t)
        α_t = exp(-exp(A_log) softplus(w_a·x_t + dt_bias))
        S_t = α_t S_{t-1} + beta_t k_t (v_t - α_t S_{t-1}^T k_t)^T      o_t = S_t^T q_t / sqrt(K)
        y_t = W_O (RMSNorm_h(o_t) * silu(W_G x_t))

    The initial values are those of its language model: maps and convolutions normal with standard deviation 0.02, norms
    one, exp(A_log) uniform from 0 to 16, softplus(dt_bias) log-uniform from 0.001 to 0.1. There are no other biases. A
    rate of exactly 0, which the authors' draw can give, is left out: it would have A_log = -inf.

    Bidirectionally the outputs of a pass from the start and one from the end are averaged before the norm. The second
    has convolutions, beta, A_log, dt_bias and a map to the decays of its own, which start as those of the first do; the
    other maps are shared. The authors publish no such layer; it follows ViG's (arXiv:2405.18425) for gated linear
    attention.

    Args:
      d_model: D.
      num_heads: H, heads of queries and keys.
      num_v_heads: HV, heads of values, betas and decays; HV / H of them share one query and key. None for H.
      d_head: K, width of queries and keys per head; None for expand_k * D / H. The published model has D = 2048, H = 6,
        K = 256.
      expand_k: see `d_head`. At 3/4, with gates and twice as wide values, a layer has 6 D^2 parameters; the authors
        advise 1 without gates.
      expand_v: V / K, by which values are wider than keys.
      allow_neg_eigval: twice that beta, so that what is stored under a key can be reflected (arXiv:2411.12537).
      use_gate: False for y_t = W_O RMSNorm_h(o_t).
      use_short_conv: without the convolutions SiLU remains. The authors advise against it.
      conv_size: W, taps of the convolutions.
      conv_bias: their biases.
      norm_eps: of the RMSNorm.
      init: "official", or "torch" for PyTorch's defaults of maps and convolutions, with which a layer of
        flash-linear-attention starts outside of its models.
      chunk_size: tokens per chunk; speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer. The authors have none.
      implementation: of the op, "xla", "xla_sequential", "xla_chunked", "mosaic_gpu" (kernels for Hopper
        GPUs), "mosaic_gpu_or_xla", "mosaic_tpu" (kernels for TPUs), "mosaic_tpu_or_xla", "reference" or None.
      dtype: computation dtype; None follows `x`. beta, decays, sums and states are float32 in any case.
      param_dtype: dtype of the parameters; float32 is what the authors keep `A_log` and `dt_bias` in.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range, or the heads do not divide the channels or each other.
    """

    # For the contract. It takes gradients, and then the default, "xla", is "xla_chunked".
    implementations = ("xla_sequential", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        num_v_heads: int | None = None,
        d_head: int | None = None,
        expand_k: float = 0.75,
        expand_v: float = 2.0,
        allow_neg_eigval: bool = False,
        use_gate: bool = True,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        norm_eps: float = 1e-5,
        init: GatedDeltaNetInit = "official",
        chunk_size: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        v_heads = num_heads if num_v_heads is None else num_v_heads
        if num_heads < 1 or v_heads < 1 or v_heads % num_heads:
            raise ValueError(f"num_v_heads={num_v_heads} is not a multiple of num_heads={num_heads}, or not positive.")
        key_width = int(d_model * expand_k) if d_head is None else num_heads * d_head
        if d_head is not None and d_head < 1:
            raise ValueError(f"d_head={d_head} is not positive.")
        if key_width < 1 or key_width % num_heads:
            raise ValueError(
                f"d_model={d_model} times expand_k is {key_width} channels, not divisible by num_heads={num_heads}; "
                "d_head sets the channels of a head instead."
            )
        d_key = key_width // num_heads
        d_value = round(d_key * expand_v)
        if d_value < 1 or not math.isclose(d_value, d_key * expand_v, rel_tol=1e-5):
            raise ValueError(f"expand_v={expand_v} times the {d_key} channels of a head is not a positive integer.")
        if init not in ("official", "torch"):
            raise ValueError(f"init={init!r} is not known; there are official, torch.")
        self.d_model, self.causal, self.dtype = d_model, causal, dtype
        self.num_heads, self.num_v_heads, self.heads = num_heads, v_heads, (v_heads, d_key, d_value)
        self.allow_neg_eigval = allow_neg_eigval
        self.chunk_size, self.implementation = chunk_size, implementation
        official, widths = init == "official", (key_width, key_width, v_heads * d_value)
        kernel_init = initializers.normal(_OFFICIAL_STD) if official else kernel_initializer("torch")
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}

        def linear(d_out: int, d_in: int = d_model) -> nnx.Linear:
            return nnx.Linear(d_in, d_out, use_bias=False, kernel_init=kernel_init, **dtypes, rngs=rngs)

        def direction() -> _Direction:
            convs = ShortConvs(
                widths,
                conv_size if use_short_conv else None,
                activations=("silu", "silu", "silu"),
                use_bias=conv_bias,
                init_std=_OFFICIAL_STD if official else None,
                implementation="reference" if implementation == "reference" else None,
                **dtypes,
                rngs=rngs,
            )
            return _Direction(convs, linear(v_heads), linear(v_heads), param_dtype=param_dtype, rngs=rngs)

        self.query, self.key, self.value = (linear(width) for width in widths)
        self.gate = linear(widths[2]) if use_gate else None
        self.direction = direction()
        self.backward_direction = None if causal else direction()
        self.norm = nnx.RMSNorm(d_value, epsilon=norm_eps, **dtypes, rngs=rngs)
        self.out = linear(d_model, widths[2])
        self.dropout = Dropout(dropout)

    def _pass(self, arrays: tuple[Array, ...], direction: _Direction, x: Array, **options: Any) -> Any:
        return gated_delta_rule(*self._qkv(arrays), *self._gates(direction, x), qk_l2norm=True, **options)

    def _token(
        self, memory: Array, arrays: tuple[Array, ...], direction: _Direction, x_t: Array
    ) -> tuple[Array, Array]:
        return gated_delta_rule_step(memory, *self._qkv(arrays), *self._gates(direction, x_t), qk_l2norm=True)

    def _qkv(self, arrays: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        """q, k [..., H, K] and v [..., HV, V]."""
        heads = (self.num_heads, self.num_heads, self.num_v_heads)
        q, k, v = (x.reshape(*x.shape[:-1], count, -1) for x, count in zip(arrays, heads, strict=True))
        return q, k, v

    def _gates(self, direction: _Direction, x: Array) -> tuple[Array, Array]:
        """beta and the log decays [..., HV]."""
        beta, log_decay = direction.gates(x)
        return 2 * beta if self.allow_neg_eigval else beta, log_decay
