# SPDX-License-Identifier: Apache-2.0
"""Texts of others (a server's, a file's, a trace's), made safe to print.

A name may hold what a terminal obeys: escape sequences, carriage returns, marks that reverse the
direction of writing. All that is not printable is shown as ``\\x1b``, in a pipe as well: whoever
reads it may be a terminal.
"""

from __future__ import annotations

import reprlib

#: Characters of one foreign value in a message.
MOST_SHOWN = 120


def printable(text: str, most: int | None = None) -> str:
    """One line. ``most``: characters of ``text`` to show, with a note of how many there are."""
    shown = text if most is None else text[:most]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))
    return shown if len(text) <= (most or len(text)) else f"{shown}... ({len(text):,} characters)"


def printable_lines(text: str) -> str:
    """The same, ends of lines kept."""
    return "\n".join(map(printable, text.split("\n")))


def shown(value: object) -> str:
    """A value of a foreign file as a message quotes it: one line, of bounded length and depth."""
    text = printable(_SHORT.repr(value))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxdict = 6
