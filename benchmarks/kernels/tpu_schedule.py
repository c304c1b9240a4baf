"""How many bundles a schedule for a TPU runs through, a kernel's or a fusion's, from the text that libtpu dumps.

A dump ends in `final_bundles`: bundles of instructions, one a cycle if nothing waits, with branches between them.
Which of them run, and how often, is decided by scalars that come from the grid alone. So the scalar instructions are
followed, from the first bundle to the last, and bundles are counted; vectors and copies are passed over. Addresses
are where something was put and how far behind that: of two in the same place the distance is known, no more. An
instruction that is not known here leaves a value unknown, and a branch on an unknown value is an error: a dump of
another form never counts as fewer cycles.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Bundles after a branch that run whether or not it is taken, on v5e and v6e: labels come then, and in no dump sooner.
# (On a v4 it is one.)
DELAY = 4
# Visits of straight pieces of a schedule after which it is taken to be endless.
_MOST_VISITS = 20_000_000

_BUNDLE = re.compile(r"^ *(?:0x)?([0-9a-f]+) +(?:[A-Z]{2})? *: +(?:> *)*\{", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_STARTS = re.compile(r"Start(?:/End empty)? region (\d+)")
_PREDICATE = r"(?:\((!?)%(p\w+)\))?"
# Where the predicate does not hold, the result is what stands behind it, if anything does.
_ELSE = r"(?:\((!?)%(p\w+)(?:, %(\w+))?\))?"
_DEFINES = re.compile(rf"%([sp]\d+_[sp]\d+) = ([\w.]+) ?{_ELSE},? *(.*)", re.DOTALL)
_PLACE = r"\[smem:\[(#\w+(?: \+ \$0x[0-9a-f]+)?)\]\]"
_STORES = re.compile(rf"%\w+ = sst {_PLACE} {_PREDICATE},? *(%\w+|-?\d+)$")
_LOADS = re.compile(rf"{_PLACE} *{_PREDICATE}$")
_BRANCH = re.compile(rf"%\w+ = sbr\.rel {_PREDICATE} *target = \$region(\d+)$")
_JUMPS = re.compile(r"(?:%\w+ = )?(?:[sl]br|scall|sret)\b|.*\btarget = ", re.DOTALL)
_NOTE = re.compile(r"(?<=\S) \[#\w+\]$")


class _Address(NamedTuple):
    """So far behind the start of what was put there."""

    place: str
    offset: int


Value = int | _Address | None
Operand = str | int


class UnknownForm(ValueError):
    """The dump says something that cannot be read."""


def cycles(text: str) -> int:
    """Bundles that run, of a `final_bundles` dump, with each loop and branch as often as its scalars say."""
    bundles = _bundles(text)
    _drop_what_no_branch_needs(bundles)
    pieces = _pieces(bundles)
    machine, place, total = _Machine(), 0, 0
    for _ in range(_MOST_VISITS):
        piece = pieces[place]
        total += piece.length
        taken = False
        for instruction in piece.instructions:
            taken = machine.run(instruction) or taken
        place = piece.target if taken and piece.target is not None else place + 1
        if place == len(pieces):
            return total
    raise UnknownForm("the schedule does not come to an end")


# --- reading


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A scalar instruction.

    Attributes:
      name: of what it does.
      result: name of the value or of the spill that it sets; None for a branch.
      operands: names and numbers.
      predicate: name of what must be `wanted`, else the result is that named `otherwise`, if there is one.
    """

    name: str
    result: str | None
    operands: tuple[Operand, ...]
    predicate: str | None
    wanted: bool
    otherwise: str | None = None


@dataclasses.dataclass
class _Bundle:
    instructions: list[_Instruction]
    regions: set[str]
    target: str | None = None


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Bundles that run together; at the end a branch, to the piece `target`, or the next piece."""

    length: int
    instructions: list[_Instruction]
    target: int | None


def _bundles(text: str) -> list[_Bundle]:
    found = list(_BUNDLE.finditer(text))
    if not found:
        raise UnknownForm("there are no bundles")
    ends = [match.start() for match in found[1:]] + [len(text)]
    for number, match in enumerate(found):
        if int(match[1], 16) != number:
            raise UnknownForm(f"bundle {number} is called {match[1]}")
    return [_bundle(text[match.end() : end]) for match, end in zip(found, ends, strict=True)]


def _bundle(text: str) -> _Bundle:
    regions = {region for comment in _COMMENT.findall(text) for region in _STARTS.findall(comment)}
    code = _COMMENT.sub("", text).strip()
    if not code.endswith("}"):
        raise UnknownForm(f"a bundle without an end: {code[:80]!r}")
    bundle = _Bundle([], regions)
    for part in code[:-1].split(";;"):
        _read(part.strip(), bundle)
    # A bundle's phis are what its other instructions read.
    bundle.instructions.sort(key=lambda instruction: instruction.name != "sphi")
    return bundle


def _read(part: str, bundle: _Bundle) -> None:
    """Adds an instruction to the bundle, if it is one of scalars."""
    if _JUMPS.match(part):
        match = _BRANCH.match(part)
        if match is None or bundle.target is not None:
            raise UnknownForm(f"a branch of another form: {part!r}")
        bundle.instructions.append(_Instruction("sbr", None, (), match[2], match[1] != "!"))
        bundle.target = match[3]
        return
    match = _STORES.match(part)
    if match:
        bundle.instructions.append(_Instruction("sst", match[1], (_operand(match[4]),), match[3], match[2] != "!"))
        return
    if re.match(r"%\w+ = sst ", part):
        raise UnknownForm(f"a store of another form: {part!r}")
    match = _DEFINES.match(part)
    if match is None:
        return
    result, name, sign, predicate, otherwise, rest = match.groups()
    if name == "sld" and (load := _LOADS.match(rest.strip())):
        sign, predicate, rest = load[2], load[3], load[1]
    operands = tuple(_operand(word) for word in rest.strip().split(", "))
    bundle.instructions.append(_Instruction(name, result, operands, predicate, sign != "!", otherwise))


def _operand(word: str) -> Operand:
    word = _NOTE.sub("", word)  # of what an address is in
    return int(word) if re.fullmatch(r"-?\d+", word) else word.replace("%", "")


def _drop_what_no_branch_needs(bundles: Sequence[_Bundle]) -> None:
    """Leaves the branches, what they depend on, what that depends on, and so on."""
    sources: dict[str, set[str]] = {}
    needed: set[str] = set()
    for bundle in bundles:
        for one in bundle.instructions:
            read = {str(x).removeprefix("!") for x in (*one.operands, one.predicate, one.otherwise)}
            needed |= read if one.result is None else set()
            sources[one.result or ""] = sources.get(one.result or "", set()) | read
    todo = list(needed)
    while todo:
        more = sources.get(todo.pop(), set()) - needed
        needed |= more
        todo += more
    for bundle in bundles:
        bundle.instructions = [one for one in bundle.instructions if one.result is None or one.result in needed]


def _pieces(bundles: Sequence[_Bundle]) -> list[_Piece]:
    """Cut before what is branched to and after a branch's `DELAY`."""
    branches = {number: bundle.target for number, bundle in enumerate(bundles) if bundle.target is not None}
    starts = {}
    for target in branches.values():
        places = [number for number, bundle in enumerate(bundles) if target in bundle.regions]
        if len(places) != 1:
            raise UnknownForm(f"region {target}, which is branched to, starts {len(places)} times")
        starts[target] = places[0]
    ends = {number + DELAY + 1: starts[target] for number, target in branches.items()}
    cuts = sorted({0, *ends, *ends.values(), len(bundles)})
    for number in branches:
        if number + DELAY >= len(bundles) or any(number < cut <= number + DELAY for cut in cuts):
            raise UnknownForm(f"{DELAY} bundles after the branch in bundle {number} are not all its own")
    index = {cut: number for number, cut in enumerate(cuts)}
    return [
        _Piece(
            length=end - start,
            instructions=[one for bundle in bundles[start:end] for one in bundle.instructions],
            target=index[ends[end]] if end in ends else None,
        )
        for start, end in itertools.pairwise(cuts)
    ]


# --- running


def _signed(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def _unsigned(x: int) -> int:
    return x % 2**32


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_OPERATIONS: dict[str, Callable[..., int | _Address]] = {
    **dict.fromkeys(("sst", "sld", "smov", "pmov"), lambda a: a),
    "pneg": lambda a: 1 - a,
    "scalar_select": lambda which, a, b: a if which else b,
    "sadd.s32": lambda a, b: a + b,
    "ssub.s32": lambda a, b: a - b,
    "smul.u32": lambda a, b: a * b,
    "smulhi.u32": lambda a, b: _unsigned(a) * _unsigned(b) >> 32,
    "sand.u32": lambda a, b: a & b,
    "sor.u32": lambda a, b: a | b,
    "sxor.u32": lambda a, b: a ^ b,
    "sshll.u32": lambda a, b: a << b,
    "sshra.s32": lambda a, b: a >> b,
    "sshrl.u32": lambda a, b: _unsigned(a) >> b,
    "smin.u32": lambda a, b: min(a, b, key=_unsigned),
    "smax.u32": lambda a, b: max(a, b, key=_unsigned),
    **{f"scmp.{name}.s32.totalorder": lambda a, b, f=f: int(f(a, b)) for name, f in _COMPARE.items()},
    **{
        f"scmp.{name}.u32.totalorder": lambda a, b, f=f: int(f(_unsigned(a), _unsigned(b)))
        for name, f in _COMPARE.items()
    },
}


class _Machine:
    """Scalars, predicates and spills by name, and when each of these was last set."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.times: dict[str, int] = {}
        self.clock = 0

    def run(self, instruction: _Instruction) -> bool:
        """Runs it; returns whether it is a branch that is taken."""
        given = 1 if instruction.predicate is None else self._read(instruction.predicate)
        if instruction.result is None:
            if given is None:
                raise UnknownForm(f"a branch depends on %{instruction.predicate}, which is not known")
            return bool(given) == instruction.wanted
        if given is not None and instruction.predicate is not None and bool(given) != instruction.wanted:
            if instruction.otherwise is None:
                return False
            value = self._read(instruction.otherwise)
        else:
            value = None if given is None else self._compute(instruction)
        self.values[instruction.result] = value
        self.clock += 1
        self.times[instruction.result] = self.clock
        return False

    def _compute(self, instruction: _Instruction) -> Value:
        operands = instruction.operands
        if instruction.name == "sphi":
            # A phi is what was set last of its operands: on the way by which it was come to.
            return self._read(max(operands, key=lambda x: self.times.get(str(x), 0)))
        known = [self._read(x) for x in operands]
        if instruction.name in ("por", "pnand"):
            return _logic(instruction.name, known)
        if len(known) == 2 and any(isinstance(x, _Address) for x in known):
            return _distance(instruction.name, *known)
        operation = _OPERATIONS.get(instruction.name)
        if operation is None or any(x is None for x in known):
            return None
        found = operation(*known)
        return _signed(found) if isinstance(found, int) else found

    def _read(self, operand: Operand) -> Value:
        if isinstance(operand, int):
            return _signed(operand)
        if operand.startswith("[#"):
            return _Address(operand, 0)
        if operand.startswith("!"):
            value = self._read(operand[1:])
            return 1 - value if isinstance(value, int) else None
        return self.values.get(operand)


def _distance(name: str, a: Value, b: Value) -> Value:
    """Of two values of which one is an address at least: an address moved, or how far two are from each other."""
    if isinstance(a, _Address) and isinstance(b, _Address):
        return _signed(a.offset - b.offset) if name == "ssub.s32" and a.place == b.place else None
    if isinstance(b, _Address):
        a, b = b, a
    if name in ("sadd.s32", "scalar_lea.vmem") and isinstance(a, _Address) and isinstance(b, int):
        return _Address(a.place, a.offset + b)
    return None


def _logic(name: str, operands: Sequence[Value]) -> Value:
    """Of two predicates; known also where one of them settles it."""
    settles = 1 if name == "por" else 0
    if settles in operands:
        return 1
    if None in operands:
        return None
    return 0
