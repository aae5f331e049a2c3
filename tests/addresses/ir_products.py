# SPDX-License-Identifier: Apache-2.0
"""Which products the addresses of a compiled kernel are made of, read off its triton IR.

An address of an arena is base + id * stride + ... with an id that was loaded from memory (a slot
id). If that product is made in 32 bits it wraps in a large arena, whatever happens to it later. The
question is asked of the IR because there the types are known and nothing is fused yet.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

_VALUE = re.compile(r"%[\w.]+(?:#\d+)?")
_OP = re.compile(r"\s*(?:(%[\w.]+)(?::(\d+))? = )?\"?([\w.]+)\"?(.*)")
_ARGUMENT = re.compile(r"(%[\w.]+): ([^,{)]+)")
_BLOCK = re.compile(r"\s*(\^\w+)\((.*)\):")
_BRANCH = re.compile(r"(\^\w+)(?:\(([^:)]*)[^)]*\))?")
_LOCATION = re.compile(r"\s+loc\(.*\)\s*$")
_PRODUCTS = ("arith.muli", "arith.shli")


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Products of loaded integers that reach an address of the arena, one IR line each.

    narrow: made in 32 bits (they wrap). wide: made in 64 bits.
    """

    narrow: tuple[str, ...]
    wide: tuple[str, ...]


@dataclass(slots=True)
class _Graph:
    """Which values each value is made from."""

    inputs: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    op: dict[str, str] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    pointers: list[tuple[str, str]] = field(default_factory=list)  # base, offset of tt.addptr

    def reached_from(self, sources: Iterable[str]) -> set[str]:
        """Values that any of ``sources`` goes into."""
        users = defaultdict(set)
        for value, inputs in self.inputs.items():
            for one in inputs:
                users[one].add(value)
        return closure(sources, users)

    def made_of(self, value: str) -> set[str]:
        """All values that go into ``value``, itself included."""
        return closure([value], self.inputs)


def closure(start: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
    seen, waiting = set(), list(start)
    while waiting:
        value = waiting.pop()
        if value not in seen:
            seen.add(value)
            waiting.extend(edges.get(value, ()))
    return seen


def products_in_addresses(ttir: str, arena_arguments: Iterable[str]) -> Products:
    """Products of loaded integers in the addresses that are based on the named arguments.

    ``arena_arguments``: parameters of the kernel that point into the arena.

    Raises:
        ValueError: the kernel has no such parameter.
    """
    graph = _read(ttir)
    named = {f"%{name}" for name in arena_arguments}
    header = next(line for line in ttir.splitlines() if "tt.func public" in line)
    known = {name for name, _ in _ARGUMENT.findall(header)}
    if named - known:
        raise ValueError(f"the kernel has no parameters {sorted(named - known)}, but {known}")
    loaded = graph.reached_from(v for v, op in graph.op.items() if op in _LOADS)
    bases = _pointers_from(graph, named)
    narrow, wide = set(), set()
    for base, offset in graph.pointers:
        if base not in bases:
            continue
        for value in graph.made_of(offset):
            if graph.op.get(value) in _PRODUCTS and graph.inputs[value] & loaded:
                line = graph.text[value]
                (narrow if _is_32_bit(line) else wide).add(line)
    return Products(narrow=tuple(sorted(narrow)), wide=tuple(sorted(wide)))


_LOADS = ("tt.load", "tt.atomic_rmw", "tt.gather", "tt.descriptor_load")
#: What a pointer stays the same pointer through.
_KEEPS_POINTER = (
    "tt.splat",
    "tt.broadcast",
    "tt.expand_dims",
    "tt.reshape",
    "tt.trans",
    "tt.bitcast",
    "tt.addptr",
    "arith.select",
    "tt.make_range",
    "region",
)


def _pointers_from(graph: _Graph, named: set[str]) -> set[str]:
    """Pointers that are based on the named arguments. A value loaded through one is none."""
    bases = set(named)
    size = -1
    while size != len(bases):
        size = len(bases)
        for value, inputs in graph.inputs.items():
            if graph.op.get(value, "region") in _KEEPS_POINTER and inputs & bases:
                bases.add(value)
    return bases


def _is_32_bit(line: str) -> bool:
    types = line.rsplit(" : ", 1)[-1]
    return re.search(r"(^|x|<)i(8|16|32)\b", types) is not None


def _read(ttir: str) -> _Graph:
    """The values of a function and what they are made from, loops and branches joined."""
    reader = _Reader(ttir)
    for line in ttir.splitlines():
        if not line.lstrip().startswith(("#", "module", "tt.func")):
            reader.read(_LOCATION.sub("", line).rstrip())
    return reader.graph


@dataclass(slots=True)
class _Region:
    """A body in braces. results: of the operation that has it; carried: from turn to turn."""

    results: list[str]
    carried: list[str]
    names: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Reads line by line. Names are of a body: siblings use the same ones for other values."""

    def __init__(self, ttir: str) -> None:
        self.graph = _Graph()
        self._regions = [_Region(results=[], carried=[])]
        self._count = 0
        # Blocks are jumped to before they are read; they lie in the function itself.
        self._blocks = {
            match[1]: [name for name, _ in _ARGUMENT.findall(match[2])]
            for match in map(_BLOCK.match, ttir.splitlines())
            if match
        }

    def read(self, line: str) -> None:
        text = line.strip()
        if text.startswith("}"):
            self._close(opens=text.endswith("{"))
            return
        match = _OP.match(line)
        if match is None or text.startswith("^"):
            return
        name, count, op, rest = match.groups()
        operands = rest if op == "scf.while" else rest.split(" : ")[0]
        values = [self._known(value) for value in _VALUE.findall(operands)]
        if op in ("cf.br", "cf.cond_br"):
            self._jump(rest)
        elif op in ("scf.yield", "scf.condition"):
            self._yield(values[1:] if op == "scf.condition" else values)
        elif text.endswith("{"):
            self._open(op, name, count, rest, values)
        elif name is not None:
            self._define(op, name, count, values, text)

    def _known(self, value: str) -> str:
        """The value that a name means here. Parameters and blocks' values keep theirs."""
        name, _, number = value.partition("#")
        for region in reversed(self._regions):
            if name in region.names:
                return region.names[name] + (f"#{number}" if number else "")
        return value

    def _new(self, name: str) -> str:
        self._count += 1
        self._regions[-1].names[name] = f"{name}@{self._count}"
        return self._regions[-1].names[name]

    def _results(self, name: str | None, count: str | None) -> list[str]:
        if name is None:
            return []
        unique = self._new(name)
        return [f"{unique}#{i}" for i in range(int(count))] if count else [unique]

    def _define(self, op: str, name: str, count: str | None, values: list[str], text: str) -> None:
        for result in self._results(name, count):
            # What is loaded through an address is not made of it.
            self.graph.inputs[result].update(() if op in _LOADS else values)
            self.graph.op[result] = op
            self.graph.text[result] = text
        if op == "tt.addptr":
            self.graph.pointers.append((values[0], values[1]))

    def _open(
        self, op: str, name: str | None, count: str | None, rest: str, values: list[str]
    ) -> None:
        results = self._results(name, count)
        pairs = re.findall(r"(%[\w.]+) = (%[\w.]+(?:#\d+)?)", rest)
        if op == "scf.for":
            pairs = pairs[1:]  # the first is the counter
        starts = [self._known(start) for _, start in pairs]
        self._regions.append(_Region(results=results, carried=[]))
        carried = [self._new(argument) for argument, _ in pairs]
        self._regions[-1].carried = carried
        for names in (carried, results):
            self._pass_on(starts, names)
        if op not in ("scf.for", "scf.if", "scf.while"):  # a reduction of its operands
            for result in results:
                self.graph.inputs[result].update(values)

    def _close(self, *, opens: bool) -> None:
        """The end of a body; "} else {" and "} do {" go on with the same results."""
        region = self._regions.pop()
        if opens:
            again = _Region(results=region.results, carried=region.carried)
            self._regions.append(again)
        elif not self._regions:
            self._regions.append(region)  # the end of the function and of the module

    def _yield(self, values: list[str]) -> None:
        """What a body hands out goes into its results, and into what its loop carries."""
        self._pass_on(values, self._regions[-1].results)
        self._pass_on(values, self._regions[-1].carried)

    def _jump(self, rest: str) -> None:
        for target, given in _BRANCH.findall(rest):
            values = [self._known(value) for value in _VALUE.findall(given)]
            self._pass_on(values, self._blocks.get(target, []))

    def _pass_on(self, values: list[str], names: list[str]) -> None:
        for name, value in zip(names, values, strict=False):
            self.graph.inputs[name].add(value)
