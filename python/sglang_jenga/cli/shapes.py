# SPDX-License-Identifier: Apache-2.0
"""What JSON of others must look like before it is used: checks that name what is there instead.

A shape is called with a value and the path to it, and raises :class:`Misshapen`. Members that a
shape does not name may be there: newer servers say more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang_jenga.core.printable import printable

Shape = Callable[[Any, str], None]
#: The largest count that is believed: what fits in 64 bits.
_MOST = 2**63 - 1
_SHOWN = 60


class Misshapen(Exception):
    """What was sent has another shape. The message goes on after its name, and is printable."""

    def __init__(self, said: str, path: str) -> None:
        super().__init__(f", {path}, {said}" if path else f" {said}")


def whole(least: int = 0, most: int = _MOST) -> Shape:
    """A whole number in these limits."""

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _not(value, path, f"a whole number from {least:,} to {most:,}")

    return check


def number(most: float = 1e15) -> Shape:
    """A number that is not negative, and not so long that nobody can read it."""

    def check(value: Any, path: str) -> None:
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine or not 0 <= value <= most:
            raise _not(value, path, f"a number from 0 to {most:,.0f}")

    return check


def text(most: int) -> Shape:
    """At most so many characters; which ones, nobody knows."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str) or len(value) > most:
            raise _not(value, path, f"a text of at most {most:,} characters")

    return check


def maybe(shape: Shape) -> Shape:
    """This, or null."""

    def check(value: Any, path: str) -> None:
        if value is not None:
            shape(value, path)

    return check


def members(needed: Mapping[str, Shape], other: Mapping[str, Shape] | None = None) -> Shape:
    """An object with the members ``needed``, and ``other`` that may be missing or null."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _not(value, path, "an object")
        for name, shape in needed.items():
            if name not in value:
                raise Misshapen(f"has no {name!r}", path)
            shape(value[name], _inside(path, name))
        for name, shape in (other or {}).items():
            if value.get(name) is not None:
                shape(value[name], _inside(path, name))

    return check


def entries(shape: Shape, most: int, *, least: int = 0) -> Shape:
    """A list of so many of them."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _not(value, path, f"a list of {least:,} to {most:,} entries")
        for index, entry in enumerate(value):
            shape(entry, f"{path}[{index}]")

    return check


def by_name(shape: Shape, most: int) -> Shape:
    """An object of at most so many members of one shape, whatever their names."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            raise _not(value, path, f"an object of at most {most:,} members")
        for name, member in value.items():
            shape(member, _inside(path, printable(name, _SHOWN)))

    return check


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _not(value: Any, path: str, wanted: str) -> Misshapen:
    return Misshapen(f"has {_sent(value)}, which is not {wanted}", path)


def _sent(value: Any) -> str:
    """A value in a few words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return f"an object of {len(value):,}"
    if isinstance(value, str):
        return f'"{printable(value, _SHOWN)}"'
    return printable(str(value), _SHOWN)
