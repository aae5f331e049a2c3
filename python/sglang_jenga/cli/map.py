# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga map``: every large page of a server's arena, drawn on one self-contained page."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from sglang_jenga.cli.arguments import add_server, positive, seconds, server_of
from sglang_jenga.cli.map_page import page, page_data
from sglang_jenga.cli.recording import (
    MOST_RECORDED_BYTES,
    MOST_RECORDED_VALUES,
    Room,
    as_line,
    read,
)
from sglang_jenga.cli.samples import Sample, collect
from sglang_jenga.cli.server import Server, ServerError
from sglang_jenga.cli.terminal import Screen
from sglang_jenga.core.sizes import count, format_bytes

EXAMPLES = """examples:
  sglang-jenga map localhost:30000 -o map.html                               the arena now
  sglang-jenga map localhost:30000 -o map.html --samples 60 --interval 1     a minute, with a slider
  sglang-jenga map localhost:30000 --samples 600 --record arena.jsonl        keep the snapshots
  sglang-jenga map --from arena.jsonl -o map.html                            draw them later

The page needs no network. Ctrl-C ends the recording early; what there is is drawn.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser, optional=True)
    parser.set_defaults(complain=parser.error)
    parser.add_argument(
        "-o",
        "--output",
        dest="page",
        help="the page to write; - is standard output",
        metavar="FILE",
    )
    parser.add_argument(
        "--samples", type=positive, default=1, help="snapshots to take (%(default)s)"
    )
    parser.add_argument(
        "--interval", type=seconds, default=1.0, help="seconds between snapshots (%(default)s)"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="add the snapshots to this file, as JSON lines"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="draw these instead of a server's"
    )


def run(args: argparse.Namespace) -> str:
    """Write the page; what to say about it.

    Raises:
        ServerError: the server does not answer, or is no jenga server.
        ConfigError: what was recorded cannot be read, or the server has no map.
        OSError: a file cannot be read or written.
    """
    if (args.url is None) == (args.source is None):
        args.complain("name a server or a recording (--from), one of the two")
    if args.page is None and args.record is None:
        args.complain("name the page to write with -o, or a file for the snapshots with --record")
    if args.source is not None and args.record is not None:
        args.complain("--from and --record: the snapshots are in a file already")
    if args.source is not None:
        url, samples = read(args.source)
    else:
        server = server_of(args)
        url, samples = server.url, record(server, args.samples, args.interval, args.record)
    data = page_data(url, samples)
    done = []
    if args.record is not None:
        done.append(f"added {count(len(samples), 'snapshot')} to {args.record}")
    if args.page is not None:
        text = page(data)
        if args.page == "-":
            return text
        Path(args.page).write_text(text, encoding="utf-8")
        schedulers = data["snapshots"][-1]["schedulers"]
        pages = sum(scheduler["large_pages_total"] for scheduler in schedulers)
        done.append(
            f"wrote {args.page} ({format_bytes(len(text.encode()))}): "
            f"{count(len(samples), 'snapshot')} of {count(pages, 'large page')}"
        )
    return "\n".join(done)


def record(server: Server, number: int, interval_seconds: float, path: Path | None) -> list[Sample]:
    """``number`` samples of a server, each in ``path`` when it is taken.

    There are fewer if Ctrl-C ends it, or they grow too large.

    Raises:
        ServerError: the server does not answer the first one. Later ones are left out.
    """
    screen = Screen(sys.stderr)
    samples: list[Sample] = []
    room = Room()
    begun = time.monotonic()
    try:
        for index in range(number):
            if index:
                time.sleep(max(0.0, begun + index * interval_seconds - time.monotonic()))
            try:
                sample = collect(server)
            except ServerError as error:
                if not samples:
                    raise
                screen.line(f"sglang-jenga map: snapshot {index + 1} is left out: {error}")
                continue
            line = as_line(sample, server.url)
            if not room.take(line.encode()) and samples:
                screen.line(
                    f"ended after {len(samples)} of {number} snapshots: no more than "
                    f"{MOST_RECORDED_BYTES:,} bytes and {MOST_RECORDED_VALUES:,} values of them "
                    "are kept at a time"
                )
                break
            samples.append(sample)
            if path is not None:
                with path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            if number > 1:
                screen.progress(f"snapshot {index + 1} of {number}", time.monotonic() - begun)
    except KeyboardInterrupt:
        if not samples:
            raise
        screen.line(f"ended after {len(samples)} of {number} snapshots")
    screen.end_progress()
    return samples
