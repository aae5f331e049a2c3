# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga explain``: why the prefix hit of a prompt has its length, on a live server."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_jenga.cli.arguments import add_output, add_server, positive, server_of
from sglang_jenga.cli.server import Server, ServerError
from sglang_jenga.cli.server_shapes import EXPLAINED
from sglang_jenga.core.printable import printable
from sglang_jenga.core.request_digest import request_digest

EXAMPLES = """examples:
  sglang-jenga explain localhost:30000 --prompt "Once upon a time"
  sglang-jenga explain localhost:30000 --prompt-file chat.txt --format json
  sglang-jenga explain localhost:30000 --rid 4f2c...      a request that was served lately
  sglang-jenga explain localhost:30000 --last 5

A prompt is sent to the server, which computes it and one token: what it caches by that stays.
"""
#: Columns of a bar.
_WIDTH = 40
#: Characters of a prompt: several times what the longest context holds.
_MOST_PROMPT = 16 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to send")
    what.add_argument("--prompt-file", help="file with the text to send; - is standard input")
    what.add_argument("--token-ids", help="token ids to send, as 1,2,3")
    what.add_argument("--rid", help="id of a request that was served lately, or its digest")
    what.add_argument("--last", type=positive, metavar="N", help="the last N requests and the sums")
    add_output(parser)


def run(args: argparse.Namespace) -> str:
    """What to print.

    Raises:
        ServerError: for the user to read.
    """
    server = server_of(args)
    if args.last is not None:
        return _last(server, args.last, args.format)
    rid = _serve(server, args) if args.rid is None else args.rid
    digest = request_digest(rid)
    for hits in _hits(server):
        # Whoever has seen a digest (in a log line, in another report) asks by it; a server of an
        # older version knows its requests by their ids.
        report = hits["reports"].get(digest) or hits["reports"].get(rid)
        if report is not None:
            return json.dumps(report, indent=2) if args.format == "json" else describe(report)
    raise ServerError(
        f"the server has no report of request {printable(rid, 100)} (digest {digest}): it keeps "
        "those of the last requests, and none with --disable-radix-cache"
    )


def _hits(server: Server) -> list[Mapping[str, Any]]:
    """Of each scheduler."""
    found = []
    for rank, arena in enumerate(server.arenas()):
        server.check(EXPLAINED, arena, "/server_info", f"internal_states[dp_rank={rank}].jenga")
        found.append(arena["hits"])
    return found


def _serve(server: Server, args: argparse.Namespace) -> str:
    """Send the prompt; the request's id. Nothing is sent to a server that is not one of ours."""
    rid = f"explain-{uuid.uuid4().hex}"
    body = {"rid": rid, "sampling_params": {"max_new_tokens": 1}, **_prompt(args)}
    _hits(server)
    server.generate(body)
    return rid


def _prompt(args: argparse.Namespace) -> dict[str, Any]:
    if args.token_ids is not None:
        return {"input_ids": [_token_id(word) for word in args.token_ids.split(",")]}
    return {"text": _read(args.prompt_file) if args.prompt is None else args.prompt}


def _token_id(word: str) -> int:
    """One id. Which ones the model knows, the server says: it refuses the others."""
    try:
        token = int(word)
    except ValueError:
        token = -1
    if not 0 <= token < 2**31:
        raise ServerError(
            f"--token-ids takes numbers from 0 to {2**31 - 1:,}, as 1,2,3: {printable(word, 40)!r} "
            "is none"
        )
    return token


def _read(name: str) -> str:
    try:
        if name == "-":
            text = sys.stdin.read(_MOST_PROMPT + 1)
        else:
            with Path(name).open(encoding="utf-8") as file:
                text = file.read(_MOST_PROMPT + 1)
    except (OSError, ValueError) as error:  # no UTF-8, or no name of a file
        raise ServerError(f"--prompt-file {name} cannot be read: {error}") from error
    if len(text) > _MOST_PROMPT:
        raise ServerError(f"--prompt-file {name} has more than {_MOST_PROMPT:,} characters")
    return text


def _last(server: Server, number: int, form: str) -> str:
    kept = []
    for hits in _hits(server):
        kept.append({**hits, "reports": dict(list(hits["reports"].items())[-number:])})
    if form == "json":
        return json.dumps(kept, indent=2)
    parts = []
    for rank, hits in enumerate(kept):
        if len(kept) > 1:
            parts.append(f"data parallel rank {rank}")
        parts += [*map(describe, hits["reports"].values()), sums(hits)]
    return "\n\n".join(parts)


def sums(hits: Mapping[str, Any]) -> str:
    """What all requests since start hit, and what each kind cut off."""
    prompt = hits["prompt_tokens"]

    def share(tokens: int) -> str:
        return f"{tokens:,} tokens ({100 * tokens / prompt:.1f} %)" if prompt else "0 tokens"

    lines = [
        f"{hits['requests']:,} requests, {prompt:,} prompt tokens",
        f"  hit {share(hits['hit_tokens'])}",
        f"  full attention alone had {share(hits['full_only_tokens'])}",
    ]
    lines += [f"  {kind} cut {share(n)}" for kind, n in hits["cut_tokens"].items()]
    return "\n".join(lines)


def describe(report: Mapping[str, Any]) -> str:
    """One report, for people."""
    prompt, full = report["prompt_tokens"], report["full_only_tokens"]
    who = printable(report["rid"], 100)
    lines = [f"request {who}: hit {report['hit_tokens']:,} of {prompt:,} tokens"]
    rows = {"full": full}
    rows |= {printable(kind): tokens for kind, tokens in report["tokens_by_kind"].items()}
    width = max(map(len, rows))
    for kind, tokens in rows.items():
        filled = min(_WIDTH, round(_WIDTH * tokens / prompt)) if prompt else 0
        bar = "#" * filled + "." * (_WIDTH - filled)
        lines.append(f"  {kind:<{width}}  {bar}  {tokens:,}")
    cut_by = report.get("cut_by")
    if cut_by is None:
        lines.append("  no kind cut the hit: it is all that full attention has")
    else:
        missing = report.get("missing_token")
        slot = "a slot" if missing is None else f"its slot of token {missing:,}"
        lines.append(
            f"  {cut_by} cut it: a hit of {full:,} would need {slot}, which was "
            f"{_went(report.get('evicted_by'))}"
        )
    if full < prompt:
        rest = report.get("rest_evicted_by")
        lines.append(
            f"  from token {full:,} on: "
            + ("not known to the cache (new, or forgotten)" if rest is None else _went(rest))
        )
    return "\n".join(lines)


def _went(eviction: Mapping[str, Any] | None) -> str:
    if eviction is None:
        return "never kept"
    return f"evicted: {eviction['cause']}, and kind {eviction['starving_kind']} lacked bytes"
