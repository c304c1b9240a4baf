"""Axial attention: both forms of the layer."""

import numpy as np
from flax import nnx

from goldens import OP, Found, comparison
from goldens.attention import call
from zoo.mixers.axial import Axial


def load_axial(mixer, weights):
    """Weights of the layer under the authors' names, none of them left over; keys come before values in one matrix."""
    for index, layer in enumerate(mixer.axes):
        projections, name = layer.projections, f"axial_attentions.{index}.fn"
        key, value = np.split(weights.pop(f"{name}.to_kv.weight"), 2)
        matrices = {"query": weights.pop(f"{name}.to_q.weight"), "key": key, "value": value}
        matrices["out"] = weights.pop(f"{name}.to_out.weight")
        for ours, matrix in matrices.items():
            getattr(projections, ours).kernel[...] = matrix.T
        projections.out.bias[...] = weights.pop(f"{name}.to_out.bias")
    assert not weights


@comparison("axial_2d_sum", "mixer `axial`, the sum", OP, ("xla", "reference"))
@comparison("axial_2d_sequential", "mixer `axial`", OP, ("xla", "reference"))
def axial_layer(arrays, implementation):
    """The image as a sequence by rows, and back."""
    meta, x = arrays.meta, arrays["in/x"]
    form = "sum" if meta["sum_axial_out"] else "alternating"
    options = {"shape": meta["shape"], "num_heads": meta["heads"], "form": form, "implementation": implementation}
    mixer = Axial(x.shape[-1], **options, rngs=nnx.Rngs(0))
    load_axial(mixer, arrays.under("param/"))
    yield Found("out/y", np.asarray(call(mixer, x.reshape(len(x), -1, x.shape[-1]))).reshape(x.shape))
