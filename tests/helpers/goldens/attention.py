"""Nyström attention, Flow-Attention and ProbSparse attention, as ops and in their layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import zoo
from goldens import MODEL, OP, Found, comparison
from zoo import weights
from zoo.mixers.flowformer import Flowformer
from zoo.ops.flow_attention import flow_attention
from zoo.ops.nystrom_attention import nystrom_attention
from zoo.ops.probsparse_attention import probsparse_attention

call = nnx.jit(lambda layer, x: layer(x, deterministic=True))


@comparison("nystrom_op", "`nystrom_attention`", OP, ("xla", "reference"), slow=("reference",))
@comparison("nystrom_op_per_matrix_masked", "`nystrom_attention`", OP, ("xla", "reference"))
def nystrom_op(arrays, implementation):
    """[B, H, T, K]; outputs of padded queries have no meaning."""
    q, k, v = (arrays[f"in/{name}"].swapaxes(1, 2) for name in "qkv")
    mask = arrays["in/mask"] > 0
    kernel = arrays["param/conv.weight"][:, 0, :, 0].T if "param/conv.weight" in arrays else None
    options = {key: arrays.meta[key] for key in ("num_landmarks", "pinv_iterations", "pinv_init")}
    run = functools.partial(nystrom_attention, landmarks="padded", implementation=implementation, **options)
    y = np.asarray(jax.jit(run)(q, k, v, mask=mask, conv_kernel=kernel)).swapaxes(1, 2)
    yield Found("out/y", y, np.broadcast_to(mask[:, None], y.shape[:3]))


@comparison("nystromformer_hf", "`NystromformerEncoder`", MODEL)
def nystromformer_hf(arrays, implementation):
    """The whole encoder of Hugging Face."""
    del implementation  # the encoder takes the best
    meta = arrays.meta
    model = zoo.NystromformerEncoder(
        vocab_size=meta["vocab_size"],
        d_model=meta["hidden_size"],
        num_layers=meta["num_hidden_layers"],
        num_heads=meta["num_attention_heads"],
        d_ff=meta["intermediate_size"],
        max_len=meta["max_position_embeddings"],
        num_landmarks=meta["num_landmarks"],
        conv_kernel_size=meta["conv_kernel_size"],
        pinv_init="global",
        landmarks="padded",
        rngs=nnx.Rngs(0),
    )
    weights.load(model, arrays.under("param/"))
    yield Found("out/last_hidden_state", call(model, jnp.asarray(arrays["in/input_ids"])))


@comparison("flow_attention", "`flow_attention`", OP, ("xla", "reference"))
@comparison("flow_attention_causal", "`flow_attention`, causal", OP, ("xla", "reference"))
def flow_op(arrays, implementation):
    """The projections around it in NumPy."""

    def project(name, x):
        return x @ arrays[f"param/{name}_projection.weight"].T + arrays[f"param/{name}_projection.bias"]

    names = {"query": "queries", "key": "keys", "value": "values"}
    q, k, v = (project(name, arrays[f"in/{source}"]) for name, source in names.items())
    split = [x.reshape(*x.shape[:2], arrays.meta["n_heads"], -1) for x in (q, k, v)]
    run = functools.partial(flow_attention, causal=arrays.meta["causal"], implementation=implementation, chunk_size=8)
    yield Found("out/y", project("out", np.asarray(jax.jit(run)(*split)).reshape(v.shape)))


@comparison("flow_attention", "mixer `flowformer`", OP)
@comparison("flow_attention_causal", "mixer `flowformer`, causal", OP)
def flow_layer(arrays, implementation):
    meta, x = arrays.meta, arrays["in/queries"]
    np.testing.assert_array_equal(x, arrays["in/keys"])
    options = {"num_heads": meta["n_heads"], "causal": meta["causal"], "implementation": implementation}
    layer = Flowformer(meta["d_model"], **options, rngs=nnx.Rngs(0))
    weights.load(layer, arrays.under("param/"))
    yield Found("out/y", call(layer, x))


@comparison("probsparse_op", "`probsparse_attention`", OP, ("xla", "reference"))
@comparison("probsparse_op_causal", "`probsparse_attention`, causal", OP, ("xla", "reference"))
def probsparse_op(arrays, implementation):
    """With the authors' sample of keys; causal, their choice of queries and cumulative sum."""
    options = {"factor": arrays.meta["factor"], "causal": arrays.meta["causal"], "implementation": implementation}
    run = functools.partial(probsparse_attention, selection="authors", causal_context="cumsum", **options)
    indices = arrays["in/sample_indices"].astype(np.int32)
    q, k, v = (arrays[f"in/{name}"] for name in "qkv")
    yield Found("out/y", jax.jit(run)(q, k, v, sample_indices=indices))
