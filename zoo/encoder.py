"""The one backbone: embed -> [norm, mixer, residual, norm, feed-forward, residual] x L -> norm.

Every registered mixer runs in it. What a mixer's constructor does not take (the number of heads, say) is not handed to
it; what is particular to one mixer goes through `mixer_options`.
"""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import registry
from zoo.layers.embeddings import Embedding, Inputs, Positions
from zoo.layers.feed_forward import Activation, FeedForward
from zoo.layers.initializers import KernelInit, bias_initializer, kernel_initializer
from zoo.layers.shapes import check_shapes
from zoo.typing import Array, Bool, Float, Num

Remat = Literal["none", "full", "dots"]


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
      activation: of the feed-forward layer.
      norm: "pre" (before each part, and one at the end) or "post" (after each residual sum).
      norm_eps: added to the variance in LayerNorm.
      positions: "sinusoidal", "learned" or "none".
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
    activation: Activation = "gelu"
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-6
    positions: Positions = "sinusoidal"
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
      max_len: longest sequence.
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
        self.mixer_norm = layer_norm(config, rngs)
        self.mixer = make_mixer(config, rngs)
        if config.ffn == "none":
            self.ffn = None
        else:
            self.ffn_norm = layer_norm(config, rngs)
            self.ffn = FeedForward(
                config.d_model,
                config.d_ff or 4 * config.d_model,
                gated=config.ffn == "glu",
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
    ) -> Float[Array, "B T D"]:
        """Mixes along T, then transforms each position."""
        flags = {"deterministic": deterministic, "rngs": rngs}
        if self.pre_norm:
            x = x + self.mixer(self.mixer_norm(x), mask=mask, **flags)
            return x if self.ffn is None else x + self.ffn(self.ffn_norm(x), **flags)
        x = self.mixer_norm(x + self.mixer(x, mask=mask, **flags))
        return x if self.ffn is None else self.ffn_norm(x + self.ffn(x, **flags))


def layer_norm(config: BodyConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over D, with the variance as the mean of squared deviations."""
    return nnx.LayerNorm(
        config.d_model,
        epsilon=config.norm_eps,
        use_fast_variance=False,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        rngs=rngs,
    )


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
            cls_token=config.cls_token,
            embedding_std=config.embedding_std,
            dropout=config.dropout,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        blocks = [Block(config, rngs=rngs) for _ in range(config.num_layers)]
        if config.scan_layers:
            graph, first = nnx.split(blocks[0])
            states = [first, *(nnx.state(block) for block in blocks[1:])]
            self.layers = nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
        else:
            self.layers = nnx.List(blocks)
        self.norm = layer_norm(config, rngs) if config.norm == "pre" else None

    def __call__(
        self,
        inputs: Num[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B T2 D"]:
        """Hidden vectors; T2 is T + 1 with a CLS vector, else T.

        Args:
          inputs: tokens or scalars.
          mask: True at real positions; None where all are.
          deterministic: no dropout; None for the module's own mode (`.train()`, `.eval()`).
          rngs: a `dropout` stream, where dropout is on.

        Raises:
          ValueError: `inputs` or `mask` is misshapen, T exceeds `max_len`, or tokens are not integers.
          TypeError: `mask` is not boolean.
        """
        check_shapes("encoder", "inputs [B, T]", inputs, mask)
        x = self.embedding(inputs, deterministic=deterministic, rngs=rngs)
        if mask is not None and self.config.cls_token:
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        key = None if rngs is None else rngs.dropout()
        x = self._run_layers(x, mask, deterministic, key)
        return x if self.norm is None else self.norm(x)

    def _run_layers(self, x, mask, deterministic, key):
        config = self.config
        keys = None if key is None else jax.random.split(key, config.num_layers)
        blocks: list[Any] = [self.layers] if isinstance(self.layers, Block) else list(self.layers)
        graph = nnx.graphdef(blocks[0])

        def run(state, x, key):
            rngs = None if key is None else nnx.Rngs(dropout=key)
            block = nnx.merge(graph, state)
            before = _arrays(block)
            x = block(x, mask=mask, deterministic=deterministic, rngs=rngs)
            return x, _changed(block, before)

        if config.remat != "none":
            policy = None if config.remat == "full" else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            run = jax.checkpoint(run, policy=policy)
        if config.scan_layers:
            x, changed = jax.lax.scan(lambda x, layer: run(layer[0], x, layer[1]), x, (nnx.state(blocks[0]), keys))
            nnx.update(blocks[0], changed)
            return x
        for index, block in enumerate(blocks):
            key = None if keys is None else keys[index]
            if config.remat == "none":
                rngs = None if key is None else nnx.Rngs(dropout=key)
                x = block(x, mask=mask, deterministic=deterministic, rngs=rngs)
            else:
                x, changed = run(nnx.state(block), x, key)
                nnx.update(block, changed)
        return x


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
