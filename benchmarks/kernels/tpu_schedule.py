"""How many bundles a schedule for a TPU runs through, a kernel's or a fusion's, from the text that libtpu dumps.

A dump ends in `final_bundles`: bundles of instructions, one a cycle if nothing waits, with branches between them.
Which of them run, and how often, is decided by scalars that come from the grid alone. So the scalar instructions are
followed, from the first bundle to the last, and bundles are counted; vectors and copies are passed over. Addresses
are where something was put and how far behind that: of two in the same place the distance is known, no more. An
instruction that is not known here leaves a value unknown, and a branch on an unknown value is an error: a dump of
another form never counts as fewer cycles.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.kernels.tpu_bundles import (
    Instruction,
    Operand,
    UnknownForm,
    drop_what_no_branch_needs,
    pieces_of,
    read,
)

# Visits of straight pieces of a schedule after which it is taken to be endless.
_MOST_VISITS = 20_000_000


class _Address(NamedTuple):
    """So far behind the start of what was put there."""

    place: str
    offset: int


Value = int | _Address | None


def cycles(text: str) -> int:
    """Bundles that run, of a `final_bundles` dump, with each loop and branch as often as its scalars say."""
    bundles = read(text)
    drop_what_no_branch_needs(bundles)
    pieces = pieces_of(bundles)
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

    def run(self, instruction: Instruction) -> bool:
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

    def _compute(self, instruction: Instruction) -> Value:
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
