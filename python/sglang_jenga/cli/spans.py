# SPDX-License-Identifier: Apache-2.0
"""Lines of styled text, and what draws with characters: bars and sparklines.

A style is a meaning; its colour is chosen here, for light and dark backgrounds and for eyes that
confuse red and green. Nothing is told by colour alone: states differ in their character too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sglang_jenga.core.printable import printable

#: Style -> parameters of an ANSI "select graphic rendition" (256 colours).
STYLES = {
    "": "",
    "title": "1",
    "faint": "2",
    "held": "38;5;33",
    "sessions": "38;5;135",
    "cached": "38;5;172",
    "reserved": "38;5;37",
    "hole": "38;5;245",
    "free": "38;5;245",
    "alarm": "1;38;5;166",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """Characters of one alphabet. ``spark`` goes from nothing to all."""

    held: str
    sessions: str
    cached: str
    reserved: str
    hole: str
    free: str
    spark: str
    more: str


UNICODE = Glyphs(
    held="█",
    sessions="▚",
    cached="▓",
    reserved="▒",
    hole="░",
    free="·",
    spark=" ▁▂▃▄▅▆▇█",
    more="…",
)
ASCII = Glyphs(
    held="#",
    sessions="%",
    cached="=",
    reserved="+",
    hole=".",
    free="_",
    spark=" .:-=+*#@",
    more=">",
)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line, printable whoever wrote it. ``style``: a key of ``STYLES``."""

    text: str
    style: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))


Line = tuple[Span, ...]


def line(*parts: str | Span) -> Line:
    """A line of plain strings and styled pieces."""
    return tuple(Span(part) if isinstance(part, str) else part for part in parts)


def width_of(spans: Iterable[Span]) -> int:
    """Columns. Every character that is drawn here takes one."""
    return sum(len(span.text) for span in spans)


def clipped(spans: Line, columns: int, glyphs: Glyphs) -> Line:
    """The line in at most ``columns``; a mark at the end says that there is more."""
    if width_of(spans) <= columns:
        return spans
    out: list[Span] = []
    left = max(0, columns - 1)
    for span in spans:
        out.append(Span(span.text[:left], span.style))
        left -= len(span.text)
        if left <= 0:
            break
    return (*out, Span(glyphs.more[:columns], "faint"))


def rendered(spans: Line, *, colour: bool) -> str:
    """The line as text for a terminal; without ``colour`` there is no escape byte."""
    if not colour:
        return "".join(span.text for span in spans).rstrip()
    return "".join(
        f"\x1b[{STYLES[span.style]}m{span.text}\x1b[0m" if STYLES[span.style] else span.text
        for span in spans
    )


def bar(parts: Sequence[tuple[float, str, str]], total: float, columns: int) -> Line:
    """Parts of a ``total`` side by side, in a field of ``columns``.

    A part is (amount, character, style). Ends are rounded, not lengths, so errors do not add up;
    what is there but too little to see still gets one column.
    """
    spans: list[Span] = []
    amount, drawn = 0.0, 0
    for value, character, style in parts:
        amount += value
        end = min(columns, round(columns * amount / total)) if total else 0
        length = max(0, end - drawn)
        drawn += length
        if length:
            spans.append(Span(character * length, style))
    if amount > 0 and not drawn:
        value, character, style = max(parts)
        spans.append(Span(character, style))
        drawn = 1
    return (*spans, Span(" " * (columns - drawn)))


def sparkline(values: Sequence[float], columns: int, glyphs: Glyphs, *, top: float = 0.0) -> str:
    """The last values as one character each, between 0 and ``top`` or the greatest of them."""
    shown = values[-columns:]
    top = max([top, *shown])
    steps = len(glyphs.spark) - 1
    levels = [round(steps * max(0.0, value) / top) if top else 0 for value in shown]
    # What is little is not nothing.
    marks = [
        glyphs.spark[max(level, 1 if value > 0 else 0)]
        for level, value in zip(levels, shown, strict=True)
    ]
    return "".join(marks).rjust(columns)
