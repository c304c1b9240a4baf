"""The Nyströmformer encoder of the published checkpoints (Xiong et al. 2021, arXiv:2102.03902)."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.encoder import EncoderConfig, Remat, make_layers, make_norm, run_layers
from zoo.layers.dropout import Dropout
from zoo.layers.feed_forward import Activation, activation_function
from zoo.layers.shapes import check_shapes
from zoo.ops.nystrom_attention import Landmarks, PinvInit
from zoo.typing import Array, Bool, DType, Float, Int

# The published table of positions begins with two rows that nothing uses, as RoBERTa's does.
_POSITION_OFFSET = 2
_STD = 0.02


class NystromformerEncoder(nnx.Module):
    """Embeddings of tokens, positions and token types, post-norm blocks, and a masked-language-model head if asked.

    The function is that of Hugging Face's `NystromformerModel` for inputs without padding, with `pinv_init="global"`
    and `landmarks="padded"`; the defaults of both make an example's output independent of its batch mates and of the
    amount of padding (see `zoo.mixers.nystromformer.Nystromformer`). Padding is masked at every step, which Hugging
    Face's model does not do.

    Args:
      vocab_size: number of token ids.
      d_model: D.
      num_layers: number of blocks.
      num_heads: H.
      d_ff: F, inner width of the feed-forward layers.
      max_len: longest sequence.
      num_token_types: rows of the token-type table.
      num_landmarks: m; sequences of at most m tokens have exact softmax attention.
      conv_kernel_size: odd width of the convolution of the values; None for none.
      pinv_init, landmarks: see `zoo.mixers.nystromformer.Nystromformer`.
      activation: of the feed-forward layers; "gelu" is the tanh form that Hugging Face calls gelu_new.
      norm_eps: of every norm.
      dropout: rate after the embeddings, the attention, and the feed-forward layers. (The published code has another
        one inside the attention that its forward pass never calls.)
      head: "none", or "masked_lm" for logits over the vocabulary: Linear, activation, norm, and the token table,
        transposed, with a bias.
      remat, scan_layers: see `zoo.encoder.BodyConfig`.
      dtype: computation dtype; None for `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters: all matrices normal with deviation 0.02, as published.

    Raises:
      ValueError: a size or an option is out of range.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 30000,
        d_model: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        d_ff: int = 3072,
        max_len: int = 510,
        num_token_types: int = 2,
        num_landmarks: int = 64,
        conv_kernel_size: int | None = 65,
        pinv_init: PinvInit = "per_matrix",
        landmarks: Landmarks = "valid",
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
        dropout: float = 0.1,
        head: Literal["none", "masked_lm"] = "none",
        remat: Remat = "none",
        scan_layers: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("vocab_size", vocab_size), ("max_len", max_len), ("num_token_types", num_token_types)):
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1.")
        if head not in ("none", "masked_lm"):
            raise ValueError(f"unknown head {head!r}; there are none, masked_lm.")
        self.max_len = max_len
        self.config = config = EncoderConfig(
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff,
            activation=activation,
            norm="post",
            norm_eps=norm_eps,
            positions="none",
            dropout=dropout,
            kernel_init="bert",
            dtype=jnp.dtype(param_dtype if dtype is None else dtype).name,  # pyright: ignore[reportArgumentType]
            param_dtype=jnp.dtype(param_dtype).name,  # pyright: ignore[reportArgumentType]
            remat=remat,
            scan_layers=scan_layers,
            mixer="nystromformer",
            mixer_options={
                "num_landmarks": num_landmarks,
                "conv_kernel_size": conv_kernel_size,
                "pinv_init": pinv_init,
                "landmarks": landmarks,
                "conv_init": initializers.normal(_STD),
            },
            vocab_size=vocab_size,
            max_len=max_len,
        )
        normal = initializers.normal(_STD)
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, d_model, embedding_init=normal, **dtypes, rngs=rngs)

        self.tokens = table(vocab_size)
        self.positions = table(max_len + _POSITION_OFFSET)
        self.token_types = table(num_token_types)
        self.embedding_norm = make_norm(config, rngs)
        self.dropout = Dropout(dropout)
        self.layers = make_layers(config, rngs=rngs)
        self.head = MaskedLMHead(config, rngs=rngs) if head == "masked_lm" else None

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden vectors [B, T, D], or with the head float32 logits [B, T, vocab_size].

        Args:
          tokens: ids below `vocab_size`.
          mask: True at real tokens; None where all are.
          token_types: ids below `num_token_types`; None for 0.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError: an argument is misshapen or T exceeds `max_len`.
          TypeError: `mask` is not boolean, or ids are not integers.
        """
        check_shapes("nystromformer_encoder", "tokens [B, T]", tokens, mask)
        token_types = jnp.zeros_like(tokens) if token_types is None else token_types
        check_shapes("nystromformer_encoder", "token_types [B, T]", token_types, B=tokens.shape[0], T=tokens.shape[1])
        for name, ids in (("tokens", tokens), ("token_types", token_types)):
            if not jnp.issubdtype(ids.dtype, jnp.integer):
                raise TypeError(f"nystromformer_encoder needs integers as {name}, got {ids.dtype}.")
        if tokens.shape[1] > self.max_len:
            raise ValueError(f"axis 1 (T) of tokens is {tokens.shape[1]}, more than max_len={self.max_len}.")
        places = jnp.arange(tokens.shape[1]) + _POSITION_OFFSET
        x = self.tokens(tokens) + self.positions(places) + self.token_types(token_types)
        x = self.dropout(self.embedding_norm(x), deterministic=deterministic, rngs=rngs)
        key = None if rngs is None else rngs.dropout()
        x, _ = run_layers(self.layers, self.config, x, mask=mask, deterministic=deterministic, key=key)
        return x if self.head is None else self.head(x, self.tokens.embedding[...])


class MaskedLMHead(nnx.Module):
    """Linear, activation, norm, then the token table, transposed, and a bias.

    Args:
      config: of the encoder.
      rngs: for the initial parameters.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        self.activation = activation_function(config.activation)
        self.dense = nnx.Linear(
            config.d_model, config.d_model, kernel_init=initializers.normal(_STD), **dtypes, rngs=rngs
        )
        self.norm = make_norm(config, rngs)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), dtypes["param_dtype"]))

    def __call__(self, x: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
        """Logits over the vocabulary, float32."""
        x = self.norm(self.activation(self.dense(x)))
        logits = jnp.dot(x, table.T.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.bias[...].astype(jnp.float32)
