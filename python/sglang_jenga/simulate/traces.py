# SPDX-License-Identifier: Apache-2.0
"""Traces of requests, from files of several formats. The format is told from the content.

==========  ======================================================================================
mooncake    JSON lines with ``input_length``, ``output_length`` and ``hash_ids``: one id for each
            512 tokens of the prompt, equal ids for equal text after an equal beginning
azure       CSV with columns ``ContextTokens`` and ``GeneratedTokens`` (Azure LLM inference traces)
bench       JSON lines of ``sglang.bench_serving --output-file F --output-details``: arrays
            ``input_lens`` and ``output_lens``, one line per run
requests    JSON lines with ``prompt_tokens`` and ``completion_tokens``, or ``input_len`` and
            ``output_len``, in the line itself or where SGLang and OpenAI put them: ``usage``,
            ``meta_info``, ``out.meta_info`` (SGLang's ``--log-requests-format json``),
            ``response.usage``, ``response.body.usage`` (OpenAI batch results)
log         SGLang's ``--log-requests``, in text (``Finish: obj=..., out={'meta_info': ...}``) or
            JSON behind the time; other lines are passed over
==========  ======================================================================================

Requests that failed (no output tokens) are left out and counted.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sglang_jenga.core.errors import ConfigError

#: Tokens of the prompt that one id of a Mooncake trace stands for.
MOONCAKE_BLOCK_TOKENS = 512
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


class TraceError(ConfigError):
    """A trace that cannot be read; names the file and the line."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request. ``blocks``: ids of its prompt's text, block by block; empty: nobody knows."""

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival.

    block_tokens: tokens of a block, 0 where requests have none.
    failed: lines left out because their request produced nothing.
    """

    format: str
    requests: tuple[TraceRequest, ...]
    block_tokens: int = 0
    failed: int = 0

    @property
    def shares_text(self) -> bool:
        """Whether the trace says which prompts begin alike."""
        return self.block_tokens > 0

    @property
    def prompt_tokens(self) -> int:
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(request.output_tokens for request in self.requests)


def read_trace(path: Path, *, skip: int = 0, limit: int | None = None) -> Trace:
    """Requests ``skip`` to ``skip + limit`` of a file.

    Raises:
        TraceError: the file is empty, of no known format, or a line of it makes no sense.
        OSError: it cannot be opened.
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        first = next(lines, None)
        if first is None:
            raise TraceError(path, 1, "the file is empty")
        found = _format_of(path, *first)
        failed = [0]
        rows = _READERS[found](path, chain([first], lines), failed)
        stop = None if limit is None else skip + limit
        requests = tuple(islice(rows, skip, stop))
    if not requests:
        after = f" after the first {skip:,}" if skip else ""
        raise TraceError(path, first[0], f"no request{after} in this {found} trace")
    block_tokens = MOONCAKE_BLOCK_TOKENS if found == "mooncake" else 0
    return Trace(format=found, requests=requests, block_tokens=block_tokens, failed=failed[0])


_Lines = Iterator[tuple[int, str]]


def _format_of(path: Path, number: int, line: str) -> str:
    if line.lstrip().startswith("{"):
        entry = _object(path, number, line)
        if "hash_ids" in entry:
            return "mooncake"
        if "input_lens" in entry or "median_ttft_ms" in entry:
            return "bench"
        return "requests"
    if "ContextTokens" in line:
        return "azure"
    if "obj=" in line or _FINISHED.search(line) or re.match(r"\[\d{4}-\d\d-\d\d ", line):
        return "log"
    raise TraceError(
        path,
        number,
        "no trace format begins like this: expected JSON lines, a CSV with ContextTokens and "
        f"GeneratedTokens, or SGLang's request log, found {line.strip()[:60]!r}",
    )


def _mooncake(path: Path, lines: _Lines, failed: list[int]) -> Iterator[TraceRequest]:
    for number, line in lines:
        entry = _object(path, number, line)
        prompt = _tokens(path, number, entry, "input_length")
        output = _tokens(path, number, entry, "output_length")
        blocks = entry.get("hash_ids")
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            raise TraceError(path, number, "hash_ids is not a list of numbers")
        if len(blocks) * MOONCAKE_BLOCK_TOKENS < prompt:
            # The published trace has a few of them: what is not named cannot be shared.
            failed[0] += 1
            continue
        yield TraceRequest(
            prompt_tokens=max(1, prompt), output_tokens=max(1, output), blocks=tuple(blocks)
        )


def _azure(path: Path, lines: _Lines, failed: list[int]) -> Iterator[TraceRequest]:
    number, header = next(lines)
    names = [name.strip() for name in next(csv.reader([header]))]
    try:
        columns = [names.index(name) for name in ("ContextTokens", "GeneratedTokens")]
    except ValueError as error:
        raise TraceError(path, number, f"a column is missing: {error}") from error
    for number, line in lines:
        cells = next(csv.reader([line]))
        try:
            prompt, output = (int(cells[column]) for column in columns)
        except (ValueError, IndexError) as error:
            raise TraceError(path, number, f"two numbers expected: {error}") from error
        if prompt < 0 or output < 0:
            raise TraceError(path, number, f"negative tokens: {prompt}, {output}")
        yield TraceRequest(prompt_tokens=max(1, prompt), output_tokens=max(1, output))


def _bench(path: Path, lines: _Lines, failed: list[int]) -> Iterator[TraceRequest]:
    for number, line in lines:
        entry = _object(path, number, line)
        prompts, outputs = entry.get("input_lens"), entry.get("output_lens")
        if not isinstance(prompts, list) or not isinstance(outputs, list):
            raise TraceError(
                path, number, "no input_lens and output_lens: run the benchmark with "
                "--output-details"
            )  # fmt: skip
        if len(prompts) != len(outputs):
            raise TraceError(path, number, f"{len(prompts)} input_lens, {len(outputs)} output_lens")
        for at, counts in enumerate(zip(prompts, outputs, strict=True)):
            if any(type(count) is not int or count < 0 for count in counts):
                raise TraceError(path, number, f"request {at}: lengths {counts}")
            if not all(counts):
                failed[0] += 1
                continue
            yield TraceRequest(prompt_tokens=counts[0], output_tokens=counts[1])


def _requests(path: Path, lines: _Lines, failed: list[int]) -> Iterator[TraceRequest]:
    for number, line in lines:
        entry = _object(path, number, line)
        if str(entry.get("event", "")).startswith("request.received"):
            continue  # the same request has a line when it has finished
        counts = _counts(entry)
        if counts is None:
            if entry.get("error") or entry.get("event"):
                failed[0] += 1
                continue
            raise TraceError(
                path,
                number,
                "no token counts: expected prompt_tokens and completion_tokens (or input_len and "
                f"output_len), here or under usage or meta_info; keys are {', '.join(entry)}",
            )
        prompt, output = (_tokens(path, number, counts, name) for name in counts)
        if not prompt or not output:
            failed[0] += 1
            continue
        yield TraceRequest(prompt_tokens=prompt, output_tokens=output)


def _log(path: Path, lines: _Lines, failed: list[int]) -> Iterator[TraceRequest]:
    for number, line in lines:
        entry = _LOGGED_OBJECT.match(line)
        if entry is not None:
            yield from _requests(path, iter([(number, entry[1])]), failed)
            continue
        if not _FINISHED.search(line):
            continue
        # Behind the last one there is no text of users.
        out = line[max(0, line.rfind("'meta_info': {")) :]
        found = [pattern.search(out) for pattern in _LOG_COUNTS]
        if not all(found):
            raise TraceError(
                path, number, "a finished request without prompt_tokens and completion_tokens"
            )
        prompt, output = (int(match[1]) for match in found if match)
        if not prompt or not output:
            failed[0] += 1
            continue
        yield TraceRequest(prompt_tokens=prompt, output_tokens=output)


_READERS = {
    "mooncake": _mooncake,
    "azure": _azure,
    "bench": _bench,
    "requests": _requests,
    "log": _log,
}


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise TraceError(path, number, f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise TraceError(path, number, "not a JSON object")
    return entry


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


def _tokens(path: Path, number: int, entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if type(value) is not int or value < 0:
        raise TraceError(path, number, f"{name} is {value!r}, a number of tokens was expected")
    return value
