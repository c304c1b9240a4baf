"""Multi-head softmax attention (Vaswani et al. 2017, arXiv:1706.03762): the baseline of every variant."""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.softmax_attention import softmax_attention
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, Int

DEFAULT_CACHE_LEN = 1024


class SoftmaxState(NamedTuple):
    """The keys and values seen so far, with room for more.

    Attributes:
      key, value: [B, M, H, K] float32; places from `length` on are free.
      length: [B] int32, tokens seen.
    """

    key: Float[Array, "B M H K"]
    value: Float[Array, "B M H K"]
    length: Int[Array, " B"]


@register_mixer(
    "softmax",
    title="Softmax attention",
    paper="arXiv:1706.03762 (NeurIPS 2017)",
    time="O(T^2)",
    memory="O(T^2)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"num_heads": 2},
    notes="Memory is O(T) with query chunks, which long inputs get by themselves. Decodes with a cache of fixed size.",
)
class Softmax(nnx.Module):
    """Multi-head attention: Y = concat_h(softmax(Q_h K_h^T / sqrt(K)) V_h) W_o.

    Padding keys are never seen; where a query sees no key at all, its heads give zeros.

    Args:
      d_model: D.
      num_heads: H.
      d_head: K, width of one head; None for D / H.
      use_bias: biases of the query, key and value maps.
      out_bias: bias of the output map; None for `use_bias`.
      attention_dropout: rate on the attention weights; None for `dropout`.
      causal: position t sees positions up to t only.
      dropout: rate on the output.
      query_chunk_size: queries at once; None for all, or, where that needs too much memory, as many as fit.
      kernel_init, bias_init: initialisers of the four maps.
      implementation: of the attention, see `zoo.ops.softmax_attention`; None for the best here.
      dtype: dtype of the computation and the output; None to promote inputs and parameters for the one, and to return
        the input's dtype. The softmax is always computed in float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: H does not divide D and `d_head` is None; a rate is not in [0, 1); the implementation is unknown, or
        has no dropout of attention weights although `attention_dropout` asks for it.
    """

    implementations = ("xla", "chunked", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        d_head: int | None = None,
        use_bias: bool = True,
        out_bias: bool | None = None,
        attention_dropout: float | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        query_chunk_size: int | None = None,
        kernel_init: nnx.Initializer = initializers.lecun_normal(),
        bias_init: nnx.Initializer = initializers.zeros_init(),
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}={rate} must be at least 0 and below 1.")
        known = (*self.implementations, "cudnn")
        if implementation is not None and implementation not in known:
            raise ValueError(f"softmax has no implementation {implementation!r}; it has {', '.join(known)} (or None).")
        if implementation in ("xla", "cudnn") and attention_dropout:
            raise ValueError(
                f"implementation={implementation!r} cannot drop attention weights; set attention_dropout to 0 (it is "
                f"{attention_dropout}), or implementation to None or 'chunked'."
            )
        self.d_model = d_model
        self.causal = causal
        self.dtype = dtype
        self.query_chunk_size = query_chunk_size
        self.implementation = implementation
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
        self.attention_dropout = Dropout(attention_dropout)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: SoftmaxState | None = None,
        return_state: bool = False,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], SoftmaxState]:
        """Mixes `x` along T.

        Args:
          x: the tokens.
          mask: True for real tokens; None where all are.
          deterministic: no dropout; None for what `train()` or `eval()` set.
          rngs: its stream `dropout` is used where there is dropout.
          state: what came before `x` (causal only); real tokens of `x` are appended to it, padding is not.
          return_state: also return the state after `x`; without `state`, `init_state(B)` is the start.

        Raises:
          ValueError: `x` or `mask` is misshapen (T may be 0 where a state is given); a state is used without `causal`;
            or the state has no room left, where that can be known: under `jit` only if T alone exceeds the cache,
            otherwise the outputs of the tokens that found no place are NaN.
          TypeError: `mask` is not boolean.
        """
        check_shapes("softmax", "x [B, T, D]", x, mask, D=self.d_model, allow_empty=state is not None)
        if deterministic is None:
            deterministic = self.attention_dropout.deterministic
        if deterministic or not self.attention_dropout.rate:
            dropout_key = None
        elif rngs is None:
            raise ValueError("softmax has dropout and is not deterministic: pass rngs=nnx.Rngs(dropout=key).")
        else:
            dropout_key = rngs.dropout()
        attend = functools.partial(
            softmax_attention,
            dropout=self.attention_dropout.rate,
            dropout_key=dropout_key,
            query_chunk_size=self.query_chunk_size,
            implementation=self.implementation,
        )
        q, k, v = self.projections.split(x)
        if state is None and return_state:
            state = self.init_state(x.shape[0])
        if state is None:
            y = attend(q, k, v, mask=mask, causal=self.causal)
        else:
            self._require_causal()
            state, ends = _append(state, k, v, mask)
            places = jnp.arange(state.key.shape[1])
            y = attend(q, state.key.astype(k.dtype), state.value.astype(v.dtype), mask=places < ends[..., None])
            y = jnp.where((ends <= len(places))[..., None, None], y, jnp.nan)
        y = self.dropout(self.projections.merge(y), deterministic=deterministic, rngs=rngs).astype(
            self.dtype or x.dtype
        )
        return y if state is None or not return_state else (y, state)

    def init_state(self, batch_size: int, max_len: int = DEFAULT_CACHE_LEN) -> SoftmaxState:
        """An empty cache for `max_len` tokens.

        Raises:
          ValueError: the mixer is not causal, or `max_len` is not positive.
        """
        self._require_causal()
        if max_len < 1:
            raise ValueError(f"max_len={max_len} must be at least 1.")
        shape = (batch_size, max_len, self.projections.num_heads, self.projections.d_head)
        return SoftmaxState(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(batch_size, jnp.int32))

    def step(self, x_t: Float[Array, "B D"], state: SoftmaxState) -> tuple[Float[Array, "B D"], SoftmaxState]:
        """One token, without dropout: its output and the state after it. Raises as `__call__` does."""
        check_shapes("softmax", "x_t [B, D]", x_t, D=self.d_model)
        y, state = self(x_t[:, None], state=state, return_state=True, deterministic=True)
        return y[:, 0], state

    def _require_causal(self) -> None:
        if not self.causal:
            raise ValueError(
                "softmax keeps a state only with causal=True: without it, every output needs the whole input."
            )


def _append(state: SoftmaxState, k: Array, v: Array, mask: Array | None) -> tuple[SoftmaxState, Array]:
    """The cache with the real tokens of a chunk, and [B, T] how many tokens each query sees."""
    batch, length = k.shape[:2]
    room = state.key.shape[1]
    real = jnp.ones((batch, length), bool) if mask is None else mask
    ends = state.length[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32)
    full = f"The cache of softmax has {room} places; make a larger one with init_state(batch_size, max_len=...)."
    if mask is None and length > room:
        raise ValueError(f"{full} One chunk of {length} tokens does not fit.")
    last = ends[:, -1] if length else state.length
    with contextlib.suppress(jax.errors.ConcretizationTypeError):
        if batch and (longest := int(last.max())) > room:
            raise ValueError(f"{full} It would hold {longest}.")
    # Padding, and what does not fit, is written nowhere.
    index = jnp.where(real, ends - 1, room)
    rows = jnp.arange(batch)[:, None]
    key = state.key.at[rows, index].set(k.astype(state.key.dtype), mode="drop")
    value = state.value.at[rows, index].set(v.astype(state.value.dtype), mode="drop")
    return SoftmaxState(key, value, last), ends
