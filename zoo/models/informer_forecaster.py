"""Informer: forecasts a whole horizon at once (Zhou et al. 2021, arXiv:2012.07436).

Encoder of ProbSparse attention that halves the sequence between its layers; decoder that starts from the last known
steps and zeros, attends to itself and to the encoder, and gives all steps to come in one pass. The reference is the
authors' code (github.com/zhouhaoyi/Informer2020), not the copies of it in later collections, which differ.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.distilling import Distil, circular_conv
from zoo.layers.dropout import Dropout
from zoo.layers.embeddings import sinusoidal_table
from zoo.layers.feed_forward import Activation, FeedForward
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.layers.time_embedding import TimeEmbedding, TimeEmbeddingKind
from zoo.mixers.informer import Informer
from zoo.ops.probsparse_attention import CausalContext, Sample, Selection
from zoo.ops.softmax_attention import softmax_attention
from zoo.registry import register_model
from zoo.typing import Array, DType, Float

_TORCH = kernel_initializer("torch")


@register_model(
    "informer_forecaster",
    title="Informer: ProbSparse encoder with distilling, generative decoder",
    paper="arXiv:2012.07436 (AAAI 2021)",
    time="O(L log L)",
    memory="O(L log L)",
    causal=False,
    bidirectional=True,
    padding_mask=False,
    fixed_length=True,
    inputs=("series",),
    test_args={"num_variates": 3, "lookback": 12, "horizon": 5, "d_model": 16, "num_heads": 2, "factor": 1},
    notes="The defaults are the authors' code, in which a decoder output may depend on later ones. BatchNorm keeps "
    "running statistics, which are variables but no parameters.",
)
class InformerForecaster(nnx.Module):
    """Forecasts H steps of N variates from L.

    Layers are post-norm (LayerNorm, eps 1e-5) with exact GELU. An encoder has `num_layers` of them and between two a
    `Distil`; the decoder has `decoder_layers`, with ProbSparse self-attention and full attention to the encoder.
    Initial values are PyTorch's. Where the sample of the attention comes from: see `zoo.mixers.informer.Informer`.

    Args:
      num_variates: N.
      lookback: L.
      horizon: H.
      num_marks: M, time features per step; 0 for none.
      label_len: known steps that the decoder starts from; None for L // 2.
      d_model: D.
      num_heads: heads of every attention.
      num_layers: layers of the encoder.
      decoder_layers: layers of the decoder.
      d_ff: inner width of the feed-forward layers; None for 4 D.
      stack: number of layers of several encoders, InformerStack's being (3, 2, 1), instead of `num_layers`; the i-th
        reads the last L // 2^i steps, and what they give is put one after another.
      distil: halve the sequence between the layers of an encoder.
      factor: c of the ProbSparse attention; from L on, all of it is softmax attention.
      sample: "per_query" as the authors do, or "shared", which is faster.
      selection, causal_context, mix: of the decoder's self-attention, see `zoo.mixers.informer.Informer`. With
        "causal", "mean" and False no decoder output depends on later ones.
      time_embedding: "timeF", "fixed" or "learned", see `zoo.layers.time_embedding`.
      activation: of the feed-forward layers.
      dropout: rate, after embeddings, attentions and in the feed-forward layers.
      attention_dropout: rate on the weights of the attention to the encoder, the only one that the authors drop; None
        for `dropout`.
      implementation: of the ProbSparse attention.
      dtype: of the computation; None promotes inputs and parameters.
      param_dtype: of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: a size or an option is out of range.
    """

    def __init__(
        self,
        *,
        num_variates: int,
        lookback: int,
        horizon: int,
        num_marks: int = 0,
        label_len: int | None = None,
        d_model: int = 512,
        num_heads: int = 8,
        num_layers: int = 2,
        decoder_layers: int = 1,
        d_ff: int | None = None,
        stack: Sequence[int] | None = None,
        distil: bool = True,
        factor: int = 5,
        sample: Sample = "per_query",
        selection: Selection = "authors",
        causal_context: CausalContext = "cumsum",
        mix: bool = True,
        time_embedding: TimeEmbeddingKind = "timeF",
        activation: Activation = "gelu_exact",
        dropout: float = 0.05,
        attention_dropout: float | None = None,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        label_len = lookback // 2 if label_len is None else label_len
        depths = (num_layers,) if stack is None else tuple(stack)
        _check_sizes(num_variates, lookback, horizon, num_marks, label_len, decoder_layers, depths)
        self.num_variates, self.lookback, self.horizon, self.num_marks = num_variates, lookback, horizon, num_marks
        self.label_len = label_len
        common: dict[str, Any] = {
            "dtype": None if dtype is None else jnp.dtype(dtype),
            "param_dtype": jnp.dtype(param_dtype),
            "rngs": rngs,
        }
        shared = {"dropout": dropout, **common}
        attention = {"num_heads": num_heads, "factor": factor, "sample": sample, "implementation": implementation}
        layer = {"d_ff": d_ff or 4 * d_model, "activation": activation, **shared}
        embedding = {"num_marks": num_marks, "kind": time_embedding, **shared}
        self.encoder_embedding = SeriesEmbedding(d_model, num_variates, **embedding)
        self.decoder_embedding = SeriesEmbedding(d_model, num_variates, **embedding)
        self.encoders = nnx.List([InformerEncoder(d_model, depth, attention, layer, distil) for depth in depths])
        decoder_attention = {
            **attention,
            "causal": True,
            "selection": selection,
            "causal_context": causal_context,
            "mix": mix,
        }
        cross = {"num_heads": num_heads, "dropout": dropout if attention_dropout is None else attention_dropout}
        self.decoder = nnx.List([DecoderLayer(d_model, decoder_attention, cross, layer) for _ in range(decoder_layers)])
        self.decoder_norm = _norm(d_model, **common)
        self.projection = nnx.Linear(
            d_model, num_variates, kernel_init=_TORCH, bias_init=bias_initializer("torch", d_model), **common
        )
        self.dropout = Dropout(dropout)  # knows the mode; the parts have their own

    def __call__(
        self,
        x: Float[Array, "B L N"],
        *,
        marks: Float[Array, "B L+H M"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H N"]:
        """The next H steps, float32, in the units of `x`.

        Args:
          x: the last L steps, scaled.
          marks: time features of those L and of the H steps to come, M of each, float32.
          deterministic: no dropout, running statistics, and a fixed sample; None for the module's own mode (`train()`,
            `eval()`).
          rngs: with a stream `dropout`, and perhaps `sample`, where not deterministic.

        Raises:
          ValueError: `x` or `marks` is misshapen, or `marks` are missing or not expected.
        """
        check_shapes("informer_forecaster", "x [B, L, N]", x, L=self.lookback, N=self.num_variates)
        if (marks is None) != (self.num_marks == 0):
            given = "none are given" if marks is None else f"marks of shape {marks.shape} are given"
            raise ValueError(f"informer_forecaster was built with num_marks={self.num_marks}, but {given}.")
        if marks is not None:
            sizes: dict[str, Any] = {"B": x.shape[0], "L+H": self.lookback + self.horizon, "M": self.num_marks}
            check_shapes("informer_forecaster", "marks [B, L+H, M]", marks, **sizes)
        first = self.lookback - self.label_len
        start = jnp.pad(x[:, first:], ((0, 0), (0, self.horizon), (0, 0)))
        known, asked = (None, None) if marks is None else (marks[:, : self.lookback], marks[:, first:])
        return self.decode(x, start, known, asked, deterministic=deterministic, rngs=rngs)

    def decode(
        self,
        x: Float[Array, "B L N"],
        start: Float[Array, "B T N"],
        marks: Float[Array, "B L M"] | None = None,
        start_marks: Float[Array, "B T M"] | None = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H N"]:
        """The last H of T steps, with an input of the decoder other than the last known steps and zeros.

        Args:
          x, marks: what the encoder reads.
          start, start_marks: what the decoder reads.
          deterministic, rngs: as in a call.
        """
        deterministic = self.dropout.deterministic if deterministic is None else deterministic
        flags: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        memory = self.encoder_embedding(x, marks, **flags)
        length = memory.shape[1]
        memory = jnp.concatenate(
            [encoder(memory[:, length - length // 2**i :], **flags) for i, encoder in enumerate(self.encoders)], axis=1
        )
        y = self.decoder_embedding(start, start_marks, **flags)
        for layer in self.decoder:
            y = layer(y, memory, **flags)
        return self.projection(self.decoder_norm(y[:, -self.horizon :])).astype(jnp.float32)


class SeriesEmbedding(nnx.Module):
    """Circular convolution over three steps, plus sinusoidal positions, plus the time embedding; then dropout.

    Args:
      d_model: D.
      num_variates: N.
      num_marks: M; 0 for no time embedding.
      kind: of the time embedding.
      dropout: rate.
      dtype, param_dtype, rngs: as usual.
    """

    def __init__(
        self,
        d_model: int,
        num_variates: int,
        *,
        num_marks: int,
        kind: TimeEmbeddingKind,
        dropout: float,
        dtype: DType | None,
        param_dtype: DType,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        # He's initialisation, for the gain of a rectifier, as the authors have it.
        he = initializers.variance_scaling(2.0, "fan_in", "normal")
        self.values = circular_conv(num_variates, d_model, he, **common)
        self.time = TimeEmbedding(d_model, num_marks, kind=kind, **common) if num_marks else None
        self.d_model = d_model
        self.dropout = Dropout(dropout)

    def __call__(self, x: Float[Array, "B T N"], marks: Float[Array, "B T M"] | None, **flags: Any) -> Array:
        """Vectors [B, T, D] of the steps of `x`."""
        y = self.values(x)
        y = y + jnp.asarray(sinusoidal_table(x.shape[1], self.d_model), y.dtype)
        if self.time is not None and marks is not None:
            y = y + self.time(marks).astype(y.dtype)
        return self.dropout(y, **flags)


class InformerEncoder(nnx.Module):
    """Layers with a `Distil` between each two, if asked, and a norm at the end.

    Args:
      d_model: D.
      depth: number of layers.
      attention: options of the mixer `informer`.
      layer: options that all layers share: d_ff, activation, dropout, dtype, param_dtype, rngs.
      distil: whether to halve.
    """

    def __init__(self, d_model: int, depth: int, attention: dict[str, Any], layer: dict[str, Any], distil: bool):
        common = _common(layer)
        self.layers = nnx.List([EncoderLayer(d_model, attention, layer) for _ in range(depth)])
        self.distils = nnx.List([Distil(d_model, **common) for _ in range(depth - 1 if distil else 0)])
        self.norm = _norm(d_model, **common)

    def __call__(self, x: Float[Array, "B T D"], *, deterministic: bool, rngs: nnx.Rngs | None) -> Array:
        """[B, T2, D]; T2 is T halved, rounded up, by every `Distil`."""
        for index, layer in enumerate(self.layers):
            x = layer(x, deterministic=deterministic, rngs=rngs)
            if index < len(self.distils):
                x = self.distils[index](x, deterministic=deterministic)
        return self.norm(x)


class EncoderLayer(nnx.Module):
    """Post-norm layer: ProbSparse self-attention, feed-forward. Arguments as those of `InformerEncoder`."""

    def __init__(self, d_model: int, attention: dict[str, Any], layer: dict[str, Any]):
        self.attention = _self_attention(d_model, attention, layer)
        self.feed_forward = FeedForward(d_model, kernel_init="torch", **layer)
        self.attention_norm, self.feed_forward_norm = (_norm(d_model, **_common(layer)) for _ in range(2))

    def __call__(self, x: Float[Array, "B T D"], **flags: Any) -> Float[Array, "B T D"]:
        """The layer's output."""
        x = self.attention_norm(x + self.attention(x, **flags))
        return self.feed_forward_norm(x + self.feed_forward(x, **flags))


class DecoderLayer(nnx.Module):
    """Post-norm layer: ProbSparse self-attention, softmax attention to the encoder, feed-forward.

    Args:
      d_model: D.
      attention: options of the mixer `informer`.
      cross: heads of the attention to the encoder, and the dropout of its weights.
      layer: options that all layers share.
    """

    def __init__(self, d_model: int, attention: dict[str, Any], cross: dict[str, Any], layer: dict[str, Any]):
        self.attention = _self_attention(d_model, attention, layer)
        self.cross = CrossAttention(d_model, output_dropout=layer["dropout"], **cross, **_common(layer))
        self.feed_forward = FeedForward(d_model, kernel_init="torch", **layer)
        norms = [_norm(d_model, **_common(layer)) for _ in range(3)]
        self.attention_norm, self.cross_norm, self.feed_forward_norm = norms

    def __call__(self, x: Float[Array, "B T D"], memory: Float[Array, "B S D"], **flags: Any) -> Array:
        """The layer's output [B, T, D]."""
        x = self.attention_norm(x + self.attention(x, **flags))
        x = self.cross_norm(x + self.cross(x, memory, **flags))
        return self.feed_forward_norm(x + self.feed_forward(x, **flags))


class CrossAttention(nnx.Module):
    """Softmax attention of one sequence to another, with dropout of the weights and of the output."""

    def __init__(self, d_model: int, *, num_heads: int, dropout: float, output_dropout: float, **common: Any):
        self.projections = HeadProjections(
            d_model, num_heads, kernel_init=_TORCH, bias_init=bias_initializer("torch", d_model), **common
        )
        self.rate = dropout
        self.dropout = Dropout(output_dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        *,
        deterministic: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "B T D"]:
        """What `x` finds in `memory`."""
        project = self.projections
        width = (project.num_heads, project.d_head)
        q = project.query(x).reshape(*x.shape[:2], *width)
        k, v = (linear(memory).reshape(*memory.shape[:2], *width) for linear in (project.key, project.value))
        key = None
        if self.rate and not deterministic:
            if rngs is None:
                raise ValueError("informer_forecaster has dropout and is not deterministic: pass rngs=nnx.Rngs(key).")
            key = rngs.dropout()
        y = project.merge(softmax_attention(q, k, v, dropout=self.rate, dropout_key=key))
        return self.dropout(y, deterministic=deterministic, rngs=rngs)


def _common(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: layer[name] for name in ("dtype", "param_dtype", "rngs")}


def _norm(d_model: int, **common: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(d_model, epsilon=1e-5, use_fast_variance=False, **common)


def _self_attention(d_model: int, attention: dict[str, Any], layer: dict[str, Any]) -> Informer:
    bias_init = bias_initializer("torch", d_model)
    options = {**attention, **_common(layer), "dropout": layer["dropout"]}
    return Informer(d_model, kernel_init=_TORCH, bias_init=bias_init, **options)


def _check_sizes(
    num_variates: int,
    lookback: int,
    horizon: int,
    num_marks: int,
    label_len: int,
    decoder_layers: int,
    depths: tuple[int, ...],
) -> None:
    for name, size in (("num_variates", num_variates), ("lookback", lookback), ("horizon", horizon)):
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1.")
    if num_marks < 0:
        raise ValueError(f"num_marks={num_marks} must not be negative.")
    if not 0 <= label_len <= lookback:
        raise ValueError(f"label_len={label_len} must be from 0 to lookback={lookback}.")
    if decoder_layers < 1 or not depths or min(depths) < 1:
        raise ValueError(f"layers must be at least 1: encoder {list(depths)}, decoder {decoder_layers}.")
    if lookback >> (len(depths) - 1) < 1:
        raise ValueError(
            f"stack of {len(depths)} encoders needs lookback >= {2 ** (len(depths) - 1)}; it is {lookback}."
        )
