# SPDX-License-Identifier: Apache-2.0
"""The demo itself: see the package's docstring. ``make demo`` runs it."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_jenga.cli.arena_text import arena_lines, arena_title
from sglang_jenga.cli.terminal import Screen, indented
from sglang_jenga.demo import clients
from sglang_jenga.demo.server import Server, ServerError

_BACKEND = ("--radix-cache-backend", "jenga", "--enable-cache-report")
#: Pieces of a streamed answer after which the arena is looked at while the request runs.
_PIECES_BEFORE_SNAPSHOT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to serve and how. ``notes`` explains the flags that depend on this machine."""

    model: str
    flags: tuple[str, ...]
    environ: dict[str, str]
    note: str


def choose_target(model: str | None, folder: Path, *, has_cuda: bool) -> Target:
    """Flags for this machine: memory flags that a laptop survives on a CPU, defaults on CUDA.

    Without ``model`` the tiny checkpoint is served; it needs little and gets little, so that the
    arena has something to show.
    """
    flags: tuple[str, ...] = _BACKEND
    if not has_cuda:
        # Rows of the request table cost memory per model length; a laptop runs few at once.
        flags += ("--device", "cpu", "--max-running-requests", "16")
    if model is not None:
        if not has_cuda:
            flags += ("--max-total-tokens", "8192")
        where = "on CUDA" if has_cuda else "on the CPU, with an arena for about 8,192 tokens"
        return Target(model=model, flags=flags, environ={}, note=where)
    from sglang_jenga.tiny import build

    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for a third of a second
        path = build("gemma3", folder / "gemma3-demo", preset="demo")
    flags += ("--max-total-tokens", "2048")
    # FlashInfer has no float32 kernels; a CPU has no fast bfloat16.
    flags += (
        ("--dtype", "bfloat16", "--attention-backend", "flashinfer")
        if has_cuda
        else ("--dtype", "float32")
    )
    return Target(
        model=str(path),
        flags=flags,
        environ={"HF_HUB_OFFLINE": "1"},
        note=f"on {'CUDA' if has_cuda else 'the CPU'}: tiny random weights, so it speaks nonsense",
    )


def start(server: Server, screen: Screen, timeout_seconds: float) -> None:
    """Wait for the server while the client libraries are imported."""

    def import_clients() -> None:
        import openai  # noqa: F401
        import sglang  # noqa: F401

    importing = threading.Thread(target=import_clients, daemon=True)
    importing.start()
    seconds = server.wait_until_ready(
        timeout_seconds, lambda elapsed: screen.progress("starting the server", elapsed)
    )
    importing.join()
    screen.line(f"ready after {seconds:.0f} s at {server.url}; its log: {server.log_path}")
    for line in server.log_lines(containing="] Jenga: "):
        if "reference load" not in line:  # the planner's reasoning: worth reading, not worth a tour
            screen.line("  " + line.split("] Jenga: ", 1)[1])


def talk(url: str, screen: Screen, max_tokens: int) -> None:
    """Both clients, their answers, and the arena while a request runs and at rest."""
    screen.heading("1. A frontend-language program: one document, three forks, a choice, a regex")
    for answer in clients.read_together(url, max_tokens=max_tokens):
        screen.line(f"  {answer.label:<20} {_shortened(answer.text)}")
        if answer.prompt_tokens:
            screen.line(f"  {'':<20} {_cached(answer)}")

    screen.heading("2. A streaming chat through the OpenAI client")
    snapshots: list[dict[str, Any]] = []
    pieces = 0

    def on_piece(piece: str) -> None:
        nonlocal pieces
        pieces += 1
        screen.piece(_flat(piece))
        if pieces == _PIECES_BEFORE_SNAPSHOT:
            snapshots.append(clients.read_arena(url))

    def on_turn(question: str) -> None:
        nonlocal pieces
        pieces = 0
        screen.line(f"  user       {question}")
        screen.piece("  assistant  ")

    for answer in clients.chat(url, max_tokens=max_tokens, on_turn=on_turn, on_piece=on_piece):
        screen.line()
        screen.line(f"             {_cached(answer)}")

    at_rest = clients.read_arena(url)
    screen.heading(f"3. The arena: {arena_title(at_rest)}")
    if snapshots:
        screen.line("  while the last answer was being written:")
        _print_all(screen, indented(arena_lines(snapshots[-1])))
        screen.line()
    screen.line("  at rest, prefixes cached:")
    _print_all(screen, indented(arena_lines(at_rest)))


def _print_all(screen: Screen, lines: Sequence[str]) -> None:
    for line in lines:
        screen.line(line)


def _flat(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _shortened(text: str, width: int = 70) -> str:
    flat = " ".join(_flat(text).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def _cached(answer: clients.Answer) -> str:
    return (
        f"({answer.cached_tokens:,} of {answer.prompt_tokens:,} prompt tokens came from the cache)"
    )


def run(args: argparse.Namespace, server_flags: Sequence[str], screen: Screen) -> None:
    """The whole tour."""
    import torch

    screen.line("sglang-jenga demo: one arena serves every layer kind of a model")
    target = choose_target(args.model, args.folder, has_cuda=torch.cuda.is_available())
    flags = [*target.flags, *server_flags]
    log_path = args.folder / "server.log"
    server = Server(target.model, flags, log_path=log_path, environ=target.environ)
    screen.line(f"serving {target.model} {target.note}")
    screen.line("  " + " ".join(["python", *server.command[1:]]))
    try:
        with server:
            start(server, screen, args.timeout)
            try:
                talk(server.url, screen, args.max_tokens)
            except Exception as error:
                server.require_running()
                raise ServerError(
                    f"a client failed ({type(error).__name__}: {error}); the server says:\n"
                    f"{server.log_tail()}"
                ) from error
            screen.line()
            screen.progress("stopping the server", 0)
    finally:
        screen.end_progress()
    screen.line("The server is stopped. Serve your own model:")
    screen.line("  make demo MODEL=<path or id>")
    screen.line("  sglang serve --model-path <path or id> --radix-cache-backend jenga")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and the server's flags behind ``--``."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        prog="python -m sglang_jenga.demo",
        description="Serve a model from one arena, talk to it, and show what the arena held.",
        epilog="Flags after -- go to the server, as in: -- --page-size 16",
    )
    parser.add_argument("--model", help="model path or id (default: a tiny checkpoint made here)")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="checkpoint and log")
    parser.add_argument("--timeout", type=float, default=900, help="seconds to wait for the server")
    parser.add_argument("--max-tokens", type=int, default=32, help="longest answer")
    return parser.parse_args(argv[:split]), list(argv[split + 1 :])


def stop_on_terminate() -> Callable[..., None]:
    def raise_exit(signum: int, frame: object) -> None:
        sys.exit(128 + signum)  # unwinds, so the server is stopped

    return raise_exit


def main() -> int:
    args, server_flags = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, stop_on_terminate())
    screen = Screen()
    try:
        run(args, server_flags, screen)
    except KeyboardInterrupt:
        screen.line("interrupted: the server is stopped")
        return 130
    except ServerError as error:
        screen.end_progress()
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
