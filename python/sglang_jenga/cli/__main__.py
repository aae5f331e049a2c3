# SPDX-License-Identifier: Apache-2.0
"""``sglang-jenga COMMAND``. Results go to standard output, errors to standard error.

Exit status: 0 done, 1 it could not be done (said why), 2 the command line makes no sense.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sglang_jenga.cli import explain
from sglang_jenga.cli.server import ServerError

_COMMANDS = {"explain": explain}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="sglang-jenga", description="Look into the memory of an SGLang server that runs Jenga."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        module.add_arguments(
            commands.add_parser(
                name,
                help=module.HELP,
                description=module.HELP.capitalize() + ".",
                epilog=module.EXAMPLES,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    args = parser.parse_args(argv)
    try:
        text = _COMMANDS[args.command].run(args)
        if args.output is None:
            print(text, flush=True)
        else:
            args.output.write_text(text + "\n", encoding="utf-8")
    except (ServerError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"sglang-jenga {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
