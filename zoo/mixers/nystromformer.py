"""Nyströmformer: multi-head self-attention by the Nyström method (arXiv:2102.03902)."""

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.nystrom_attention import Landmarks, PinvInit, check_options, nystrom_attention
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float

# Uniform in +-1/sqrt(W), the authors' (PyTorch's Conv2d) default for the depth-wise filters.
_TORCH_CONV_INIT = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@register_mixer(
    "nystromformer",
    title="Nyströmformer: softmax attention through landmarks and an iterated pseudo-inverse",
    paper="arXiv:2102.03902 (AAAI 2021)",
    time="O(T)",
    memory="O(T)",
    causal=False,
    bidirectional=True,
    padding_mask=True,
    decode=False,
    fixed_length=False,
    test_args={"num_heads": 2, "num_landmarks": 8, "conv_kernel_size": 5},
    notes="Its landmarks average over the whole sequence, the future included. Exact softmax attention (plus the "
    "convolution) for examples of at most num_landmarks tokens.",
)
class Nystromformer(nnx.Module):
    """Multi-head Nyström self-attention with the authors' depth-wise convolution of the values.

    The defaults differ from the authors' code in two points, each of which is a named option. Their pseudo-inverse
    starts from a maximum over the whole batch (`pinv_init="global"`), which makes an example's output depend on its
    batch mates. Their landmarks are means over segments of the padded length (`landmarks="padded"`), which makes it
    depend on the amount of padding. With both options set, this is the attention of the authors' LRA code (and, without
    padding, of the Hugging Face model).

    Args:
      d_model: D, the width of the input and the output.
      num_heads: H.
      d_head: K, the width of one head; None for D / H.
      num_landmarks: m. Time and memory grow with T * m.
      conv_kernel_size: odd width of the convolution along T that is added to the attention, one filter per head; None
        for none. The authors use 35 for LRA, 33 for language modelling, 65 in the published checkpoints.
      pinv_iterations: steps of the pseudo-inverse.
      pinv_init: "per_matrix", "global" or "global_product", see `zoo.ops.nystrom_attention.iterative_pinv`.
      landmarks: "valid" or "padded", see `zoo.ops.nystrom_attention.nystrom_attention`.
      use_bias: biases of the query, key and value maps.
      out_bias: bias of the output map; None for `use_bias`.
      causal: must be False.
      dropout: rate after the output projection. The authors have none on the attention itself; their dropout there is
        that of the block, before the residual, so leave this at 0 inside a block that has its own.
      kernel_init, bias_init: initialisers of the projections. The authors' (PyTorch's) weights have standard deviation
        1/sqrt(3 D), against 1/sqrt(D) here.
      conv_init: initialiser of the filters [W, H].
      implementation: of `nystrom_attention`: "xla", "reference" or None for the best.
      dtype: dtype of the projections and of the output; None to promote input and parameters for the one, and to return
        the input's dtype. The attention is computed in float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: `causal=True`, an even `conv_kernel_size`, a size that is not positive, or an unknown option.
    """

    implementations = ("xla", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        d_head: int | None = None,
        num_landmarks: int = 64,
        conv_kernel_size: int | None = 35,
        pinv_iterations: int = 6,
        pinv_init: PinvInit = "per_matrix",
        landmarks: Landmarks = "valid",
        use_bias: bool = True,
        out_bias: bool | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        kernel_init: nnx.Initializer = initializers.lecun_normal(),
        bias_init: nnx.Initializer = initializers.zeros_init(),
        conv_init: nnx.Initializer = _TORCH_CONV_INIT,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_options(num_landmarks, pinv_iterations, pinv_init, landmarks, causal)
        if conv_kernel_size is not None and (conv_kernel_size < 1 or conv_kernel_size % 2 == 0):
            raise ValueError(f"conv_kernel_size must be odd and positive, or None; got {conv_kernel_size}.")
        self.d_model = d_model
        self.num_landmarks = num_landmarks
        self.pinv_iterations = pinv_iterations
        self.pinv_init: PinvInit = pinv_init
        self.landmarks: Landmarks = landmarks
        self.implementation = implementation
        self.dtype = dtype
        self.projections = HeadProjections(
            d_model,
            num_heads,
            d_head,
            use_bias=use_bias,
            out_bias=out_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        if conv_kernel_size is None:
            self.conv_kernel = nnx.data(None)
        else:
            self.conv_kernel = nnx.Param(conv_init(rngs.params(), (conv_kernel_size, num_heads), param_dtype))
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T D"]:
        """Mixes `x` along T.

        Args:
          x: the input.
          mask: True at real tokens; None where all are. Outputs at masked positions mean nothing.
          deterministic: no dropout; None for the module's own setting (`train()`, `eval()`).
          rngs: for the dropout, stream "dropout".

        Raises:
          ValueError: `x` or `mask` is misshapen; or `landmarks="padded"` and a T that is neither divisible by
            `num_landmarks` nor at most it.
          TypeError: `mask` is not boolean.
        """
        check_shapes("nystromformer", "x [B, T, D]", x, mask, D=self.d_model)
        q, k, v = self.projections.split(x)
        y = nystrom_attention(
            q,
            k,
            v,
            num_landmarks=self.num_landmarks,
            mask=mask,
            pinv_iterations=self.pinv_iterations,
            pinv_init=self.pinv_init,
            landmarks=self.landmarks,
            conv_kernel=None if self.conv_kernel is None else self.conv_kernel[...],
            implementation=self.implementation,
        )
        y = self.projections.merge(y).astype(self.dtype or x.dtype)
        return self.dropout(y, deterministic=deterministic, rngs=rngs)
