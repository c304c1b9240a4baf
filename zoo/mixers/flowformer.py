"""Flowformer's token mixer: multi-head Flow-Attention, linear in the sequence (Wu et al. 2022, arXiv:2202.06258)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.flow_attention import FlowState, flow_attention, flow_attention_init, flow_attention_step
from zoo.ops.flow_attention.common import CompetitionAxis, FeatureMap, Options
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float

# Arguments of the layer in each part of the authors' repository; a model must be used with those it was trained with.
# "lra_legacy" is that of their Long Range Arena code, to which their published results there belong: its competition
# softmax runs over the heads, which makes the output about T / H times larger than the paper's, and it takes no notice
# of padding (give no mask to repeat that); initial kernels there are `xavier_uniform`.
FLOWFORMER_PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "core": {"source_clamp": 1.0},  # Flow_Attention.py, and images
        "series": {"source_clamp": None},  # classification of series, and iFlowformer
        "gpt": {"source_clamp": 1.0, "causal": True},
        "translation": {"source_clamp": 5.0, "causal": True},
        "reinforcement": {"source_clamp": 10.0, "causal": True},
        "lra_legacy": {
            "feature_map": "relu",
            "source_clamp": None,
            "competition_axis": "heads",
            "use_bias": False,
            "out_bias": False,
        },
    }
)


@register_mixer(
    "flowformer",
    title="Flowformer: linear attention by conservation of flow",
    paper="arXiv:2202.06258 (ICML 2022)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2},
    notes="The causal form is a different function, not the bidirectional one with a triangular mask. source_clamp is "
    "part of the model: the authors use 1, 5, 10 or none.",
)
class Flowformer(nnx.Module):
    """Query, key and value maps, Flow-Attention per head, output map, dropout. See `zoo.ops.flow_attention`.

    Args:
      d_model: D.
      num_heads: H.
      d_head: width of one head; None for D / H.
      use_bias: biases of the query, key and value maps.
      out_bias: bias of the output map; None for `use_bias`.
      feature_map: "sigmoid", or "relu" (relu(x) + 1e-6).
      source_clamp: limit of the conserved source flow before the competition: 1 in the authors' core module, for images
        and GPT, 5 for translation, 10 for reinforcement learning, None (no limit) for time series. At 1 it is active
        for about half of the sources, so a model must be used with the value it was trained with.
      competition_axis: "sequence" as in the paper; "heads" as in the authors' Long Range Arena code, bidirectional only
        (`FLOWFORMER_PRESETS["lra_legacy"]` has all options of that layer).
      eps: added to the features and to their sums.
      chunk_size: tokens per chunk of the causal form; speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer.
      kernel_init, bias_init: initialisers of the four maps.
      implementation: of the op, "xla", "reference" or None.
      dtype: computation dtype of the maps; None follows `x`. Flows are float32 in any case.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range, H does not divide D, or a causal competition over heads.
    """

    implementations = ("xla", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        d_head: int | None = None,
        use_bias: bool = True,
        out_bias: bool | None = None,
        feature_map: FeatureMap = "sigmoid",
        source_clamp: float | None = 1.0,
        competition_axis: CompetitionAxis = "sequence",
        eps: float = 1e-6,
        chunk_size: int = 64,
        causal: bool = False,
        dropout: float = 0.0,
        kernel_init: nnx.Initializer = initializers.lecun_normal(),
        bias_init: nnx.Initializer = initializers.zeros_init(),
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        Options(feature_map, source_clamp, competition_axis, eps, chunk_size, causal)  # raises where they do not fit
        self.d_model = d_model
        self.projections = HeadProjections(
            d_model,
            num_heads,
            d_head,
            use_bias=use_bias,
            out_bias=out_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.dropout = Dropout(dropout)
        self.feature_map: FeatureMap = feature_map
        self.source_clamp = source_clamp
        self.competition_axis: CompetitionAxis = competition_axis
        self.eps = eps
        self.chunk_size = chunk_size
        self.causal = causal
        self.implementation = implementation
        self.dtype = dtype

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: FlowState | None = None,
        return_state: bool = False,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], FlowState]:
        """Mixes `x` along T.

        Args:
          x: inputs.
          mask: True at real tokens; None where all are. Causally, padding does not advance the state.
          deterministic: no dropout; None for the module's own mode (`train()` / `eval()`).
          rngs: with a `dropout` stream, where dropout is active.
          state: causal only, from `init_state` or an earlier call, to go on from there.
          return_state: causal only, also return the state after `x`.

        Returns:
          [B, T, D] in `dtype` or that of `x`, and with `return_state` the new state.

        Raises:
          ValueError: `x` or `mask` is misshapen, or a state is given or asked for, but the layer is not causal.
          TypeError: `mask` is not boolean.
        """
        check_shapes("flowformer", "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError("Flowformer keeps a state only when it was built with causal=True.")
        q, k, v = self.projections.split(x)
        y = flow_attention(
            q,
            k,
            v,
            mask=mask,
            causal=self.causal,
            feature_map=self.feature_map,
            source_clamp=self.source_clamp,
            competition_axis=self.competition_axis,
            eps=self.eps,
            chunk_size=self.chunk_size,
            implementation=self.implementation,
            initial_state=state,
            return_state=return_state,
        )
        y, new_state = y if isinstance(y, tuple) else (y, None)
        y = self.projections.merge(y).astype(self.dtype or x.dtype)
        y = self.dropout(y, deterministic=deterministic, rngs=rngs)
        return (y, new_state) if new_state is not None else y

    def init_state(self, batch_size: int) -> FlowState:
        """The state before the first token: float32 zeros, batch first. ValueError unless causal."""
        self._need_causal("init_state")
        return flow_attention_init(batch_size, self.projections.num_heads, self.projections.d_head)

    def step(self, x_t: Float[Array, "B D"], state: FlowState) -> tuple[Float[Array, "B D"], FlowState]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes("flowformer", "x_t [B, D]", x_t, D=self.d_model)
        y, state = flow_attention_step(
            *self.projections.split(x_t),
            state,
            feature_map=self.feature_map,
            source_clamp=self.source_clamp,
            eps=self.eps,
        )
        return self.projections.merge(y).astype(self.dtype or x_t.dtype), state

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"Flowformer.{what} needs causal=True: bidirectionally every output needs every token.")
