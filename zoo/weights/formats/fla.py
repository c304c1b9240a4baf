"""flash-linear-attention: DeltaNet and Gated DeltaNet, layers and language models."""

from typing import Any

from zoo.mixers.deltanet import DeltaNet
from zoo.mixers.gated_deltanet import GatedDeltaNet
from zoo.models.causal_lm import CausalLM
from zoo.weights.formats.base import (
    Builder,
    Config,
    Format,
    need_size,
    refuse_architectures,
    refuse_unlike,
    require,
)
from zoo.weights.formats.language import is_lm, lm_builder, lm_table
from zoo.weights.tables import DEPTHWISE, Table, entry, inside, linear, norm

NAMES = {"embedding": "model.embeddings", "norm": "model.norm", "head": "lm_head", "layer": "model.layers.{i}"}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
_TYPES = {"delta_net": "deltanet", "gated_deltanet": "gated_deltanet"}


def layer_table(mixer: DeltaNet | GatedDeltaNet) -> Table:
    """Of one layer."""
    require(mixer.causal, "it is bidirectional")
    table: Table = []
    for ours, theirs in _PROJECTIONS.items():
        table += linear(theirs, ours, bias=False)
    direction = mixer.direction
    if direction.beta is not None:
        table += linear("b_proj", "direction.beta", bias=False)
    if isinstance(mixer, GatedDeltaNet):
        table += linear("a_proj", "direction.decay", bias=False)
        table += [entry(name, f"direction.{name}") for name in ("A_log", "dt_bias")]
    if mixer.gate is not None:
        table += linear("g_proj", "gate", bias=False)
    for i, conv in enumerate(direction.convs.each or ()):
        table += linear(f"{'qkv'[i]}_conv1d", f"direction.convs.each.{i}", bias=conv.bias is not None, layout=DEPTHWISE)
    return table + norm("o_norm", "norm", bias=False)


def _block(block: Any) -> Table:
    require(block.ffn is not None and block.ffn.gate is not None, "its feed-forward layers are not gated")
    table = norm("attn_norm", "mixer_norm", bias=False) + inside(layer_table(block.mixer), "attn.", "mixer.")
    table += norm("mlp_norm", "ffn_norm", bias=False)
    for part in ("gate", "up", "down"):
        require(getattr(block.ffn, part).bias is None, "its feed-forward layers have biases (ffn_bias)")
        table += linear(f"mlp.{part}_proj", f"ffn.{part}", bias=False)
    return table


def _builder(config: Config) -> Builder:
    refuse_unlike(config, hidden_act="swish", attn=None, attnres_block_size=None, use_output_norm=True)
    refuse_architectures(config, "DeltaNetForCausalLM", "GatedDeltaNetForCausalLM")
    kind = _TYPES[config["model_type"]]
    width = need_size(config, "hidden_size")
    options: dict[str, Any] = {"num_heads": need_size(config, "num_heads"), "norm_eps": config.get("norm_eps", 1e-6)}
    for name in ("use_gate", "use_short_conv", "conv_size", "allow_neg_eigval", "expand_v"):
        if name in config:
            options[name] = config[name]
    if kind == "deltanet":
        named = ("expand_k", "use_beta", "qk_activation", "qk_norm")
        options |= {name: config[name] for name in named if name in config}
    else:
        options |= {"d_head": need_size(config, "head_dim"), "num_v_heads": config.get("num_v_heads")}
    return lm_builder(
        kind,
        options,
        tie_embeddings=config.get("tie_word_embeddings", False),
        vocab_size=need_size(config, "vocab_size"),
        d_model=width,
        num_layers=need_size(config, "num_hidden_layers"),
        norm_eps=config.get("norm_eps", 1e-6),
        ffn="glu",
        ffn_bias=False,
        activation="silu",
        d_ff=config.get("intermediate_size") or _swiglu_width(width, config.get("hidden_ratio") or 4),
    )


def _swiglu_width(width: int, ratio: float) -> int:
    """Two thirds of `ratio` times the width, up to a multiple of 256."""
    return 256 * -(-int(width * ratio * 2 / 3) // 256)


def _config(model: CausalLM) -> dict[str, Any]:
    encoder, mixer = model.encoder.config, model.encoder.layers[0].mixer
    gated = isinstance(mixer, GatedDeltaNet)
    require(encoder.activation == "silu", "its feed-forward layers have another activation than silu")
    require(mixer.norm.epsilon == encoder.norm_eps, "its layers' eps is not that of its norms")
    _, d_key, d_value = mixer.heads
    convs = mixer.direction.convs.each
    require(not convs or convs[0].bias is None, "its convolutions have biases")
    config: dict[str, Any] = {
        "architectures": ["GatedDeltaNetForCausalLM" if gated else "DeltaNetForCausalLM"],
        "model_type": "gated_deltanet" if gated else "delta_net",
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.d_model,
        "num_hidden_layers": encoder.num_layers,
        "num_heads": mixer.num_heads,
        "norm_eps": encoder.norm_eps,
        "use_gate": mixer.gate is not None,
        "use_short_conv": bool(convs),
        "allow_neg_eigval": mixer.allow_neg_eigval,
        "hidden_act": "swish",
        "intermediate_size": encoder.d_ff or 4 * encoder.d_model,
        "tie_word_embeddings": model.kernel is None,
    }
    if convs:
        config["conv_size"] = convs[0].kernel_size
    if gated:
        return config | {"head_dim": d_key, "expand_v": d_value / d_key, "num_v_heads": mixer.num_v_heads}
    config |= {"expand_k": d_key * mixer.num_heads / encoder.d_model}
    config |= {"expand_v": d_value * mixer.num_heads / encoder.d_model}
    config |= {"use_beta": mixer.direction.beta is not None}
    return config | {"qk_activation": mixer.qk_activation, "qk_norm": mixer.qk_norm}


FORMATS = (
    Format(
        "fla",
        "flash-linear-attention, DeltaNetForCausalLM and GatedDeltaNetForCausalLM",
        "language models of `deltanet` and `gated_deltanet`",
        lambda module: is_lm(module, "deltanet") or is_lm(module, "gated_deltanet"),
        lambda model: lm_table(model, NAMES, _block),
        lambda config: config.get("model_type") in _TYPES,
        _builder,
        lambda config: f"model.layers.{config['num_hidden_layers'] - 1}.",
        _config,
    ),
    Format(
        "fla-layer",
        "a layer of flash-linear-attention",
        "mixers `deltanet` and `gated_deltanet`",
        lambda module: isinstance(module, DeltaNet | GatedDeltaNet),
        layer_table,
    ),
)
