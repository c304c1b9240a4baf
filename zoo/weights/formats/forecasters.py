"""The forecasters of Informer2020 and iTransformer, under the names of the authors' modules.

The authors publish no config files. `save_pretrained` writes the arguments of their training scripts as one.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from zoo.layers.embeddings import sinusoidal_table
from zoo.layers.time_embedding import TimeEmbedding
from zoo.models.informer_forecaster import InformerForecaster
from zoo.models.itransformer_forecaster import ITransformerForecaster
from zoo.weights.errors import WeightsError
from zoo.weights.formats.base import Builder, Config, Format, need, need_size, refuse_unlike, require
from zoo.weights.tables import CONV, POINTWISE, Entry, Table, entry, inside, linear, norm

# Rows of the table of positions that Informer2020 keeps beside its weights.
_POSITIONS = 5000


def attention_table(name: str, path: str) -> Table:
    """Of the four maps of an attention."""
    return [
        item
        for part in ("query", "key", "value", "out")
        for item in linear(f"{name}.{part}_projection", f"{path}.projections.{part}")
    ]


def _time_table(time: TimeEmbedding | None) -> Table:
    if time is None:
        return []
    if time.kind == "timeF":
        return linear("embed", "linear")
    if time.kind == "learned":
        return [entry(f"{name}_embed.weight", name) for name in time.names]
    return [
        Entry(f"{name}_embed.emb.weight", (), fixed=lambda x=x: np.asarray(x), shape=x.shape)
        for name, x in ((name, time._table(name)) for name in time.names)
    ]


def _feed_forward(path: str) -> Table:
    return linear("conv1", f"{path}.up", layout=POINTWISE) + linear("conv2", f"{path}.down", layout=POINTWISE)


def _embedding(embedding: Any) -> Table:
    table = linear("value_embedding.tokenConv", "values", layout=CONV)
    positions = Entry(
        "position_embedding.pe",
        (),
        fixed=lambda: sinusoidal_table(_POSITIONS, embedding.d_model)[None].copy(),
        shape=(1, _POSITIONS, embedding.d_model),
    )
    return [*table, positions, *inside(_time_table(embedding.time), "temporal_embedding.", "time.")]


def _encoder(encoder: Any) -> Table:
    table: Table = []
    for i in range(len(encoder.layers)):
        layer = attention_table("attention", "attention") + _feed_forward("feed_forward")
        layer += norm("norm1", "attention_norm") + norm("norm2", "feed_forward_norm")
        table += inside(layer, f"attn_layers.{i}.", f"layers.{i}.")
    for i in range(len(encoder.distils)):
        distil = linear("downConv", "conv", layout=CONV) + norm("norm", "norm")
        distil += [entry("norm.running_mean", "norm.mean"), entry("norm.running_var", "norm.var")]
        # PyTorch counts training batches here, which its momentum makes no use of.
        distil.append(Entry("norm.num_batches_tracked", (), fixed=lambda: np.zeros((), np.int64)))
        table += inside(distil, f"conv_layers.{i}.", f"distils.{i}.")
    return table + norm("norm", "norm")


def _informer_table(model: InformerForecaster) -> Table:
    table = inside(_embedding(model.encoder_embedding), "enc_embedding.", "encoder_embedding.")
    table += inside(_embedding(model.decoder_embedding), "dec_embedding.", "decoder_embedding.")
    for i, encoder in enumerate(model.encoders):
        # InformerStack keeps its encoders in a list.
        name = "encoder" if len(model.encoders) == 1 else f"encoder.encoders.{i}"
        table += inside(_encoder(encoder), f"{name}.", f"encoders.{i}.")
    for i in range(len(model.decoder)):
        layer = attention_table("self_attention", "attention") + attention_table("cross_attention", "cross")
        layer += _feed_forward("feed_forward")
        for j, part in enumerate(("attention_norm", "cross_norm", "feed_forward_norm"), 1):
            layer += norm(f"norm{j}", part)
        table += inside(layer, f"decoder.layers.{i}.", f"decoder.{i}.")
    return table + norm("decoder.norm", "decoder_norm") + linear("projection", "projection")


# What `--freq` stands for in Informer2020: the number of time marks.
_MARKS = {3: "d", 4: "h", 5: "t"}
_FREQUENCIES = {"t": 5, "h": 4, "d": 3, "b": 3}


def _activation(config: Config) -> Any:
    known = {"gelu": "gelu_exact", "relu": "relu"}
    found = config.get("activation", "gelu")
    if found not in known:
        raise WeightsError(f"the config has activation={found!r}; {' and '.join(known)} are built here.")
    return known[found]


def _informer_config(model: InformerForecaster) -> dict[str, Any]:
    encoder = model.encoders[0]
    attention = encoder.layers[0].attention
    time = model.encoder_embedding.time
    if time is None or model.num_marks not in _MARKS:
        raise WeightsError(f"Informer2020 has 3, 4 or 5 time marks; this model has {model.num_marks}.")
    depths = [len(encoder.layers) for encoder in model.encoders]
    activation = encoder.layers[0].feed_forward.activation
    require(activation not in (jax.nn.gelu, jax.nn.silu), "its activation is neither gelu_exact nor relu")
    decoder = model.decoder[0].attention
    require(decoder.selection == "authors" and decoder.causal_context == "cumsum", "its decoder is not the authors'")
    require(attention.sample == "per_query", "its queries share their sample of keys")
    return {
        "model_type": "informer2020",
        "model": "informer" if len(depths) == 1 else "informerstack",
        "enc_in": model.num_variates,
        "dec_in": model.num_variates,
        "c_out": model.num_variates,
        "seq_len": model.lookback,
        "label_len": model.label_len,
        "pred_len": model.horizon,
        "factor": attention.factor,
        "d_model": model.projection.in_features,
        "n_heads": attention.projections.num_heads,
        "e_layers": depths[0],
        "s_layers": ",".join(map(str, depths)),
        "d_layers": len(model.decoder),
        "d_ff": encoder.layers[0].feed_forward.up.out_features,
        "dropout": model.encoder_embedding.dropout.rate,
        "attn": "prob",
        "embed": time.kind,
        "freq": _MARKS[model.num_marks],
        "activation": "relu" if activation is jax.nn.relu else "gelu",
        "distil": all(len(encoder.distils) == len(encoder.layers) - 1 for encoder in model.encoders),
        "mix": decoder.mix,
    }


def _informer_builder(config: Config) -> Builder:
    refuse_unlike(config, attn="prob")
    freq = config.get("freq", "h")
    if freq not in _FREQUENCIES:
        raise WeightsError(f"the config has freq={freq!r}; {', '.join(_FREQUENCIES)} are known here.")
    if not need_size(config, "enc_in") == need(config, "dec_in") == need(config, "c_out"):
        raise WeightsError("the config's enc_in, dec_in and c_out differ; only equal ones are built here.")
    stack = config.get("model") == "informerstack"
    arguments: dict[str, Any] = {
        "num_variates": need_size(config, "enc_in"),
        "lookback": need_size(config, "seq_len"),
        "horizon": need_size(config, "pred_len", "out_len"),
        "label_len": need(config, "label_len"),
        "num_marks": _FREQUENCIES[freq],
        "d_model": need_size(config, "d_model"),
        "num_heads": need_size(config, "n_heads"),
        "num_layers": need_size(config, "e_layers", most=256),
        "stack": tuple(map(int, config["s_layers"].split(","))) if stack else None,
        "decoder_layers": need_size(config, "d_layers", most=256),
        "d_ff": need_size(config, "d_ff"),
        "factor": need_size(config, "factor"),
        "distil": config.get("distil", True),
        "mix": config.get("mix", True),
        "time_embedding": config.get("embed", "timeF"),
        "activation": _activation(config),
        "dropout": config.get("dropout", 0.05),
    }
    return lambda **options: InformerForecaster(**arguments, **options)


def _itransformer_table(model: ITransformerForecaster) -> Table:
    require(isinstance(model.layers, nnx.List), "its layers are stacked; build it with scan_layers=False")
    require(model.config.mixer in ("softmax", "flowformer"), f"its mixer is {model.config.mixer}")
    table = linear("enc_embedding.value_embedding", "embedding")
    for i in range(len(model.layers)):
        layer = attention_table("attention", "mixer") + _feed_forward("ffn")
        layer += norm("norm1", "mixer_norm") + norm("norm2", "ffn_norm")
        table += inside(layer, f"encoder.attn_layers.{i}.", f"layers.{i}.")
    return table + norm("encoder.norm", "norm") + linear("projector", "projection")


def _itransformer_config(model: ITransformerForecaster) -> dict[str, Any]:
    config, sizes = model.config, model.sizes
    require(config.activation in ("gelu_exact", "relu"), f"its activation is {config.activation}")
    due = {"source_clamp": None} if config.mixer == "flowformer" else {}
    require(config.mixer_options == due, f"its mixer_options are {config.mixer_options}, not {due}")
    return {
        "model_type": "itransformer",
        "model": "iTransformer" if config.mixer == "softmax" else "iFlowformer",
        "enc_in": sizes.num_variates,
        "seq_len": sizes.lookback,
        "pred_len": sizes.horizon,
        "num_marks": sizes.num_marks,
        "d_model": config.d_model,
        "n_heads": config.num_heads,
        "e_layers": config.num_layers,
        "d_ff": config.d_ff,
        "dropout": config.dropout,
        "activation": config.activation.removesuffix("_exact"),
        "use_norm": int(model.use_norm),
    }


def _itransformer_builder(config: Config) -> Builder:
    mixers = {"iTransformer": "softmax", "iFlowformer": "flowformer"}
    name = config.get("model", "iTransformer")
    if name not in mixers:
        raise WeightsError(f"the config has model={name!r}; {' and '.join(mixers)} are built here.")
    flow = {"source_clamp": None}  # as in the authors' FlowAttention for series
    arguments: dict[str, Any] = {
        "num_variates": need_size(config, "enc_in", "n_variates"),
        "lookback": need_size(config, "seq_len"),
        "horizon": need_size(config, "pred_len"),
        "num_marks": config.get("num_marks", 4),
        "d_model": need_size(config, "d_model"),
        "num_heads": need_size(config, "n_heads"),
        "num_layers": need_size(config, "e_layers", most=256),
        "d_ff": need_size(config, "d_ff"),
        "dropout": config.get("dropout", 0.1),
        "activation": _activation(config),
        "use_norm": bool(config.get("use_norm", 1)),
        "mixer": mixers[name],
        "mixer_options": flow if name == "iFlowformer" else {},
    }
    return lambda **options: ITransformerForecaster(**arguments, **options)


FORMATS = (
    Format(
        "informer2020",
        "the authors' Informer2020",
        "model `informer_forecaster`",
        lambda module: isinstance(module, InformerForecaster),
        _informer_table,
        lambda config: config.get("model_type") == "informer2020",
        _informer_builder,
        lambda config: f"decoder.layers.{config['d_layers'] - 1}.",
        _informer_config,
    ),
    Format(
        "itransformer",
        "the authors' iTransformer",
        "model `itransformer_forecaster` with softmax or Flow-Attention",
        lambda module: isinstance(module, ITransformerForecaster),
        _itransformer_table,
        lambda config: config.get("model_type") == "itransformer",
        _itransformer_builder,
        lambda config: f"encoder.attn_layers.{config['e_layers'] - 1}.",
        _itransformer_config,
    ),
)
