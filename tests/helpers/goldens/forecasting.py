"""Whole forecasters."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo import weights
from zoo.functional import count_parameters
from zoo.models.itransformer_forecaster import ITransformerForecaster


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
    weights.load(model, arrays.under("param/"))
    marks = np.concatenate([past, np.full((len(x), meta["pred_len"], past.shape[2]), np.nan, np.float32)], axis=1)
    yield Found("out/y", jax.jit(lambda model, x, marks: model(x, marks=marks))(model, x, marks))
