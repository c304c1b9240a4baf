"""Informer's forecaster."""

import jax.numpy as jnp
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo import weights
from zoo.models.informer_forecaster import InformerForecaster


@comparison("informer_full", "model `informer_forecaster`", MODEL, ("default",))
def informer_full(arrays, _):
    """Encoder and decoder on the authors' inputs of both."""
    meta = arrays.meta
    model = InformerForecaster(
        num_variates=meta["enc_in"],
        lookback=meta["seq_len"],
        horizon=meta["out_len"],
        num_marks=4,
        label_len=meta["label_len"],
        d_model=meta["d_model"],
        num_heads=meta["n_heads"],
        num_layers=meta["e_layers"],
        decoder_layers=meta["d_layers"],
        d_ff=meta["d_ff"],
        factor=meta["factor"],
        rngs=nnx.Rngs(0),
    )
    weights.load(model, arrays.under("param/"))
    model.eval()
    run = nnx.jit(lambda model, *inputs: model.decode(*inputs))
    inputs = (jnp.asarray(arrays[f"in/{name}"]) for name in ("x_enc", "x_dec", "x_mark_enc", "x_mark_dec"))
    yield Found("out/y", run(model, *inputs))
