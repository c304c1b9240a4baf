"""Nyström attention, Flow-Attention and ProbSparse attention, as ops and in their layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goldens import MODEL, OP, Found, comparison
from zoo.mixers.flowformer import Flowformer
from zoo.mixers.nystromformer import Nystromformer
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


def load_nystromformer(mixer, weights, prefix):
    """Weights of one attention layer under the names of the published checkpoints."""
    for name, ours in (("self.query", "query"), ("self.key", "key"), ("self.value", "value"), ("output.dense", "out")):
        linear = getattr(mixer.projections, ours)
        linear.kernel[...] = weights[f"{prefix}.{name}.weight"].T
        linear.bias[...] = weights[f"{prefix}.{name}.bias"]
    mixer.conv_kernel[...] = weights[f"{prefix}.self.conv.weight"][:, 0, :, 0].T


@comparison("nystromformer_hf", "mixer `nystromformer` in the published encoder", MODEL)
def nystromformer_hf(arrays, implementation):
    meta, weights = arrays.meta, arrays.under("param/")

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    ids = arrays["in/input_ids"]
    tables = [weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = norm(tables[0][ids] + tables[1][2 : ids.shape[1] + 2] + tables[2][0], "embeddings.LayerNorm")
    mixer = Nystromformer(
        meta["hidden_size"],
        num_heads=meta["num_attention_heads"],
        num_landmarks=meta["num_landmarks"],
        conv_kernel_size=meta["conv_kernel_size"],
        pinv_init="global",
        landmarks="padded",
        implementation=implementation,
        rngs=nnx.Rngs(0),
    )
    for i in range(meta["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        load_nystromformer(mixer, weights, f"{layer}.attention")
        x = norm(x + np.asarray(call(mixer, jnp.asarray(x))), f"{layer}.attention.output.LayerNorm")
        hidden = np.asarray(jax.nn.gelu(dense(x, f"{layer}.intermediate.dense"), approximate=True))
        x = norm(x + dense(hidden, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    yield Found("out/last_hidden_state", x)


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
    for name in ("query", "key", "value", "out"):
        linear = getattr(layer.projections, name)
        linear.kernel[...] = arrays[f"param/{name}_projection.weight"].T
        linear.bias[...] = arrays[f"param/{name}_projection.bias"]
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
