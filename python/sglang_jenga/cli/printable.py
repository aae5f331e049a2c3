# SPDX-License-Identifier: Apache-2.0
"""Text of others (a server's, a file's, a trace's) made safe to show.

A name may hold what a terminal obeys: escape sequences, carriage returns, marks that reverse the
direction of writing. All that is not printable is shown as ``\\x1b``, in a pipe as well: whoever
reads it may be a terminal.
"""

from __future__ import annotations

import re

_NOT_PLAIN = re.compile(r"[^ -~]")


def printable(text: str, most: int | None = None) -> str:
    """One line. ``most``: characters of ``text`` to show, with a note of how many there are."""
    shown = text if most is None else text[:most]
    if not shown.isprintable():
        shown = _NOT_PLAIN.sub(_escaped, shown)
    return shown if len(text) <= (most or len(text)) else f"{shown}... ({len(text):,} characters)"


def printable_lines(text: str) -> str:
    """The same, ends of lines kept."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return (
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
    )
