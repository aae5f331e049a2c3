# SPDX-License-Identifier: Apache-2.0
"""Texts of others, made safe to print: what a file or a server says may hold escape bytes."""

from __future__ import annotations

import reprlib

#: Characters of one foreign value in a message.
MOST_SHOWN = 120


def printable(text: str) -> str:
    """``text`` with everything a terminal would act on written out (``\\x1b``, ``\\u202e``)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """A value of a foreign file as a message quotes it: one line, of bounded length and depth."""
    text = printable(_SHORT.repr(value))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxdict = 6
