"""Axial attention: softmax attention along one axis of a grid after another (Ho et al. 2019, arXiv:1912.12180)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from zoo.layers.axial_positions import square_grid
from zoo.layers.dropout import Dropout
from zoo.layers.initializers import bias_initializer, kernel_initializer
from zoo.layers.projections import HeadProjections
from zoo.layers.shapes import check_shapes
from zoo.ops.axial_attention import axial_attention
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float

Form = Literal["alternating", "sum"]


class AxisAttention(nnx.Module):
    """Multi-head attention along one axis of a grid [B, n_1, ..., n_k, D].

    Args:
      axis: 1 for n_1 to k for n_k.
      projections: of queries, keys, values and output.
      implementation: see `zoo.ops.axial_attention`.
    """

    def __init__(self, axis: int, projections: HeadProjections, implementation: str | None = None):
        self.axis = axis
        self.projections = projections
        self.implementation = implementation

    def __call__(
        self, x: Float[Array, "B *N D"], *, mask: Bool[Array, "B *N"] | None = None, causal: bool = False
    ) -> Float[Array, "B *N D"]:
        """Every cell from the cells of its line that `mask` lets be seen; causal, from those up to itself."""
        q, k, v = self.projections.split(x)
        y = axial_attention(q, k, v, axis=self.axis, mask=mask, causal=causal, implementation=self.implementation)
        return self.projections.merge(y)

    def earlier(
        self, x: Float[Array, "B *N D"], context: Float[Array, "B *N D"], *, mask: Bool[Array, "B *N"]
    ) -> Float[Array, "B *N D"]:
        """Every cell, with its query from `x`, from the cells of `context` that are before it in its line."""
        shift = lambda grid: _shift(grid, self.axis)  # noqa: E731
        q = self.projections.split(x)[0]
        _, k, v = self.projections.split(shift(context))
        options = {"mask": shift(mask), "causal": True, "implementation": self.implementation}
        return self.projections.merge(axial_attention(q, k, v, axis=self.axis, **options))


@register_mixer(
    "axial",
    title="Axial attention: along the rows and the columns of a grid",
    paper="arXiv:1912.12180",
    time="O(T^1.5)",
    memory="O(T^1.5)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=False,
    fixed_length=False,
    test_args={"num_heads": 2, "shape": [-1, 3]},
    notes="A sequence is folded into a grid by rows: give the shape of an image or a video, else it is the square root "
    "of max_len wide. O(T^(1 + 1/k)) on a grid of k axes.",
)
class Axial(nnx.Module):
    """Attention along each axis of a grid, with weights of its own for each.

    A sequence [B, T, D] is laid out on the grid by rows: its neighbours are neighbours along the last axis. `attend`
    takes grids as they are, images or videos.

    On a grid of R x C cells, one after the other means y = A_2(A_1(x)): the first attention along columns, the second
    along rows. So each cell has seen every other: it hears of (r, c) through the cell of its own row in column c. The
    sum A_1(x) + A_2(x) sees the cross of its row and its column only. Both are the layers of the authors of
    `axial-attention` (github.com/lucidrains/axial-attention) with `residual=False`, which the defaults are.

    A cell that is masked shows nothing of itself, and its line is still heard through it (its query is that of zeros):
    so every real cell hears of every real cell, wherever the padding is. Rows that are nothing but padding are not
    computed.

    Causal, on a sequence folded by rows, each cell sees the cells up to itself in its row by attention along the last
    axis, and earlier rows whole: those go through the attention along the last axis without a mask, and are then
    attended to along the column, from the row after them on; what both find is summed. With more axes the same holds
    for planes of rows, and so on. Nothing of a later cell comes through, because what is not causal is only ever seen
    from the next line on; and nothing of an earlier cell is lost. It costs k - 1 more attentions of k axes.

    Args:
      d_model: D.
      shape: lengths of the grid's axes, of any number, such as (32, 32) for an image or (8, 16, 16) for a video; their
        product is the greatest T, and the end of the grid may stay empty. The first may be -1: as many as T needs. None
        for (-1, C) with C the square root of `max_len`, rounded up.
      max_len: for `shape=None`; None for the T of each call, so that then padding changes the grid, and what is seen
        through what.
      num_heads: H.
      d_head: K, the width of one head; None for D / H.
      form: "alternating", one axis after another from the first to the last, or "sum".
      residual: each axis reads x plus what the axes before it found, and the output is the sum of what all found, so
        that the residual that a block has around its mixer makes each of them a residual layer, as in Ho et al.; else
        an axis reads what the one before it found, and the block has one residual for all. Both reach every cell. For
        the alternating form only.
      use_bias: biases of the query, key and value maps.
      out_bias: bias of the output map.
      causal: position t sees positions up to t only; for the alternating form.
      dropout: rate on the output.
      kernel_init, bias_init: initialisers of all maps; None for PyTorch's, as the authors have it: uniform within
        1 / sqrt(fan in).
      implementation: of the attention, see `zoo.ops.axial_attention`; None for the best here.
      dtype: dtype of the projections and the output; None to promote input and parameters for the one, and to return
        the input's dtype. The softmax is computed in float32.
      param_dtype: dtype of the parameters.
      rngs: for the initial parameters.

    Raises:
      ValueError: a shape that is none; `form` is unknown, or has no order that `causal` or `residual` need; H does not
        divide D and `d_head` is None; the rate or the implementation is wrong.
    """

    implementations = ("xla", "chunked", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        shape: Sequence[int] | None = None,
        max_len: int | None = None,
        num_heads: int = 8,
        d_head: int | None = None,
        form: Form = "alternating",
        residual: bool = False,
        use_bias: bool = False,
        out_bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer | None = None,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.shape = None if shape is None else _check_shape(shape)
        _check_form(form, causal, residual)
        if implementation is not None and implementation not in (*self.implementations, "cudnn"):
            known = ", ".join((*self.implementations, "cudnn"))
            raise ValueError(f"axial has no implementation {implementation!r}; it has {known} (or None).")
        if max_len is not None and max_len < 1:
            raise ValueError(f"max_len={max_len} must be at least 1, or None.")
        self.max_len = max_len
        self.d_model = d_model
        self.form: Form = form
        self.residual = residual
        self.causal = causal
        self.dtype = dtype
        axes = 2 if self.shape is None else len(self.shape)
        self.axes = nnx.List(
            AxisAttention(
                axis,
                HeadProjections(
                    d_model,
                    num_heads,
                    d_head,
                    use_bias=use_bias,
                    out_bias=out_bias,
                    kernel_init=kernel_init or kernel_initializer("torch"),
                    bias_init=bias_init or bias_initializer("torch", d_model),
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                ),
                implementation,
            )
            for axis in range(1, axes + 1)
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
        """Mixes `x` along T, laid out on the grid.

        Args:
          x: the input.
          mask: True at real tokens; None where all are. Outputs at masked positions mean nothing.
          deterministic: no dropout; None for the module's own setting (`train()`, `eval()`).
          rngs: for the dropout, stream "dropout".

        Raises:
          ValueError: `x` or `mask` is misshapen, or T is more than the grid holds.
          TypeError: `mask` is not boolean.
        """
        check_shapes("axial", "x [B, T, D]", x, mask, D=self.d_model)
        batch, length, width = x.shape
        grid = self._grid(length)
        empty = math.prod(grid) - length
        if empty:
            mask = jnp.ones((batch, length), bool) if mask is None else mask
            x, mask = jnp.pad(x, ((0, 0), (0, empty), (0, 0))), jnp.pad(mask, ((0, 0), (0, empty)))
        mask = None if mask is None else mask.reshape(batch, *grid)
        y = self.attend(x.reshape(batch, *grid, width), mask=mask, deterministic=deterministic, rngs=rngs)
        return y.reshape(batch, -1, width)[:, :length]

    def attend(
        self,
        x: Float[Array, "B *N D"],
        *,
        mask: Bool[Array, "B *N"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B *N D"]:
        """Mixes a grid along its axes: an image [B, H, W, D], a video [B, T, H, W, D].

        The lengths of its axes need not be those of `shape`, only their number; causal means by rows.

        Args:
          x: the input.
          mask: True at real cells; None where all are. Outputs at masked cells mean nothing.
          deterministic, rngs: as in a call.

        Raises:
          ValueError: `x` or `mask` is misshapen.
          TypeError: `mask` is not boolean.
        """
        self._check_grid(x, mask)
        y = self._mix(x if mask is None else jnp.where(mask[..., None], x, 0), mask)
        return self.dropout(y.astype(self.dtype or x.dtype), deterministic=deterministic, rngs=rngs)

    def _mix(self, x: Array, mask: Array | None) -> Array:
        if self.causal:
            return self._mix_causal(x, jnp.ones(x.shape[:-1], bool) if mask is None else mask)
        found, total = x, jnp.zeros((), x.dtype)
        for layer in self.axes:
            if self.form == "sum":
                total = total + layer(x, mask=mask)
                continue
            found = layer(found if not self.residual else x + total, mask=mask)
            total = total + found
            # A cell now has what there was in its line, and passes it on even where it is padding itself.
            mask = None if mask is None else _reached(mask, layer.axis)
        return total if self.form == "sum" or self.residual else found

    def _mix_causal(self, x: Array, mask: Array) -> Array:
        *outer, line = self.axes
        total = line(x, mask=mask, causal=True)
        whole, inner = x, line
        for layer in reversed(outer):
            found = inner(whole, mask=mask)
            whole = whole + found if self.residual else found
            mask = _reached(mask, inner.axis)
            total = total + layer.earlier(x + total if self.residual else total, whole, mask=mask)
            inner = layer
        return total

    def _grid(self, length: int) -> tuple[int, ...]:
        """The shape of the grid for T = `length`, without the rows at its end that stay empty."""
        if self.shape is None:
            first, inner = -1, square_grid(self.max_len or length)[1:]
        else:
            first, *inner = self.shape
        needed = -(-length // math.prod(inner))
        if first != -1 and needed > first:
            most = first * math.prod(inner)
            raise ValueError(f"axial with shape={self.shape} holds {most} tokens; axis 1 (T) of x is {length}.")
        return (needed, *inner)

    def _check_grid(self, x: Array, mask: Array | None) -> None:
        axes = [f"n_{layer.axis}" for layer in self.axes]
        check_shapes("axial", f"x [B, {', '.join(axes)}, D]", x, D=self.d_model)
        if mask is None:
            return
        sizes: dict[str, Any] = dict(zip(("B", *axes), x.shape, strict=False))
        check_shapes("axial", f"mask [B, {', '.join(axes)}]", mask, **sizes)
        if mask.dtype != bool:
            raise TypeError(f"axial takes a mask of booleans, True at real cells; the dtype of mask is {mask.dtype}.")


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    lengths = tuple(int(length) for length in shape)
    first, *inner = lengths or (0,)
    if lengths != tuple(shape) or min(inner, default=1) < 1 or (first < 1 and first != -1):
        raise ValueError(f"shape must be lengths of axes, at least 1, of which the first may be -1; got {list(shape)}.")
    return lengths


def _check_form(form: str, causal: bool, residual: bool) -> None:
    if form not in ("alternating", "sum"):
        raise ValueError(f"unknown form {form!r}; there are alternating, sum.")
    if form == "sum" and causal:
        raise ValueError(
            "axial cannot be causal in the form 'sum': what an earlier row holds to the right of a position would "
            "never reach it, however many layers there are. Use form='alternating'."
        )
    if form == "sum" and residual:
        raise ValueError("residual=True is between one axis and the next; in the form 'sum' none comes after another.")


def _reached(mask: Array, axis: int) -> Array:
    """Where attention along `axis` finds something."""
    return jnp.broadcast_to(mask.any(axis, keepdims=True), mask.shape)


def _shift(x: Array, axis: int) -> Array:
    """One place on along an axis: zeros come in, the last goes out."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (1, 0)
    kept = tuple(slice(None, -1) if other == axis else slice(None) for other in range(x.ndim))
    return jnp.pad(x[kept], widths)
