"""What mixers share that keep a matrix of values under keys: DeltaNet, Gated DeltaNet, gated linear attention."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from zoo.layers.dropout import Dropout
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, Bool, DType, Float, Int


class KeyValueState(NamedTuple):
    """All that such a causal layer remembers; its size does not depend on how much was read. Empty is all zeros.

    Attributes:
      memory: [B, H, K, V], what is stored under the keys.
      conv: the last W - 1 inputs of the convolutions of q, k and v, [B, W - 1, width] each; empty without them.
    """

    memory: Float[Array, "B H K V"]
    conv: tuple[Array, ...]


class KeyValueMemory(nnx.Module):
    """Maps to q, k and v, short convolutions, the memory, and per head a norm, a gate if there is one, the output map.

    Bidirectionally the outputs of a pass from the start and one from the end are averaged before the norm. A subclass
    says what happens in the memory (`_pass`, `_token`), and its constructor sets:

    * `d_model`, `causal`, `dtype`; `chunk_size` and `implementation` of the op;
    * `heads`: H, K and V of the memory;
    * `query`, `key`, `value`, `out`: Linears of all heads together; `gate`: one, or None; `norm`: of V; `dropout`;
    * `direction`, and `backward_direction` (None in a causal layer): modules with `convs`, a `ShortConvs`, and whatever
      else the layer has once per direction.
    """

    d_model: int
    causal: bool
    heads: tuple[int, int, int]
    query: nnx.Linear
    key: nnx.Linear
    value: nnx.Linear
    out: nnx.Linear
    gate: nnx.Linear | None
    norm: nnx.RMSNorm
    dropout: Dropout
    direction: Any
    backward_direction: Any
    chunk_size: int | None
    implementation: str | None
    dtype: DType | None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: KeyValueState | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], KeyValueState]:
        """Mixes `x` along T.

        Args:
          x: inputs.
          mask: True at real tokens; None where all are. Padding moves no state.
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
        check_shapes(self._name, "x [B, T, D]", x, mask, D=self.d_model)
        if not self.causal and (state is not None or return_state):
            raise ValueError(f"{type(self).__name__} keeps a state only when it was built with causal=True.")
        projected = self._project(x)

        def run(direction: Any, reverse: bool) -> tuple[Array, KeyValueState]:
            marks = {"mask": mask, "segment_ids": segment_ids, "reverse": reverse}
            arrays, conv = direction.convs(projected, state=None if state is None else state.conv, **marks)
            y, memory = self._pass(
                arrays,
                direction,
                x,
                initial_state=None if state is None else state.memory,
                return_state=True,
                implementation=self.implementation,
                chunk_size=self.chunk_size,
                **marks,
            )
            return y, KeyValueState(memory, conv)

        y, new_state = run(self.direction, reverse=False)
        if self.backward_direction is not None:
            y = (y + run(self.backward_direction, reverse=True)[0]) / 2
        y = self.dropout(self._merge(y, x), deterministic=deterministic, rngs=rngs)
        return (y, new_state) if return_state else y

    def init_state(self, batch_size: int) -> KeyValueState:
        """The state before the first token: float32 zeros, batch first. ValueError unless causal."""
        self._need_causal("init_state")
        memory = jnp.zeros((batch_size, *self.heads), jnp.float32)
        return KeyValueState(memory, self.direction.convs.init_state(batch_size))

    def step(self, x_t: Float[Array, "B D"], state: KeyValueState) -> tuple[Float[Array, "B D"], KeyValueState]:
        """The output for one more token and the state after it, without dropout.

        Raises:
          ValueError: `x_t` is not [B, D], or the layer is not causal.
        """
        self._need_causal("step")
        check_shapes(self._name, "x_t [B, D]", x_t, D=self.d_model)
        arrays, conv = self.direction.convs.step(self._project(x_t), state.conv)
        y, memory = self._token(state.memory, arrays, self.direction, x_t)
        return self._merge(y, x_t), KeyValueState(memory, conv)

    def _pass(self, arrays: tuple[Array, ...], direction: Any, x: Array, **options: Any) -> Any:
        """The heads' outputs [B, T, H, V] and the memory after them.

        Args:
          arrays: q, k, v as the convolutions leave them, all heads in one axis.
          direction: that of the pass.
          x: the layer's input.
          **options: arguments that all ops take.
        """
        raise NotImplementedError

    def _token(self, memory: Array, arrays: tuple[Array, ...], direction: Any, x_t: Array) -> tuple[Array, Array]:
        """The heads' outputs [B, H, V] for one token and the memory after it."""
        raise NotImplementedError

    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        """q, k, v with all heads in one axis."""
        return self.query(x), self.key(x), self.value(x)

    def _merge(self, y: Array, x: Array) -> Array:
        """From the heads' outputs [..., H, V] to the layer's [..., D]."""
        y = self.norm(y).reshape(*x.shape[:-1], -1)
        y = y if self.gate is None else y * nnx.silu(self.gate(x))
        return self.out(y).astype(self.dtype or x.dtype)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _need_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"{self._name}.{what} needs causal=True: bidirectionally every output needs every token.")
