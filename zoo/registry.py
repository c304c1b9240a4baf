"""What there is: mixers, models and tasks, found by looking into their folders.

A variant is one file. Its class carries a decorator whose arguments are literals::

    @register_mixer("flowformer", title="...", paper="...", ...)
    class Flowformer(nnx.Module): ...

`list_specs` and `spec` read those literals from the source text with `ast`, so that `zoo list` answers without
importing JAX. `get` imports the one file that is asked for. There is no list to edit: files of `zoo.mixers`,
`zoo.models` and `zoo.tasks` are discovered, variants of other packages come through the entry point group
`zoo.variants` (each entry names a module), and a module that is simply imported registers itself when its decorator
runs.
"""

import ast
import dataclasses
import difflib
import fnmatch
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

Kind = Literal["mixer", "model", "task"]
ENTRY_POINT_GROUP = "zoo.variants"
_ROOT = Path(__file__).parent
_FOLDERS: Mapping[str, Kind] = {"mixers": "mixer", "models": "model", "tasks": "task"}
T = TypeVar("T")


class RegistryError(ValueError):
    """A name is unknown, taken, or its facts cannot be read."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The facts of a registered name; tests, docs and benchmarks read them.

    Attributes:
      name: the registered name, equal to the file's.
      kind: "mixer" (mixes along T inside the shared encoder), "model" (a whole model) or "task".
      title: one line.
      paper: arXiv id, or where it was published.
      time, memory: complexity in T, for mixers and models.
      causal, bidirectional: the directions it can run in.
      padding_mask: padding changes nothing at real positions.
      decode: has `init_state` and `step`.
      fixed_length: works at one sequence length only.
      inputs: what it takes, of "tokens", "scalars", "series" and "image" (models and tasks; mixers take [B, T, D]).
      test_args: small constructor arguments, for the automatic tests.
      notes: what a user should know.
      module: where it is defined.
      path: the file it is defined in.
    """

    name: str
    kind: Kind
    title: str
    paper: str = ""
    time: str = ""
    memory: str = ""
    causal: bool = False
    bidirectional: bool = True
    padding_mask: bool = True
    decode: bool = False
    fixed_length: bool = False
    inputs: tuple[str, ...] = ()
    test_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: str = ""
    module: str = ""
    path: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready values, without `path`."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        facts.pop("path")
        return {**facts, "inputs": list(self.inputs), "test_args": dict(self.test_args)}


_FACTS = {field.name for field in dataclasses.fields(Spec)} - {"name", "kind", "module", "path"}
_registered: dict[str, tuple[Spec, type]] = {}


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence with the nearest of `known`, or the whole list where nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"There {'is' if len(known) == 1 else 'are'} {', '.join(known)}." if known else "There are none."


def _register(kind: Kind, name: str, facts: Mapping[str, Any]) -> Callable[[type[T]], type[T]]:
    unknown = set(facts) - _FACTS
    if unknown:
        raise RegistryError(f"{kind} {name!r} states unknown facts {sorted(unknown)}; known are {sorted(_FACTS)}.")

    def decorate(cls: type[T]) -> type[T]:
        # A notebook or an interactive session has no file.
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        path = str(Path(file).resolve()) if file else f"<{cls.__module__}>"
        new = _make_spec(kind, name, facts, cls.__module__, path)
        found = _registered.get(name)
        others = _discovered().get(name)
        for other in (found[0] if found else None, others):
            if other is not None and other.path != path:
                raise RegistryError(f"{name!r} is registered twice: in {other.path} and in {path}.")
        _registered[name] = (new, cls)
        return cls

    return decorate


def register_mixer(name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
    """Class decorator that registers a token mixer. Facts are literals; see `Spec`."""
    return _register("mixer", name, facts)


def register_model(name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
    """Class decorator that registers a whole model. Facts are literals; see `Spec`."""
    return _register("model", name, facts)


def register_task(name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
    """Class decorator that registers a task. Facts are literals; see `Spec`."""
    return _register("task", name, facts)


def _make_spec(kind: Kind, name: str, facts: Mapping[str, Any], module: str, path: str) -> Spec:
    facts = dict(facts)
    facts["inputs"] = tuple(facts.get("inputs", ()))
    facts["test_args"] = dict(facts.get("test_args", {}))
    try:
        return Spec(name=name, kind=kind, module=module, path=path, **facts)
    except TypeError as error:
        raise RegistryError(f"{kind} {name!r} in {path}: {error}.") from error


def _read_specs(path: Path, module: str) -> list[Spec]:
    """The registrations written in one source file, by `ast`: nothing of the file is run."""
    try:
        text = path.read_text(encoding="utf-8")
        if "register_" not in text:
            return []
        tree = ast.parse(text, filename=str(path))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} cannot be read as Python: {error}.") from error
    specs = []
    for node in tree.body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if not isinstance(call, ast.Call):
                continue
            function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            kind = function.removeprefix("register_")
            if function == kind or kind not in _FOLDERS.values():
                continue
            try:
                names = [ast.literal_eval(arg) for arg in call.args]
                facts = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            except (ValueError, TypeError) as error:
                raise RegistryError(
                    f"{path}:{call.lineno}: the arguments of @{function} must be literals, so that they can be read "
                    f"without importing the file ({error})."
                ) from error
            if len(names) != 1 or not isinstance(names[0], str):
                raise RegistryError(f"{path}:{call.lineno}: @{function} takes one positional argument, the name.")
            specs.append(_make_spec(kind, names[0], facts, module, str(path.resolve())))  # pyright: ignore[reportArgumentType]
    return specs


def _outside_files() -> Iterable[tuple[str, Path]]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        module = entry.value.partition(":")[0]
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # of the package that the module is in
            found = None
        if found is None or not found.origin:
            raise RegistryError(f"entry point {entry.name!r} ({ENTRY_POINT_GROUP}): there is no module {module!r}.")
        yield module, Path(found.origin)


@functools.cache
def _discovered() -> Mapping[str, Spec]:
    files = []
    for folder in _FOLDERS:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                parts = path.relative_to(_ROOT).with_suffix("").parts
                files.append((".".join((__package__ or "zoo", *parts)), path))
    specs: dict[str, Spec] = {}
    for module, path in [*files, *_outside_files()]:
        for new in _read_specs(path, module):
            if new.name in specs:
                raise RegistryError(f"{new.name!r} is registered twice: in {specs[new.name].path} and in {new.path}.")
            specs[new.name] = new
    return MappingProxyType(specs)


def _all_specs() -> dict[str, Spec]:
    return {**_discovered(), **{name: spec for name, (spec, _) in _registered.items()}}


def spec(name: str, kind: Kind | None = None) -> Spec:
    """The facts of `name`, without importing its file.

    Raises:
      RegistryError: nothing of that name (and kind) is registered; the message has the nearest names.
    """
    specs = _all_specs()
    if name not in specs or (kind is not None and specs[name].kind != kind):
        known = [other.name for other in specs.values() if kind is None or other.kind == kind]
        what = kind or "mixer, model or task"
        raise RegistryError(f"There is no {what} named {name!r}. {did_you_mean(name, known)}")
    return specs[name]


def get(name: str, kind: Kind | None = None) -> type[Any]:
    """The class registered as `name`; imports its file.

    Raises:
      RegistryError: nothing of that name (and kind) is registered.
    """
    found = spec(name, kind)
    if name not in _registered:
        importlib.import_module(found.module)
    if name not in _registered:
        raise RegistryError(f"{found.module} was imported but did not register {name!r}.")
    return _registered[name][1]


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function, or of a class's constructor without `self`."""
    # The signature of an NNX class itself is that of Flax's metaclass, (*args, **kwargs).
    if isinstance(function, type):
        return list(inspect.signature(function.__init__).parameters.values())[1:]
    return list(inspect.signature(function).parameters.values())


def option_names(function: Callable[..., Any]) -> list[str]:
    """The arguments of a function or constructor that may be given by name, without `rngs`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [word.name for word in parameters(function) if word.kind in kinds and word.name != "rngs"]


def load_file(path: str | Path) -> Spec:
    """Imports one Python file that registers exactly one mixer or model, and returns its facts.

    Lets a variant live in a single file anywhere: `zoo train RECIPE --variant ./my_mixer.py`.

    Raises:
      RegistryError: no such file, or it does not register exactly one variant.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise RegistryError(f"There is no file {path} to load a variant from.")
    module = "zoo_variant_" + path.stem
    specs = [found for found in _read_specs(path, module) if found.kind != "task"]
    if len(specs) != 1:
        raise RegistryError(f"{path} must register exactly one variant; it registers {len(specs)}.")
    loaded = _registered.get(specs[0].name)
    if loaded is None or loaded[0].path != str(path):
        found = importlib.util.spec_from_file_location(module, path)
        assert found is not None
        assert found.loader is not None
        sys.modules[module] = loading = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(loading)
        except BaseException:
            del sys.modules[module]
            if _registered.get(specs[0].name, (None,))[0] == specs[0]:
                del _registered[specs[0].name]
            raise
    return specs[0]


def list_specs(pattern: str = "*", **filters: Any) -> list[Spec]:
    """Registered facts in order of kind and name, without importing JAX.

    Args:
      pattern: shell wildcards over the name.
      **filters: facts that must be equal (`kind="mixer", causal=True`); for `inputs`, one that must be among them.

    Raises:
      RegistryError: a filter is not a fact.
    """
    names = [field.name for field in dataclasses.fields(Spec)]
    for key in filters:
        if key not in names:
            raise RegistryError(f"{key!r} is not a fact to filter by. {did_you_mean(key, names)}")

    def keep(found: Spec) -> bool:
        facts_match = all(
            value in found.inputs if key == "inputs" else getattr(found, key) == value for key, value in filters.items()
        )
        return facts_match and fnmatch.fnmatchcase(found.name, pattern)

    return sorted(filter(keep, _all_specs().values()), key=lambda found: (found.kind, found.name))
