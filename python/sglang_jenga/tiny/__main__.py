# SPDX-License-Identifier: Apache-2.0
"""``python -m sglang_jenga.tiny FAMILY OUT_DIR``: build one tiny checkpoint."""

import argparse
import sys

from sglang_jenga.tiny import FAMILIES, SPECS, build
from sglang_jenga.tiny.specs import TEST


def main() -> int:
    presets = "; ".join(
        f"{family}: {', '.join(p for f, p in SPECS if f == family)}" for family in FAMILIES
    )
    parser = argparse.ArgumentParser(
        prog="python -m sglang_jenga.tiny",
        description="Build a tiny random checkpoint of a real architecture, without downloads.",
        epilog=f"Presets: {presets}.",
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("out_dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default=TEST)
    args = parser.parse_args()
    try:
        path = build(args.family, args.out_dir, seed=args.seed, preset=args.preset)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(path)
    print(
        f"serve it with: python -m sglang.launch_server --model-path {path} --dtype float32",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
