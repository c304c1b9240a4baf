"""Mamba-2: a state space model with one decay per head, SSD (Dao and Gu 2024, arXiv:2405.21060)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import kernel_initializer, time_step_bias
from zoo.layers.shapes import check_shapes
from zoo.layers.short_conv import ShortConv
from zoo.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, Int


class Mamba2State(NamedTuple):
    """All that a causal Mamba-2 layer remembers; its size does not depend on how much was read. Empty is all zeros.

    Attributes:
      conv: [B, W - 1, E + 2 G N], the last inputs of the convolution, the newest last.
      ssm: [B, H, N, P], the states.
    """

    conv: Array
    ssm: Array


class SSD(nnx.Module):
    """Convolution, time steps, decays and the recurrence: what a Mamba-2 layer has once per direction.

    Args:
      num_heads, d_head, num_groups, d_state: H, P, G, N.
      d_conv: W.
      a_range: A of each head is drawn uniformly between these and negated.
      dt_min, dt_max, dt_floor: of the time steps at the start, see `zoo.layers.initializers.time_step_bias`.
      dt_limit: time steps are clipped to this.
      skip_per_channel: D [H, P] instead of [H].
      conv_bias: bias of the convolution.
      chunk_size, implementation: of `zoo.ops.gated_linear_attention`.
      dtype, param_dtype: of computation and parameters.
      rngs: for the initial parameters.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        d_head: int,
        num_groups: int,
        d_state: int,
        d_conv: int,
        a_range: tuple[float, float],
        dt_min: float,
        dt_max: float,
        dt_floor: float,
        dt_limit: tuple[float, float],
        skip_per_channel: bool,
        conv_bias: bool,
        chunk_size: int | None,
        implementation: str | None,
        dtype: DType | None,
        param_dtype: DType,
        rngs: nnx.Rngs,
    ):
        self.heads, self.keys = (num_heads, d_head), (num_groups, d_state)
        self.dt_limit = dt_limit
        self.chunk_size, self.implementation = chunk_size, implementation
        self.conv = ShortConv(
            num_heads * d_head + 2 * num_groups * d_state,
            d_conv,
            use_bias=conv_bias,
            implementation="reference" if implementation == "reference" else None,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.dt_bias = nnx.Param(time_step_bias(dt_min, dt_max, dt_floor)(rngs.params(), (num_heads,), param_dtype))
        rates = jax.random.uniform(rngs.params(), (num_heads,), minval=a_range[0], maxval=a_range[1])
        self.A_log = nnx.Param(jnp.log(rates).astype(param_dtype))
        self.D = nnx.Param(jnp.ones(self.heads if skip_per_channel else num_heads, param_dtype))

    def __call__(
        self,
        xbc: Float[Array, "B T C"],
        dt: Float[Array, "B T H"],
        *,
        mask: Bool[Array, "B T"] | None,
        segment_ids: Int[Array, "B T"] | None,
        state: Mamba2State | None,
        return_state: bool,
        reverse: bool,
    ) -> tuple[Float[Array, "B T H P"], Mamba2State | None]:
        """The output before the gate, in float32, and the new state if asked for."""
        marks = {"mask": mask, "segment_ids": segment_ids, "reverse": reverse, "return_state": return_state}
        found = self.conv(xbc, state=None if state is None else state.conv, **marks)
        xbc, conv = found if isinstance(found, tuple) else (found, None)
        q, k, v, log_decay, skip = self._selected(xbc, dt)
        found = gated_linear_attention(
            q,
            k,
            v,
            log_decay,
            scale=1.0,
            initial_state=None if state is None else state.ssm,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
            **marks,
        )
        y, ssm = found if isinstance(found, tuple) else (found, None)
        return y + skip, None if conv is None or ssm is None else Mamba2State(conv, ssm)

    def step(
        self, xbc_t: Float[Array, "B C"], dt_t: Float[Array, "B H"], state: Mamba2State
    ) -> tuple[Float[Array, "B H P"], Mamba2State]:
        """One token."""
        xbc_t, conv = self.conv.step(xbc_t, state.conv)
        q, k, v, log_decay, skip = self._selected(xbc_t, dt_t)
        y, ssm = gated_linear_attention_step(state.ssm, q, k, v, log_decay, scale=1.0)
        return y + skip, Mamba2State(conv, ssm)

    def _selected(self, xbc: Array, dt: Array) -> tuple[Array, ...]:
        """C and B [..., G, N], delta x [..., H, P], delta A [..., H] and D x, of these tokens."""
        inner, keys = math.prod(self.heads), math.prod(self.keys)
        x, b, c = jnp.split(xbc, [inner, inner + keys], axis=-1)
        b, c = (array.reshape(*array.shape[:-1], *self.keys) for array in (b, c))
        x = x.reshape(*x.shape[:-1], *self.heads).astype(jnp.float32)
        delta = jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32))
        if self.dt_limit != (0.0, math.inf):
            delta = jnp.clip(delta, *self.dt_limit)
        rates = -jnp.exp(self.A_log[...].astype(jnp.float32))
        skip = self.D[...].astype(jnp.float32).reshape(self.heads[0], -1)
        return c, b, delta[..., None] * x, delta * rates, skip * x


@register_mixer(
    "mamba2",
    title="Mamba-2: structured state space duality",
    paper="arXiv:2405.21060 (ICML 2024)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"d_state": 4, "d_head": 8},
    notes="Linear attention whose memory decays per head. Bidirectional by a second convolution and recurrence from "
    "the end, averaged. A_log, D and the time steps' bias are not weight-decayed by the authors.",
)
class Mamba2(nnx.Module):
    """In-projection, short convolution and SiLU of (x, B, C), recurrence per head, gated RMSNorm, out-projection.

    Per head, with A < 0 and P channels x::

        delta_t = softplus(dt_t + dt_bias)
        S_t = exp(delta_t A) S_{t-1} + B_t (delta_t x_t)^T         y_t = S_t^T C_t + D x_t
        out = W RMSNorm(y silu(z))

    Bidirectionally, what is between the in-projection and the gate exists twice, as in Vision Mamba
    (arXiv:2401.09417): a second convolution, A, D and bias of the time steps, in a pass from the end; the average of
    the two is gated and normalised. The map to the time steps, B and C is part of the in-projection and shared. Both
    passes start alike. The authors publish no bidirectional layer of this kind (Hydra is another recurrence).

    Args:
      d_model: D.
      d_state: N, width of B and C.
      d_head: P, channels per head; H = expand * D / P.
      num_groups: G; the heads of a group share B and C, and are normalised together.
      d_conv: W, taps of the convolution.
      expand: E = expand * D channels inside.
      a_range: -A of each head is drawn uniformly between these.
      dt_min, dt_max, dt_init_floor: time steps at the start are log-uniform between the first two, and at least the
        third.
      dt_limit: time steps are clipped to this.
      skip_per_channel: D per channel instead of per head.
      gated_norm: False for a gate without a norm.
      norm_before_gate: RMSNorm(y) silu(z) instead of RMSNorm(y silu(z)).
      norm_eps: of the RMSNorm.
      conv_bias: bias of the convolution.
      proj_bias: biases of the in- and out-projection.
      num_layers: how many such layers a model stacks: the out-projection starts divided by its square root, as in the
        authors' language model. None for no such factor.
      chunk_size: of the recurrence: speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer. The authors have none.
      implementation: of the recurrence, "xla", "xla_sequential", "xla_chunked", "reference" or None.
      dtype: computation dtype of projections and convolution; None follows `x`. Time steps, decays, states and the norm
        are float32 in any case.
      param_dtype: dtype of the parameters; float32 is what the authors keep `A_log`, `D` and `dt_bias` in.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is out of range, P does not divide E, or G does not divide H.
    """

    implementations = ("xla", "xla_chunked", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_head: int = 64,
        num_groups: int = 1,
        d_conv: int = 4,
        expand: float = 2,
        a_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        skip_per_channel: bool = False,
        gated_norm: bool = True,
        norm_before_gate: bool = False,
        norm_eps: float = 1e-5,
        conv_bias: bool = True,
        proj_bias: bool = False,
        num_layers: int | None = None,
        chunk_size: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        implementation: str | None = None,
        dtype: DType | None = None,
        param_dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = int(expand * d_model)
        sizes = {"d_model": d_model, "d_state": d_state, "d_head": d_head, "num_groups": num_groups, "d_conv": d_conv}
        sizes |= {"expand * d_model": width, "num_layers": 1 if num_layers is None else num_layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"Mamba2 needs {name} >= 1; it is {size}.")
        if width % d_head or width // d_head % num_groups:
            raise ValueError(
                f"Mamba2 needs d_head to divide expand * d_model, and num_groups the number of heads; {width} "
                f"channels, d_head={d_head} and num_groups={num_groups} do not."
            )
        if not 0 < a_range[0] <= a_range[1] or not 0 <= dt_limit[0] <= dt_limit[1]:
            raise ValueError(f"Mamba2 needs positive, ordered ranges; a_range={a_range}, dt_limit={dt_limit}.")
        num_heads = width // d_head
        self.d_model, self.width, self.num_groups, self.causal, self.dtype = d_model, width, num_groups, causal, dtype
        self.norm_before_gate, self.norm_eps = norm_before_gate, norm_eps
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.sizes = (width, width + 2 * num_groups * d_state, num_heads)

        def direction() -> SSD:
            return SSD(
                num_heads=num_heads,
                d_head=d_head,
                num_groups=num_groups,
                d_state=d_state,
                d_conv=d_conv,
                a_range=a_range,
                dt_min=dt_min,
                dt_max=dt_max,
                dt_floor=dt_init_floor,
                dt_limit=dt_limit,
                skip_per_channel=skip_per_channel,
                conv_bias=conv_bias,
                chunk_size=chunk_size,
                implementation=implementation,
                **dtypes,
                rngs=rngs,
            )

        torch_init = kernel_initializer("torch")
        self.in_proj = nnx.Linear(
            d_model, sum(self.sizes), use_bias=proj_bias, kernel_init=torch_init, **dtypes, rngs=rngs
        )
        self.ssd = direction()
        self.backward_ssd = None if causal else direction()
        self.norm_scale = nnx.Param(jnp.ones(width, param_dtype)) if gated_norm else nnx.data(None)
        factor = 1 / math.sqrt(num_layers or 1)
        self.out_proj = nnx.Linear(
            width,
            d_model,
            use_bias=proj_bias,
            kernel_init=lambda *args, **kwargs: factor * torch_init(*args, **kwargs),
            **dtypes,
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
        state: Mamba2State | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], Mamba2State]:
        """Mixes `x` along T.

        Args:
          x: inputs.
          mask: True at real tokens; None where all are. Padding moves no state, and outputs there are zero (or the bias
            of the out-projection).
          deterministic: no dropout; None for the module's own mode (`train()` / `eval()`).
          rngs: with a `dropout` stream, where dropout is active.
          state: causal only, from `init_state` or an earlier call, to go on from there.
          return_state: causal only, also return the state after `x`.
          segment_ids: packed sequences: tokens with different ids do not see each other.

        Returns:
          [B, T, D] in `dtype` or that of `x`, and with `return_state` the new state.

        Raises:
          ValueError: `x` or `mask` is misshapen, or a state is given or asked for, but the layer is not causal.
          TypeError: `mask` is not boolean.
        """
        check_shapes("mamba2", "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError("Mamba2 keeps a state only when it was built with causal=True.")
        z, xbc, dt = self._projected(x)
        marks = {"mask": mask, "segment_ids": segment_ids}
        y, new_state = self.ssd(xbc, dt, state=state, return_state=return_state, reverse=False, **marks)
        if self.backward_ssd is not None:
            other, _ = self.backward_ssd(xbc, dt, state=None, return_state=False, reverse=True, **marks)
            y = (y + other) / 2
        y = self._out(y, z, x.dtype)
        y = self.dropout(y, deterministic=deterministic, rngs=rngs)
        return (y, new_state) if new_state is not None else y

    def init_state(self, batch_size: int) -> Mamba2State:
        """The state before the first token: float32 zeros, batch first. ValueError unless causal."""
        self._need_causal("init_state")
        (heads, channels), (_, states) = self.ssd.heads, self.ssd.keys
        ssm = jnp.zeros((batch_size, heads, states, channels), jnp.float32)
        return Mamba2State(self.ssd.conv.init_state(batch_size), ssm)

    def step(self, x_t: Float[Array, "B D"], state: Mamba2State) -> tuple[Float[Array, "B D"], Mamba2State]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes("mamba2", "x_t [B, D]", x_t, D=self.d_model)
        z, xbc, dt = self._projected(x_t)
        y, state = self.ssd.step(xbc, dt, state)
        return self._out(y, z, x_t.dtype), state

    def _projected(self, x: Array) -> list[Array]:
        """The gate z, what the convolution takes (x, B, C), and dt."""
        return jnp.split(self.in_proj(x), [self.sizes[0], self.sizes[0] + self.sizes[1]], axis=-1)

    def _out(self, y: Array, z: Array, dtype: DType) -> Array:
        """Gate, norm over each group of channels, out-projection."""
        y, gate = y.reshape(*y.shape[:-2], self.width), jax.nn.silu(z.astype(y.dtype))
        y = y if self.norm_before_gate else y * gate
        if self.norm_scale is not None:
            groups = y.reshape(*y.shape[:-1], self.num_groups, -1)
            groups = groups * jax.lax.rsqrt((groups**2).mean(-1, keepdims=True) + self.norm_eps)
            y = groups.reshape(y.shape) * self.norm_scale[...].astype(y.dtype)
        y = y * gate if self.norm_before_gate else y
        return self.out_proj(y.astype(z.dtype)).astype(self.dtype or dtype)

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"Mamba2.{what} needs causal=True: bidirectionally every output needs every token.")
