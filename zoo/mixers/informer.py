"""Informer's token mixer: multi-head ProbSparse self-attention (Zhou et al. 2021, arXiv:2012.07436)."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.probsparse_attention import CausalContext, Sample, Selection, probsparse_attention
from zoo.ops.probsparse_attention.common import check_options
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, PRNGKeyArray


@register_mixer(
    "informer",
    title="Informer: softmax attention for the few queries that need it (ProbSparse)",
    paper="arXiv:2012.07436 (AAAI 2021)",
    time="O(T log T)",
    memory="O(T log T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=False,
    fixed_length=False,
    test_args={"num_heads": 2, "factor": 1},
    notes="Most positions get the mean of the values, about factor * ln T of T attend. Keys are sampled at random in "
    "training and alike in every evaluation. It keeps no state: to decode it would need all earlier keys and values, "
    "as softmax attention does, for attending once in a while.",
)
class Informer(nnx.Module):
    """Query, key and value maps, ProbSparse attention per head, output map, dropout.

    See `zoo.ops.probsparse_attention`. Of n real tokens min(factor * ceil(ln n), n) queries attend, chosen head by head
    by samples of as many keys; the others get the mean of the values. In training the sample is drawn from the stream
    `sample` of `rngs`, or from `dropout` where there is no such stream. Otherwise (deterministic, or no `rngs`) it is
    that of `sample_seed`, so that evaluation repeats exactly; the authors' code draws in evaluation too.

    The causal form looks back only, in choosing queries as well as in attending; the authors' decoder, which does not,
    is `causal=True, selection="authors", causal_context="cumsum", mix=True`. There is no dropout of attention weights,
    as in the authors' code.

    Args:
      d_model: D.
      num_heads: H.
      d_head: width of one head; None for D / H.
      factor: c, for how many queries attend and how many keys each samples. From n on it is softmax attention.
      sample: "per_query" samples other keys for each query, as the authors do; "shared" the same for all, which is
        several times faster.
      selection: causal only. "causal" chooses by what is not later; "authors" over the whole sequence, which lets
        outputs depend on later inputs.
      causal_context: causal only. Queries that do not attend get the running "mean" of the values, or their sum
        ("cumsum"), as in the authors' code.
      mix: read the heads' outputs [H, T, K] as [T, H K], which mixes positions far apart; the authors do so in their
        decoder. It takes no mask, and outputs depend on later inputs.
      use_bias: biases of the query, key and value maps.
      out_bias: bias of the output map; None for `use_bias`.
      causal: position t sees positions <= t only, with the defaults of the other options.
      dropout: rate, on the output of the layer.
      sample_seed: of the sample where it is not drawn.
      kernel_init, bias_init: initialisers of the four maps. The authors' are PyTorch's,
        `zoo.layers.initializers.kernel_initializer("torch")`.
      implementation: of the op, "xla", "reference" or None.
      dtype: computation dtype of the maps; None follows `x`. Sums and softmax are float32 in any case.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range, or H does not divide D.
    """

    implementations = ("xla", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 8,
        d_head: int | None = None,
        factor: int = 5,
        sample: Sample = "per_query",
        selection: Selection = "causal",
        causal_context: CausalContext = "mean",
        mix: bool = False,
        use_bias: bool = True,
        out_bias: bool | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        sample_seed: int = 0,
        kernel_init: nnx.Initializer = initializers.lecun_normal(),
        bias_init: nnx.Initializer = initializers.zeros_init(),
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_options(factor, sample, selection, causal_context)
        self.d_model = d_model
        self.factor = factor
        self.sample: Sample = sample
        self.selection: Selection = selection
        self.causal_context: CausalContext = causal_context
        self.mix = mix
        self.causal = causal
        self.sample_seed = sample_seed
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
          x: inputs.
          mask: True at real tokens; None where all are. Outputs at masked positions mean nothing.
          deterministic: no dropout, and the sample of `sample_seed`; None for the module's own mode (`train()`,
            `eval()`).
          rngs: with a stream `sample` or `dropout`, for the sample of keys and the dropout in training.

        Raises:
          ValueError: `x` or `mask` is misshapen, or there is a mask although `mix` is on.
          TypeError: `mask` is not boolean.
        """
        check_shapes("informer", "x [B, T, D]", x, mask, D=self.d_model)
        if self.mix and mask is not None:
            raise ValueError("informer with mix=True takes no mask: it would mix padding into real positions.")
        if deterministic is None:
            deterministic = self.dropout.deterministic
        q, k, v = self.projections.split(x)
        y = probsparse_attention(
            q,
            k,
            v,
            key=self._sample_key(deterministic, rngs),
            factor=self.factor,
            sample=self.sample,
            mask=mask,
            causal=self.causal,
            selection=self.selection,
            causal_context=self.causal_context,
            implementation=self.implementation,
        )
        if self.mix:
            y = y.swapaxes(1, 2).reshape(y.shape)
        y = self.projections.merge(y).astype(self.dtype or x.dtype)
        return self.dropout(y, deterministic=deterministic, rngs=rngs)

    def _sample_key(self, deterministic: bool | None, rngs: nnx.Rngs | None) -> PRNGKeyArray:
        if deterministic or rngs is None:
            return jax.random.key(self.sample_seed)
        return rngs.sample() if "sample" in rngs else rngs.dropout()
