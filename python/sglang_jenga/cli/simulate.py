# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga simulate``: what a trace of requests would do on an arena of so many bytes."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_jenga.cli.arguments import add_output, size
from sglang_jenga.cli.terminal import Screen
from sglang_jenga.core.configs.dtypes import KV_DTYPES, STATE_DTYPES
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.read import ServeFlags
from sglang_jenga.core.errors import ConfigError, JengaError
from sglang_jenga.core.printable import shown

if TYPE_CHECKING:
    from sglang_jenga.simulate.loop import Totals
    from sglang_jenga.simulate.report import Report

EXAMPLES = f"""examples:
  sglang-jenga simulate --model gemma3-27b --trace azure_code.csv --kv 17GiB
  sglang-jenga simulate --model gpt-oss-20b --trace mooncake.jsonl --kv 8GiB --limit 400
  sglang-jenga simulate --model ./my-model --trace requests.jsonl --timeline bytes.svg
  sglang-jenga simulate --model llama31-8b --trace bench.jsonl --format json --output result.json

A trace is a Mooncake trace (JSON lines), conversations of ShareGPT (JSON), an Azure LLM inference
or BurstGPT trace (CSV), the output of sglang.bench_serving --output-details, or a log of requests
with token counts (SGLang, OpenAI).
All of its requests are there from the start.

models known by name: {", ".join(PUBLISHED)}
"""
_BAR = 30
_MOST_DIGITS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="config.json, a directory that has one, or a known name"
    )
    parser.add_argument("--trace", required=True, type=Path, help="file of requests")
    parser.add_argument(
        "--characters-per-token",
        type=_ratio,
        default=4.0,
        metavar="N",
        help="characters of a token, for traces of text without counts (%(default)s)",
    )
    parser.add_argument("--kv", type=size, default="20GiB", help="bytes of the arena (%(default)s)")
    parser.add_argument("--limit", type=_positive, metavar="N", help="replay N requests only")
    parser.add_argument(
        "--skip", type=_count, default=0, metavar="N", help="leave the first N requests out"
    )
    parser.add_argument(
        "--repeat",
        type=_positive,
        default=1,
        metavar="N",
        help="the trace N times, one after the other (traces of lengths alone)",
    )
    parser.add_argument(
        "--chunk",
        type=_positive,
        default=8192,
        metavar="TOKENS",
        help="--chunked-prefill-size: tokens that a step computes at most (%(default)s)",
    )
    parser.add_argument(
        "--max-running",
        type=_positive,
        default=512,
        metavar="N",
        help="--max-running-requests (%(default)s)",
    )
    parser.add_argument(
        "--page-size", type=_positive, default=1, metavar="TOKENS", help="%(default)s"
    )
    parser.add_argument(
        "--context-length",
        type=_positive,
        metavar="TOKENS",
        help="leave longer requests out; by default those that no empty arena holds",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("auto", *KV_DTYPES),
        default="auto",
        help="type of K and V (%(default)s: the model's own)",
    )
    parser.add_argument("--mamba-ssm-dtype", choices=tuple(STATE_DTYPES), help="type of states")
    parser.add_argument(
        "--tp", type=_positive, default=1, help="tensor parallel ranks; bytes are of one of them"
    )
    parser.add_argument(
        "--image-tokens",
        type=_count,
        default=0,
        metavar="N",
        help="every request brings an image of N tokens (models with cross attention)",
    )
    parser.add_argument("--disable-radix-cache", action="store_true", help="no prefix cache")
    parser.add_argument(
        "--engine",
        choices=("auto", "plain", "server"),
        default="auto",
        help="server: the classes of a server, needs SGLang; plain: lengths alone, needs neither "
        "SGLang nor torch; auto: server where the trace says what prompts share",
    )
    parser.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="draw bytes by kind over time, as .png or .svg (needs matplotlib)",
    )
    add_output(parser)


def run(args: argparse.Namespace) -> str:
    """What to print.

    Raises:
        ConfigError: for the user to read.
    """
    from sglang_jenga.simulate.model import kinds_of
    from sglang_jenga.simulate.replay import Options, engine_for, replay
    from sglang_jenga.simulate.traces import read_trace

    if args.timeline is not None:
        from sglang_jenga.simulate.plot import require_plotting

        require_plotting(args.timeline)
    flags = ServeFlags(
        tp=args.tp, kv_cache_dtype=args.kv_cache_dtype, mamba_ssm_dtype=args.mamba_ssm_dtype
    )
    kinds = kinds_of(args.model, flags, page_tokens=args.page_size)
    trace = read_trace(
        args.trace,
        skip=args.skip,
        limit=args.limit,
        characters_per_token=args.characters_per_token,
    )
    if args.repeat > 1:
        if trace.shares_text:
            raise ConfigError(
                f"--repeat {args.repeat}: the prompts of this trace share text, and would share "
                "all of it with the round before: replay it once"
            )
        trace = replace(trace, requests=trace.requests * args.repeat)
    options = Options(
        kv_bytes=args.kv,
        chunk_tokens=args.chunk,
        max_running=args.max_running,
        page_tokens=args.page_size,
        context_tokens=args.context_length,
        image_tokens=args.image_tokens,
        prefix_cache=not args.disable_radix_cache,
    )
    engine = engine_for(trace, args.engine)
    if engine == "server":
        _load_quietly()
    screen = Screen(sys.stderr)
    try:
        report = replay(
            kinds,
            trace,
            options,
            engine=engine,
            model=args.model,
            source=args.trace.name,
            progress=_Progress(screen) if screen.live else None,
        )
    except JengaError as error:
        raise ConfigError(str(error)) from error
    finally:
        screen.end_progress()
    return _text(report, args)


def _load_quietly() -> None:
    """Load SGLang without what it and its packages say about this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang_jenga.simulate.server import be_quiet
    be_quiet()


def _text(report: Report, args: argparse.Namespace) -> str:
    from sglang_jenga.cli.simulate_text import report_lines

    lines = []
    if args.timeline is not None:
        from sglang_jenga.simulate.plot import draw

        draw(report, args.timeline)
        lines = ["", f"wrote {args.timeline}"]
    if args.format == "json":
        return json.dumps(report.as_dict(), indent=2)
    return "\n".join([*report_lines(report), *lines])


class _Progress:
    """A bar in place: requests that have finished."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def __call__(self, totals: Totals, requests: int) -> None:
        done = totals.finished / requests
        bar = "#" * int(_BAR * done) + "." * (_BAR - int(_BAR * done))
        self._screen.progress(
            f"{bar} {100 * done:3.0f} %  {totals.finished:,} of {requests:,} requests, "
            f"{totals.steps:,} steps",
            totals.seconds,
        )


def _positive(text: str) -> int:
    value = _count(text)
    if not value:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number from 0.1 to 100")
    return value


def _count(text: str) -> int:
    try:
        value = int(text[: _MOST_DIGITS + 1])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
    if len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{shown(text)} has more than {_MOST_DIGITS} digits")
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
