# SPDX-License-Identifier: Apache-2.0
"""The patches for SGLang in ``patches/``.

    python scripts/upstream.py tree       SGLang's wheel with the series applied, a git repository
    python scripts/upstream.py check      try every claim of the series
    python scripts/upstream.py refresh    write the patches again from the commits of the tree
    python scripts/upstream.py count      what the plugin wraps on the release, and on the tree
    python scripts/upstream.py demo       the demo on the tree
    python scripts/upstream.py serve      answers of servers on the tree equal stock answers
    python scripts/upstream.py fork DIR   SGLang, the series and the plugin as one tree for pip
    python scripts/upstream.py fits WHEEL what of the plugin and the series fits another release;
                                          a file, or a version that pip downloads

``tree`` prints the repository's folder. To change a patch: change its commit there (git rebase -i
released), then ``refresh``, then ``check``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from patch_series import serve
from patch_series.check import check
from patch_series.fits import fit, tell, unpacked
from patch_series.fork import make_fork
from patch_series.refresh import refresh
from patch_series.series import PATCHES, RELEASE, SeriesError, load
from patch_series.states import Worker
from patch_series.tree import installed_wheel, make_tree

COMMANDS = ("tree", "check", "refresh", "count", "demo", "serve", "fork", "fits")
#: What a command is given besides options.
TARGETS = {"fork": "DIR", "fits": "WHEEL|VERSION"}
WORK = PATCHES.parent / ".upstream"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("target", nargs="?", help="DIR of fork, WHEEL or VERSION of fits")
    parser.add_argument("--series", default=RELEASE, help="folder of patches/ (%(default)s)")
    parser.add_argument("--patches", type=Path, default=PATCHES, help="in place of patches/")
    parser.add_argument("--work", type=Path, default=WORK, help="where trees are made")
    args = parser.parse_args(argv)
    if (args.command in TARGETS) != (args.target is not None):
        needs = TARGETS.get(args.command, "nothing")
        parser.error(f"{args.command} is given {needs}, not {args.target or 'nothing'}")
    folder = args.work / f"{args.series}-patched"
    try:
        if args.command == "refresh":
            for name in refresh(args.patches / args.series, folder):
                print(f"written: {name}")
            return 0
        series = load(args.series, args.patches)
        if args.command == "check":
            wheel = installed_wheel()
            tree = make_tree(wheel, args.work / f"{args.series}-check")
            with Worker() as worker:
                problems = check(series, wheel, tree, worker, say=print)
            for problem in problems:
                print(f"WRONG  {problem}")
            print(f"{len(series.patches)} patches, {len(problems)} claims do not hold")
            return 1 if problems else 0
        if args.command == "fits":
            supported = installed_wheel()
            found = fit(unpacked(args.target, args.work), supported, series, args.work)
            tell(found, supported.version, print)
            return 0 if found.fits else 1
        if args.command == "fork":
            print(make_fork(series, installed_wheel(), Path(args.target)).folder)
            return 0
        tree = make_tree(installed_wheel(), folder)
        tree.apply([series.path(patch) for patch in series.patches])
        if args.command == "tree":
            print(tree.folder)
        elif args.command == "count":
            print(f"sglang {series.release}:              {serve.attachments(None)}")
            print(f"with the series applied:     {serve.attachments(tree)}")
        else:
            return serve.demo(tree) if args.command == "demo" else serve.identity(tree)
    except SeriesError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
