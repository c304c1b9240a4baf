"""Doors to the other ways of writing Flax: Linen modules, and plain functions of nested dicts."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from zoo import factory, registry

Target = str | Callable[..., nnx.Module]


def to_linen(target: Target, *args: Any, linen_name: str | None = None, **options: Any) -> linen.Module:
    """A Linen module that wraps a zoo module; for use on its own or inside `@nn.compact`.

    Called as the NNX module is, it has the same parameters, at the same paths below `params`. Randomness is Linen's: an
    `apply` with the stream `dropout` hands that to the module, so dropout needs no further argument::

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, mask, train):
                y = zoo.to_linen("flowformer", 64, num_heads=4, dropout=0.1)(x, mask=mask, deterministic=not train)
                return x + y

        variables = Block().init(jax.random.key(0), x, mask, False)
        y = Block().apply(variables, x, mask, True, rngs={"dropout": key})

    `init` without a `dropout` stream runs without dropout; a later call that is not deterministic and has no such
    stream raises. Other methods are named in the call: `module.apply(variables, x_t, state, nnx_method="step")`.

    Args:
      target: a registered mixer or model, or an NNX class.
      *args, **options: its constructor's arguments, without `rngs`. Dicts among them arrive as Flax's FrozenDict.
      linen_name: Linen's name of the submodule; None for an automatic one.

    Raises:
      RegistryError: nothing is registered under that name.
      TypeError: the constructor has no such option.
    """
    cls = _constructor(target, options)
    return ZooLinen(cls, args=args, kwargs=linen.FrozenDict(options), name=linen_name)


class ZooLinen(nnx.bridge.ToLinen):
    """Flax's `ToLinen`, handing Linen's `dropout` stream to calls that take `rngs`. See `to_linen`."""

    def __call__(self, *args: Any, nnx_method: Callable[..., Any] | str | None = None, **kwargs: Any) -> Any:
        method = nnx_method or "__call__"
        method = getattr(self.nnx_class, method) if isinstance(method, str) else method
        accepted = inspect.signature(method).parameters
        if "rngs" in accepted and "rngs" not in kwargs and self.has_rng("dropout"):
            kwargs["rngs"] = nnx.Rngs(dropout=self.make_rng("dropout"))
        elif "deterministic" in accepted and self.is_initializing():
            kwargs["deterministic"] = True
        return super().__call__(*args, nnx_method=nnx_method, **kwargs)


def init_apply(target: Target, *args: Any, **options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A module as two pure functions over nested dicts of arrays.

    Both can be transformed by `jax.jit`, `jax.vmap`, `jax.grad` and the rest::

        init, apply = zoo.init_apply("flowformer", 64, num_heads=4)
        params = init(jax.random.key(0))
        y = apply(params, x, mask=mask)
        y = apply(params, x, mask=mask, dropout_key=jax.random.key(1))

    `init(key, *, return_variables=False)` gives the parameters, the same as those of the module made with
    `rngs=nnx.Rngs(key)`. Variables that are no parameters (fixed tables, running statistics) come as a second dict with
    `return_variables=True`, and a module that has any wants them back in `apply`.

    `apply(params, *args, method="__call__", variables=None, return_variables=False, dropout_key=None,
    deterministic=None, **kwargs)` calls the module's `method` with `args` and `kwargs` (such as `mask` and `state`).
    There is dropout where `dropout_key` is given, unless `deterministic` says otherwise. With `return_variables=True`
    it returns the result and the variables after the call.

    Args:
      target: a registered mixer or model, or any function that takes `rngs` and returns an NNX module, such as an NNX
        class or `zoo.create_model`.
      *args, **options: its arguments, without `rngs`.

    Raises:
      RegistryError: nothing is registered under that name.
      TypeError: the constructor has no such option.
    """
    make = _constructor(target, options)

    def build(key: jax.Array) -> nnx.Module:
        return make(*args, **options, rngs=nnx.Rngs(key))

    abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    graph, params_like, rest_like = nnx.split(abstract, nnx.Param, ...)

    def init(key: jax.Array, *, return_variables: bool = False) -> Any:
        _, params, rest = nnx.split(build(key), nnx.Param, ...)
        params = nnx.to_pure_dict(params)
        return (params, nnx.to_pure_dict(rest)) if return_variables else params

    def apply(
        params: Mapping[str, Any],
        *args: Any,
        method: str = "__call__",
        variables: Mapping[str, Any] | None = None,
        return_variables: bool = False,
        dropout_key: jax.Array | None = None,
        deterministic: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        states = _fill(params_like, params, "params"), _fill(rest_like, variables or {}, "variables")
        # A copy, so that variables belong to the trace that uses them (flax: TraceContextError otherwise).
        module = nnx.merge(graph, *states, copy=True)
        function = getattr(module, method)
        accepted = inspect.signature(function).parameters
        if "deterministic" in accepted:
            kwargs["deterministic"] = dropout_key is None if deterministic is None else deterministic
        if dropout_key is not None:
            if "rngs" not in accepted:
                raise TypeError(f"{type(module).__name__}.{method} takes no rngs, so dropout_key must be None.")
            kwargs["rngs"] = nnx.Rngs(dropout=dropout_key)
        result = function(*args, **kwargs)
        if not return_variables:
            return result
        return result, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

    return init, apply


def _constructor(target: Target, options: Mapping[str, Any]) -> Callable[..., nnx.Module]:
    if not isinstance(target, str):
        return target
    found = registry.spec(target)
    if found.kind == "task":
        raise registry.RegistryError(f"{target!r} is a task, not a mixer or a model.")
    cls = registry.get(target, found.kind)
    factory.check_options(target, cls, options)
    return cls


def _fill(like: Any, values: Mapping[str, Any], what: str) -> Any:
    """The NNX state `like` with the arrays of `values`."""
    expected = nnx.to_pure_dict(like)
    if jax.tree.structure(values) != jax.tree.structure(expected):
        paths = [
            {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)}
            for tree in (expected, values)
        ]
        hint = " Get them by init(key, return_variables=True)." if what == "variables" else ""
        raise ValueError(
            f"{what} do not fit the module: missing {sorted(paths[0] - paths[1])}, unexpected "
            f"{sorted(paths[1] - paths[0])}.{hint}"
        )
    state = jax.tree.map(lambda leaf: leaf, like)
    nnx.replace_by_pure_dict(state, dict(values))
    return state
