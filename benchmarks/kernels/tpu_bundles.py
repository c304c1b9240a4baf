"""The text of a schedule for a TPU, as libtpu dumps it: bundles of instructions, and the branches between them.

Only instructions of scalars are read, by which branches are decided. What has another form than those that are known is
an error.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence

# Bundles after a branch that run whether or not it is taken, on v5e and v6e: labels come then, and in no dump sooner.
# (On a v4 it is one.)
DELAY = 4
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

Operand = str | int


class UnknownForm(ValueError):
    """The dump says something that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Instruction:
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
class Bundle:
    """What is issued at once: instructions, the regions that start here, and the region that is branched to."""

    instructions: list[Instruction]
    regions: set[str]
    target: str | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bundles that run together; at the end a branch, to the piece `target`, or the next piece."""

    length: int
    instructions: list[Instruction]
    target: int | None


def read(text: str) -> list[Bundle]:
    found = list(_BUNDLE.finditer(text))
    if not found:
        raise UnknownForm("there are no bundles")
    ends = [match.start() for match in found[1:]] + [len(text)]
    for number, match in enumerate(found):
        if int(match[1], 16) != number:
            raise UnknownForm(f"bundle {number} is called {match[1]}")
    return [_bundle(text[match.end() : end]) for match, end in zip(found, ends, strict=True)]


def _bundle(text: str) -> Bundle:
    regions = {region for comment in _COMMENT.findall(text) for region in _STARTS.findall(comment)}
    code = _COMMENT.sub("", text).strip()
    if not code.endswith("}"):
        raise UnknownForm(f"a bundle without an end: {code[:80]!r}")
    bundle = Bundle([], regions)
    for part in code[:-1].split(";;"):
        _read(part.strip(), bundle)
    # A bundle's phis are what its other instructions read.
    bundle.instructions.sort(key=lambda instruction: instruction.name != "sphi")
    return bundle


def _read(part: str, bundle: Bundle) -> None:
    """Adds an instruction to the bundle, if it is one of scalars."""
    if _JUMPS.match(part):
        match = _BRANCH.match(part)
        if match is None or bundle.target is not None:
            raise UnknownForm(f"a branch of another form: {part!r}")
        bundle.instructions.append(Instruction("sbr", None, (), match[2], match[1] != "!"))
        bundle.target = match[3]
        return
    match = _STORES.match(part)
    if match:
        bundle.instructions.append(Instruction("sst", match[1], (_operand(match[4]),), match[3], match[2] != "!"))
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
    bundle.instructions.append(Instruction(name, result, operands, predicate, sign != "!", otherwise))


def _operand(word: str) -> Operand:
    word = _NOTE.sub("", word)  # of what an address is in
    return int(word) if re.fullmatch(r"-?\d+", word) else word.replace("%", "")


def drop_what_no_branch_needs(bundles: Sequence[Bundle]) -> None:
    """Leaves the branches, what they depend on, what that depends on, and so on."""
    sources: dict[str, set[str]] = {}
    needed: set[str] = set()
    for bundle in bundles:
        for one in bundle.instructions:
            read = {str(x).removeprefix("!") for x in (*one.operands, one.predicate, one.otherwise)}
            needed |= read if one.result is None else set()
            sources[one.result or ""] = sources.get(one.result or "", set()) | read
    phis = [one for bundle in bundles for one in bundle.instructions if one.name == "sphi"]
    missing = {str(x) for one in phis for x in one.operands if isinstance(x, str)} - set(sources)
    if missing:
        raise UnknownForm(f"nothing sets {', '.join(sorted(missing))}, an operand of a phi")
    todo = list(needed)
    while todo:
        more = sources.get(todo.pop(), set()) - needed
        needed |= more
        todo += more
    for bundle in bundles:
        bundle.instructions = [one for one in bundle.instructions if one.result is None or one.result in needed]


def pieces_of(bundles: Sequence[Bundle]) -> list[Piece]:
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
        Piece(
            length=end - start,
            instructions=[one for bundle in bundles[start:end] for one in bundle.instructions],
            target=index[ends[end]] if end in ends else None,
        )
        for start, end in itertools.pairwise(cuts)
    ]
