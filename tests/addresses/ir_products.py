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
        return _closure(sources, users)

    def made_of(self, value: str) -> set[str]:
        """All values that go into ``value``, itself included."""
        return _closure([value], self.inputs)


def _closure(start: Iterable[str], edges: dict[str, set[str]]) -> set[str]:
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
    types = re.sub(r"\s+loc\(.*\)\s*$", "", line).rsplit(" : ", 1)[-1]
    return re.search(r"(^|x|<)i(8|16|32)\b", types) is not None


def _read(ttir: str) -> _Graph:
    """The values of a function and what they are made from, loops and branches joined."""
    graph = _Graph()
    regions: list[tuple[list[str], list[str]]] = []  # results, values carried by a loop
    blocks = {
        match[1]: [name for name, _ in _ARGUMENT.findall(match[2])]
        for match in map(_BLOCK.match, ttir.splitlines())
        if match
    }
    for line in ttir.splitlines():
        if line.lstrip().startswith(("#", "module", "tt.func")):
            continue
        match = _OP.match(line)
        opens = re.sub(r"\s+loc\(.*\)\s*$", "", line).rstrip().endswith("{")
        if line.strip().startswith("}"):
            if not opens and regions:  # "} else {" and "} do {" go on with the same results
                regions.pop()
            continue
        if match is None or not match[3]:
            continue
        name, count, op, rest = match.groups()
        results = [] if name is None else [name] if not count else _numbered(name, int(count))
        values = _VALUE.findall(rest.split(" : ")[0] if op != "scf.while" else rest)
        if op in ("cf.br", "cf.cond_br"):
            for target, given in _BRANCH.findall(rest):
                for argument, value in zip(
                    blocks.get(target, ()), _VALUE.findall(given), strict=False
                ):
                    graph.inputs[argument].add(value)
            continue
        if op in ("scf.yield", "scf.condition"):
            _yield(graph, regions[-1] if regions else ([], []), values, op)
            continue
        if opens:
            carried = re.findall(r"(%[\w.]+) = (%[\w.]+(?:#\d+)?)", rest)
            if op == "scf.for":
                carried = carried[1:]  # the first is the counter
            for (argument, start), result in zip(
                carried, results or [""] * len(carried), strict=True
            ):
                graph.inputs[argument].add(start)
                if result:
                    graph.inputs[result].add(start)
            regions.append((results, [argument for argument, _ in carried]))
            if op not in ("scf.for", "scf.if", "scf.while"):  # a reduction of its operands
                for result in results:
                    graph.inputs[result].update(values)
            continue
        for result in results:
            graph.inputs[result].update(values)
            graph.op[result] = op
            graph.text[result] = line.strip()
        if op == "tt.addptr":
            graph.pointers.append((values[0], values[1]))
    return graph


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}#{i}" for i in range(count)]


def _yield(graph: _Graph, region: tuple[list[str], list[str]], values: list[str], op: str) -> None:
    """What a region hands out goes into its results, and into what its loop carries."""
    results, carried = region
    values = values[1:] if op == "scf.condition" else values
    for names in (results, carried):
        for name, value in zip(names, values, strict=False):
            graph.inputs[name].add(value)
