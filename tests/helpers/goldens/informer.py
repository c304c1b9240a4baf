"""Informer's forecaster."""

import jax.numpy as jnp
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo.models.informer_forecaster import InformerForecaster


def load_informer(model, weights):
    """The authors' weights, under their names, into `model`."""

    def linear(ours, name):
        weight = weights[f"{name}.weight"]
        ours.kernel[...] = (weight[..., 0] if weight.ndim == 3 else weight).T
        ours.bias[...] = weights[f"{name}.bias"]

    def conv(ours, name):
        ours.kernel[...] = weights[f"{name}.weight"].transpose(2, 1, 0)
        ours.bias[...] = weights[f"{name}.bias"]

    def norm(ours, name):
        ours.scale[...] = weights[f"{name}.weight"]
        ours.bias[...] = weights[f"{name}.bias"]

    def attention(ours, name):
        for part in ("query", "key", "value", "out"):
            linear(getattr(ours.projections, part), f"{name}.{part}_projection")

    def feed_forward(ours, name):
        linear(ours.up, f"{name}.conv1")
        linear(ours.down, f"{name}.conv2")

    for ours, name in ((model.encoder_embedding, "enc_embedding"), (model.decoder_embedding, "dec_embedding")):
        conv(ours.values, f"{name}.value_embedding.tokenConv")
        linear(ours.time.linear, f"{name}.temporal_embedding.embed")
    encoder = model.encoders[0]
    for i, layer in enumerate(encoder.layers):
        name = f"encoder.attn_layers.{i}"
        attention(layer.attention, f"{name}.attention")
        feed_forward(layer.feed_forward, name)
        norm(layer.attention_norm, f"{name}.norm1")
        norm(layer.feed_forward_norm, f"{name}.norm2")
    for i, distil in enumerate(encoder.distils):
        name = f"encoder.conv_layers.{i}"
        conv(distil.conv, f"{name}.downConv")
        norm(distil.norm, f"{name}.norm")
        distil.norm.mean[...] = weights[f"{name}.norm.running_mean"]
        distil.norm.var[...] = weights[f"{name}.norm.running_var"]
    norm(encoder.norm, "encoder.norm")
    for i, layer in enumerate(model.decoder):
        name = f"decoder.layers.{i}"
        attention(layer.attention, f"{name}.self_attention")
        attention(layer.cross, f"{name}.cross_attention")
        feed_forward(layer.feed_forward, name)
        for j, part in enumerate(("attention_norm", "cross_norm", "feed_forward_norm"), 1):
            norm(getattr(layer, part), f"{name}.norm{j}")
    norm(model.decoder_norm, "decoder.norm")
    linear(model.projection, "projection")


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
    load_informer(model, arrays.under("param/"))
    model.eval()
    run = nnx.jit(lambda model, *inputs: model.decode(*inputs))
    inputs = (jnp.asarray(arrays[f"in/{name}"]) for name in ("x_enc", "x_dec", "x_mark_enc", "x_mark_dec"))
    yield Found("out/y", run(model, *inputs))
