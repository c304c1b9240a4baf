"""Measures all variants at one length, in one process: `python -m benchmarks.lra.efficiency_points REQUEST OUT`.

What takes part is compiled, then run once in the order of the memory that it plans, then timed in turns. OUT gets a
line of JSON for each thing that happens: {"doing": VARIANT} before anything that may end the process, {"row": ...} as
soon as it is known. So whoever started it knows which variant it was that took too much.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.kernels.timing import interleave
from benchmarks.lra.flops import TRAINING, decode_flops, model_flops
from benchmarks.lra.recipes import random_batch
from zoo import registry
from zoo.encoder import BodyConfig, EncoderConfig
from zoo.functional import Functional, count_parameters
from zoo.models.causal_lm import CausalLM
from zoo.tasks.base import TaskInfo
from zoo.training import memory
from zoo.training.build import make_task, model_maker
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import Recipe, load_recipe
from zoo.training.step import init_state, make_train_step

BASE = "softmax"
KINDS = ("train", "infer", "decode")
EQUAL = ("width", "parameters")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured; the same for all variants.

    Attributes:
      recipe: of which the model's width, its task's inputs and the optimiser are taken.
      overrides: of the recipe.
      batch_size: B.
      repeats: samples, of which the median is taken.
      limit: seconds that a variant may take to compile, and seconds for all its samples.
      equal: "width": all have the recipe's; "parameters": each is as wide as makes the parameters of its layers those
        of softmax's, as nearly as whole heads permit.
    """

    recipe: str = "lra/small/text"
    overrides: tuple[str, ...] = ()
    batch_size: int = 4
    repeats: int = 5
    limit: float = 300.0
    equal: str = "width"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**dataclasses.asdict(self), "overrides": list(self.overrides)}


@dataclasses.dataclass
class Prepared:
    """A variant that can be run: `call` computes once and waits."""

    row: dict[str, Any]
    call: Callable[[], object]


@functools.cache
def recipe_of(setting: Setting, variant: str, length: int) -> Recipe:
    """The recipe for a variant at a length; its model has the depth of softmax's, and its width or its parameters,
    whatever a recipe's own section for the variant says."""
    changes = [*setting.overrides, f"task.max_len={length}", f"train.batch_size={setting.batch_size}"]
    changes += ["train.accumulate=1", "train.buckets=[]"]
    base = load_recipe(setting.recipe, changes, variant=BASE)
    recipe = dataclasses.replace(load_recipe(setting.recipe, changes, variant=variant), model=base.model)
    return recipe if setting.equal == "width" else _as_large_as(base, recipe)


def _as_large_as(base: Recipe, recipe: Recipe) -> Recipe:
    """The recipe with the width, d_ff in proportion, at which its layers have nearly as many parameters as the base's.

    What depends on the length, as position embeddings do, is left out: one width is to serve all lengths.
    """

    def size(recipe: Recipe) -> int:
        params = Functional(model_maker(recipe, info)).abstract_params
        return count_parameters(params.get("encoder", params)["layers"])

    def resized(width: int) -> Recipe:
        d_ff = round(base.model.d_ff * width / base.model.d_model)
        return dataclasses.replace(recipe, model=dataclasses.replace(base.model, d_model=width, d_ff=d_ff))

    info = make_task(base).info
    wanted, width = size(base), base.model.d_model
    found = {width: size(recipe)}
    # Heads of an even size, which rotary positions need.
    step = 2 * base.model.num_heads * (1 if found[width] < wanted else -1)
    while (found[width] < wanted) == (step > 0) and found[width] != wanted and width + step > 0:
        width += step
        found[width] = size(resized(width))
    return resized(min(found, key=lambda width: abs(found[width] - wanted)))


def prepare(setting: Setting, variant: str, kind: str, length: int) -> Prepared:
    """Compiles one variant.

    Raises:
      ValueError: the variant cannot do it; says why.
      OutOfMemory: it does not fit, by the compiler's plan.
    """
    recipe = recipe_of(setting, variant, length)
    info = make_task(recipe).info
    make = {"train": _train, "infer": _infer, "decode": _decode}[kind]
    functional, flops, lower, start = make(recipe, info, length)
    began = time.perf_counter()
    compiled = lower().compile()
    compile_seconds = time.perf_counter() - began
    planned, available = memory.planned_bytes(compiled), memory.device_memory()
    if not memory.fits(planned, available):
        raise memory.OutOfMemory(
            f"memory: {memory.amount(planned)} by the compiler's plan, {memory.amount(available or 0)} are there"
        )
    row = blank_row(variant, kind, length, setting.batch_size) | {
        "d_model": recipe.model.d_model,
        "parameters": count_parameters(functional.abstract_params),
        "step_bytes": planned,
        "compile_seconds": compile_seconds,
        "flops": None if flops is None else flops * setting.batch_size,
    }
    return Prepared(row, start(compiled))


def blank_row(variant: str, kind: str, length: int, batch_size: int, reason: str | None = None) -> dict[str, Any]:
    """A row without figures."""
    names = ("d_model", "parameters", "seconds", "tokens_per_second", "step_bytes", "device_peak", "compile_seconds")
    row = {"variant": variant, "kind": kind, "length": length, "batch_size": batch_size}
    return row | dict.fromkeys((*names, "flops", "ratio")) | {"reason": reason}


def _abstract(maker: Callable[[nnx.Rngs], nnx.Module]) -> Any:
    """The module, of shapes: for formulas only."""
    return nnx.eval_shape(lambda: maker(nnx.Rngs(0)))


def _train(recipe: Recipe, info: TaskInfo, length: int):
    task, maker = make_task(recipe), model_maker(recipe, info)
    functional = Functional(maker)
    optimizer = make_optimizer(recipe.train)
    batch = random_batch(info, recipe.train.batch_size, length)
    step = make_train_step(functional, task, optimizer, recipe.train)
    forward = model_flops(recipe.variant, _abstract(maker), length)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: init_state(functional, optimizer, recipe.train))

    def start(compiled: Any) -> Callable[[], object]:
        held = [init_state(functional, optimizer, recipe.train)]
        there = jax.device_put(batch)

        def call() -> None:
            held[0], sums = compiled(held[0], there, key)
            jax.block_until_ready((held[0], sums))

        return call

    return functional, forward and TRAINING * forward, lambda: step.lower(state, batch, key), start


def _infer(recipe: Recipe, info: TaskInfo, length: int):
    task, maker = make_task(recipe), model_maker(recipe, info)
    functional = Functional(maker)
    batch = random_batch(info, recipe.train.batch_size, length)

    def forward(params: Any, rest: Any, batch: Any) -> jax.Array:
        module = functional.module(params, rest)
        module.eval()
        return module(batch["inputs"], **task.arguments(batch), deterministic=True)

    run = jax.jit(forward)
    shapes = jax.eval_shape(lambda: functional.init(jax.random.key(0)))

    def start(compiled: Any) -> Callable[[], object]:
        params, rest = functional.init(jax.random.key(0))
        there = jax.device_put(batch)
        return lambda: jax.block_until_ready(compiled(params, rest, there))

    flops = model_flops(recipe.variant, _abstract(maker), length)
    return functional, flops, lambda: run.lower(*shapes, batch), start


def _decode(recipe: Recipe, info: TaskInfo, length: int):
    """One more token for each row, of a language model of the same body that has read `length` tokens."""
    spec = registry.spec(recipe.variant)
    if spec.kind != "mixer" or not spec.decode:
        raise ValueError(f"{recipe.variant} does not decode token by token")
    body = {field.name: getattr(recipe.model, field.name) for field in dataclasses.fields(BodyConfig)}
    config = EncoderConfig(
        **body,
        mixer=recipe.variant,
        mixer_options=dict(recipe.options),
        vocab_size=info.vocab_size or 256,
        max_len=length + 1,
        causal=True,
    )
    maker = lambda rngs: CausalLM(config, rngs=rngs)  # noqa: E731
    functional = Functional(maker)
    batch_size = recipe.train.batch_size

    def step(params: Any, rest: Any, token: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        model = functional.module(params, rest)
        model.eval()
        logits, after = model.step(token, state)
        # Always the same token: else a cache would be full after one call.
        return logits, after._replace(length=state.length)

    def begin(params: Any, rest: Any) -> Any:
        state = functional.module(params, rest).init_state(batch_size, length + 1)
        return state._replace(length=jnp.full_like(state.length, length))

    run = jax.jit(step, donate_argnums=3)
    shapes = jax.eval_shape(lambda: functional.init(jax.random.key(0)))
    token = jnp.zeros(batch_size, jnp.int32)

    def start(compiled: Any) -> Callable[[], object]:
        params, rest = functional.init(jax.random.key(0))
        held = [jax.jit(begin)(params, rest)]

        def call() -> None:
            logits, held[0] = compiled(params, rest, token, held[0])
            jax.block_until_ready((logits, held[0]))

        return call

    flops = decode_flops(recipe.variant, _abstract(maker), length)
    return functional, flops, lambda: run.lower(*shapes, token, jax.eval_shape(begin, *shapes)), start


def measure(
    setting: Setting, variants: list[str], kind: str, length: int, tell: Callable[[dict[str, Any]], None]
) -> None:
    """Measures the variants; `tell` gets what the module's docstring says."""
    ready: dict[str, Prepared] = {}
    for variant in variants:
        tell({"doing": variant})
        try:
            ready[variant] = prepare(setting, variant, kind, length)
        except Exception as error:  # whatever it is, it is a fact of this variant at this length
            tell({"row": blank_row(variant, kind, length, setting.batch_size, _reason(error))})
    peak = _peak()
    # In the order of what they plan, a peak that rises is that of the variant that made it rise.
    for variant in sorted(ready, key=lambda name: ready[name].row["step_bytes"]):
        tell({"doing": variant})
        began = time.perf_counter()
        try:
            ready[variant].call()
        except Exception as error:
            tell({"row": blank_row(variant, kind, length, setting.batch_size, _reason(error))})
            del ready[variant]
            continue
        seconds = time.perf_counter() - began
        if peak is not None and (now := _peak() or 0) > peak:
            ready[variant].row["device_peak"] = peak = now
        if seconds * (setting.repeats + 1) > setting.limit:
            reason = (
                f"time: one call takes {seconds:.1f} s, and {setting.repeats + 1} of them {setting.limit:g} s at most"
            )
            tell({"row": ready.pop(variant).row | {"reason": reason}})
    tell({"doing": None})
    for row in _timed(setting, ready):
        tell({"row": row})


def _timed(setting: Setting, ready: dict[str, Prepared]) -> list[dict[str, Any]]:
    found = interleave({name: one.call for name, one in ready.items()}, setting.repeats)
    seconds = {name: statistics.median(timing.samples) for name, timing in found.items()}
    rows = []
    for name, one in ready.items():
        tokens = setting.batch_size * (1 if one.row["kind"] == "decode" else one.row["length"])
        ratio = seconds[BASE] / seconds[name] if BASE in seconds else None
        timed = {"seconds": seconds[name], "tokens_per_second": tokens / seconds[name], "ratio": ratio}
        rows.append(one.row | timed)
    return rows


def _peak() -> int | None:
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _reason(error: Exception) -> str:
    if isinstance(error, memory.OutOfMemory):
        return str(error)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"memory: {first}" if memory.is_out_of_memory(error) else first


def main() -> None:
    request, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    setting = Setting(**{**request["setting"], "overrides": tuple(request["setting"]["overrides"])})
    with out.open("a", encoding="utf-8") as file:

        def tell(event: dict[str, Any]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        measure(setting, request["variants"], request["kind"], request["length"], tell)


if __name__ == "__main__":
    main()
