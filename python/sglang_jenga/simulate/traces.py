# SPDX-License-Identifier: Apache-2.0
"""Traces of requests, from files of several formats. The format is told from the content.

==========  ======================================================================================
mooncake    JSON with ``input_length``, ``output_length`` and ``hash_ids``: one id for each 512
            tokens of the prompt, equal ids for equal text after an equal beginning
sharegpt    JSON with ``conversations``, a list of ``{"from": ..., "value": ...}``: each answer is a
            request, and turns of one conversation begin alike
azure       CSV with columns ``ContextTokens`` and ``GeneratedTokens`` (Azure LLM inference traces)
burstgpt    CSV with columns ``Request tokens`` and ``Response tokens``
bench       JSON of ``sglang.bench_serving --output-file F --output-details``: arrays
            ``input_lens`` and ``output_lens``, one object per run
requests    JSON with ``prompt_tokens`` and ``completion_tokens``, or ``input_len`` and
            ``output_len``, in the object itself or where SGLang and OpenAI put them: ``usage``,
            ``meta_info``, ``out.meta_info`` (SGLang's ``--log-requests-format json``),
            ``response.usage``, ``response.body.usage`` (OpenAI batch results)
log         SGLang's ``--log-requests``, in text (``Finish: obj=..., out={'meta_info': ...}``) or
            JSON behind the time; other lines are passed over
==========  ======================================================================================

JSON is one object per line, or one array of objects. What cannot be replayed is left out, and
counted by reason; a line that makes no sense is an error.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from sglang_jenga.simulate.trace_formats import open_trace
from sglang_jenga.simulate.trace_types import (
    CHARACTERS_PER_TOKEN,
    MOONCAKE_BLOCK_TOKENS,
    LeftOut,
    Source,
    Trace,
    TraceError,
    TraceRequest,
)

__all__ = ["CHARACTERS_PER_TOKEN", "LeftOut", "Trace", "TraceError", "TraceRequest", "read_trace"]


def read_trace(
    path: Path,
    *,
    skip: int = 0,
    limit: int | None = None,
    characters_per_token: float = CHARACTERS_PER_TOKEN,
) -> Trace:
    """Requests ``skip`` to ``skip + limit`` of a file.

    characters_per_token: for traces that have text and no counts.

    Raises:
        TraceError: the file is empty, of no known format, or a line of it makes no sense.
        OSError: it cannot be opened.
    """
    source = Source(path=path, characters_per_token=characters_per_token)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        found, rows = open_trace(file, source)
        requests = tuple(islice(rows, skip, None if limit is None else skip + limit))
    left_out = source.left_out()
    if not requests:
        after = f" after the first {skip:,}" if skip else ""
        missing = "".join(f"; left out {left}" for left in left_out)
        raise TraceError(path, 1, f"no request{after} in this {found} trace{missing}")
    counted = found == "sharegpt"
    return Trace(
        format=found,
        requests=requests,
        block_tokens=MOONCAKE_BLOCK_TOKENS if found == "mooncake" else 0,
        conversations=counted,
        left_out=left_out,
        note=(
            f"the trace has text and no token counts: a token is taken to be "
            f"{characters_per_token:g} characters (--characters-per-token)"
            if counted
            else ""
        ),
    )
