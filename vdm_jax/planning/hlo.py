"""What a program does in a call, counted in the text of its HLO.

HLO is XLA's intermediate language (openxla.org/xla/operation_semantics). Once the
partitioner has run, its text has every collective with the shape of one device. A
scheduled program's has the compiler's estimates of cycles, too.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {"pred": 8, "token": 0, "opaque": 0}  # others: the digits of their names

# `  ROOT %name = shape opcode(operands), attributes`; a shape has no ` word(` within.
INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(?:, (.*))?$"
)
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+)(?: \(.*\))?.* \{$")
ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\]")
REFERENCE = re.compile(r"%?([\w.\-]+)\s*(?:,|$)")


class Instruction(NamedTuple):
    """A line of HLO. operands: their names, or the text of a constant."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> list[str]:
        """Return the names of the computations that an attribute names."""
        names = rf"\b{attribute}=(?:{{([^}}]*)}}|%?([\w.\-]+))"
        found = re.search(names, self.attributes)
        if found is None:
            return []
        return [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")]


class Computation(NamedTuple):
    """A function of HLO: its instructions by name, and the name of its result."""

    instructions: dict[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Collectives:
    """The collectives that one device runs in a call of a program.

    calls, bytes: by kind; bytes are those of the results.
    open_loops: loops with collectives whose number of trips the program's arguments
      decide. They are counted as one trip.
    """

    calls: dict[str, int]
    bytes: dict[str, int]
    open_loops: int = 0

    @property
    def total_calls(self) -> int:
        """Number of calls of all kinds."""
        return sum(self.calls.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of the results of all kinds."""
        return sum(self.bytes.values())

    @property
    def link_bytes(self) -> int:
        """Bytes with those of all-reduce twice, as a ring sends them (Patarasuk 2009).

        A ring's all-reduce is a reduce-scatter and an all-gather.
        """
        return self.total_bytes + self.bytes.get("all-reduce", 0)

    def times(self, n: int) -> "Collectives":
        """Return those of n calls."""
        calls = {kind: n * count for kind, count in self.calls.items()}
        sizes = {kind: n * size for kind, size in self.bytes.items()}
        return Collectives(calls, sizes, self.open_loops)

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Return calls and bytes by kind, the most bytes first."""
        kinds = sorted(self.calls, key=lambda kind: -self.bytes[kind])
        return {k: {"calls": self.calls[k], "bytes": self.bytes[k]} for k in kinds}


def shape_bytes(shape: str) -> int:
    """Return the bytes of the text of a shape, of a tuple those of its parts.

    An array of less than a byte a value is packed. Layouts and padding are not counted.
    """
    bits = 0
    for dtype, sizes in ARRAY.findall(re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", shape)):
        digits = re.search(r"\d+", dtype)
        width = BITS[dtype] if dtype in BITS else int(digits[0]) if digits else 0
        bits += width * math.prod(int(n.lstrip("<=")) for n in sizes.split(",") if n)
    return -(-bits // 8)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the computations of the text of a module by name, and that of its entry.

    Raises:
      ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if line.startswith(" "):
            if found := INSTRUCTION.match(line):
                is_root, own, shape, opcode, operands, attributes = found.groups()
                names = tuple(REFERENCE.findall(_without_shapes(operands)))
                instructions[own] = Instruction(
                    own, shape, opcode, names, attributes or ""
                )
                root = own if is_root else root
        elif found := COMPUTATION.match(line):
            name, instructions, root = found[2], {}, ""
            entry = name if found[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(instructions, root)
            name = ""
    if entry not in computations:
        raise ValueError("the text is no whole HLO module: it has no entry computation")
    return computations, entry


def _without_shapes(operands: str) -> str:
    """Return operands as names alone: `f32[2,3]{1,0} %a, s32[] %b` -> `%a, %b`."""
    return re.sub(r"[a-z]\w*\[[\d,<=]*\](?:\{[^{}]*\})? (?=%)|/\*.*?\*/", "", operands)


def count_collectives(text: str) -> Collectives:
    """Return the collectives of the text of a partitioned module.

    Those of a loop count as often as it runs. Of the branches of a conditional the one
    with the most bytes counts. An asynchronous collective is counted where it ends.

    Raises:
      ValueError: the text is no module.
    """

    def collective(one: Instruction) -> tuple[str, float] | None:
        kind = one.opcode.removesuffix("-done")
        return (kind, shape_bytes(one.shape)) if kind in KINDS else None

    counts = count(text, collective)
    sizes = {kind: int(size) for kind, size in counts.sizes.items()}
    return Collectives(counts.calls, sizes, counts.open_loops)


def count_kernels(text: str) -> dict[str, int]:
    """Return how often a compiled module calls each kind of kernel.

    They are calls of libraries, by their targets, and fusions, of which those by Triton
    are named; loops count as in `count_collectives`. Copies are in none.
    """

    def kernel(one: Instruction) -> tuple[str, float] | None:
        kind = ""
        if one.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]+)"', one.attributes)
            kind = target[1] if target else ""
        elif one.opcode == "fusion":
            kind = "Triton fusion" if "__triton" in one.attributes else "fusion"
        return (kind, 1) if kind else None

    return count(text, kernel).calls


class Counts(NamedTuple):
    """Calls and sizes by kind, and loops of unknown length, counted as one trip."""

    calls: dict[str, int]
    sizes: dict[str, float]
    open_loops: int = 0


def count(
    text: str, measure: Callable[[Instruction], tuple[str, float] | None]
) -> Counts:
    """Return how often a call of a module runs instructions, and their sizes.

    Those of a loop count as often as it runs. Of the branches of a conditional the one
    with the largest sum of sizes counts.

    measure: returns the kind and the size of an instruction, None for one that does
      not count. What an instruction with a kind calls is a part of it.

    Raises:
      ValueError: the text is no module.
    """
    computations, entry = parse(text)

    @functools.cache
    def of(name: str) -> Counts:
        calls: dict[str, int] = collections.defaultdict(int)
        sizes: dict[str, float] = collections.defaultdict(float)
        open_loops = 0
        for part, times in parts(computations[name]):
            for kind, n in part.calls.items():
                calls[kind] += n * times
                sizes[kind] += part.sizes[kind] * times
            open_loops += part.open_loops
        return Counts(dict(calls), dict(sizes), open_loops)

    def parts(computation: Computation) -> Iterator[tuple[Counts, int]]:
        """Yield what counts of a computation, and how often each of them runs."""
        for each in computation.instructions.values():
            if measured := measure(each):
                kind, size = measured
                yield Counts({kind: 1}, {kind: size}), 1
            elif each.opcode == "while":
                body = of(each.called("body")[0])
                if body.calls or body.open_loops:
                    trips = loop_trips(computations, computation, each)
                    if trips is None:
                        body = body._replace(open_loops=body.open_loops + 1)
                    yield body, 1 if trips is None else trips
            elif each.opcode == "conditional":
                names = each.called("branch_computations")
                names += each.called("true_computation")
                names += each.called("false_computation")
                yield max(map(of, names), key=lambda one: sum(one.sizes.values())), 1
            elif each.opcode in ("call", "fusion", "async-start", "custom-call"):
                for inner in each.called("calls") + each.called("to_apply"):
                    yield of(inner), 1

    return of(entry)


def loop_trips(
    computations: dict[str, Computation], outer: Computation, loop: Instruction
) -> int | None:
    """Return how often a loop runs, None where that is not constant.

    It is the number that XLA wrote next to it, or that of a counter, which starts at a
    constant, is increased by constants, and is compared with a constant. A constant may
    be a part of the loop's state that the loop does not change.

    outer: the computation that the loop is an instruction of.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = computations[loop.called("condition")[0]]
    body = computations[loop.called("body")[0]]
    before = _source(outer, loop.operands[0])
    after = _source(body, body.root)
    if before.opcode != "tuple" or after.opcode != "tuple":
        return None

    def constant(computation: Computation, name: str) -> int | None:
        one = _source(computation, name)
        index = _tuple_index(one)
        if index is None or computation is outer:
            return _constant(one)
        unchanged = _tuple_index(_source(body, after.operands[index])) == index
        return constant(outer, before.operands[index]) if unchanged else None

    def increase(name: str, index: int) -> int | None:
        """Return what the body adds to a part of its state."""
        one = _source(body, name)
        if _tuple_index(one) == index:
            return 0
        if one.opcode != "add":
            return None
        for value, added in (one.operands, one.operands[::-1]):
            n, rest = constant(body, added), increase(value, index)
            if n is not None and rest is not None:
                return n + rest
        return None

    compare = _source(condition, condition.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    index = _tuple_index(_source(condition, compare.operands[0]))
    limit = constant(condition, compare.operands[1])
    if index is None or limit is None:
        return None
    start = constant(outer, before.operands[index])
    step = increase(after.operands[index], index)
    if start is None or not step:
        return None
    return max(0, -(-(limit - start) // step))


def _source(computation: Computation, name: str) -> Instruction:
    """Return the instruction of a name, or the one whose result it copies."""
    one = computation.instructions[name]
    if one.opcode in ("copy", "bitcast", "convert"):
        return _source(computation, one.operands[0])
    return one


def _constant(one: Instruction) -> int | None:
    """Return the whole number that an instruction is, None for any other."""
    text = one.operands[0] if one.opcode == "constant" and one.operands else ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _tuple_index(one: Instruction) -> int | None:
    """Return which part of a tuple an instruction reads, None for another."""
    found = re.search(r"index=(\d+)", one.attributes)
    return int(found[1]) if one.opcode == "get-tuple-element" and found else None
