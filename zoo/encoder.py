"""The one backbone: embed -> [norm, mixer, residual, norm, feed-forward, residual] x L -> norm.

Every registered mixer runs in it. What a mixer's constructor does not take (the number of heads, say) is not handed to
it; what is particular to one mixer goes through `mixer_options`.

A causal encoder of a mixer that decodes runs from and to states: `init_state`, a call with `state=` for one more piece
of the sequence, `step` for one more token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import registry
from zoo.layers.embeddings import Embedding, Inputs, Positions
from zoo.layers.feed_forward import Activation, FeedForward
from zoo.layers.initializers import KernelInit, bias_initializer, kernel_initializer
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

Remat = Literal["none", "full", "dots"]


def rematerialized(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`function`, recomputed in the backward pass: all of it ("full"), but for matrix products ("dots"), or not."""
    if remat == "none":
        return function
    policy = None if remat == "full" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=policy)


def check_choices(config: Any) -> None:
    """Raises ValueError where a field of a dataclass is none of the values that its `Literal` names."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            raise ValueError(f"unknown {name} {getattr(config, name)!r}; there are {', '.join(get_args(hint))}.")


@dataclasses.dataclass(frozen=True)
class BodyConfig:
    """The shape of an encoder, whatever it reads and mixes with; a recipe's `model` section.

    Attributes:
      d_model: D, width of the residual stream.
      num_layers: number of blocks.
      num_heads: H, for mixers that have heads.
      d_ff: F, inner width of the feed-forward layer; None for 4 D.
      ffn: "mlp", "glu" (gated) or "none" (mixer only).
      ffn_bias: biases of the feed-forward layer.
      activation: of the feed-forward layer.
      norm: "pre" (before each part, and one at the end) or "post" (after each residual sum).
      norm_kind: "layer" (LayerNorm) or "rms" (RMSNorm, Zhang & Sennrich 2019, arXiv:1910.07467: no mean, no bias).
      norm_eps: added to the variance, or to the mean square.
      positions: "sinusoidal", "learned", "axial" (a vector for the row and one for the column) or "none".
      position_shape: of axial positions, the lengths of the grid's axes; see `zoo.layers.embeddings.Embedding`.
      embedding_std: of the token table's initial values.
      dropout: rate after the embedding, the mixer, and in the feed-forward layer.
      attention_dropout: rate on attention weights, for mixers that have any; None for `dropout`.
      use_bias: biases in the mixer's projections.
      kernel_init: see `zoo.layers.initializers`.
      dtype: computation dtype, "float32" or "bfloat16".
      param_dtype: dtype of the parameters.
      remat: recompute blocks in the backward pass: "none", "full", or "dots" (keep matrix products).
      scan_layers: stack the blocks and scan over them: one block is compiled instead of L.
    """

    d_model: int = 128
    num_layers: int = 2
    num_heads: int = 4
    d_ff: int | None = None
    ffn: Literal["mlp", "glu", "none"] = "mlp"
    ffn_bias: bool = True
    activation: Activation = "gelu"
    norm: Literal["pre", "post"] = "pre"
    norm_kind: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    positions: Positions = "sinusoidal"
    position_shape: tuple[int, ...] | None = None
    embedding_std: float = 1.0
    dropout: float = 0.0
    attention_dropout: float | None = None
    use_bias: bool = True
    kernel_init: KernelInit = "lecun_normal"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    scan_layers: bool = False

    def __post_init__(self):
        check_choices(self)
        # The upper ends are beyond any machine; a slip of the pen beyond them would keep it busy for hours.
        for name, most in (("d_model", 2**20), ("num_layers", 1000), ("num_heads", 2**20)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 1 to {most}, got {getattr(self, name)}.")
        if self.d_ff is not None and not 1 <= self.d_ff <= 2**24:
            raise ValueError(f"d_ff must be from 1 to {2**24}, or null for 4 * d_model, got {self.d_ff}.")
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate}.")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(BodyConfig):
    """A `BodyConfig` with what the data and the variant decide.

    Attributes:
      mixer: a registered mixer.
      mixer_options: further arguments of its constructor.
      inputs: "tokens" or "scalars".
      vocab_size: number of token ids.
      max_len: longest sequence; with positions "none" nothing depends on it but mixers that have a `max_len`.
      causal: every block sees the past only.
      cls_token: put a learned vector in front.
    """

    mixer: str = "softmax"
    mixer_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Inputs = "tokens"
    vocab_size: int | None = None
    max_len: int = 1024
    causal: bool = False
    cls_token: bool = False


def make_mixer(config: EncoderConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The mixer of one block: shared settings that its constructor names, then `mixer_options`.

    Raises:
      RegistryError: no mixer of that name.
      TypeError: an option that the mixer does not take; names the nearest.
      ValueError: a causal encoder of a mixer that sees the future; or what the mixer's own constructor refuses.
    """
    cls = registry.get(config.mixer, "mixer")
    accepted = [name for name in registry.option_names(cls) if name != "d_model"]
    unknown = set(config.mixer_options) - set(accepted)
    if unknown:
        name = sorted(unknown)[0]
        raise TypeError(f"{config.mixer} has no option {name!r}. {registry.did_you_mean(name, accepted)}")
    if config.causal and "causal" not in accepted and registry.spec(config.mixer).bidirectional:
        raise ValueError(f"{config.mixer} has no option causal, so it cannot be in a causal encoder.")
    shared = {
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,  # for initial values that depend on the depth
        "max_len": config.max_len + config.cls_token,
        "causal": config.causal,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "use_bias": config.use_bias,
        "kernel_init": kernel_initializer(config.kernel_init),
        "bias_init": bias_initializer(config.kernel_init, config.d_model),
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
    }
    options = {name: value for name, value in shared.items() if name in accepted} | config.mixer_options
    return cls(config.d_model, **options, rngs=rngs)


class Block(nnx.Module):
    """One layer: a mixer and a feed-forward part, each with norm and residual.

    Args:
      config: see `EncoderConfig`.
      rngs: for the initial parameters.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.pre_norm = config.norm == "pre"
        dtypes = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        self.mixer_norm = make_norm(config, rngs)
        self.mixer = make_mixer(config, rngs)
        if config.ffn == "none":
            self.ffn = None
        else:
            self.ffn_norm = make_norm(config, rngs)
            self.ffn = FeedForward(
                config.d_model,
                config.d_ff or 4 * config.d_model,
                gated=config.ffn == "glu",
                use_bias=config.ffn_bias,
                activation=config.activation,
                dropout=config.dropout,
                kernel_init=config.kernel_init,
                **dtypes,
                rngs=rngs,
            )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: PyTree = None,
        return_state: bool = False,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], PyTree]:
        """Mixes along T, then transforms each position; with `return_state` also gives the mixer's state after `x`."""
        flags = {"deterministic": deterministic, "rngs": rngs}
        # Mixers without a state do not know these arguments.
        states = {"state": state, "return_state": True} if return_state or state is not None else {}
        y = self.mixer(self.mixer_norm(x) if self.pre_norm else x, mask=mask, **flags, **states)
        y, state = y if states else (y, None)
        x = self._add(x, y, **flags)
        return (x, state) if return_state else x

    def init_state(self, batch_size: int, max_len: int) -> PyTree:
        """The mixer's state before the first token, with room for `max_len` tokens where it keeps a cache."""
        mixer: Any = self.mixer
        cache = {"max_len": max_len} if "max_len" in registry.option_names(mixer.init_state) else {}
        return mixer.init_state(batch_size, **cache)

    def step(self, x_t: Float[Array, "B D"], state: PyTree) -> tuple[Float[Array, "B D"], PyTree]:
        """One more position and the mixer's state after it, without dropout."""
        mixer: Any = self.mixer
        y, state = mixer.step(self.mixer_norm(x_t) if self.pre_norm else x_t, state)
        return self._add(x_t, y, deterministic=True), state

    def _add(self, x: Array, y: Array, **flags: Any) -> Array:
        """The residual sum of `x` and the mixer's output, and the feed-forward part of every position."""
        if self.pre_norm:
            x = x + y
            return x if self.ffn is None else x + self.ffn(self.ffn_norm(x), **flags)
        x = self.mixer_norm(x + y)
        return x if self.ffn is None else self.ffn_norm(x + self.ffn(x, **flags))


def make_norm(config: BodyConfig, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    """The norm over D of `config.norm_kind`; LayerNorm has the variance as the mean of squared deviations."""
    options: dict[str, Any] = {
        "epsilon": config.norm_eps,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
        "rngs": rngs,
    }
    if config.norm_kind == "rms":
        return nnx.RMSNorm(config.d_model, **options)
    return nnx.LayerNorm(config.d_model, use_fast_variance=False, **options)


class EncoderState(NamedTuple):
    """What an encoder keeps of the tokens that it has seen.

    Attributes:
      length: [B] int32, real tokens seen.
      layers: the state of each block's mixer, batch first; with `scan_layers` one tree in which they are stacked in
        front of the batch.
    """

    length: Int[Array, " B"]
    layers: PyTree


class Encoder(nnx.Module):
    """Embedding, `num_layers` blocks, and a final norm where the blocks are pre-norm.

    Args:
      config: see `EncoderConfig`.
      rngs: for the initial parameters.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = Embedding(
            config.d_model,
            config.max_len,
            inputs=config.inputs,
            vocab_size=config.vocab_size,
            positions=config.positions,
            position_shape=config.position_shape,
            cls_token=config.cls_token,
            embedding_std=config.embedding_std,
            dropout=config.dropout,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        self.layers = make_layers(config, rngs=rngs)
        self.norm = make_norm(config, rngs) if config.norm == "pre" else None

    def __call__(
        self,
        inputs: Num[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
        state: EncoderState | None = None,
        return_state: bool = False,
    ) -> Float[Array, "B T2 D"] | tuple[Float[Array, "B T2 D"], EncoderState]:
        """Hidden vectors; T2 is T + 1 with a CLS vector, else T.

        With a state, or where one is asked for, a token stands where the number of real tokens before it says: padding
        on the left or on the right changes nothing at real positions, nor in the state.

        Args:
          inputs: tokens or scalars.
          mask: True at real positions; None where all are.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.
          state: what came before `inputs`, from `init_state` or an earlier call; None for nothing.
          return_state: also return the state after `inputs`.

        Raises:
          ValueError: `inputs` or `mask` is misshapen, T exceeds `max_len` (with positions "none" there is no such
            limit), or tokens are not integers; or a state is used in an encoder that keeps none.
          TypeError: `mask` is not boolean.
        """
        check_shapes("encoder", "inputs [B, T]", inputs, mask)
        places = None
        if return_state and state is None:
            state = self.init_state(inputs.shape[0])
        if state is not None:
            self._check_state(state, inputs.shape[0])
            real = jnp.ones(inputs.shape, bool) if mask is None else mask
            ends = state.length[:, None] + jnp.cumsum(real, axis=1, dtype=jnp.int32)
            places = jnp.maximum(ends - 1, 0)  # padding in front stands nowhere
            state = EncoderState(ends[:, -1], state.layers)
        x = self.embedding(inputs, places=places, deterministic=deterministic, rngs=rngs)
        config = self.config
        if mask is not None and config.cls_token:
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        key = None if rngs is None else rngs.dropout()
        states = None if state is None else state.layers
        x, layers = run_layers(self.layers, config, x, mask=mask, deterministic=deterministic, key=key, states=states)
        x = x if self.norm is None else self.norm(x)
        return (x, state._replace(layers=layers)) if return_state and state is not None else x

    def init_state(self, batch_size: int, max_len: int | None = None) -> EncoderState:
        """The state before the first token.

        Args:
          batch_size: B.
          max_len: tokens that there must be room for in a mixer whose state is a cache; None for the encoder's
            `max_len`. States of constant size do not depend on it.

        Raises:
          ValueError: the encoder keeps no state: it is not causal, has a CLS vector, or its mixer does not decode.
        """
        self._check_state()
        room = self.config.max_len if max_len is None else max_len
        if isinstance(self.layers, Block):
            graph, stacked = nnx.split(self.layers)
            layers = jax.vmap(lambda layer: nnx.merge(graph, layer).init_state(batch_size, room))(stacked)
        else:
            layers = tuple(block.init_state(batch_size, room) for block in self.layers)
        return EncoderState(jnp.zeros(batch_size, jnp.int32), layers)

    def step(self, inputs_t: Num[Array, " B"], state: EncoderState) -> tuple[Float[Array, "B D"], EncoderState]:
        """The hidden vector of one more token of each sequence and the state after it, without dropout.

        Raises:
          ValueError: `inputs_t` is not [B], or the encoder keeps no state.
        """
        check_shapes("encoder", "inputs_t [B]", inputs_t)
        self._check_state(state, inputs_t.shape[0])
        x = self.embedding(inputs_t[:, None], places=state.length[:, None], deterministic=True)[:, 0]
        if isinstance(self.layers, Block):
            graph, stacked = nnx.split(self.layers)
            x, layers = jax.lax.scan(
                lambda x, layer: nnx.merge(graph, layer[0]).step(x, layer[1]), x, (stacked, state.layers)
            )
        else:
            layers = []
            for block, layer in zip(self.layers, state.layers, strict=True):
                x, layer = block.step(x, layer)
                layers.append(layer)
        layers = tuple(layers) if isinstance(layers, list) else layers
        return x if self.norm is None else self.norm(x), EncoderState(state.length + 1, layers)

    def _check_state(self, state: EncoderState | None = None, batch_size: int | None = None) -> None:
        """Raises ValueError where this encoder keeps no state, or `state` is that of another batch."""
        config = self.config
        if not config.causal:
            raise ValueError("an encoder keeps a state only with causal=True: else every output needs every token.")
        if config.cls_token:
            raise ValueError("an encoder with a CLS vector in front of the sequence keeps no state.")
        if not (spec := registry.spec(config.mixer)).decode:
            raise ValueError(
                f"{spec.name} keeps no state, so that this encoder cannot go on from one or take one token at a time. "
                f"{spec.notes}".strip()
            )
        if state is not None and state.length.shape != (batch_size,):
            raise ValueError(f"the state is that of a batch of {state.length.shape[0]}, the inputs are {batch_size}.")


def make_layers(config: EncoderConfig, *, rngs: nnx.Rngs) -> Any:
    """The blocks of an encoder: an `nnx.List`, or with `scan_layers` one block whose arrays are stacked along axis 0.

    A model that is no `Encoder` (its vectors are not those of tokens in a row) has them as an attribute and calls
    `run_layers` on them.

    Raises:
      RegistryError, TypeError, ValueError: as `make_mixer` does.
    """
    blocks = [Block(config, rngs=rngs) for _ in range(config.num_layers)]
    if not config.scan_layers:
        return nnx.List(blocks)
    graph, first = nnx.split(blocks[0])
    states = [first, *(nnx.state(block) for block in blocks[1:])]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def run_layers(
    layers: Any,
    config: EncoderConfig,
    x: Float[Array, "B T D"],
    *,
    mask: Bool[Array, "B T"] | None = None,
    deterministic: bool | None = None,
    key: PRNGKeyArray | None = None,
    states: PyTree = None,
) -> tuple[Float[Array, "B T D"], PyTree]:
    """`x` through the blocks that `make_layers` made of `config`, recomputed in the backward pass as `remat` says.

    Args:
      layers, config: the blocks, and what they were made of.
      x: vectors.
      mask: True at real positions; None where all are.
      deterministic: no dropout; None for the module's own mode.
      key: of dropout; None where there is none.
      states: of each block's mixer; None for neither taking nor keeping any.

    Returns:
      The vectors after the last block (no norm follows it), and the new states or None.
    """
    keys = None if key is None else jax.random.split(key, config.num_layers)
    blocks: list[Any] = [layers] if isinstance(layers, Block) else list(layers)
    graph = nnx.graphdef(blocks[0])

    def call(block, x, key, state):
        rngs = None if key is None else nnx.Rngs(dropout=key)
        flags = {"mask": mask, "deterministic": deterministic, "rngs": rngs}
        return (block(x, **flags), None) if states is None else block(x, **flags, state=state, return_state=True)

    def run(layer, x, key, state):
        block = nnx.merge(graph, layer)
        before = _arrays(block)
        x, state = call(block, x, key, state)
        return x, (_changed(block, before), state)

    run = rematerialized(run, config.remat)
    if config.scan_layers:
        x, (changed, states) = jax.lax.scan(
            lambda x, layer: run(layer[0], x, *layer[1:]), x, (nnx.state(blocks[0]), keys, states)
        )
        nnx.update(blocks[0], changed)
        return x, states
    after = []
    for index, block in enumerate(blocks):
        key = None if keys is None else keys[index]
        state = None if states is None else states[index]
        if config.remat == "none":
            x, state = call(block, x, key, state)
        else:
            x, (changed, state) = run(nnx.state(block), x, key, state)
            nnx.update(block, changed)
        after.append(state)
    return x, None if states is None else tuple(after)


def _arrays(block: nnx.Module) -> dict[Any, list[Any]]:
    """The arrays of a block's variables that are no parameters, by path."""
    variables = nnx.to_flat_state(nnx.state(block, nnx.Not(nnx.Param)))
    return {path: jax.tree.leaves(variable) for path, variable in variables}


def _changed(block: nnx.Module, before: dict[Any, list[Any]]) -> nnx.State:
    """The variables that hold other arrays than `before`; running statistics after a training call, say.

    What a block leaves as it is stays inside its trace: it costs nothing, and the encoder, which may be a constant of
    an outer trace, is not written to.
    """
    after = _arrays(block)
    paths = {path for path in after if list(map(id, after[path])) != list(map(id, before.get(path, ())))}
    return nnx.state(block, lambda path, _: path in paths)
