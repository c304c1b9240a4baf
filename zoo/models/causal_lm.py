"""A causal encoder and a linear map to the tokens that may come next."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import initializers

from zoo.encoder import Encoder, EncoderConfig, EncoderState
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, Bool, Float, Int


class CausalLM(nnx.Module):
    """Next-token logits over the encoder: position t answers from tokens 0 to t.

    Where the mixer decodes, the model runs from and to states: a prompt goes in whole (`prefill`) or in chunks (calls
    with `state=`), then one token at a time (`step`). `zoo.generation.generate` does that.

    Args:
      config: of the encoder; it reads tokens, and `causal` is set.
      tie_embeddings: the head is the token table, transposed (Press & Wolf 2017, arXiv:1608.05859), which wants a table
        of small initial values (`embedding_std` about 0.02); else a matrix of its own, drawn with deviation 0.02.
      rngs: for the initial parameters.

    Raises:
      ValueError: the mixer cannot be causal, or the encoder would read scalars or have a CLS vector.
    """

    def __init__(self, config: EncoderConfig, *, tie_embeddings: bool = False, rngs: nnx.Rngs):
        if config.inputs != "tokens":
            raise ValueError(f"a language model reads tokens, got inputs={config.inputs!r}.")
        if config.cls_token:
            raise ValueError("a language model has no CLS vector: set cls_token=False.")
        self.encoder = Encoder(dataclasses.replace(config, causal=True), rngs=rngs)
        self.dtype = jnp.dtype(config.dtype)
        if tie_embeddings:
            self.kernel = None
        else:
            shape = (config.d_model, config.vocab_size)
            self.kernel = nnx.Param(initializers.normal(0.02)(rngs.params(), shape, jnp.dtype(config.param_dtype)))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: EncoderState | None = None,
        return_state: bool = False,
    ) -> Float[Array, "B T V"] | tuple[Float[Array, "B T V"], EncoderState]:
        """Logits of the token after each position, float32 [B, T, V], and with `return_state` the state after `tokens`.

        Args:
          tokens: ids below V.
          mask: True at real tokens; None where all are. See `Encoder` for padding and positions.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.
          state: what came before `tokens`, from `init_state` or an earlier call; None for nothing.
          return_state: also return the state after `tokens`.

        Raises:
          ValueError, TypeError: as `Encoder` does.
        """
        options = {"mask": mask, "deterministic": deterministic, "rngs": rngs}
        found = self.encoder(tokens, **options, state=state, return_state=return_state)
        if isinstance(found, tuple):
            return self._logits(found[0]), found[1]
        return self._logits(found)

    def init_state(self, batch_size: int, max_len: int | None = None) -> EncoderState:
        """The state before the first token; see `Encoder.init_state`, also for what it raises."""
        return self.encoder.init_state(batch_size, max_len)

    def prefill(
        self, tokens: Int[Array, "B T"], state: EncoderState, *, mask: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B V"], EncoderState]:
        """Logits of what comes after the last real token of each row, without dropout, and the state there.

        The head works on one position a row. Rows that have no real token get NaN: nothing was asked there.

        Raises:
          ValueError, TypeError: as `Encoder` does.
        """
        found = self.encoder(tokens, mask=mask, deterministic=True, state=state, return_state=True)
        assert isinstance(found, tuple)
        x, state = found
        if mask is None:
            return self._logits(x[:, -1]), state
        last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        logits = self._logits(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0])
        return jnp.where(mask.any(axis=1)[:, None], logits, jnp.nan), state

    def step(self, token: Int[Array, " B"], state: EncoderState) -> tuple[Float[Array, "B V"], EncoderState]:
        """Logits of what comes after one more token of each row, without dropout, and the state there.

        Raises:
          ValueError: `token` is not [B], or the mixer keeps no state.
        """
        check_shapes("causal_lm", "token [B]", token)
        x, state = self.encoder.step(token, state)
        return self._logits(x), state

    def _logits(self, x: Array) -> Array:
        if self.kernel is None:
            table = self.encoder.embedding.table
            assert isinstance(table, nnx.Embed)
            kernel = table.embedding[...].T
        else:
            kernel = self.kernel[...]
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32)
