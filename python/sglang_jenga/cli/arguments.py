# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands take, so that they are spelled alike."""

from __future__ import annotations

import argparse
from math import isfinite
from pathlib import Path

from sglang_jenga.cli.server import Server
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.sizes import parse_size


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--format`` and ``--output``; :func:`sglang_jenga.cli.__main__.main` writes the result."""
    parser.add_argument("--format", choices=("terminal", "json"), default="terminal")
    parser.add_argument("--output", type=Path, help="write there instead of standard output")


def add_server(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The server to ask; :func:`server_of` makes it."""
    parser.add_argument(
        "url", nargs="?" if optional else None, help="the server, as localhost:30000"
    )
    parser.add_argument("--api-key", help="of the server, if it has one")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        help="seconds to wait for the whole answer (%(default)s)",
    )


def server_of(args: argparse.Namespace) -> Server:
    """The server that :func:`add_server` asked for."""
    return Server(args.url, api_key=args.api_key, timeout_seconds=args.timeout)


def seconds(text: str) -> float:
    """Type of an argument in seconds: more than none, at most a day."""
    number = float(text)
    if not (isfinite(number) and 0 < number <= 86_400):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 to 86,400")
    return number


def positive(text: str) -> int:
    """Type of an argument that counts something."""
    number = int(text)
    if not 0 < number < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 2,147,483,647")
    return number


def size(text: str) -> int:
    """Type of an argument in bytes, as ``24GiB``."""
    try:
        return parse_size(text, name="size")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
