"""RetNet's token mixer: multi-scale retention (Sun et al. 2023, arXiv:2307.08621)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.rotary import rotate
from zoo.layers.shapes import check_shapes
from zoo.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoo.ops.segments import segment_starts
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, Int

HeadNorm = Literal["rms", "layer"]
# Xavier's uniform with gains of 2**-2.5 and 1.
_SMALL = initializers.variance_scaling(2.0**-5, "fan_avg", "uniform")
_PLAIN = initializers.variance_scaling(1.0, "fan_avg", "uniform")


class RetNetState(NamedTuple):
    """All that a causal retention layer remembers; its size does not depend on how much was read. Empty is all zeros.

    Attributes:
      memory: [B, H, K, V + 1], the decayed sums of k v^T and, in the last column, of k, by which scores are normalised.
      count: [B] int32, tokens read of the current sequence: the position of the next one.
    """

    memory: Array
    count: Array


@register_mixer(
    "retnet",
    title="RetNet: multi-scale retention",
    paper="arXiv:2307.08621",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2},
    notes="Bidirectionally the decay is γ^|n-m|, as in RMT (arXiv:2309.11523): two passes over the same parameters.",
)
class RetNet(nnx.Module):
    """Multi-scale retention: linear attention whose memory decays at a fixed rate per head, with rotary positions.

    With q and k turned by their positions, γ_h = 1 - 2^(-5-h)::

        o_n = Σ_m γ^(n-m) (q_n·k_m / sqrt(K)) v_m      Y = (swish(X W_G) * norm_h(o)) W_O

    The norm is of each head by itself, without parameters. Scores are normalised before it as in the paper (section
    2.4) and in the parallel form of the authors' code (torchscale, commit 05a9628): divided by sqrt(Σ_m γ^(n-m)), then
    by max(|Σ_m score|, 1), which counts as a constant for gradients. The norm undoes any such factor but for its
    epsilon; the same is done here in every form, so that a step gives what the whole sequence gives. The angles of the
    rotation are the authors' 10000^(-i / (K/2 - 1)), i = 0..K/2-1, on neighbouring channels.

    Initial values are the authors': Xavier's uniform, with gain 2^-2.5 for all maps into the layer.

    Bidirectionally the decay is γ^|n-m| over all tokens, with one set of parameters.

    Args:
      d_model: D.
      num_heads: H.
      expand_k: queries and keys have expand_k * D channels in all.
      expand_v: values and gates have expand_v * D channels in all, 2 D in the paper.
      head_norm: "rms" as in the authors' code, or "layer", with the mean taken off, as the paper's group norm is.
      norm_eps: of that norm.
      normalize_scores: see above; without it one column less is carried.
      chunk_size: tokens per chunk; speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer.
      implementation: of the op, "xla", "xla_sequential", "xla_chunked", "reference" or None.
      dtype: computation dtype; None follows `x`. Decays, sums, norms and states are float32 in any case.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range, or H does not divide the channels into heads of even width.
    """

    # For the contract. It takes gradients, and then the default, "xla", is "xla_chunked".
    implementations = ("xla_sequential", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        head_norm: HeadNorm = "rms",
        norm_eps: float = 1e-6,
        normalize_scores: bool = True,
        chunk_size: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        key_width, value_width = round(d_model * expand_k), round(d_model * expand_v)
        if num_heads < 1 or key_width < 1 or key_width % (2 * num_heads):
            raise ValueError(
                f"d_model={d_model} times expand_k={expand_k} is {key_width}, which num_heads={num_heads} does not cut "
                "into heads of even width (channels are turned in pairs)."
            )
        if value_width < 1 or value_width % num_heads:
            raise ValueError(
                f"d_model={d_model} times expand_v={expand_v} is {value_width}, not divisible by num_heads={num_heads}."
            )
        if head_norm not in ("rms", "layer"):
            raise ValueError(f"head_norm={head_norm!r} is not known; it is 'rms' or 'layer'.")
        self.d_model, self.num_heads, self.causal, self.dtype = d_model, num_heads, causal, dtype
        self.key_width, self.value_width = key_width // num_heads, value_width // num_heads
        self.head_norm: HeadNorm = head_norm
        self.norm_eps, self.normalize_scores = norm_eps, normalize_scores
        self.chunk_size, self.implementation = chunk_size, implementation

        def linear(d_in: int, d_out: int, init: nnx.Initializer) -> nnx.Linear:
            return nnx.Linear(
                d_in, d_out, use_bias=False, kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.query = linear(d_model, key_width, _SMALL)
        self.key = linear(d_model, key_width, _SMALL)
        self.value = linear(d_model, value_width, _SMALL)
        self.gate = linear(d_model, value_width, _SMALL)
        self.out = linear(value_width, d_model, _PLAIN)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: RetNetState | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], RetNetState]:
        """Mixes `x` along T.

        Args:
          x: inputs.
          mask: True at real tokens; None where all are. Padding has no position, moves no state and decays nothing.
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
        check_shapes("retnet", "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError("RetNet keeps a state only when it was built with causal=True.")
        real = jnp.ones(x.shape[:2], bool) if mask is None else mask
        start = jnp.zeros(x.shape[:1], jnp.int32) if state is None else state.count
        count = _counts(real, segment_ids, start)
        q, k, v = self._project(x, count - 1)

        def retain(reverse: bool) -> tuple[Array, Array]:
            found = gated_linear_attention(
                q,
                k,
                v,
                self._log_decay(x.dtype),
                mask=mask,
                segment_ids=segment_ids,
                initial_state=None if state is None else state.memory,
                return_state=True,
                reverse=reverse,
                implementation=self.implementation,
                chunk_size=self.chunk_size,
            )
            return found[0].astype(jnp.promote_types(x.dtype, jnp.float32)), found[1]

        y, memory = retain(reverse=False)
        decay_sum = self._decay_sum(count, y.dtype)
        if not self.causal:
            other = _counts(real[:, ::-1], None if segment_ids is None else segment_ids[:, ::-1], start)[:, ::-1]
            own = jnp.einsum("bthk,bthk->bth", q, k, preferred_element_type=y.dtype) * self.key_width**-0.5
            own = jnp.where(real[..., None], own, 0)
            y = y + retain(reverse=True)[0] - own[..., None] * jnp.where(real[..., None, None], v, 0)
            decay_sum = decay_sum + self._decay_sum(other, y.dtype) - 1
        y = self._merge(y, decay_sum, x)
        y = self.dropout(y, deterministic=deterministic, rngs=rngs)
        return (y, RetNetState(memory, count[:, -1])) if return_state else y

    def init_state(self, batch_size: int) -> RetNetState:
        """The state before the first token: zeros, batch first. ValueError unless causal."""
        self._need_causal("init_state")
        columns = self.value_width + self.normalize_scores
        memory = jnp.zeros((batch_size, self.num_heads, self.key_width, columns), jnp.float32)
        return RetNetState(memory, jnp.zeros(batch_size, jnp.int32))

    def step(self, x_t: Float[Array, "B D"], state: RetNetState) -> tuple[Float[Array, "B D"], RetNetState]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes("retnet", "x_t [B, D]", x_t, D=self.d_model)
        q, k, v = self._project(x_t, state.count)
        y, memory = gated_linear_attention_step(state.memory, q, k, v, self._log_decay(x_t.dtype))
        count = state.count + 1
        return self._merge(y, self._decay_sum(count, memory.dtype), x_t), RetNetState(memory, count)

    def _project(self, x: Array, position: Array) -> tuple[Array, Array, Array]:
        """Turned queries and keys [..., H, K]; values, with a column of ones where scores are normalised."""
        heads = (*x.shape[:-1], self.num_heads, -1)
        pairs = self.key_width // 2
        angles = 10000.0 ** -np.linspace(0, 1, pairs)
        q, k = (rotate(linear(x).reshape(heads), position, angles) for linear in (self.query, self.key))
        v = self.value(x).reshape(heads)
        return q, k, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1) if self.normalize_scores else v

    def _merge(self, y: Array, decay_sum: Array, x: Array) -> Array:
        """From retention [..., H, V] to the output [..., D]."""
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        if self.normalize_scores:
            y = y / jnp.sqrt(decay_sum)[..., None]
            y = y[..., :-1] / jax.lax.stop_gradient(jnp.maximum(jnp.abs(y[..., -1:]), 1))
        if self.head_norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.norm_eps)
        dtype = self.dtype or x.dtype
        y = y.reshape(*x.shape[:-1], -1).astype(dtype)
        return self.out(nnx.silu(self.gate(x)) * y).astype(dtype)

    def _log_decay(self, dtype: DType) -> Array:
        """log γ [H], in float32 or, for float64, in that."""
        decay = np.log1p(-(2.0 ** -(5.0 + np.arange(self.num_heads))))
        return jnp.asarray(decay, jnp.promote_types(dtype, jnp.float32))

    def _decay_sum(self, count: Array, dtype: DType) -> Array:
        """1 + γ + ... + γ^(count - 1) per head: [...] -> [..., H]; 1 where nothing was read."""
        log_decay = self._log_decay(dtype)
        total = jnp.expm1(count[..., None].astype(log_decay.dtype) * log_decay) / jnp.expm1(log_decay)
        return jnp.where(count[..., None] > 0, total, 1)

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"RetNet.{what} needs causal=True: bidirectionally every output needs every token.")


def _counts(real: Array, segment_ids: Array | None, start: Array) -> Array:
    """How many real tokens of its sequence were read up to and with each token [B, T]; `start` [B] before the first."""
    total = start[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32)
    if segment_ids is None:
        return total
    starts = segment_starts(segment_ids, real)
    before = jax.lax.cummax(jnp.where(starts, total - 1, 0), axis=1)
    return total - before
