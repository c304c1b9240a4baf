"""Whole forecasters."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo.functional import count_parameters
from zoo.models.itransformer_forecaster import ITransformerForecaster


def load_itransformer(model, weights):
    """Weights under the authors' names, none of them left over."""

    def put(module, name):
        kernel = module.scale if isinstance(module, nnx.LayerNorm) else module.kernel
        value = weights.pop(f"{name}.weight")
        kernel[...] = value.reshape(value.shape[:2]).T if value.ndim > 1 else value
        module.bias[...] = weights.pop(f"{name}.bias")

    put(model.embedding, "enc_embedding.value_embedding")
    put(model.norm, "encoder.norm")
    put(model.projection, "projector")
    for index, block in enumerate(model.layers):
        layer = f"encoder.attn_layers.{index}"
        for name in ("query", "key", "value", "out"):
            put(getattr(block.mixer.projections, name), f"{layer}.attention.{name}_projection")
        put(block.ffn.up, f"{layer}.conv1")
        put(block.ffn.down, f"{layer}.conv2")
        put(block.mixer_norm, f"{layer}.norm1")
        put(block.ffn_norm, f"{layer}.norm2")
    assert not weights


@comparison("itransformer_full", "model `itransformer_forecaster`", MODEL, ("default",))
def itransformer_full(arrays, _):
    """The marks of the horizon, which neither model reads, are not a number."""
    meta, x, past = arrays.meta, arrays["in/x_enc"], arrays["in/x_mark_enc"]
    model: Any = ITransformerForecaster(
        num_variates=meta["n_variates"],
        lookback=meta["seq_len"],
        horizon=meta["pred_len"],
        num_marks=past.shape[2],
        d_model=meta["d_model"],
        num_layers=meta["e_layers"],
        num_heads=meta["n_heads"],
        d_ff=meta["d_ff"],
        rngs=nnx.Rngs(0),
    )
    model.eval()
    assert count_parameters(nnx.state(model, nnx.Param)) == sum(x.size for x in arrays.under("param/").values())
    load_itransformer(model, arrays.under("param/"))
    marks = np.concatenate([past, np.full((len(x), meta["pred_len"], past.shape[2]), np.nan, np.float32)], axis=1)
    yield Found("out/y", jax.jit(lambda model, x, marks: model(x, marks=marks))(model, x, marks))
