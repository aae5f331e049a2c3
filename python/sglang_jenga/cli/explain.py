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

from sglang_jenga.cli.arguments import add_output, add_server, server_of
from sglang_jenga.cli.server import Server, ServerError

EXAMPLES = """examples:
  sglang-jenga explain localhost:30000 --prompt "Once upon a time"
  sglang-jenga explain localhost:30000 --prompt-file chat.txt --format json
  sglang-jenga explain localhost:30000 --rid 4f2c...      a request that was served lately
  sglang-jenga explain localhost:30000 --last 5

A prompt is sent to the server, which computes it and one token: what it caches by that stays.
"""
#: Columns of a bar.
_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to send")
    what.add_argument("--prompt-file", help="file with the text to send; - is standard input")
    what.add_argument("--token-ids", help="token ids to send, as 1,2,3")
    what.add_argument("--rid", help="id of a request that was served lately")
    what.add_argument("--last", type=int, metavar="N", help="the last N requests and the sums")
    add_output(parser)


def run(args: argparse.Namespace) -> str:
    """What to print.

    Raises:
        ServerError: for the user to read.
    """
    server = server_of(args)
    if args.last is not None:
        return _last(server, args.last, args.format)
    rid = args.rid or _serve(server, args)
    for arena in server.arenas():
        report = _hits(arena)["reports"].get(rid)
        if report is not None:
            return json.dumps(report, indent=2) if args.format == "json" else describe(report)
    raise ServerError(
        f"the server has no report of request {rid}: it keeps those of the last requests, and none "
        "with --disable-radix-cache"
    )


def _hits(arena: Mapping[str, Any]) -> Mapping[str, Any]:
    hits: Mapping[str, Any] = arena["hits"]
    return hits


def _serve(server: Server, args: argparse.Namespace) -> str:
    rid = f"explain-{uuid.uuid4().hex}"
    body: dict[str, Any] = {"rid": rid, "sampling_params": {"max_new_tokens": 1}}
    if args.token_ids is not None:
        try:
            body["input_ids"] = [int(word) for word in args.token_ids.split(",")]
        except ValueError as error:
            raise ServerError(f"--token-ids takes numbers, as 1,2,3: {error}") from error
    elif args.prompt is not None:
        body["text"] = args.prompt
    else:
        body["text"] = _read(args.prompt_file)
    server.generate(body)
    return rid


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"--prompt-file {name} cannot be read: {error}") from error


def _last(server: Server, number: int, form: str) -> str:
    kept = []
    for hits in map(_hits, server.arenas()):
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
    lines = [f"request {report['rid']}: hit {report['hit_tokens']:,} of {prompt:,} tokens"]
    rows = {"full": full, **report["tokens_by_kind"]}
    width = max(map(len, rows))
    for kind, tokens in rows.items():
        filled = round(_WIDTH * tokens / prompt) if prompt else 0
        bar = "#" * filled + "." * (_WIDTH - filled)
        lines.append(f"  {kind:<{width}}  {bar}  {tokens:,}")
    cut_by = report["cut_by"]
    if cut_by is None:
        lines.append("  no kind cut the hit: it is all that full attention has")
    else:
        lines.append(
            f"  {cut_by} cut it: a hit of {full:,} would need its slot of token "
            f"{report['missing_token']:,}, which was {_went(report['evicted_by'])}"
        )
    if full < prompt:
        rest = report["rest_evicted_by"]
        lines.append(
            f"  from token {full:,} on: "
            + ("not known to the cache (new, or forgotten)" if rest is None else _went(rest))
        )
    return "\n".join(lines)


def _went(eviction: Mapping[str, Any] | None) -> str:
    if eviction is None:
        return "never kept"
    return f"evicted: {eviction['cause']}, and kind {eviction['starving_kind']} lacked bytes"
