"""Gated linear attention: a memory whose key channels decay by gates of the input (Yang et al. 2023, 2312.06635)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import kernel_initializer
from zoo.layers.shapes import check_shapes
from zoo.layers.short_conv import ShortConvs
from zoo.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoo.ops.linear_attention import FEATURE_MAPS, FeatureMap, feature_map
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, Int

_INIT_STD = 0.02
GLAInit = Literal["official", "paper", "torch"]
_INITIALIZERS: dict[str, nnx.Initializer] = {
    "official": initializers.normal(_INIT_STD),
    "paper": initializers.variance_scaling(2.0**-5, "fan_avg", "uniform"),
    "torch": kernel_initializer("torch"),
}
_MAPS = tuple(name for name in FEATURE_MAPS if name not in ("dpfp", "taylor"))


class GLAState(NamedTuple):
    """All that a causal GLA layer remembers; its size does not depend on how much was read. Empty is all zeros.

    Attributes:
      memory: [B, H, K, V], the gated sum of k v^T.
      conv: the last W - 1 inputs of the convolutions of q, k and v, [B, W - 1, width] each; empty without them.
    """

    memory: Array
    conv: tuple[Array, ...]


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
class GLA(nnx.Module):
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
        self.key_width, self.value_width = key_width // num_heads, value_width // num_heads
        self.gate_normalizer, self.clamp_min = gate_normalizer, clamp_min
        self.feature_map: FeatureMap | None = feature_map
        self.chunk_size, self.implementation = chunk_size, implementation
        kernel_init = _INITIALIZERS[init]
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        widths = (key_width, self.key_width * shared, self.value_width * shared)

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
        self.norm = nnx.RMSNorm(self.value_width, epsilon=norm_eps, use_scale=norm_affine, **dtypes, rngs=rngs)
        self.out = linear(value_width, d_model)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: GLAState | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], GLAState]:
        """Mixes `x` along T.

        Args:
          x: inputs.
          mask: True at real tokens; None where all are. Padding moves no state.
          deterministic: no dropout; None for the module's own mode (`train()` / `eval()`).
          rngs: with a `dropout` stream, where dropout is active.
          state: causal only, from `init_state` or an earlier call, to go on from there.
          return_state: causal only, also return the state after `x`.
          segment_ids: packed sequences: tokens with different ids do not see each other.

        Returns:
          [B, T, D] in `dtype` or that of `x`, and with `return_state` the new state.

        Raises:
          ValueError: `x` or `mask` is misshapen, or a state is given or asked for, but the layer is not causal.
          TypeError: `mask` is not boolean.
        """
        check_shapes("gla", "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError("GLA keeps a state only when it was built with causal=True.")
        projected, rank = self._project(x)

        def run(direction: _Direction, reverse: bool) -> tuple[Array, GLAState]:
            marks = {"mask": mask, "segment_ids": segment_ids, "reverse": reverse}
            arrays, conv = direction.convs(projected, state=None if state is None else state.conv, **marks)
            y, memory = gated_linear_attention(
                *self._heads(arrays, direction.decay(rank)),
                initial_state=None if state is None else state.memory,
                return_state=True,
                implementation=self.implementation,
                chunk_size=self.chunk_size,
                **marks,
            )
            return y, GLAState(memory, conv)

        y, new_state = run(self.direction, reverse=False)
        if self.backward_direction is not None:
            y = (y + run(self.backward_direction, reverse=True)[0]) / 2
        y = self.dropout(self._merge(y, x), deterministic=deterministic, rngs=rngs)
        return (y, new_state) if return_state else y

    def init_state(self, batch_size: int) -> GLAState:
        """The state before the first token: float32 zeros, batch first. ValueError unless causal."""
        self._need_causal("init_state")
        memory = jnp.zeros((batch_size, self.num_heads, self.key_width, self.value_width), jnp.float32)
        return GLAState(memory, self.direction.convs.init_state(batch_size))

    def step(self, x_t: Float[Array, "B D"], state: GLAState) -> tuple[Float[Array, "B D"], GLAState]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes("gla", "x_t [B, D]", x_t, D=self.d_model)
        projected, rank = self._project(x_t)
        arrays, conv = self.direction.convs.step(projected, state.conv)
        y, memory = gated_linear_attention_step(state.memory, *self._heads(arrays, self.direction.decay(rank)))
        return self._merge(y, x_t), GLAState(memory, conv)

    def _project(self, x: Array) -> tuple[tuple[Array, Array, Array], Array]:
        """q, k, v with all heads in one axis, and W_1 x."""
        return (self.query(x), self.key(x), self.value(x)), self.decay_rank(x)

    def _heads(self, arrays: tuple[Array, ...], logits: Array) -> tuple[Array, Array, Array, Array]:
        """q, k, v [..., H, K or V] and the log decays [..., H, K]."""
        q, k, v = (
            x.reshape(*x.shape[:-1], -1, width)
            for x, width in zip(arrays, (self.key_width, self.key_width, self.value_width), strict=True)
        )
        if self.feature_map is not None:
            q, k = feature_map(q, self.feature_map), feature_map(k, self.feature_map)
        logits = logits.reshape(*logits.shape[:-1], -1, self.key_width)
        decay = jax.nn.log_sigmoid(logits.astype(jnp.promote_types(logits.dtype, jnp.float32))) / self.gate_normalizer
        decay = decay if self.clamp_min is None else jnp.maximum(decay, self.clamp_min)
        if self.num_kv_heads < self.num_heads:
            k, v, decay = (jnp.repeat(x, self.num_heads // self.num_kv_heads, axis=-2) for x in (k, v, decay))
        return q, k, v, decay

    def _merge(self, y: Array, x: Array) -> Array:
        """From the heads' outputs [..., H, V] to the layer's [..., D]."""
        y = self.norm(y).reshape(*x.shape[:-1], -1)
        y = y if self.gate is None else y * nnx.silu(self.gate(x))
        return self.out(y).astype(self.dtype or x.dtype)

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"GLA.{what} needs causal=True: bidirectionally every output needs every token.")
