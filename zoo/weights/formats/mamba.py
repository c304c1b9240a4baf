"""Mamba and Mamba-2: Hugging Face's `MambaForCausalLM` and `Mamba2ForCausalLM`, and the authors' `mamba_ssm`."""

import math
from typing import Any

from zoo.mixers.mamba import Mamba
from zoo.mixers.mamba2 import Mamba2
from zoo.models.causal_lm import CausalLM
from zoo.weights.errors import WeightsError
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
from zoo.weights.formats.language import is_lm, lm_builder, lm_table
from zoo.weights.tables import DEPTHWISE, LINEAR, Table, entry, inside, linear, norm

HF_NAMES = {"embedding": "backbone.embeddings", "norm": "backbone.norm_f", "head": "lm_head"}
HF_NAMES |= {"layer": "backbone.layers.{i}"}
AUTHORS_NAMES = {**HF_NAMES, "embedding": "backbone.embedding"}
_NORM_EPS = 1e-5
# Of speed, or of initial values, which are replaced.
_WITHOUT_EFFECT = {"chunk_size", "use_fast_path", "use_mem_eff_path", "dt_init", "dt_scale", "dt_min", "dt_max"}
_WITHOUT_EFFECT |= {"dt_init_floor", "A_init_range"}


def mamba_table(mixer: Mamba) -> Table:
    """Of one Mamba layer."""
    require(mixer.causal, "it is bidirectional")
    ssm = mixer.ssm
    biased = mixer.in_proj.bias is not None
    table = linear("in_proj", "in_proj", bias=biased) + linear("out_proj", "out_proj", bias=biased)
    table += linear("conv1d", "ssm.conv", bias=ssm.conv.bias is not None, layout=DEPTHWISE)
    table += linear("x_proj", "ssm.x_proj", bias=False)
    table += [entry("dt_proj.weight", "ssm.dt_proj.kernel", LINEAR), entry("dt_proj.bias", "ssm.dt_bias")]
    return [*table, entry("A_log", "ssm.A_log"), entry("D", "ssm.D")]


def mamba2_table(mixer: Mamba2) -> Table:
    """Of one Mamba-2 layer."""
    require(mixer.causal, "it is bidirectional")
    biased = mixer.in_proj.bias is not None
    table = linear("in_proj", "in_proj", bias=biased) + linear("out_proj", "out_proj", bias=biased)
    table += linear("conv1d", "ssd.conv", bias=mixer.ssd.conv.bias is not None, layout=DEPTHWISE)
    table += [entry(name, f"ssd.{name}") for name in ("dt_bias", "A_log", "D")]
    return table if mixer.norm_scale is None else [*table, entry("norm.weight", "norm_scale")]


def _block(mixer_table: Any):
    def table(block: Any) -> Table:
        require(block.ffn is None, "it has feed-forward layers")
        return norm("norm", "mixer_norm", bias=False) + inside(mixer_table(block.mixer), "mixer.", "mixer.")

    return table


def mamba_lm_table(model: CausalLM, names: dict[str, str]) -> Table:
    """Of a language model of Mamba or Mamba-2."""
    mixer_table = mamba_table if model.encoder.config.mixer == "mamba" else mamba2_table
    return lm_table(model, names, _block(mixer_table))


def _is_mamba(module: Any) -> bool:
    return is_lm(module, "mamba") or is_lm(module, "mamba2")


def _hf_builder(config: Config) -> Builder:
    refuse_unlike(config, hidden_act="silu")
    refuse_architectures(config, "MambaForCausalLM", "Mamba2ForCausalLM")
    if "norm_eps" in config or "dt_limit" in config:
        raise WeightsError("this is flash-linear-attention's Mamba, whose config has other names; it is not read here.")
    options: dict[str, Any] = {
        "d_state": need_size(config, "state_size"),
        "d_conv": need_size(config, "conv_kernel"),
        "expand": need(config, "expand"),
        "conv_bias": config.get("use_conv_bias", True),
        "proj_bias": config.get("use_bias", False),
    }
    second = config["model_type"] == "mamba2"
    if second:
        width = int(options["expand"] * need_size(config, "hidden_size"))
        if need_size(config, "num_heads") * need_size(config, "head_dim") != width:
            raise WeightsError(f"the config's num_heads times head_dim is not expand * hidden_size = {width}.")
        limit = config.get("time_step_limit") or (0.0, math.inf)
        options |= {
            "d_head": config["head_dim"],
            "num_groups": need_size(config, "n_groups"),
            "dt_limit": (float(limit[0]), float(limit[1])),
            "norm_eps": config.get("layer_norm_epsilon", _NORM_EPS),
            "gated_norm": config.get("rms_norm", True),
        }
    elif config.get("time_step_rank", "auto") != "auto":
        options["dt_rank"] = need_size(config, "time_step_rank")
    return lm_builder(
        config["model_type"],
        options,
        tie_embeddings=config.get("tie_word_embeddings", not second),
        vocab_size=need_size(config, "vocab_size"),
        d_model=need_size(config, "hidden_size"),
        num_layers=need_size(config, "num_hidden_layers"),
        norm_eps=config.get("layer_norm_epsilon", _NORM_EPS),
        ffn="none",
    )


def _hf_config(model: CausalLM) -> dict[str, Any]:
    encoder, mixer = model.encoder.config, model.encoder.layers[0].mixer
    second = isinstance(mixer, Mamba2)
    conv = (mixer.ssd if second else mixer.ssm).conv
    config: dict[str, Any] = {
        "architectures": ["Mamba2ForCausalLM" if second else "MambaForCausalLM"],
        "model_type": "mamba2" if second else "mamba",
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.d_model,
        "num_hidden_layers": encoder.num_layers,
        "layer_norm_epsilon": encoder.norm_eps,
        "expand": _whole(mixer.width / encoder.d_model),
        "conv_kernel": conv.kernel_size,
        "use_conv_bias": conv.bias is not None,
        "use_bias": mixer.in_proj.bias is not None,
        "hidden_act": "silu",
        "tie_word_embeddings": model.kernel is None,
    }
    if not second:
        return config | {"state_size": mixer.ssm.d_state, "time_step_rank": mixer.ssm.dt_rank}
    require(not mixer.norm_before_gate and mixer.norm_scale is not None, "its norm is not that of a gated output")
    require(mixer.norm_eps == encoder.norm_eps, "its layers' eps is not that of its norms")
    require(mixer.ssd.D.get_value().ndim == 1, "it has a skip of every channel (skip_per_channel)")
    groups, d_state = mixer.ssd.keys
    heads, d_head = mixer.ssd.heads
    return config | {
        "state_size": d_state,
        "num_heads": heads,
        "head_dim": d_head,
        "n_groups": groups,
        "time_step_limit": list(mixer.ssd.dt_limit),
        "rms_norm": True,
    }


def _whole(ratio: float) -> float:
    return int(ratio) if ratio == int(ratio) else ratio


def _authors_builder(config: Config) -> Builder:
    """Of mamba_ssm's `MambaConfig`."""
    ssm = dict(config.get("ssm_cfg") or {})
    kind = {"Mamba1": "mamba", "Mamba2": "mamba2"}.get(ssm.pop("layer", "Mamba1"))
    if kind is None:
        raise WeightsError(f"the config's ssm_cfg.layer={config['ssm_cfg']['layer']!r} is not Mamba1 or Mamba2.")
    if config.get("attn_layer_idx") or config.get("d_intermediate"):
        raise WeightsError("the config has attention or feed-forward layers between those of Mamba: not built here.")
    refuse_unlike(config, rms_norm=True)
    known = {"d_state": "d_state", "d_conv": "d_conv", "expand": "expand", "conv_bias": "conv_bias"}
    known |= {"bias": "proj_bias", "dt_rank": "dt_rank"} if kind == "mamba" else {"bias": "proj_bias"}
    known |= {"headdim": "d_head", "ngroups": "num_groups", "norm_before_gate": "norm_before_gate"}
    ssm = {name: value for name, value in ssm.items() if name not in _WITHOUT_EFFECT and value != "auto"}
    if unknown := sorted(set(ssm) - set(known)):
        raise WeightsError(f"the config's ssm_cfg has {', '.join(unknown)}, which is not known here.")
    vocabulary = need_size(config, "vocab_size")
    multiple = need_size({"pad_vocab_size_multiple": 8, **config}, "pad_vocab_size_multiple")
    return lm_builder(
        kind,
        {known[name]: value for name, value in ssm.items()},
        tie_embeddings=config.get("tie_embeddings", True),
        vocab_size=-(-vocabulary // multiple) * multiple,
        d_model=need_size(config, "d_model"),
        num_layers=need_size(config, "n_layer"),
        norm_eps=_NORM_EPS,
        ffn="none",
    )


def _authors_config(model: CausalLM) -> dict[str, Any]:
    hf, mixer = _hf_config(model), model.encoder.layers[0].mixer
    require(hf["layer_norm_epsilon"] == _NORM_EPS, f"norm_eps is not {_NORM_EPS}")
    ssm = {"d_state": hf["state_size"], "d_conv": hf["conv_kernel"], "expand": hf["expand"]}
    ssm |= {"conv_bias": hf["use_conv_bias"], "bias": hf["use_bias"]}
    if isinstance(mixer, Mamba2):
        require(mixer.ssd.dt_limit == (0.0, math.inf), "it limits its time steps")
        ssm |= {"layer": "Mamba2", "headdim": hf["head_dim"], "ngroups": hf["n_groups"]}
    else:
        ssm |= {"layer": "Mamba1", "dt_rank": hf["time_step_rank"]}
    return {
        "d_model": hf["hidden_size"],
        "n_layer": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "ssm_cfg": ssm,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": hf["tie_word_embeddings"],
    }


FORMATS = (
    Format(
        "mamba-hf",
        "Hugging Face transformers, MambaForCausalLM and Mamba2ForCausalLM",
        "language models of `mamba` and `mamba2`",
        _is_mamba,
        lambda model: mamba_lm_table(model, HF_NAMES),
        lambda config: config.get("model_type") in ("mamba", "mamba2"),
        _hf_builder,
        lambda config: f"backbone.layers.{config['num_hidden_layers'] - 1}.",
        _hf_config,
    ),
    Format(
        "mamba",
        "the authors' mamba_ssm, MambaLMHeadModel",
        "language models of `mamba` and `mamba2`",
        _is_mamba,
        lambda model: mamba_lm_table(model, AUTHORS_NAMES),
        lambda config: "n_layer" in config and "d_model" in config and "model_type" not in config,
        _authors_builder,
        lambda config: f"backbone.layers.{config['n_layer'] - 1}.",
        _authors_config,
    ),
    Format(
        "mamba-layer",
        "a layer of mamba_ssm or Hugging Face transformers",
        "mixers `mamba` and `mamba2`",
        lambda module: isinstance(module, Mamba | Mamba2),
        lambda mixer: mamba_table(mixer) if isinstance(mixer, Mamba) else mamba2_table(mixer),
    ),
)
