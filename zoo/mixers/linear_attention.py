"""Linear attention: a feature map in the place of the softmax (Katharopoulos et al. 2020, arXiv:2006.16236)."""

import jax.numpy as jnp
from flax import nnx

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.linear_attention import (
    FEATURE_MAPS,
    FeatureMap,
    feature_map,
    feature_width,
    linear_attention,
    linear_attention_step,
)
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, Int


@register_mixer(
    "linear_attention",
    title="Linear attention: elu(x) + 1 in the place of the softmax",
    paper="arXiv:2006.16236 (ICML 2020)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2},
    notes="The bidirectional form is the sum over all tokens, not two passes. Other feature maps: relu, squared_relu, "
    "identity (fast weights), dpfp, taylor.",
)
class LinearAttention(nnx.Module):
    """Query, key and value maps, linear attention per head, output map, dropout. See `zoo.ops.linear_attention`.

    As in the authors' layer (fast-transformers): all maps have biases, queries are not scaled, and the initial values
    are PyTorch's defaults for Linear layers. flash-linear-attention's layer of this name is another: no biases, no
    normaliser, an RMSNorm per head (`use_bias=False, normalize=False, output_norm=True`), and a feature map of its own.

    Args:
      d_model: D.
      num_heads: H.
      d_head: width of one head; None for D / H.
      use_bias: biases of the four maps.
      feature_map: φ, "elu" (elu(x) + 1), "relu", "squared_relu", "identity", "dpfp" or "taylor"; see
        `zoo.ops.linear_attention.feature_map`.
      normalize: divide by the sum of the weights; needs features that are not negative.
      eps: added to that sum.
      output_norm: an RMSNorm of each head's output.
      norm_eps: of that norm.
      chunk_size: tokens per chunk of the causal form; speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer.
      implementation: of the op, "xla", "xla_sequential", "xla_chunked", "reference" or None.
      dtype: computation dtype; None follows `x`. Sums and states are float32 in any case.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range, H does not divide D, or a normaliser of signed features.
    """

    implementations = ("xla", "xla_chunked", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        d_head: int | None = None,
        use_bias: bool = True,
        feature_map: FeatureMap = "elu",
        normalize: bool = True,
        eps: float = 1e-6,
        output_norm: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r} is not known; there are {', '.join(FEATURE_MAPS)}.")
        if normalize and feature_map == "identity":
            raise ValueError(
                "feature_map='identity' has weights of both signs, whose sum may be 0; set normalize=False."
            )
        if eps <= 0:
            raise ValueError(f"eps={eps} must be positive: it keeps the normaliser from being 0.")
        self.d_model, self.causal, self.dtype = d_model, causal, dtype
        self.feature_map: FeatureMap = feature_map
        self.normalize, self.eps = normalize, eps
        self.chunk_size, self.implementation = chunk_size, implementation
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.projections = HeadProjections(
            d_model,
            num_heads,
            d_head,
            use_bias=use_bias,
            kernel_init=kernel_initializer("torch"),
            bias_init=bias_initializer("torch", d_model),
            **dtypes,
            rngs=rngs,
        )
        width = self.projections.d_head
        self.norm = nnx.RMSNorm(width, epsilon=norm_eps, **dtypes, rngs=rngs) if output_norm else None
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: Float[Array, "B H F V1"] | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], Float[Array, "B H F V1"]]:
        """Mixes `x` along T.

        Args:
          x: inputs.
          mask: True at real tokens; None where all are. Padding is in no sum.
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
        check_shapes("linear_attention", "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError("LinearAttention keeps a state only when it was built with causal=True.")
        y = linear_attention(
            *self._features(x),
            mask=mask,
            segment_ids=segment_ids,
            causal=self.causal,
            normalize=self.normalize,
            eps=self.eps,
            initial_state=state,
            return_state=return_state,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
        )
        y, new_state = y if isinstance(y, tuple) else (y, None)
        y = self.dropout(self._merge(y, x), deterministic=deterministic, rngs=rngs)
        return (y, new_state) if new_state is not None else y

    def init_state(self, batch_size: int) -> Float[Array, "B H F V1"]:
        """The state before the first token: float32 zeros, batch first. ValueError unless causal.

        [B, H, F, V + 1], the sums of φ(k) v^T and, in the last column, of φ(k); without `normalize` [B, H, F, V].
        """
        self._need_causal("init_state")
        heads, width = self.projections.num_heads, self.projections.d_head
        columns = width + self.normalize
        return jnp.zeros((batch_size, heads, feature_width(self.feature_map, width), columns), jnp.float32)

    def step(
        self, x_t: Float[Array, "B D"], state: Float[Array, "B H F V1"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B H F V1"]]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes("linear_attention", "x_t [B, D]", x_t, D=self.d_model)
        y, state = linear_attention_step(state, *self._features(x_t), normalize=self.normalize, eps=self.eps)
        return self._merge(y, x_t), state

    def _features(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = self.projections.split(x)
        return feature_map(q, self.feature_map), feature_map(k, self.feature_map), v

    def _merge(self, y: Array, x: Array) -> Array:
        y = y if self.norm is None else self.norm(y)
        return self.projections.merge(y).astype(self.dtype or x.dtype)

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(
                f"LinearAttention.{what} needs causal=True: bidirectionally every output needs every token."
            )
