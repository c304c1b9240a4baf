"""Whole layers with all gradients: linear attention, RetNet, GLA."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goldens import MODEL, Found, comparison
from zoo.mixers.gla import GLA
from zoo.mixers.linear_attention import LinearAttention
from zoo.mixers.retnet import RetNet

DIRECTIONS = ("causal", "bidirectional")


def at(tree, path):
    """The part of a module or a state at a/b/c."""
    for name in path.split("/"):
        key = int(name) if name.isdigit() else name
        tree = tree[key] if isinstance(tree, dict | nnx.State | nnx.List) else getattr(tree, name)
    return tree


def turned(x, like=None):
    """PyTorch's layouts to ours, [out, in] to [in, out] and [D, 1, W] to [W, D]; and back, with the shape of `like`."""
    if like is not None and like.ndim == 3:
        return x.T[:, None]
    return x[:, 0].T if x.ndim == 3 else x.T


def load(layer, names, arrays):
    """Fills all parameters of a layer; `names` are theirs by path of ours."""
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == len(names)
    for ours, theirs in names.items():
        at(layer, ours)[...] = turned(arrays[f"param/{theirs}"])
    return layer


def whole_layer(layer, names, arrays, prefix=""):
    """Outputs, those with padding (zero there), and gradients of `sum(y * cotangent)`, of what the array has."""
    graph, params = nnx.split(load(layer, names, arrays), nnx.Param)
    mask = arrays.get("in/mask")

    @jax.jit
    def run(params, x, cotangent):
        y, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)
        masked = None if mask is None else nnx.merge(graph, params)(x, mask=mask)
        return y, masked, pull(cotangent)

    x = jnp.asarray(arrays["in/x"])
    y, masked, (dparams, dx) = run(params, x, jnp.asarray(arrays.get("in/cotangent", x)))
    yield Found(f"{prefix}out/y", y)
    if masked is not None:
        yield Found(f"{prefix}out/y_masked", np.where(mask[..., None], masked, 0))
    if "in/cotangent" in arrays:
        yield Found(f"{prefix}grad/x", dx)
        for ours, theirs in names.items():
            gradient = at(dparams, ours)[...]
            yield Found(f"{prefix}grad/{theirs}", turned(gradient, arrays[f"param/{theirs}"]))
        for theirs in arrays.under("param/").keys() - names.values():
            # Our causal layers have no parameters of a backward direction, which theirs do not use.
            yield Found(f"{prefix}grad/{theirs}", np.zeros_like(arrays[f"param/{theirs}"]))


@comparison("linear_attention", "mixer `linear_attention`", MODEL, DIRECTIONS)
def linear_attention(arrays, direction):
    x, heads = arrays["in/x"], arrays.meta["num_heads"]
    layer = LinearAttention(x.shape[-1], num_heads=heads, causal=direction == "causal", rngs=nnx.Rngs(0))
    names = {}
    for name in ("query", "key", "value", "out"):
        names[f"projections/{name}/kernel"] = f"{name}_projection.weight"
        names[f"projections/{name}/bias"] = f"{name}_projection.bias"
    yield from whole_layer(layer, names, arrays, f"{direction}/")


@comparison("retnet", "mixer `retnet`", MODEL, DIRECTIONS)
def retnet(arrays, direction):
    x, heads = arrays["in/x"], arrays.meta["num_heads"]
    layer = RetNet(x.shape[-1], num_heads=heads, causal=direction == "causal", rngs=nnx.Rngs(0))
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "out_proj"}
    names = {f"{ours}/kernel": f"{theirs}.weight" for ours, theirs in names.items()}
    yield from whole_layer(layer, names, arrays, f"{direction}/")


@comparison("gla", "mixer `gla`", MODEL, DIRECTIONS)
def gla(arrays, direction):
    options = {"num_heads": arrays.meta["num_heads"], "gate_rank": arrays.meta["gate_rank"]}
    layer = GLA(arrays["in/x"].shape[-1], **options, causal=direction == "causal", rngs=nnx.Rngs(0))
    linear = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "o_proj"}
    linear |= {"decay_rank": "gk_proj.0", "direction/decay": "gk_proj.1"}
    linear |= {} if direction == "causal" else {"backward_direction/decay": "backward_gk_proj.1"}
    names = {f"{ours}/kernel": f"{theirs}.weight" for ours, theirs in linear.items()}
    names |= {f"{ours}/bias": f"{theirs}.bias" for ours, theirs in linear.items() if ours.endswith("/decay")}
    yield from whole_layer(layer, names | {"norm/scale": "g_norm.weight"}, arrays, f"{direction}/")
