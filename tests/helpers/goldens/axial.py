"""Axial attention: both forms of the layer."""

import numpy as np
from flax import nnx

from goldens import OP, Found, comparison
from goldens.attention import call
from zoo import weights
from zoo.mixers.axial import Axial


@comparison("axial_2d_sum", "mixer `axial`, the sum", OP, ("xla", "reference"))
@comparison("axial_2d_sequential", "mixer `axial`", OP, ("xla", "reference"))
def axial_layer(arrays, implementation):
    """The image as a sequence by rows, and back."""
    meta, x = arrays.meta, arrays["in/x"]
    form = "sum" if meta["sum_axial_out"] else "alternating"
    options = {"shape": meta["shape"], "num_heads": meta["heads"], "form": form, "implementation": implementation}
    mixer = Axial(x.shape[-1], **options, rngs=nnx.Rngs(0))
    weights.load(mixer, arrays.under("param/"))
    yield Found("out/y", np.asarray(call(mixer, x.reshape(len(x), -1, x.shape[-1]))).reshape(x.shape))
