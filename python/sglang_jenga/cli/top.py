# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga top``: the arena of a live server by kind, its requests and hits, live."""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sglang_jenga.cli.arguments import add_output, add_server, positive, seconds, server_of
from sglang_jenga.cli.frame import Frame, draw
from sglang_jenga.cli.samples import History, Sample, SchedulerView, collect
from sglang_jenga.cli.server import Server, ServerError, ServerUnreachable
from sglang_jenga.cli.spans import ASCII, UNICODE, rendered
from sglang_jenga.cli.terminal import Screen

SCHEMA = 1
EXAMPLES = """examples:
  sglang-jenga top localhost:30000
  sglang-jenga top localhost:30000 --interval 0.5
  sglang-jenga top localhost:30000 --once                     one frame, for scripts
  sglang-jenga top localhost:30000 --once --format json | jq '.schedulers[].kinds[].name'
  sglang-jenga top localhost:30000 --format json > arena.jsonl     one line per sample

q or Ctrl-C quits. Without a terminal (a pipe) frames follow each other as plain text. Rates need
two samples, so the first frame shows "-" for them; --frames 2 is the shortest way to get some.
"""
_POLL_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.set_defaults(timeout=10.0, complain=parser.error)
    parser.add_argument(
        "--interval", type=seconds, default=2.0, help="seconds between samples (%(default)s)"
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--once", action="store_true", help="one frame, then end")
    number.add_argument("--frames", type=positive, metavar="N", help="N frames, then end")
    parser.add_argument("--ascii", action="store_true", help="bars of ASCII characters")
    add_output(parser)


def run(args: argparse.Namespace) -> str:
    """The frame of ``--once``; else frames are shown as they come and there is nothing left to say.

    Raises:
        ServerError: with ``--once`` or ``--frames``, if the server does not answer.
    """
    frames = 1 if args.once else args.frames
    if args.output is not None and frames is None:
        args.complain("--output needs an end: --once or --frames N")
    server = server_of(args)
    if frames is None and args.format == "terminal" and Screen().live:
        _watch(server, args)
        return ""
    shown = (_page(server, args, views) for views in _views(server, args.interval, frames))
    if args.output is not None:
        return ("\n" if args.format == "json" else "\n\n").join(shown)
    for number, text in enumerate(shown):
        between = "\n" if number and args.format == "terminal" else ""
        print(between + text, flush=True)
    return ""


def _views(
    server: Server, interval_seconds: float, frames: int | None
) -> Iterator[tuple[SchedulerView, ...]]:
    """One after the other; without an end, a server that does not answer is asked again."""
    history = History()
    number = 0
    while frames is None or number < frames:
        if number:
            time.sleep(interval_seconds)
        number += 1
        try:
            yield history.add(collect(server))
        except ServerError as error:
            if frames is not None:
                raise
            print(f"sglang-jenga top: {_trouble(error)}", file=sys.stderr, flush=True)


def _page(server: Server, args: argparse.Namespace, views: Sequence[SchedulerView]) -> str:
    """One frame as plain text, or one JSON object (indented if it is the only one)."""
    if args.format == "json":
        return json.dumps(as_json(server.url, views), indent=2 if args.once else None)
    terminal = sys.stdout.isatty() and args.output is None
    screen = Screen()
    frame = Frame(columns=shutil.get_terminal_size((100, 24)).columns, glyphs=_glyphs(args))
    lines = draw(frame, views, url=server.url, clock=time.strftime("%H:%M:%S"), trouble=None)
    return "\n".join(rendered(line, colour=terminal and screen.colour) for line in lines)


def as_json(url: str, views: Sequence[SchedulerView]) -> dict[str, Any]:
    """What ``--format json`` prints. Unknown values are null."""
    return {
        "schema": SCHEMA,
        "url": url,
        "unix_seconds": time.time(),
        "schedulers": [asdict(view) for view in views],
    }


def _glyphs(args: argparse.Namespace) -> Any:
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8")
    return UNICODE if unicode and not args.ascii else ASCII


def _trouble(error: ServerError) -> str:
    what = "not reachable, trying again" if isinstance(error, ServerUnreachable) else "trying again"
    return f"{what}: {error}"


def _sample(
    server: Server,
    interval_seconds: float,
    into: queue.SimpleQueue[Sample | ServerError],
    stop: threading.Event,
) -> None:
    """Ask again and again; in a thread, since a server may take long to answer or not to."""
    while not stop.is_set():
        begun = time.monotonic()
        try:
            into.put(collect(server))
        except ServerError as error:
            into.put(error)
        stop.wait(max(0.0, interval_seconds - (time.monotonic() - begun)))


def _raised(news: Sample | ServerError) -> Sample:
    if isinstance(news, ServerError):
        raise news
    return news


def _watch(server: Server, args: argparse.Namespace) -> None:
    """Frames in place until q or Ctrl-C; drawn anew for a sample, a new second, another size."""
    from sglang_jenga.cli.live import LiveTerminal  # needs a system with terminals

    samples: queue.SimpleQueue[Sample | ServerError] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(
        target=_sample, args=(server, args.interval, samples, stop), daemon=True
    ).start()
    history = History()
    views: tuple[SchedulerView, ...] = ()
    trouble: str | None = "waiting for the first answer"
    colour = Screen().colour
    shown: object = None
    try:
        with LiveTerminal() as terminal:
            while (terminal.key(_POLL_SECONDS) or "").lower() != "q":
                while not samples.empty():
                    try:
                        views, trouble = history.add(_raised(samples.get())), None
                    except ServerError as error:
                        trouble = _trouble(error)
                size, clock = terminal.size, time.strftime("%H:%M:%S")
                if shown == (size, clock, views, trouble):
                    continue
                shown = (size, clock, views, trouble)
                frame = Frame(columns=size.columns, rows=size.lines, glyphs=_glyphs(args))
                lines = draw(frame, views, url=server.url, clock=clock, trouble=trouble)
                terminal.show([rendered(line, colour=colour) for line in lines])
    except KeyboardInterrupt:
        pass
    finally:
        stop.set()
