# SPDX-License-Identifier: Apache-2.0
"""Do SGLang's own pools answer like transformers, whichever way recurrent states are cached?

    python benchmark/identity/states_check.py [--family F ...] [--strategy S ...]

One stock server per family and strategy, SGLang's strict checks on. It is asked three times: with
nothing cached but what prompts share, the same again side by side, and each prompt and answer with
more text behind, so that states left by a prefill and by a decode are resumed. Rows go to
results/states.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

from server import prompts  # noqa: E402
from server.client import Answer, Client, Request  # noqa: E402
from server.compare import largest_difference  # noqa: E402
from server.launch import serving  # noqa: E402
from server.matrix import Family, prepare  # noqa: E402
from server.variants import stock_spec  # noqa: E402

from transformers_check import transformers_answers  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "states.jsonl"
#: Largest accepted difference of one natural-log probability.
TOLERANCE = 1e-3

#: Tiny checkpoints with recurrent states.
FAMILIES = ("jamba",)
_TRACK = ("--mamba-track-interval", "64")
#: Flags by strategy. Chunks are shorter than some prompts, so states are carried from one to the
#: next; with pages once, with mixed batches once. Not with both: SGLang 0.5.23 then cuts a chunk
#: inside a page (budget less running requests), keeps a state some multiple of 64 behind that cut
#: and files it under the page before, so that a hit resumes a state that is too far on.
STRATEGIES: dict[str, tuple[str, ...]] = {
    "no_buffer": ("--disable-overlap-schedule",),
    "extra_buffer": ("--page-size", "16", *_TRACK),
    "extra_buffer_lazy": ("--enable-mixed-chunk", *_TRACK),
}
_REQUESTS = (*prompts.MIXED, *prompts.TALKATIVE[:2], *prompts.BRANCHES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--strategy", nargs="+", choices=STRATEGIES, default=tuple(STRATEGIES))
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "build" / "identity")
    args = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    rows = {}
    if RESULTS.exists():
        stored = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
        rows = {(row["family"], row["strategy"]): row for row in stored}
    agree = True
    for name in args.family:
        family = prepare(name, args.work_dir)
        expected = transformers_answers(family.checkpoint, _REQUESTS)
        longer = [
            prompts.ask(r.input_ids + answer.ids + prompts.words(9000 + i, 10))
            for i, (r, answer) in enumerate(zip(_REQUESTS, expected, strict=True))
            if i % 3 == 0
        ]
        asked = [(_REQUESTS, expected), (longer, transformers_answers(family.checkpoint, longer))]
        for strategy in args.strategy:
            row = _check(family, strategy, *asked)
            print(json.dumps(row), flush=True)
            agree &= row["agrees"]
            rows[name, strategy] = row
            lines = [json.dumps(row, sort_keys=True) for _, row in sorted(rows.items())]
            RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if agree else 1


Asked = tuple[Sequence[Request], list[Answer]]


def _check(family: Family, strategy: str, first: Asked, longer: Asked) -> dict[str, Any]:
    stock = stock_spec("plain", family.name, family.checkpoint, family.adapter)
    flags = (
        *("--mamba-radix-cache-strategy", strategy, "--chunked-prefill-size", "128"),
        *("--max-mamba-cache-size", "64", *STRATEGIES[strategy]),
    )
    log_path = family.work_dir / "logs" / f"{family.name}-states-{strategy}.log"
    with serving(replace(stock, flags=(*stock.flags, *flags)), log_path) as server:
        client = Client(server.url)
        rounds = {
            "uncached": _ask(client, *first, concurrency=1),
            "again_8": _ask(client, *first, concurrency=8),
            "resumed": _ask(client, *longer, concurrency=1),
        }
        trouble = server.trouble_since()
    difference = max(r["max_logprob_difference"] for r in rounds.values())
    equal = all(r["equal"] == r["answers"] for r in rounds.values())
    return {
        "family": family.name,
        "strategy": strategy,
        "flags": flags,
        "agrees": equal
        and difference <= TOLERANCE
        and rounds["resumed"]["cached_tokens"] > 0
        and not trouble,
        "rounds": rounds,
        "max_logprob_difference": difference,
        "tolerance": TOLERANCE,
        "log_lines_of_trouble": trouble,
        "sglang": metadata.version("sglang"),
        "transformers": metadata.version("transformers"),
    }


def _ask(
    client: Client, requests: Sequence[Request], expected: list[Answer], *, concurrency: int
) -> dict[str, Any]:
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(client.generate, requests))
    pairs = list(zip(expected, answers, strict=True))
    return {
        "answers": len(pairs),
        "equal": sum(want.tokens == got.tokens for want, got in pairs),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "cached_tokens": sum(answer.cached_tokens for answer in answers),
        "max_logprob_difference": max(
            largest_difference(want.logprobs, got.logprobs)
            for want, got in pairs
            if want.tokens == got.tokens or not any(w.tokens == g.tokens for w, g in pairs)
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
