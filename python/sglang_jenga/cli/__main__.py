# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga COMMAND``. Results go to standard output, errors to standard error.

Exit status: 0 done, 1 it could not be done (said why), 2 the command line makes no sense.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from sglang_jenga.cli.server import ServerError
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import printable_lines

#: What each command is for; its module in this package is loaded when it is the one asked for.
COMMANDS = {
    "doctor": "whether this environment can serve with Jenga, and which flags it would refuse",
    "explain": "why the prefix hit of a prompt has its length",
    "map": "the large pages of a server's arena by kind and state, as a page for a browser",
    "plan": "the arena of a model from its config.json, and what other managers would hold",
    "simulate": "what a trace of requests would do on an arena of so many bytes",
    "top": "the arena of a live server by kind, its requests and hits, in a terminal",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status.

    A command's module has ``EXAMPLES`` (for ``--help``), ``add_arguments(parser)`` and
    ``run(args)``, which returns the text to print, or the text and an exit status.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # names in any alphabet, on terminals with only one
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        prog="sglang-jenga", description="Memory of hybrid models on SGLang: plan it, look into it."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if word in COMMANDS), None)
    module = import_module(f"sglang_jenga.cli.{asked}") if asked else None
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=purpose,
            description=purpose.capitalize() + ".",
            epilog=module.EXAMPLES if module and name == asked else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module and name == asked:
            module.add_arguments(command)
    args = parser.parse_args(argv)
    assert module is not None  # argparse ends the process unless a command is named
    try:
        result = module.run(args)
        text, status = result if isinstance(result, tuple) else (result, 0)
        text = printable_lines(text)
        output = getattr(args, "output", None)
        if output is not None:
            output.write_text(text + "\n", encoding="utf-8")
        elif text:
            print(text, flush=True)
    except (ServerError, ConfigError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"sglang-jenga {args.command}: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
