# SPDX-License-Identifier: Apache-2.0
"""The formats of traces: how each is known, and its requests (:mod:`traces` describes them)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, TextIO

from sglang_jenga.core.printable import shown
from sglang_jenga.simulate.sharegpt import has_conversation, sharegpt
from sglang_jenga.simulate.trace_files import (
    Lines,
    Objects,
    lines_of,
    object_of,
    objects_of_array,
)
from sglang_jenga.simulate.trace_types import MOONCAKE_BLOCK_TOKENS, Source, TraceRequest

_PLACES = (
    (),
    ("usage",),
    ("meta_info",),
    ("out", "meta_info"),
    ("response", "usage"),
    ("response", "body", "usage"),
    ("body", "usage"),
)
_NAMES = (
    ("prompt_tokens", "completion_tokens"),
    ("input_len", "output_len"),
    ("input_tokens", "output_tokens"),
)
_FINISHED = re.compile(r"\bFinish: obj=")
#: A line of SGLang's log that is a JSON object behind the time.
_LOGGED_OBJECT = re.compile(r"\[[^\]]*\] (\{\"timestamp\": .*)")
_COUNT = r"['\"]%s['\"]: (\d+)"
_LOG_COUNTS = tuple(re.compile(_COUNT % name) for name in _NAMES[0])
#: Columns of prompts and answers, by format.
_COLUMNS = {
    "azure": ("ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Request tokens", "Response tokens"),
}
_NOTHING_CAME = "no tokens of a prompt or an answer: it failed"
#: Tokens of a request beyond which a number is no count of tokens.
_MOST_TOKENS = 10**9

Requests = Iterator[TraceRequest]


def open_trace(file: TextIO, source: Source) -> tuple[str, Requests]:
    """The format of a file, and its requests.

    Raises:
        TraceError: the file is empty or of no known format; later, for a line without sense.
    """
    if _is_array(file):
        source.unit = "entry"
        return _of_objects(objects_of_array(file, source), source)
    lines = lines_of(file, source)
    first = next(lines, None)
    if first is None:
        raise source.error(1, "the file is empty")
    number, line = first
    lines = chain([first], lines)
    if line.lstrip().startswith("{"):
        return _of_objects(((n, object_of(source, n, text)) for n, text in lines), source)
    for name, columns in _COLUMNS.items():
        if columns[0] in line:
            return name, _csv(lines, source, columns, name)
    if "obj=" in line or _FINISHED.search(line) or re.match(r"\[\d{4}-\d\d-\d\d ", line):
        return "log", _log(lines, source)
    raise source.error(
        number,
        "no trace format begins like this: expected JSON (an object per line, or one array), a CSV "
        "with ContextTokens and GeneratedTokens or Request tokens and Response tokens, or SGLang's "
        f"request log, found {shown(line.strip()[:60])}",
    )


def _is_array(file: TextIO) -> bool:
    """Whether a JSON array of objects begins here: a log begins with ``[``, too."""
    start = file.read(4096)
    file.seek(0)
    return re.match(r"\s*\[\s*(?:[{\]]|$)", start) is not None


def _of_objects(objects: Objects, source: Source) -> tuple[str, Requests]:
    first = next(objects, None)
    if first is None:
        raise source.error(1, "the array is empty")
    entry = first[1]
    objects = chain([first], objects)
    if has_conversation(entry):
        return "sharegpt", sharegpt(objects, source)
    if "hash_ids" in entry:
        return "mooncake", _mooncake(objects, source)
    if "input_lens" in entry or "median_ttft_ms" in entry:
        return "bench", _bench(objects, source)
    return "requests", _requests(objects, source)


def _mooncake(objects: Objects, source: Source) -> Requests:
    known: dict[int, int] = {}  # hashes may be of any size: blocks are numbered as they come
    for number, entry in objects:
        prompt = _tokens(source, number, entry, "input_length")
        output = _tokens(source, number, entry, "output_length")
        blocks = entry.get("hash_ids")
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            raise source.error(number, "hash_ids is not a list of numbers")
        if len(blocks) * MOONCAKE_BLOCK_TOKENS < prompt:
            # The published trace has a few of them: what is not named cannot be shared.
            source.leave_out(
                number,
                f"fewer hash_ids than its prompt has blocks of {MOONCAKE_BLOCK_TOKENS} tokens",
            )
            continue
        yield TraceRequest(
            prompt_tokens=max(1, prompt),
            output_tokens=max(1, output),
            blocks=tuple(known.setdefault(block, len(known)) for block in blocks),
        )


def _csv(lines: Lines, source: Source, columns: tuple[str, str], name: str) -> Requests:
    number, header = next(lines)
    names = [cell.strip() for cell in _cells(source, number, header)]
    for column in columns:
        if column not in names:
            raise source.error(number, f"a column is missing: {column}")
    places = [names.index(column) for column in columns]
    for number, line in lines:
        cells = _cells(source, number, line)
        if len(cells) <= max(places):
            raise source.error(number, f"two numbers expected: the line has {len(cells)} cells")
        prompt, output = (_count(source, number, cells[place]) for place in places)
        if name == "burstgpt" and not (prompt and output):
            source.leave_out(number, _NOTHING_CAME)
            continue
        yield TraceRequest(prompt_tokens=max(1, prompt), output_tokens=max(1, output))


def _cells(source: Source, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise source.error(number, f"no line of a CSV: {error}") from error


def _count(source: Source, number: int, cell: str) -> int:
    text = cell.strip().removesuffix(".0")
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        raise source.error(number, f"two numbers expected: {shown(cell)} is none")
    value = int(text)
    if not 0 <= value <= _MOST_TOKENS:
        raise source.error(number, f"{value:,} is no number of tokens")
    return value


def _bench(objects: Objects, source: Source) -> Requests:
    for number, entry in objects:
        prompts, outputs = entry.get("input_lens"), entry.get("output_lens")
        if not isinstance(prompts, list) or not isinstance(outputs, list):
            raise source.error(
                number, "no input_lens and output_lens: run the benchmark with --output-details"
            )
        if len(prompts) != len(outputs):
            raise source.error(number, f"{len(prompts)} input_lens, {len(outputs)} output_lens")
        for at, counts in enumerate(zip(prompts, outputs, strict=True)):
            if any(type(count) is not int or not 0 <= count <= _MOST_TOKENS for count in counts):
                raise source.error(number, f"request {at}: lengths {shown(counts)}")
            if not all(counts):
                source.leave_out(number, _NOTHING_CAME)
                continue
            yield TraceRequest(prompt_tokens=counts[0], output_tokens=counts[1])


def _requests(objects: Objects, source: Source) -> Requests:
    for number, entry in objects:
        if str(entry.get("event", "")).startswith("request.received"):
            continue  # the same request has a line when it has finished
        counts = _counts(entry)
        if counts is None:
            if entry.get("error") or entry.get("event"):
                source.leave_out(number, "an error or an event, without token counts")
                continue
            raise source.error(
                number,
                "no token counts: expected prompt_tokens and completion_tokens (or input_len and "
                "output_len), here or under usage or meta_info; keys are "
                f"{shown(', '.join(entry))}",
            )
        prompt, output = (_tokens(source, number, counts, name) for name in counts)
        if not prompt or not output:
            source.leave_out(number, _NOTHING_CAME)
            continue
        yield TraceRequest(prompt_tokens=prompt, output_tokens=output)


def _log(lines: Lines, source: Source) -> Requests:
    for number, line in lines:
        entry = _LOGGED_OBJECT.match(line)
        if entry is not None:
            yield from _requests(iter([(number, object_of(source, number, entry[1]))]), source)
            continue
        if not _FINISHED.search(line):
            continue
        # Behind the last one there is no text of users.
        out = line[max(0, line.rfind("'meta_info': {")) :]
        found = [pattern.search(out) for pattern in _LOG_COUNTS]
        if not all(found):
            raise source.error(
                number, "a finished request without prompt_tokens and completion_tokens"
            )
        prompt, output = (_count(source, number, match[1]) for match in found if match)
        if not prompt or not output:
            source.leave_out(number, _NOTHING_CAME)
            continue
        yield TraceRequest(prompt_tokens=prompt, output_tokens=output)


def _counts(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The two counts of a request, prompt first, from the first place that has both."""
    for place in _PLACES:
        found: Any = entry
        for name in place:
            found = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping):
            continue
        for names in _NAMES:
            if all(found.get(name) is not None for name in names):
                return {name: found[name] for name in names}
    return None


def _tokens(source: Source, number: int, entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise source.error(number, f"{name} is {shown(value)}, a number of tokens was expected")
    return value
