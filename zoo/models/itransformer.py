"""iTransformer as a classifier of one long sequence, folded into rows (after Liu et al. 2024, arXiv:2310.06625)."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.encoder import EncoderConfig, Remat, make_layers, make_norm, run_layers
from zoo.layers.dropout import Dropout
from zoo.layers.embeddings import Inputs
from zoo.layers.feed_forward import Activation
from zoo.layers.initializers import KernelInit, bias_initializer, kernel_initializer
from zoo.layers.pooling import POOLINGS, Pooling, pool
from zoo.layers.shapes import check_shapes
from zoo.models.sequence_classifier import make_head
from zoo.registry import register_model
from zoo.typing import Array, Bool, DType, Float, Num


@register_model(
    "itransformer",
    title="iTransformer: a sequence folded into rows, one token each",
    paper="arXiv:2310.06625 (ICLR 2024)",
    time="O(T)",
    memory="O(T)",
    causal=False,
    bidirectional=True,
    padding_mask=True,
    decode=False,
    fixed_length=False,
    inputs=("tokens", "scalars"),
    test_args={"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "d_token": 4},
    notes="A whole model, no mixer: rows of about the square root of max_len positions are its tokens. The paper's "
    "forecaster is itransformer_forecaster.",
)
class ITransformer(nnx.Module):
    """Classifies a sequence of T positions as if it were R variates of W steps each.

    A single series has one variate, so that attention over variates would have nothing to mix. Here the sequence is
    folded row by row into R = ceil(T / W) rows; each is one token, by one Linear over all its positions (W d_token
    numbers; W for scalars). Then come the forecaster's blocks over rows, a norm, pooling and a head. Unlike variates,
    rows have an order: they get learned positions. The paper has no such classifier; this is the zoo's.

    Masked positions enter their row as zeros, and rows without a real position are masked in the blocks and the
    pooling: neither the content nor the amount of padding matters, and a short sequence has fewer rows to compute.

    The body's arguments are those of `zoo.encoder.BodyConfig`; a recipe gives them all, so that variants of one recipe
    have one body. The defaults are those of `itransformer_forecaster`.

    Args:
      num_classes: C.
      max_len: longest sequence.
      inputs: "tokens" (integers) or "scalars" (reals).
      vocab_size: number of token ids; needed for tokens.
      output: "label", all that this model gives.
      num_rows: rows of a sequence of `max_len` positions; None for what `row_length` makes.
      row_length: W; None for what `num_rows` makes, or, without either, the square root of `max_len`, rounded up.
      d_token: width of the token table.
      row_positions: add a learned vector to each row.
      mixer: a registered mixer, over rows.
      mixer_options: further arguments of its constructor.
      pooling: over rows, see `zoo.layers.pooling.pool`; "cls" puts a learned vector in front of the rows.
      head_dim: width of the head's inner layer; None for a single Linear.
      embedding_std: of the token table's initial values.
      d_model, num_layers, num_heads, d_ff, ffn, activation, norm, norm_kind, norm_eps, dropout, attention_dropout,
        use_bias, kernel_init, remat, scan_layers: see `zoo.encoder.BodyConfig`.
      dtype: computation dtype; None for `param_dtype`. The head is float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      RegistryError, TypeError: no such mixer, or an option that it does not take.
      ValueError: a size or choice is out of range, tokens without `vocab_size`, another output, or both `num_rows` and
        `row_length`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        max_len: int,
        inputs: Inputs = "tokens",
        vocab_size: int | None = None,
        output: Literal["label"] = "label",
        num_rows: int | None = None,
        row_length: int | None = None,
        d_token: int = 16,
        row_positions: bool = True,
        mixer: str = "softmax",
        mixer_options: Mapping[str, Any] | None = None,
        pooling: Pooling = "mean",
        head_dim: int | None = None,
        embedding_std: float = 1.0,
        d_model: int = 256,
        num_layers: int = 2,
        num_heads: int = 8,
        d_ff: int | None = 256,
        ffn: Literal["mlp", "glu", "none"] = "mlp",
        activation: Activation = "gelu_exact",
        norm: Literal["pre", "post"] = "post",
        norm_kind: Literal["layer", "rms"] = "layer",
        norm_eps: float = 1e-5,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        use_bias: bool = True,
        kernel_init: KernelInit = "torch",
        remat: Remat = "none",
        scan_layers: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if output != "label":
            raise ValueError(f"itransformer classifies whole sequences; it has no output {output!r}.")
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; there are {', '.join(POOLINGS)}.")
        if inputs == "tokens" and (vocab_size is None or vocab_size < 1):
            raise ValueError(f"inputs='tokens' needs vocab_size >= 1, got {vocab_size}.")
        self.inputs: Inputs = inputs
        self.max_len = max_len
        self.row_length = fold(max_len, num_rows, row_length)
        self.pooling: Pooling = pooling
        self.config = config = EncoderConfig(
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff,
            ffn=ffn,
            activation=activation,
            norm=norm,
            norm_kind=norm_kind,
            norm_eps=norm_eps,
            positions="learned" if row_positions else "none",
            embedding_std=embedding_std,
            dropout=dropout,
            attention_dropout=attention_dropout,
            use_bias=use_bias,
            kernel_init=kernel_init,
            dtype=jnp.dtype(param_dtype if dtype is None else dtype).name,  # pyright: ignore[reportArgumentType]
            param_dtype=jnp.dtype(param_dtype).name,  # pyright: ignore[reportArgumentType]
            remat=remat,
            scan_layers=scan_layers,
            mixer=mixer,
            mixer_options=dict(mixer_options or {}),
            inputs=inputs,
            vocab_size=vocab_size,
            max_len=math.ceil(max_len / self.row_length),
            cls_token=pooling == "cls",
        )
        self._make_embedding(d_token, rngs)
        self.dropout = Dropout(dropout)
        self.layers = make_layers(config, rngs=rngs)
        self.norm = make_norm(config, rngs)
        self.hidden, self.logits = make_head(config, num_classes, head_dim, rngs=rngs)

    def _make_embedding(self, d_token: int, rngs: nnx.Rngs) -> None:
        config = self.config
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        if config.inputs == "tokens":
            init = initializers.normal(config.embedding_std)
            self.table = nnx.Embed(config.vocab_size or 0, d_token, embedding_init=init, **dtypes, rngs=rngs)
        else:
            self.table, d_token = None, 1
        width = self.row_length * d_token
        self.row = nnx.Linear(
            width,
            config.d_model,
            kernel_init=kernel_initializer(config.kernel_init),
            bias_init=bias_initializer(config.kernel_init, width),
            **dtypes,
            rngs=rngs,
        )

        def vector(*shape: int) -> nnx.Param:
            # Not zero: the derivative of a norm there is 1 / sqrt(eps).
            return nnx.Param(initializers.normal(0.02)(rngs.params(), shape, dtypes["param_dtype"]))

        learned = config.positions == "learned"
        self.position = vector(config.max_len, config.d_model) if learned else nnx.data(None)
        self.cls = vector(config.d_model) if config.cls_token else nnx.data(None)

    def __call__(
        self,
        inputs: Num[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B C"]:
        """Logits, float32.

        Args:
          inputs: tokens or scalars; T up to `max_len`.
          mask: True at real positions; None where all are.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError: `inputs` or `mask` is misshapen, T exceeds `max_len`, or tokens are not integers.
          TypeError: `mask` is not boolean.
        """
        self._check(inputs, mask)
        x, mask = self._rows(inputs, mask)
        x = self.dropout(x, deterministic=deterministic, rngs=rngs)
        key = None if rngs is None else rngs.dropout()
        x, _ = run_layers(self.layers, self.config, x, mask=mask, deterministic=deterministic, key=key)
        x = pool(self.norm(x), mask, self.pooling).astype(jnp.float32)
        return self.logits(x if self.hidden is None else jax.nn.relu(self.hidden(x)))

    def _rows(self, inputs: Array, mask: Array | None) -> tuple[Array, Array | None]:
        """The vectors [B, R, D] of the rows (and the CLS vector in front), and which of them are real."""
        dtype = jnp.dtype(self.config.dtype)
        x = inputs.astype(dtype)[..., None] if self.table is None else self.table(inputs)
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0)
        batch, length = inputs.shape
        rows = math.ceil(length / self.row_length)
        fill = (0, rows * self.row_length - length)
        x = self.row(jnp.pad(x, ((0, 0), fill, (0, 0))).reshape(batch, rows, -1))
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), fill)).reshape(batch, rows, -1).any(axis=2)
        if self.position is not None:
            x = x + self.position[:rows].astype(dtype)
        if self.cls is not None:
            cls = jnp.broadcast_to(self.cls[...].astype(dtype), (batch, 1, x.shape[2]))
            x = jnp.concatenate([cls, x], axis=1)
            mask = None if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        return x, mask

    def _check(self, inputs: Array, mask: Array | None) -> None:
        check_shapes("itransformer", "inputs [B, T]", inputs, mask)
        if inputs.shape[1] > self.max_len:
            raise ValueError(f"axis 1 (T) of inputs is {inputs.shape[1]}, more than max_len={self.max_len}.")
        if self.inputs == "tokens" and not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f"inputs='tokens' needs integers, got {inputs.dtype}.")


def fold(max_len: int, num_rows: int | None, row_length: int | None) -> int:
    """W, the positions of a row.

    Raises:
      ValueError: a number is not positive, or both the number of rows and their length are given.
    """
    if num_rows is not None and row_length is not None:
        raise ValueError(f"give num_rows={num_rows} or row_length={row_length}, not both: one follows from the other.")
    for name, value in (("max_len", max_len), ("num_rows", num_rows), ("row_length", row_length)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if row_length is not None:
        return row_length
    return math.ceil(max_len / num_rows) if num_rows is not None else math.ceil(math.sqrt(max_len))
