"""Whole layers of DeltaNet and Gated DeltaNet, with all gradients where the array has them."""

from flax import nnx

from goldens import MODEL, Found, comparison
from goldens.layers import DIRECTIONS, whole_layer
from zoo import weights
from zoo.mixers.deltanet import DeltaNet
from zoo.mixers.gated_deltanet import GatedDeltaNet

COMMON = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}


def names_of(causal, shared, per_direction):
    """flash-linear-attention's names by path of ours."""
    names = {f"{ours}/kernel": f"{theirs}.weight" for ours, theirs in shared.items()} | {"norm/scale": "o_norm.weight"}
    for ours, theirs in (("direction", ""), *(() if causal else [("backward_direction", "backward_")])):
        names |= {f"{ours}/{path}": theirs + name for path, name in per_direction.items()}
        names |= {f"{ours}/convs/each/{i}/kernel": f"{theirs}{name}_conv1d.weight" for i, name in enumerate("qkv")}
    return names


@comparison("deltanet_layer", "mixer `deltanet`", MODEL, ("causal",))
def deltanet_layer(arrays, _):
    options = {key: arrays.meta[key] for key in ("num_heads", "conv_size", "norm_eps")}
    layer = DeltaNet(arrays.meta["d_model"], **options, causal=True, rngs=nnx.Rngs(0))
    weights.load(layer, arrays.under("param/"))
    yield Found("out/y", nnx.jit(lambda layer, x: layer(x, deterministic=True))(layer, arrays["in/x"]))


def options_of(arrays, direction):
    options = {key: value for key, value in arrays.meta.items() if key != "source"}
    return options | {"causal": direction == "causal", "rngs": nnx.Rngs(0)}


@comparison("deltanet", "mixer `deltanet` with a gate and beta up to 2", MODEL, DIRECTIONS)
def deltanet(arrays, direction):
    layer = DeltaNet(arrays["in/x"].shape[-1], **options_of(arrays, direction))
    names = names_of(direction == "causal", COMMON | {"gate": "g_proj"}, {"beta/kernel": "b_proj.weight"})
    yield from whole_layer(layer, names, arrays, f"{direction}/")


@comparison("gated_deltanet", "mixer `gated_deltanet` with grouped values", MODEL, DIRECTIONS)
def gated_deltanet(arrays, direction):
    layer = GatedDeltaNet(arrays["in/x"].shape[-1], **options_of(arrays, direction))
    own = {"beta/kernel": "b_proj.weight", "decay/kernel": "a_proj.weight", "A_log": "A_log", "dt_bias": "dt_bias"}
    names = names_of(direction == "causal", COMMON | {"gate": "g_proj"}, own)
    yield from whole_layer(layer, names, arrays, f"{direction}/")
