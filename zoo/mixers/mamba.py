"""Mamba: a selective state space model (Gu and Dao 2023, arXiv:2312.00752); both ways as in Vision Mamba."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.layers.dropout import Dropout
from zoo.layers.initializers import kernel_initializer, time_step_bias
from zoo.layers.shapes import check_shapes
from zoo.layers.short_conv import ShortConv
from zoo.ops.selective_scan import selective_scan, selective_scan_step
from zoo.registry import register_mixer
from zoo.typing import Array, Bool, DType, Float, Int

MambaInit = Literal["official", "hf"]


class MambaState(NamedTuple):
    """All that a causal Mamba layer remembers; its size does not depend on how much was read. Empty is all zeros.

    Attributes:
      conv: [B, W - 1, E], the last inputs of the convolution, the newest last.
      ssm: [B, N, E], the states.
    """

    conv: Array
    ssm: Array


class SelectiveSSM(nnx.Module):
    """Convolution, the maps to delta, B and C, and the scan: what a Mamba layer has once per direction.

    Args:
      width: E.
      d_state: N.
      d_conv: W.
      dt_rank: R, width between the input and delta.
      dt_min, dt_max, dt_floor: of the time steps at the start, see `zoo.layers.initializers.time_step_bias`.
      dt_scale: the kernel of delta is uniform within this over sqrt(R), or constant at it.
      dt_init: "random" or "constant".
      conv_bias: bias of the convolution.
      init: see `Mamba`.
      chunk_size, implementation: of `zoo.ops.selective_scan`.
      dtype, param_dtype: of computation and parameters.
      rngs: for the initial parameters.
    """

    def __init__(
        self,
        width: int,
        *,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        dt_min: float,
        dt_max: float,
        dt_floor: float,
        dt_scale: float,
        dt_init: Literal["random", "constant"],
        conv_bias: bool,
        init: MambaInit,
        chunk_size: int | None,
        implementation: str | None,
        dtype: DType | None,
        param_dtype: DType,
        rngs: nnx.Rngs,
    ):
        self.d_state, self.dt_rank = d_state, dt_rank
        self.chunk_size, self.implementation = chunk_size, implementation
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.conv = ShortConv(
            width,
            d_conv,
            use_bias=conv_bias,
            implementation="reference" if implementation == "reference" else None,
            **dtypes,
            rngs=rngs,
        )
        if init == "hf" and self.conv.bias is not None:
            self.conv.bias[...] = jnp.zeros_like(self.conv.bias[...])
        self.x_proj = nnx.Linear(
            width, dt_rank + 2 * d_state, use_bias=False, kernel_init=_linear_init(init), **dtypes, rngs=rngs
        )
        bound = dt_scale / math.sqrt(dt_rank)
        dt_kernel = initializers.constant(bound) if dt_init == "constant" else _uniform(bound)
        self.dt_proj = nnx.Linear(dt_rank, width, use_bias=False, kernel_init=dt_kernel, **dtypes, rngs=rngs)
        self.dt_bias = nnx.Param(time_step_bias(dt_min, dt_max, dt_floor)(rngs.params(), (width,), param_dtype))
        rates = jnp.log(jnp.arange(1, d_state + 1, dtype=jnp.float32))
        self.A_log = nnx.Param(jnp.tile(rates, (width, 1)).astype(param_dtype))
        self.D = nnx.Param(jnp.ones(width, param_dtype))

    def __call__(
        self,
        x: Float[Array, "B T E"],
        z: Float[Array, "B T E"],
        *,
        mask: Bool[Array, "B T"] | None,
        segment_ids: Int[Array, "B T"] | None,
        state: MambaState | None,
        return_state: bool,
        reverse: bool,
    ) -> tuple[Float[Array, "B T E"], MambaState | None]:
        """The gated output and, if asked for, the new state."""
        marks = {"mask": mask, "segment_ids": segment_ids, "reverse": reverse, "return_state": return_state}
        found = self.conv(x, state=None if state is None else state.conv, **marks)
        u, conv = found if isinstance(found, tuple) else (found, None)
        found = selective_scan(
            u,
            *self._selected(u),
            z=z,
            initial_state=None if state is None else state.ssm,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
            dt_bias=self.dt_bias[...],
            **marks,
        )
        y, ssm = found if isinstance(found, tuple) else (found, None)
        return y, None if conv is None or ssm is None else MambaState(conv, ssm)

    def step(
        self, x_t: Float[Array, "B E"], z_t: Float[Array, "B E"], state: MambaState
    ) -> tuple[Float[Array, "B E"], MambaState]:
        """One token."""
        u, conv = self.conv.step(x_t, state.conv)
        y, ssm = selective_scan_step(state.ssm, u, *self._selected(u), z=z_t, dt_bias=self.dt_bias[...])
        return y, MambaState(conv, ssm)

    def _selected(self, u: Array) -> tuple[Array, ...]:
        """dt before its bias (which is added in float32), A, B, C and D for these tokens."""
        low, b, c = jnp.split(self.x_proj(u), [self.dt_rank, self.dt_rank + self.d_state], axis=-1)
        return self.dt_proj(low), -jnp.exp(self.A_log[...].astype(jnp.float32)), b, c, self.D[...]


@register_mixer(
    "mamba",
    title="Mamba: selective state spaces",
    paper="arXiv:2312.00752 (COLM 2024)",
    time="O(T)",
    memory="O(T)",
    causal=True,
    bidirectional=True,
    padding_mask=True,
    decode=True,
    fixed_length=False,
    test_args={"d_state": 4, "expand": 1},
    notes="Bidirectional as in Vision Mamba (arXiv:2401.09417): a second convolution and scan from the end, averaged. "
    "A_log, D and the time steps' bias are not weight-decayed by the authors.",
)
class Mamba(nnx.Module):
    """In-projection to x and a gate z, short convolution and SiLU of x, selective scan, gate, out-projection.

    Bidirectionally, the in- and out-projection are shared and everything between exists twice: the halved sum of a pass
    from the start and one from the end goes into the out-projection (Vision Mamba's "v2", its default). Both passes
    start alike. In Vision Mamba's code the second one's time steps lack their initialisation, and start up to 700 times
    larger; that is not repeated here.

    The initial values are those of the authors' code: PyTorch's default for projections (uniform within
    1 / sqrt(fan_in)) and for the convolution with its bias, `A_log` = log(1..N), D = 1, and time steps from 0.001 to
    0.1. `A_log`, `D` and `dt_bias` are best kept out of weight decay.

    Args:
      d_model: D.
      d_state: N, states per channel.
      d_conv: W, taps of the convolution.
      expand: E = expand * D channels inside.
      dt_rank: R, width of the map to the time steps; None for D / 16, rounded up.
      dt_min, dt_max, dt_init_floor: time steps at the start are log-uniform between the first two, and at least the
        third.
      dt_init: "random", the map to the time steps uniform within dt_scale / sqrt(R), or "constant", all equal to it.
      dt_scale: see `dt_init`.
      conv_bias: bias of the convolution.
      proj_bias: biases of the in- and out-projection.
      init: "official", or "hf" for what Hugging Face's `MambaModel` starts from: normal maps of standard deviation 0.1
        into the layer and to delta, B and C, and no bias of the convolution.
      num_layers: how many such layers a model stacks: the out-projection starts divided by its square root, as in the
        authors' language model. None for no such factor.
      chunk_size: of the scan: speed and memory only.
      causal: position t sees positions <= t only; allows `state`, `step`.
      dropout: rate, on the output of the layer. The authors have none.
      implementation: of the scan, "xla", "xla_sequential", "xla_chunked", "mosaic_gpu" (kernels for Hopper GPUs),
        "mosaic_gpu_or_xla", "mosaic_tpu" (for TPUs), "mosaic_tpu_or_xla", "reference" or None.
      dtype: computation dtype of projections and convolution; None follows `x`. Time steps, decays and states are
        float32 in any case.
      param_dtype: dtype of the parameters; float32 is what the authors keep `A_log`, `D` and `dt_bias` in.
      rngs: for the initial parameters.

    Raises:
      ValueError: an option is unknown or out of range.
    """

    implementations = ("xla", "xla_chunked", "reference")

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        proj_bias: bool = False,
        init: MambaInit = "official",
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
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand * d_model": width, "dt_rank": rank}
        for name, size in (sizes | {"num_layers": 1 if num_layers is None else num_layers}).items():
            if size < 1:
                raise ValueError(f"Mamba needs {name} >= 1; it is {size}.")
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init={dt_init!r} is not known; it is 'random' or 'constant'.")
        if init not in ("official", "hf"):
            raise ValueError(f"init={init!r} is not known; it is 'official' or 'hf'.")
        self.d_model, self.width, self.causal, self.dtype = d_model, width, causal, dtype
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}

        def direction() -> SelectiveSSM:
            return SelectiveSSM(
                width,
                d_state=d_state,
                d_conv=d_conv,
                dt_rank=rank,
                dt_min=dt_min,
                dt_max=dt_max,
                dt_floor=dt_init_floor,
                dt_scale=dt_scale,
                dt_init=dt_init,
                conv_bias=conv_bias,
                init=init,
                chunk_size=chunk_size,
                implementation=implementation,
                **dtypes,
                rngs=rngs,
            )

        self.in_proj = nnx.Linear(
            d_model, 2 * width, use_bias=proj_bias, kernel_init=_linear_init(init), **dtypes, rngs=rngs
        )
        self.ssm = direction()
        self.backward_ssm = None if causal else direction()
        self.out_proj = nnx.Linear(
            width,
            d_model,
            use_bias=proj_bias,
            kernel_init=_uniform(1 / math.sqrt(width * (num_layers or 1))),
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
        state: MambaState | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], MambaState]:
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
        check_shapes("mamba", "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError("Mamba keeps a state only when it was built with causal=True.")
        inner, z = jnp.split(self.in_proj(x), 2, axis=-1)
        marks = {"mask": mask, "segment_ids": segment_ids}
        y, new_state = self.ssm(inner, z, state=state, return_state=return_state, reverse=False, **marks)
        if self.backward_ssm is not None:
            other, _ = self.backward_ssm(inner, z, state=None, return_state=False, reverse=True, **marks)
            y = (y + other) / 2
        y = self.out_proj(y).astype(self.dtype or x.dtype)
        y = self.dropout(y, deterministic=deterministic, rngs=rngs)
        return (y, new_state) if new_state is not None else y

    def init_state(self, batch_size: int) -> MambaState:
        """The state before the first token: float32 zeros, batch first. ValueError unless causal."""
        self._need_causal("init_state")
        ssm = jnp.zeros((batch_size, self.ssm.d_state, self.width), jnp.float32)
        return MambaState(self.ssm.conv.init_state(batch_size), ssm)

    def step(self, x_t: Float[Array, "B D"], state: MambaState) -> tuple[Float[Array, "B D"], MambaState]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes("mamba", "x_t [B, D]", x_t, D=self.d_model)
        inner, z = jnp.split(self.in_proj(x_t), 2, axis=-1)
        y, state = self.ssm.step(inner, z, state)
        return self.out_proj(y).astype(self.dtype or x_t.dtype), state

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"Mamba.{what} needs causal=True: bidirectionally every output needs every token.")


def _uniform(bound: float) -> nnx.Initializer:
    def init(key, shape, dtype=None, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype or "float32", -bound, bound)

    return init


def _linear_init(init: MambaInit) -> nnx.Initializer:
    return initializers.normal(0.1) if init == "hf" else kernel_initializer("torch")
