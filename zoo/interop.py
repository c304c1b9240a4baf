"""Doors to the other ways of writing Flax: Linen modules, and plain functions of nested dicts."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen, nnx

from zoo import factory, registry
from zoo.functional import Functional

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
    """Flax's `ToLinen`, which hands Linen's `dropout` stream to calls that take `rngs`. See `to_linen`.

    List positions are strings in the variables, as everywhere in Linen and in `init_apply`, and numbers in NNX.
    """

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables of this module, as NNX wants them."""
        return _map_keys(super().variables, lambda key: int(key) if isinstance(key, str) and key.isdigit() else key)

    def put_variable(self, col: str, name: str, value: Any) -> None:
        """Stores a variable, or a nested dict of them, as Linen wants it."""
        super().put_variable(col, str(name), _map_keys(value, str))

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
    `rngs=nnx.Rngs(key)`; all keys are strings. Variables that are no parameters (fixed tables, running statistics) come
    as a second dict with `return_variables=True`, and a module that has any wants them back in `apply`.

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
    functional = Functional(lambda rngs: make(*args, **options, rngs=rngs))
    expected = functional.abstract_params
    expected_rest = functional.rest(functional.module(expected, {}))

    def init(key: jax.Array, *, return_variables: bool = False) -> Any:
        params, rest = functional.init(key)
        return (params, rest) if return_variables else params

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
        variables = variables or {}
        _check_structure("params", params, expected)
        _check_structure("variables", variables, expected_rest)
        module = functional.module(params, variables)
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
        return result, functional.rest(module)

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


def _map_keys(tree: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    return {change(key): _map_keys(value, change) for key, value in tree.items()}


def _check_structure(what: str, values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if jax.tree.structure(values) == jax.tree.structure(expected):
        return
    wanted, given = _paths(expected), _paths(values)
    hint = " Get them by init(key, return_variables=True)." if what == "variables" else ""
    raise ValueError(
        f"{what} do not fit the module: missing {sorted(wanted - given)}, unexpected {sorted(given - wanted)}.{hint}"
    )


def _paths(tree: Mapping[str, Any]) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
