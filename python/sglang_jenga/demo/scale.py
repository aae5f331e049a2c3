# SPDX-License-Identifier: Apache-2.0
"""``python -m sglang_jenga.demo.scale router|dp|tp``: SGLang's ways to scale out, on arenas.

    router   two servers behind sglang-router; --kill-at 0.4 kills one of them under load
    dp       one server, --dp-size 2: two schedulers with an arena each
    tp       one server, --tp-size 2: two ranks that take the same decisions

Each starts everything, sends chats through the OpenAI client, reports requests, hits and balance,
and stops everything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from sglang_jenga.cli.server import Server as Api
from sglang_jenga.cli.server import ServerError as ApiError
from sglang_jenga.cli.terminal import Screen, indented, table
from sglang_jenga.demo.__main__ import Target, choose_target, stop_on_terminate
from sglang_jenga.demo.load import Asked, Load, drive
from sglang_jenga.demo.router import Router, default_python, router_version
from sglang_jenga.demo.scale_report import MOST_REQUESTS, Counts, Report
from sglang_jenga.demo.server import Server, ServerError

#: Tokens that each arena holds, for a tiny model.
_TOKENS = "8192"


def target_of(mode: str, args: argparse.Namespace) -> Target:
    """What every server serves and how; ``dp`` and ``tp`` add their flag."""
    import torch

    has_cuda = torch.cuda.is_available()
    target = choose_target(args.model, args.folder, has_cuda=has_cuda)
    flags, environ = target.flags, dict(target.environ)
    if args.model is None:
        value = flags.index("--max-total-tokens") + 1
        flags = (*flags[:value], _TOKENS, *flags[value + 1 :])
    if mode in ("dp", "tp"):
        flags += (f"--{mode}-size", "2")
        if not has_cuda:  # SGLang wants to be told where there are fewer NUMA nodes than ranks
            cores = sorted(os.sched_getaffinity(0))
            environ["SGLANG_CPU_OMP_THREADS_BIND"] = f"{cores[0]}|{cores[1 % len(cores)]}"
    if not has_cuda:
        environ.setdefault("OMP_NUM_THREADS", "1")
    return Target(model=target.model, flags=flags, environ=environ, note=target.note)


def counts_of(url: str, before: Sequence[Counts] = ()) -> list[Counts]:
    """One for each scheduler of the server, without what it had ``before``.

    Raises:
        ApiError: it cannot be asked.
    """
    arenas = Api(url, timeout_seconds=30).arenas()
    known = [counts.rids for counts in before] or [frozenset[str]()] * len(arenas)
    return [Counts.of(arena["hits"], rids) for arena, rids in zip(arenas, known, strict=True)]


class Killer:
    """Kills ``victim`` once ``after`` requests are done, and notes what it was running."""

    def __init__(
        self, victim: Server, before: Sequence[Counts], after: int, screen: Screen
    ) -> None:
        self._victim, self._before, self._left, self._screen = victim, before, after, screen
        self._lock = threading.Lock()
        self.counts: Counts | None = None
        self.killed_seconds: float | None = None

    def note(self, asked: Asked) -> None:
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        (self.counts,) = counts_of(self._victim.url, self._before)
        self.killed_seconds = time.monotonic()
        self._victim.kill()
        self._screen.line(f"  killed {self._victim.url} under load")


@contextlib.contextmanager
def _started(servers: Sequence[Server], screen: Screen, timeout_seconds: float) -> Iterator[None]:
    """``servers``, started together, ready for the length of a ``with`` block."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            screen.line("  " + " ".join([Path(server.command[0]).name, *server.command[1:]]))
            stack.enter_context(server)
        for server in servers:
            seconds = server.wait_until_ready(
                timeout_seconds, lambda elapsed: screen.progress("starting", elapsed)
            )
            screen.line(f"  {server.url} is ready after {seconds:.0f} s more")
        yield
        screen.progress("stopping", 0)
    screen.end_progress()


def run(args: argparse.Namespace, server_flags: Sequence[str], screen: Screen) -> Report:
    """The whole of one mode.

    Raises:
        ServerError: something did not start, or ended by itself.
    """
    version = router_version(args.router_python) if args.mode == "router" else ""
    target = target_of(args.mode, args)
    number = 2 if args.mode == "router" else 1
    servers = [
        Server(
            target.model,
            [*target.flags, *server_flags],
            log_path=args.folder / f"{args.mode}-{index}.log",
            environ=target.environ,
        )
        for index in range(number)
    ]
    load = Load(
        groups=args.groups,
        chats=args.chats,
        turns=args.turns,
        at_once=args.at_once,
        output_tokens=args.max_tokens,
    )
    screen.line(f"scale-out by {args.mode}, serving {target.model} {target.note}")
    with _started(servers, screen, args.timeout), contextlib.ExitStack() as stack:
        url = servers[0].url
        if version:
            router = Router(
                args.router_python,
                args.policy,
                [server.url for server in servers],
                log_path=args.folder / "router.log",
            )
            stack.enter_context(_started([router], screen, args.timeout))
            url = router.url
        before = [counts_of(server.url) for server in servers]
        killer = None
        if args.kill_at:
            after_requests = round(args.kill_at * load.requests)
            killer = Killer(servers[-1], before[-1], after_requests, screen)
        screen.line(f"  {load.requests} requests, {load.at_once} chats at a time, to {url}")
        asked = drive(url, load, killer.note if killer else lambda one: None)
        after: list[list[Counts]] = []
        for index, server in enumerate(servers):
            if killer is not None and killer.counts is not None and index == number - 1:
                after.append([killer.counts])
            else:
                server.require_running()
                after.append(counts_of(server.url, before[index]))
        return Report.of(
            mode=args.mode,
            policy=args.policy if version else "",
            router=version,
            load=load,
            servers=[
                (f"server {index + 1}" + (f", rank {rank}" if len(ranks) > 1 else ""), counts)
                for index, ranks in enumerate(after)
                for rank, counts in enumerate(ranks)
            ],
            asked=asked,
            killed_seconds=killer.killed_seconds if killer else None,
        )


def show(report: Report, screen: Screen) -> None:
    """The report for reading."""
    screen.heading("Requests, hits and balance")
    rows = [("", "requests", "prompt tokens", "hit tokens", "hit rate")]
    for one in report.servers:
        rows.append(
            (
                one.name,
                f"{one.requests:,}",
                f"{one.prompt_tokens:,}",
                f"{one.hit_tokens:,}",
                f"{100 * one.hit_rate:.1f} %",
            )
        )
    for line in indented(table(rows)):
        screen.line(line)
    screen.line(
        f"  all: hit rate {100 * report.hit_rate:.1f} %; the busiest had "
        f"{report.balance:.2f} times the requests of the average"
    )
    if report.killed is not None:
        killed = report.killed
        screen.heading("One server killed under load")
        screen.line(f"  running at that moment, on both servers   {killed.running}")
        screen.line(f"  of these, known to run on the dead one    {killed.running_there}")
        screen.line(f"  lost                                      {len(killed.lost)}")
        screen.line(f"  lost though they ran on the other server  {len(killed.lost_elsewhere)}")
        screen.line(f"  lost though they began after it           {len(killed.lost_after)}")
        screen.line(f"  answered in the end                       {report.answered}")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and the servers' flags behind ``--``."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python -m sglang_jenga.demo.scale",
        description="Scale out by SGLang's own means, each server on an arena, and measure it.",
        epilog="Flags after -- go to every server, as in: -- --page-size 16",
    )
    parser.add_argument("mode", choices=("router", "dp", "tp"))
    parser.add_argument("--model", help="model path or id (default: a tiny checkpoint made here)")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="checkpoint and logs")
    parser.add_argument("--timeout", type=float, default=900, help="seconds to wait for a server")
    parser.add_argument("--groups", type=int, default=4, help="different system prompts")
    parser.add_argument("--chats", type=int, default=4, help="chats behind each")
    parser.add_argument("--turns", type=int, default=3, help="turns of each chat")
    parser.add_argument("--at-once", type=int, default=6, help="chats at the same time")
    parser.add_argument("--max-tokens", type=int, default=16, help="length of each answer")
    parser.add_argument("--policy", default="cache_aware", help="the router's policy")
    parser.add_argument(
        "--router-python",
        default=default_python(),
        help="an interpreter that has sglang_router (default: %(default)s)",
    )
    parser.add_argument(
        "--kill-at",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="router: kill one server when this share of the requests is done",
    )
    parser.add_argument("--output", type=Path, help="write the report and every request as JSON")
    args = parser.parse_args(argv[:split])
    if args.kill_at and args.mode != "router":
        parser.error("--kill-at needs another server to carry on: use it with router")
    if not 0 <= args.kill_at < 1:
        parser.error("--kill-at takes a share of the requests, as 0.4")
    if args.groups * args.chats * args.turns > MOST_REQUESTS:
        parser.error(f"servers tell of their last requests: at most {MOST_REQUESTS} in one run")
    return args, list(argv[split + 1 :])


def main(argv: Sequence[str] | None = None) -> int:
    args, server_flags = parse(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, stop_on_terminate())
    screen = Screen()
    try:
        report = run(args, server_flags, screen)
    except KeyboardInterrupt:
        screen.line("interrupted: everything is stopped")
        return 130
    except (ServerError, ApiError) as error:
        screen.end_progress()
        print(f"scale-out failed: {error}", file=sys.stderr)
        return 1
    show(report, screen)
    if args.output is not None:
        args.output.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
