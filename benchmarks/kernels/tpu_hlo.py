"""What a program compiled for a TPU consists of, from its HLO: kernels, and what XLA made.

libtpu writes `estimated_cycles`, those of XLA's cost model, into nearly all that it compiles as a piece: fusions,
copies, single operations. Here these pieces are listed, with how often they run, the body of a loop as often as the
loop does. Copies that go on beside other work, allocations and scalars are left out.
"""

import dataclasses
import re

from benchmarks.kernels.tpu_bundles import UnknownForm

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  +(?:ROOT )?%?([\w.\-]+) = (\S.*?) ([a-z][\w\-]*)\((.*)$")
_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_CONSTANT = re.compile(r"^\d+$")
# What has no estimate because it is free or goes on beside other work.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "after-all"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-done", "async-update"),
}
KERNEL = "kernel"
_KERNEL = 'custom_call_target="tpu_custom_call"'
_SYMBOLIC = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')
_SCALAR = re.compile(r"^\w+\[\]")


@dataclasses.dataclass(frozen=True)
class Part:
    """An instruction that runs.

    Attributes:
      name: of the instruction.
      kind: of the instruction; "kernel" for a kernel.
      times: how often it runs.
      estimate: cycles of one time by XLA's cost model; None where there is none.
    """

    name: str
    kind: str
    times: int
    estimate: int | None


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    kind: str
    rest: str


def read(text: str) -> list[Part]:
    """The parts of an optimized HLO module's text."""
    computations, entry = _computations(text)
    parts = []
    todo = [(entry, 1)]
    while todo:
        name, times = todo.pop()
        for one in computations[name]:
            estimate = _ESTIMATE.search(one.rest)
            if one.kind == "while":
                todo.append((_called(one, "body", computations), times * _trips(one, computations)))
            elif one.kind == "call":
                todo.append((_called(one, "to_apply", computations), times))
            elif one.kind == "conditional":
                raise UnknownForm(f"how often the branches of the conditional %{one.name} run is not known")
            elif _KERNEL in one.rest:
                parts.append(Part(one.name, KERNEL, times, None))
            elif estimate:
                parts.append(Part(one.name, one.kind, times, int(estimate[1])))
            elif not (one.kind in _FREE or _SYMBOLIC.search(one.rest) or _SCALAR.match(one.type)):
                parts.append(Part(one.name, one.kind, times, None))
    if not any(part.kind == KERNEL or part.estimate for part in parts):
        raise UnknownForm("the program has neither kernels nor estimated_cycles")
    return parts


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and the name of the one that is run."""
    found: dict[str, list[_Instruction]] = {}
    entry, name = None, None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif name is not None and line.startswith("  "):
            match = _INSTRUCTION.match(line)
            if match is None:
                raise UnknownForm(f"an instruction of another form: {line.strip()[:120]!r}")
            found[name].append(_Instruction(*match.groups()))
    if entry is None:
        raise UnknownForm("no computation is the ENTRY")
    return found, entry


def _called(one: _Instruction, key: str, computations: dict[str, list[_Instruction]]) -> str:
    match = re.search(rf"\b{key}=%?([\w.\-]+)", one.rest)
    if match is None or match[1] not in computations:
        raise UnknownForm(f"%{one.name} has no {key}")
    return match[1]


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """How often a loop's body runs: `i < n`, with i from 0 by one, as JAX writes loops of a known length."""
    condition = {one.name: one for one in computations[_called(loop, "condition", computations)]}
    *_, root = condition.values()
    operands = re.findall(r"%([\w.\-]+)", root.rest.split(")", 1)[0])
    if root.kind == "compare" and "direction=LT" in root.rest and len(operands) == 2:
        index, limit = (condition[name] for name in operands)
        number = limit.rest.split(")", 1)[0]
        if index.kind == "get-tuple-element" and limit.kind == "constant" and _CONSTANT.match(number):
            return int(number)
    raise UnknownForm(f"the loop %{loop.name} ends at {root.kind}({root.rest[:80]}, not at a known number")
