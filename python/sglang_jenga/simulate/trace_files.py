# SPDX-License-Identifier: Apache-2.0
"""Lines and JSON objects of a trace file, one at a time: files may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from sglang_jenga.simulate.trace_types import Source

#: Characters of the longest line or entry: a benchmark's line holds the lengths of a whole run.
MOST_CHARACTERS = 64 * 2**20
_PIECE = 2**20
_BLANKS = " \t\r\n"

Lines = Iterator[tuple[int, str]]
Objects = Iterator[tuple[int, dict[str, Any]]]


def lines_of(file: TextIO, source: Source) -> Lines:
    """Lines that are not blank, with their numbers.

    Raises:
        TraceError: a line is too long.
    """
    number = 0
    while line := file.readline(MOST_CHARACTERS + 1):
        number += 1
        if len(line) > MOST_CHARACTERS:
            raise source.error(number, f"the line has more than {MOST_CHARACTERS:,} characters")
        if line.strip():
            yield number, line


def object_of(source: Source, number: int, text: str) -> dict[str, Any]:
    """The JSON object that a line is.

    Raises:
        TraceError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise source.error(number, f"not JSON: {_short(error)}") from error
    return _require_object(source, number, value)


def objects_of_array(file: TextIO, source: Source) -> Objects:
    """Objects of a file that is one JSON array, with their places in it, counted from 1.

    Raises:
        TraceError: the array or an entry of it is broken, or an entry is no object or too long.
    """
    decoder = json.JSONDecoder()
    text, at, number, ended = "", 0, 0, False
    separators = "["
    while True:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        if at == len(text):
            text, at = file.read(_PIECE), 0
            if not text:
                raise source.error(number + 1, "the array ends without ]")
            continue
        if separators:
            if text[at] == "]" and separators != "[":
                return
            if text[at] not in separators:
                raise source.error(number + 1, f"{text[at]!r} where {separators!r} was expected")
            at, separators = at + 1, ""
            continue
        if text[at] == "]" and not number:
            return
        number += 1
        while True:
            try:
                value, end = decoder.raw_decode(text, at)
                break
            except RecursionError as error:
                raise source.error(number, f"not JSON: {_short(error)}") from error
            except ValueError as error:
                # Twice as much each time: an entry is tried a few times, not once per piece.
                more = "" if ended else file.read(max(_PIECE, len(text) - at))
                ended = not more
                text, at = text[at:] + more, 0
                if ended or len(text) > MOST_CHARACTERS:
                    raise source.error(number, f"not JSON: {_short(error)}") from error
        yield number, _require_object(source, number, value)
        at, separators = end, ","
        if at > _PIECE:
            text, at = text[at:], 0


def _require_object(source: Source, number: int, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise source.error(number, "not a JSON object")
    return value


def _short(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
