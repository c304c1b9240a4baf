"""Nyströmformer: Hugging Face's `NystromformerModel` and `NystromformerForMaskedLM`."""

from typing import Any

import numpy as np
from flax import nnx

from zoo.mixers.nystromformer import Nystromformer
from zoo.models.nystromformer_encoder import NystromformerEncoder
from zoo.weights.formats.base import (
    Builder,
    Config,
    Format,
    need,
    need_size,
    refuse_architectures,
    refuse_unlike,
    require,
)
from zoo.weights.tables import PER_HEAD, SAME, Entry, Table, entry, inside, linear, norm

_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu"}
_MASKED_LM = "NystromformerForMaskedLM"


def layer_table(mixer: Nystromformer) -> Table:
    """Of one attention layer, under the names below `attention.`."""
    table: Table = []
    for part in ("query", "key", "value"):
        table += linear(f"self.{part}", f"projections.{part}")
    if mixer.conv_kernel is not None:
        table.append(entry("self.conv.weight", "conv_kernel", PER_HEAD))
    return table + linear("output.dense", "projections.out")


def _table(model: NystromformerEncoder) -> Table:
    require(isinstance(model.layers, nnx.List), "its layers are stacked; build it with scan_layers=False")
    names = {"word": "tokens", "position": "positions", "token_type": "token_types"}
    ids = (1, model.max_len)
    # Older files hold these buffers; newer ones do not, so that they are not written.
    buffers = [
        Entry("embeddings.position_ids", (), fixed=lambda: np.arange(ids[1])[None] + 2, shape=ids, optional=True),
        Entry("embeddings.token_type_ids", (), fixed=lambda: np.zeros(ids, np.int64), shape=ids, optional=True),
    ]
    table = buffers + [
        entry(f"embeddings.{theirs}_embeddings.weight", f"{ours}.embedding") for theirs, ours in names.items()
    ]
    table += norm("embeddings.LayerNorm", "embedding_norm")
    for i, layer in enumerate(model.layers):
        block = inside(layer_table(layer.mixer), "attention.", "mixer.")
        block += norm("attention.output.LayerNorm", "mixer_norm") + norm("output.LayerNorm", "ffn_norm")
        block += linear("intermediate.dense", "ffn.up") + linear("output.dense", "ffn.down")
        table += inside(block, f"encoder.layer.{i}.", f"layers.{i}.")
    if model.head is None:
        return table
    head = linear("transform.dense", "head.dense") + norm("transform.LayerNorm", "head.norm")
    head.append(entry("bias", "head.bias"))
    # The table of tokens and the bias, once more.
    head.append(Entry("decoder.weight", ("tokens.embedding",), SAME, optional=True))
    head.append(Entry("decoder.bias", ("head.bias",), SAME, optional=True))
    return inside(table, "nystromformer.", "") + inside(head, "cls.predictions.", "")


def _builder(config: Config) -> Builder:
    refuse_unlike(config, inv_coeff_init_option=False, add_cross_attention=False)
    refuse_architectures(config, "NystromformerModel", _MASKED_LM)
    head = _MASKED_LM in (config.get("architectures") or ())
    if head:
        refuse_unlike(config, tie_word_embeddings=True)
    activation = need(config, "hidden_act")
    if activation not in _ACTIVATIONS:
        refuse_unlike(config, hidden_act="gelu_new")
    max_len = need_size(config, "max_position_embeddings")
    # The published code takes softmax attention where these two agree, whatever the length of the input.
    exact = need_size(config, "num_landmarks") == need_size(config, "segment_means_seq_len")
    arguments: dict[str, Any] = {
        "vocab_size": need_size(config, "vocab_size"),
        "d_model": need_size(config, "hidden_size"),
        "num_layers": need_size(config, "num_hidden_layers"),
        "num_heads": need_size(config, "num_attention_heads"),
        "d_ff": need_size(config, "intermediate_size"),
        "max_len": max_len,
        "num_token_types": need_size(config, "type_vocab_size"),
        "num_landmarks": max_len if exact else config["num_landmarks"],
        "conv_kernel_size": config.get("conv_kernel_size"),
        "pinv_init": "global",
        "landmarks": "padded",
        "activation": _ACTIVATIONS[activation],
        "norm_eps": need(config, "layer_norm_eps"),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "head": "masked_lm" if head else "none",
    }

    def build(*, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> NystromformerEncoder:
        return NystromformerEncoder(**arguments, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    return build


def _config(model: NystromformerEncoder) -> dict[str, Any]:
    encoder, options = model.config, model.config.mixer_options
    exact = options["num_landmarks"] >= model.max_len
    require(
        exact or (options["pinv_init"], options["landmarks"]) == ("global", "padded"),
        'it has not pinv_init="global" and landmarks="padded", as the published code has',
    )
    require(options["conv_kernel_size"] is not None, "it has no convolution")
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == encoder.activation)
    return {
        "architectures": ["NystromformerModel" if model.head is None else _MASKED_LM],
        "model_type": "nystromformer",
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.d_model,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.d_ff,
        "max_position_embeddings": model.max_len,
        "type_vocab_size": model.token_types.num_embeddings,
        "num_landmarks": options["num_landmarks"],
        # Inputs must have exactly this length there, unless it is the number of landmarks.
        "segment_means_seq_len": options["num_landmarks"] if exact else model.max_len,
        "conv_kernel_size": options["conv_kernel_size"],
        "hidden_act": activation,
        "layer_norm_eps": encoder.norm_eps,
        "hidden_dropout_prob": encoder.dropout,
        "inv_coeff_init_option": False,
    }


FORMATS = (
    Format(
        "nystromformer-hf",
        "Hugging Face transformers, NystromformerModel and NystromformerForMaskedLM",
        "`zoo.NystromformerEncoder`",
        lambda module: isinstance(module, NystromformerEncoder),
        _table,
        lambda config: config.get("model_type") == "nystromformer",
        _builder,
        lambda config: (
            ("nystromformer." if _MASKED_LM in (config.get("architectures") or ()) else "")
            + f"encoder.layer.{config['num_hidden_layers'] - 1}."
        ),
        _config,
    ),
    Format(
        "nystromformer-layer",
        "an attention layer of Hugging Face transformers' Nystromformer (the names below `attention.`)",
        "mixer `nystromformer`",
        lambda module: isinstance(module, Nystromformer),
        layer_table,
    ),
)
