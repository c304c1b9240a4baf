"""iTransformer, the forecaster whose tokens are variates (Liu et al. 2024, arXiv:2310.06625)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from zoo import registry
from zoo.encoder import EncoderConfig, Remat, make_layers, make_norm, run_layers
from zoo.layers.dropout import Dropout
from zoo.layers.feed_forward import Activation
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.series import SeriesSizes, standardize
from zoo.registry import register_model
from zoo.typing import Array, DType, Float


@register_model(
    "itransformer_forecaster",
    title="iTransformer: attention over variates",
    paper="arXiv:2310.06625 (ICLR 2024)",
    time="O(N^2)",
    memory="O(N^2)",
    causal=False,
    bidirectional=True,
    padding_mask=False,
    decode=False,
    fixed_length=True,
    inputs=("series",),
    test_args={"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8},
    notes="Complexity is that in the number of variates, with softmax inside; options.mixer takes any other mixer. Any "
    "number of variates goes in, one lookback and one horizon.",
)
class ITransformerForecaster(nnx.Module):
    """The window of each variate is one token; a mixer and a feed-forward layer run over these tokens.

    Each window is scaled (`use_norm`), mapped by one Linear(L -> D) that all tokens share, mixed over variates without
    positions in post-norm blocks with a norm at the end, and mapped by one Linear(D -> H), which is scaled back. Where
    the mixer does not know an order (softmax, flowformer), permuting variates permutes forecasts. No weight depends on
    N: a model trained on some variates forecasts others.

    The time marks of the lookback are M more tokens, as in the authors' code (the paper does not name them); those of
    the horizon are not used. Blocks follow the authors: LayerNorm with eps 1e-5, dropout of attention weights, after
    the mixer and twice in the feed-forward layer. Every weight and bias starts as PyTorch's Linear does. The defaults
    are those of the authors' ETTh1 runs at horizons 96 and 192; their `run.py` itself has D = 512 and F = 2048.

    Args:
      num_variates: N in training; others go in as well.
      lookback: L.
      horizon: H.
      num_marks: M, time marks of each step.
      d_model: D.
      num_layers: number of blocks.
      num_heads: for mixers that have heads.
      d_ff: F, inner width of the feed-forward layer; None for 4 D.
      activation: of the feed-forward layer; "gelu_exact" is the authors'.
      dropout: rate; also of attention weights.
      use_norm: scale each window to mean 0 and deviation 1 and scale the forecast back, in float32.
      mixer: a registered mixer, over variates: "flowformer" is the paper's iFlowformer, and so on.
      mixer_options: further arguments of its constructor.
      remat: recompute blocks in the backward pass, see `zoo.encoder.BodyConfig`.
      scan_layers: stack the blocks and scan over them.
      dtype: computation dtype of the network; None for `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      RegistryError: no such mixer.
      TypeError: an option that the mixer does not take.
      ValueError: a size or choice is out of range, or the mixer runs forward only.
    """

    def __init__(
        self,
        *,
        num_variates: int,
        lookback: int,
        horizon: int,
        num_marks: int = 0,
        d_model: int = 256,
        num_layers: int = 2,
        num_heads: int = 8,
        d_ff: int | None = 256,
        activation: Activation = "gelu_exact",
        dropout: float = 0.1,
        use_norm: bool = True,
        mixer: str = "softmax",
        mixer_options: Mapping[str, Any] | None = None,
        remat: Remat = "none",
        scan_layers: bool = False,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not registry.spec(mixer, "mixer").bidirectional:
            raise ValueError(f"{mixer} runs forward only; variates have no order, so each must see all.")
        self.sizes = SeriesSizes(num_variates, lookback, horizon, num_marks)
        self.use_norm = use_norm
        self.config = config = EncoderConfig(
            d_model=d_model,
            num_layers=num_layers,
            num_heads=num_heads,
            d_ff=d_ff,
            activation=activation,
            norm="post",
            norm_eps=1e-5,
            positions="none",
            dropout=dropout,
            kernel_init="torch",
            dtype=jnp.dtype(param_dtype if dtype is None else dtype).name,  # pyright: ignore[reportArgumentType]
            param_dtype=jnp.dtype(param_dtype).name,  # pyright: ignore[reportArgumentType]
            remat=remat,
            scan_layers=scan_layers,
            mixer=mixer,
            mixer_options=dict(mixer_options or {}),
            max_len=num_variates + num_marks,
        )

        def linear(d_in: int, d_out: int, **options: Any) -> nnx.Linear:
            return nnx.Linear(
                d_in,
                d_out,
                kernel_init=kernel_initializer("torch"),
                bias_init=bias_initializer("torch", d_in),
                dtype=jnp.dtype(config.dtype),
                param_dtype=jnp.dtype(config.param_dtype),
                rngs=rngs,
                **options,
            )

        self.embedding = linear(lookback, d_model)
        self.dropout = Dropout(dropout)
        self.layers = make_layers(config, rngs=rngs)
        self.norm = make_norm(config, rngs)
        self.projection = linear(d_model, horizon, preferred_element_type=jnp.float32)

    def __call__(
        self,
        x: Float[Array, "B L N"],
        *,
        marks: Float[Array, "B L+H M"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H N"]:
        """Forecasts every variate, float32, in the units of `x`.

        Args:
          x: the lookback; N need not be `num_variates`.
          marks: time features of the L steps seen, which become tokens, and of the H steps to come, which are not used.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError: `x` or `marks` is misshapen, or there are no marks although `num_marks` promised them.
        """
        self.sizes.check("itransformer_forecaster", x, marks, any_variates=True)
        z, restore = standardize(x) if self.use_norm else (x, lambda y: y)
        tokens = z.swapaxes(1, 2)
        if marks is not None:
            past = marks[:, : self.sizes.lookback].swapaxes(1, 2)
            tokens = jnp.concatenate([tokens, past.astype(tokens.dtype)], axis=1)
        h = self.dropout(self.embedding(tokens), deterministic=deterministic, rngs=rngs)
        key = None if rngs is None else rngs.dropout()
        h, _ = run_layers(self.layers, self.config, h, deterministic=deterministic, key=key)
        y = self.projection(self.norm(h[:, : x.shape[2]]))
        return restore(y.astype(jnp.promote_types(y.dtype, jnp.float32)).swapaxes(1, 2))
