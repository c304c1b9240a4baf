"""The Axial Transformer, a density model of images (Ho et al. 2019, arXiv:1912.12180, section 3)."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.encoder import Remat, rematerialized
from zoo.layers.axial_positions import AxialPositions
from zoo.layers.dropout import Dropout
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.axial_attention import axial_attention
from zoo.registry import register_model
from zoo.typing import Array, DType, Float, Int, PRNGKeyArray

# As in the authors' code: what is added to the residual stream, and the logits, start 1e-5 as large as the rest.
_INIT = initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_SMALL_INIT = initializers.variance_scaling(1e-10, "fan_in", "truncated_normal")
_EMBEDDING_SCALE = 5.0


class OneChannel(NamedTuple):
    """What a training call of `AxialTransformer` returns that looks at one channel of each image.

    Attributes:
      logits: [B, H, W, V] of the values of that channel.
      channel: which it is.
    """

    logits: Float[Array, "B H W V"]
    channel: Int[Array, " B"]


class AxialBlock(nnx.Module):
    """x + drop(attention(norm(x))), then x + drop(mlp(norm(x))), on grids [B, H, W, D]; attention along one axis.

    Args:
      d_model: D.
      axis: 1 for columns, 2 for rows.
      causal: a cell sees its line up to itself only.
      num_heads, d_ff, dropout, implementation, dtype, param_dtype, rngs: see `AxialTransformer`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        axis: int,
        causal: bool,
        num_heads: int,
        d_ff: int,
        dropout: float,
        implementation: str | None,
        dtype: DType | None,
        param_dtype: DType,
        rngs: nnx.Rngs,
    ):
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.axis, self.causal, self.implementation = axis, causal, implementation
        self.attention_norm = _norm(d_model, **dtypes)
        self.attention = HeadProjections(d_model, num_heads, kernel_init=_INIT, out_init=_SMALL_INIT, **dtypes)
        self.mlp_norm = _norm(d_model, **dtypes)
        self.up = nnx.Linear(d_model, d_ff, kernel_init=_INIT, **dtypes)
        self.down = nnx.Linear(d_ff, d_model, kernel_init=_SMALL_INIT, **dtypes)
        self.dropout = Dropout(dropout)

    def __call__(
        self, x: Float[Array, "B H W D"], *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B H W D"]:
        """Mixes along the axis, then transforms each cell."""
        drop = functools.partial(self.dropout, deterministic=deterministic, rngs=rngs)
        q, k, v = self.attention.split(self.attention_norm(x))
        y = axial_attention(q, k, v, axis=self.axis, causal=self.causal, implementation=self.implementation)
        x = x + drop(self.attention.merge(y))
        y = self.up(self.mlp_norm(x))
        return x + drop(self.down(y * jax.nn.sigmoid(1.702 * y)))


def _norm(d_model: int, **dtypes: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(d_model, epsilon=1e-5, use_fast_variance=False, **dtypes)


@register_model(
    "axial_transformer",
    title="Axial Transformer: a density model of images",
    paper="arXiv:1912.12180",
    time="O(T^1.5)",
    memory="O(T^1.5)",
    causal=True,
    bidirectional=False,
    padding_mask=False,
    decode=False,
    fixed_length=True,
    inputs=("image",),
    test_args={"image_shape": [2, 3, 2], "num_values": 3, "d_model": 8, "num_layers": 2, "num_heads": 2},
    notes="Exact likelihoods; draws images, a row of context at a time.",
)
class AxialTransformer(nnx.Module):
    """p(image) as a product over its values, channel by channel and in each row by row, every factor in one pass.

    For channel c, with h the embedded values of that channel and all attention along one axis at a time:

        condition  e = rows and columns, unmasked, of conv3x3(channels before c, zeros for the others; one-hot of c)
        outer      u = shift down one row (rows unmasked, columns causal, of h + p + e)     has seen all rows above
        inner      y = rows causal, of shift right one place (h) + u + p + e                and its own row so far
        logits     = Linear(norm(y))

    p are axial positions, of which the condition and the rest have different ones. Images of one channel have no
    condition. The first value depends on positions alone.

    The defaults of layers, heads and width are those of the authors' model of ImageNet at 32 x 32. What adds to the
    residual stream starts near zero, and so do the logits: the first loss is log V.

    Args:
      image_shape: H, W and C.
      num_values: V; a value is from 0 to V - 1.
      d_model: D.
      num_layers: blocks of each of the three stacks; even, because rows and columns take turns.
      num_exterior_layers, num_outer_layers, num_inner_layers: of one of them (the exterior is the condition's); None
        for `num_layers`. The first two are even. All blocks of the inner stack are along rows.
      num_heads: heads.
      d_ff: inner width of the MLPs; None for D.
      dropout: rate on what a block adds.
      train_channels: "one", drawn at random for each image in each training call, as the authors train, or "all".
      remat: recompute blocks in the backward pass, see `zoo.encoder.BodyConfig`.
      implementation: of the attention, see `zoo.ops.axial_attention`.
      dtype: of the computation; None follows the parameters. Logits are float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: a size is not positive, an odd number of layers where rows and columns take turns, H does not divide
        D, or an unknown choice.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_values: int = 256,
        d_model: int = 1536,
        num_layers: int = 8,
        num_exterior_layers: int | None = None,
        num_outer_layers: int | None = None,
        num_inner_layers: int | None = None,
        num_heads: int = 16,
        d_ff: int | None = None,
        dropout: float = 0.0,
        train_channels: Literal["one", "all"] = "one",
        remat: Remat = "none",
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.image_shape = _check_image_shape(image_shape)
        height, width, channels = self.image_shape
        counts = {
            "num_exterior_layers": num_exterior_layers,
            "num_outer_layers": num_outer_layers,
            "num_inner_layers": num_inner_layers,
        }
        exterior, outer, inner = (num_layers if count is None else count for count in counts.values())
        for name, count in zip(counts, (exterior, outer, inner), strict=True):
            if count < 0 or (count % 2 and name != "num_inner_layers"):
                raise ValueError(
                    f"{name} must be even, because rows and columns take turns, and not negative: {count}."
                )
        if num_values < 2 or (d_ff is not None and d_ff < 1):
            raise ValueError(f"num_values must be at least 2 and d_ff at least 1, got {num_values} and {d_ff}.")
        for name, value, known in (
            ("train_channels", train_channels, ("one", "all")),
            ("remat", remat, get_args(Remat)),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; there are {', '.join(known)}.")
        self.num_values = num_values
        self.train_channels = train_channels
        self.remat: Remat = remat
        self.dtype = jnp.dtype(dtype or param_dtype)
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        settings = {"num_heads": num_heads, "d_ff": d_ff or d_model, "dropout": dropout, **dtypes}
        block = functools.partial(AxialBlock, d_model, implementation=implementation, **settings)
        std = _EMBEDDING_SCALE / d_model**0.5
        positions = functools.partial(
            AxialPositions, (height, width), d_model, std=std, param_dtype=param_dtype, rngs=rngs
        )

        if channels > 1:
            self.condition_conv = nnx.Conv(2 * channels, d_model, (3, 3), kernel_init=_INIT, **dtypes)
            self.condition_positions = positions()
            self.exterior = nnx.List(block(axis=2 - index % 2, causal=False) for index in range(exterior))
        self.embedding = nnx.Embed(num_values, d_model, embedding_init=initializers.normal(std), **dtypes)
        self.positions = positions()
        self.outer = nnx.List(block(axis=2 - index % 2, causal=index % 2 == 1) for index in range(outer))
        self.inner = nnx.List(block(axis=2, causal=True) for _ in range(inner))
        self.norm = _norm(d_model, **dtypes)
        self.head = nnx.Linear(d_model, num_values, kernel_init=_SMALL_INIT, **dtypes)
        self.dropout = Dropout(dropout)

    def __call__(
        self,
        images: Int[Array, "B H W C"],
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H W C V"] | OneChannel:
        """Logits of every value, given those before it: float32 [B, H, W, C, V].

        In training (not `deterministic`) with `train_channels="one"`, of one channel of each image, drawn from the
        stream "dropout": C times its loss has the loss of all as its mean.

        Args:
          images: values from 0 to V - 1.
          deterministic: no dropout, and all channels; None for the module's own mode (`train()`, `eval()`).
          rngs: a `dropout` stream, in training.

        Raises:
          ValueError: `images` are misshapen or no integers; or a random channel is to be drawn without `rngs`.
        """
        self._check(images)
        batch, height, width, channels = images.shape
        training = not (self.dropout.deterministic if deterministic is None else deterministic)
        options = {"deterministic": deterministic, "rngs": rngs}
        if training and self.train_channels == "one" and channels > 1:
            if rngs is None:
                raise ValueError("a channel is drawn at random in training: pass rngs=nnx.Rngs(dropout=key).")
            channel = jax.random.randint(rngs.dropout(), (batch,), 0, channels)
            return OneChannel(self.channel_logits(images, channel, **options), channel)
        # All channels side by side in the batch.
        repeated = jnp.repeat(images, channels, axis=0)
        logits = self.channel_logits(repeated, jnp.tile(jnp.arange(channels), batch), **options)
        return jnp.moveaxis(logits.reshape(batch, channels, height, width, self.num_values), 1, 3)

    def channel_logits(
        self,
        images: Int[Array, "B H W C"],
        channel: Int[Array, " B"],
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B H W V"]:
        """Logits of the values of one channel of each image, given those before them; see a call."""
        options = {"deterministic": deterministic, "rngs": rngs}
        condition = self._condition(images, channel, **options)
        h = self.embedding(_channel_of(images, channel))
        above = self._above(h, condition, **options)
        return self._row_logits(h, above, self.positions().astype(h.dtype), condition, **options)

    def log_prob(self, images: Int[Array, "B H W C"]) -> Float[Array, " B"]:
        """log p(image) in nats, exact: the sum over all values. In bits per dimension, divided by -H W C log 2.

        Raises:
          ValueError: `images` are misshapen, no integers, or (where that can be known) hold a value out of range.
        """
        self._check(images, values=True)
        logits = self(images, deterministic=True)
        assert isinstance(logits, jax.Array)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), images[..., None], axis=-1)
        return found.sum((1, 2, 3, 4))

    def sample(
        self,
        batch_size: int,
        *,
        key: PRNGKeyArray,
        temperature: float = 1.0,
        start: Int[Array, "B H W C"] | None = None,
        known: int = 0,
        fast: bool = True,
    ) -> Int[Array, "B H W C"]:
        """Draws images.

        The value at place i in the model's order (channel, row, column) is drawn with `fold_in(key, i)`. Compiled once
        for each batch size.

        Args:
          batch_size: B.
          key: a `jax.random.key`.
          temperature: divides the logits; 0 takes the likeliest value.
          start: images that the first `known` values are taken from: for the rows above the middle of an image of one
            channel H W / 2, for the first channel H W.
          known: how many.
          fast: compute what is seen of the rows above once a row, and else one row a value, as the authors do; else
            everything for every value. The same images come out, but for rounding.

        Raises:
          ValueError: an argument is out of range or misshapen, or `known` without `start`.
        """
        height, width, channels = self.image_shape
        if batch_size < 1 or not 0 <= known <= height * width * channels:
            raise ValueError(
                f"batch_size must be at least 1 and known from 0 to {height * width * channels}, got {batch_size} and "
                f"{known}."
            )
        with contextlib.suppress(jax.errors.ConcretizationTypeError):
            if not 0 <= temperature < float("inf"):
                raise ValueError(f"temperature must be 0 (the likeliest value) or more, got {temperature}.")
        if start is None:
            if known:
                raise ValueError(f"known={known} values are to be taken from start: give start.")
            start = jnp.zeros((batch_size, *self.image_shape), jnp.int32)
        start = jnp.asarray(start)
        self._check(start, values=True)
        if len(start) != batch_size:
            raise ValueError(f"start holds {len(start)} images, not batch_size={batch_size}.")
        return _sample(
            self, start.astype(jnp.int32), key, jnp.asarray(temperature, jnp.float32), jnp.asarray(known), fast
        )

    def _condition(self, images: Array, channel: Array, **options: Any) -> Array | None:
        """What is known of the channels before `channel`, [B, H, W, D]."""
        channels = images.shape[-1]
        if channels == 1:
            return None
        before = jnp.arange(channels) < channel[:, None]
        values = jnp.where(before[:, None, None], images, 0).astype(self.dtype) / (self.num_values - 1)
        which = jnp.broadcast_to(jax.nn.one_hot(channel, channels, dtype=self.dtype)[:, None, None], images.shape)
        x = self.condition_conv(jnp.concatenate([values, which], axis=-1))
        return self._run(self.exterior, x + self.condition_positions().astype(x.dtype), **options)

    def _above(self, h: Array, condition: Array | None, **options: Any) -> Array:
        """What is seen at each place of the rows above it, [B, H, W, D]."""
        x = _add(h + self.positions().astype(h.dtype), condition)
        x = self._run(self.outer, x, **options)
        return jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))

    def _row_logits(self, h: Array, above: Array, positions: Array, condition: Array | None, **options: Any) -> Array:
        """Logits [B, R, W, V] of some rows, each by itself, from what is seen of those above."""
        left = jnp.pad(h[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
        x = self._run(self.inner, _add(left + above + positions, condition), **options)
        return self.head(self.norm(x)).astype(jnp.promote_types(x.dtype, jnp.float32))

    def _run(self, blocks: Any, x: Array, *, deterministic: bool | None = None, rngs: nnx.Rngs | None = None) -> Array:
        for block in blocks:
            key = None if rngs is None else rngs.dropout()
            if self.remat == "none":
                x = _apply(block, x, key, deterministic)
                continue
            graph, state = nnx.split(block)
            run = lambda state, x, key, graph=graph: _apply(nnx.merge(graph, state), x, key, deterministic)  # noqa: E731
            x = rematerialized(run, self.remat)(state, x, key)
        return x

    def _check(self, images: Array, *, values: bool = False) -> None:
        height, width, channels = self.image_shape
        check_shapes("axial_transformer", "images [B, H, W, C]", images, H=height, W=width, C=channels)
        if not jnp.issubdtype(images.dtype, jnp.integer):
            raise ValueError(f"axial_transformer takes images of integers; their dtype is {images.dtype}.")
        if values:
            with contextlib.suppress(jax.errors.ConcretizationTypeError):
                if images.size and not (images.min() >= 0 and images.max() < self.num_values):
                    raise ValueError(
                        f"the images have values from {images.min()} to {images.max()}; the model has 0 to "
                        f"{self.num_values - 1}."
                    )


@functools.partial(jax.jit, static_argnames=("fast",))
def _sample(model: AxialTransformer, images: Array, key: Array, temperature: Array, known: Array, fast: bool) -> Array:
    height, width, channels = model.image_shape
    order = jnp.arange(height * width * channels).reshape(channels, height, width)
    images = jnp.where(jnp.moveaxis(order, 0, -1) < known, images, 0)

    def draw(index: Array, logits: Array) -> Array:
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        drawn = jax.random.categorical(jax.random.fold_in(key, index), scaled)
        return jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(jnp.int32)

    def by_value(index: Array, images: Array) -> Array:
        channel, row, column = jnp.unravel_index(index, order.shape)
        logits = model.channel_logits(images, jnp.full(len(images), channel), deterministic=True)
        return images.at[:, row, column, channel].set(draw(index, logits[:, row, column]))

    if not fast:
        return jax.lax.fori_loop(known, order.size, by_value, images)

    positions = model.positions()

    def one_channel(channel: Array, images: Array) -> Array:
        condition = model._condition(images, jnp.full(len(images), channel), deterministic=True)

        def one_row(row: Array, images: Array) -> Array:
            at_row = lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=1)  # noqa: E731
            h = model.embedding(images[..., channel])
            above = at_row(model._above(h, condition, deterministic=True))
            place = at_row(positions[None]).astype(h.dtype)
            here = None if condition is None else at_row(condition)

            def one_value(column: Array, images: Array) -> Array:
                h = model.embedding(at_row(images)[..., channel])
                logits = model._row_logits(h, above, place, here, deterministic=True)
                index = order[channel, row, column]
                value = draw(index, logits[:, 0, column])
                return images.at[:, row, column, channel].set(
                    jnp.where(index < known, images[:, row, column, channel], value)
                )

            return jax.lax.fori_loop(0, width, one_value, images)

        first = jnp.where(channel == known // (height * width), known % (height * width) // width, 0)
        return jax.lax.fori_loop(first, height, one_row, images)

    return jax.lax.fori_loop(known // (height * width), channels, one_channel, images)


def _apply(block: AxialBlock, x: Array, key: Array | None, deterministic: bool | None) -> Array:
    return block(x, deterministic=deterministic, rngs=None if key is None else nnx.Rngs(dropout=key))


def _add(x: Array, condition: Array | None) -> Array:
    return x if condition is None else x + condition


def _channel_of(images: Array, channel: Array) -> Array:
    """[B, H, W], of each image its channel."""
    return jnp.take_along_axis(images, channel[:, None, None, None], axis=-1)[..., 0]


def _check_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(int(size) for size in image_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape must be height, width and channels, at least 1, got {list(image_shape)}.")
    return shape
