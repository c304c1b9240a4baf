"""Language models around a recurrent mixer: what their formats share."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx

from zoo.encoder import EncoderConfig
from zoo.models.causal_lm import CausalLM
from zoo.weights.formats.base import Builder, require
from zoo.weights.tables import LINEAR, Entry, Table, entry, inside, norm


def is_lm(module: nnx.Module, mixer: str) -> bool:
    """Whether a module is a language model around that mixer."""
    return isinstance(module, CausalLM) and module.encoder.config.mixer == mixer


def lm_table(model: CausalLM, names: dict[str, str], block: Any) -> Table:
    """The table of a language model.

    Args:
      model: the model.
      names: of "embedding", "norm", "head", and "layer", with an {i} for its number.
      block: gives the table of one block.
    """
    require(isinstance(model.encoder.layers, nnx.List), "its layers are stacked; build it with scan_layers=False")
    config = model.encoder.config
    require(config.positions == "none" and config.norm_kind == "rms" and config.norm == "pre", "its norms or positions")
    table = [entry(f"{names['embedding']}.weight", "encoder.embedding.table.embedding")]
    for i, layer in enumerate(model.encoder.layers):
        table += inside(block(layer), f"{names['layer'].format(i=i)}.", f"encoder.layers.{i}.")
    table += norm(names["norm"], "encoder.norm", bias=False)
    if model.kernel is None:
        tied = Entry(f"{names['head']}.weight", ("encoder.embedding.table.embedding",), optional=True)
        return [*table, tied]
    return [*table, Entry(f"{names['head']}.weight", ("kernel",), LINEAR)]


def lm_builder(mixer: str, mixer_options: dict[str, Any], *, tie_embeddings: bool, **fields: Any) -> Builder:
    """Builds a `CausalLM`; fields are those of `EncoderConfig`."""
    config = EncoderConfig(
        mixer=mixer,
        mixer_options=mixer_options,
        norm_kind="rms",
        positions="none",
        causal=True,
        **fields,
    )

    def build(*, rngs: nnx.Rngs, dtype: Any, param_dtype: Any) -> CausalLM:
        dtypes = {"dtype": jnp.dtype(dtype).name, "param_dtype": jnp.dtype(param_dtype).name}
        return CausalLM(dataclasses.replace(config, **dtypes), tie_embeddings=tie_embeddings, rngs=rngs)

    return build
