# SPDX-License-Identifier: Apache-2.0
"""Do hybrid models on the portable CPU platform answer as transformers does, cached and uncached?

    python benchmark/identity/states_check.py [--family F ...] [--strategy S ...]

For each family and each strategy of SGLang's radix cache for states, one stock server (SGLang's own
pools and attention, no plugin but the platform's) answers the same requests in four ways; every
answer must be the one of transformers. Rows go to results/states.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "benchmark")]

import provenance  # noqa: E402
from identity.transformers_check import transformers_answers  # noqa: E402
from server import prompts  # noqa: E402
from server.client import Answer, Client, Request  # noqa: E402
from server.compare import LOGPROB_TOLERANCE, largest_difference  # noqa: E402
from server.launch import ServerDied, ServerSpec, last_error, serving  # noqa: E402
from server.matrix import build_checkpoint  # noqa: E402

from sglang_jenga.tiny import STATE_FAMILIES  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "states.jsonl"

#: no_buffer keeps a state at the end of a request; the other two also while a prompt or an answer
#: grows, here every 64 tokens of an answer.
STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "no_buffer": ("--disable-overlap-schedule",),
    "extra_buffer": ("--mamba-track-interval", "64"),
    "extra_buffer_lazy": ("--mamba-track-interval", "64"),
}
#: SGLang refuses the other strategies for these: their states have no chunks to keep.
NO_BUFFER_ONLY = ("lfm2",)
#: Prompts of more than 128 tokens are prefilled in several chunks.
_FLAGS = (
    *("--max-total-tokens", "8192", "--chunked-prefill-size", "128"),
    *("--max-mamba-cache-size", "96"),
)
_ONLY_THE_PLATFORM = {"SGLANG_PLUGINS": "portable_cpu", "SGLANG_JENGA_REFERENCE_ATTENTION": "0"}

#: SGLang lacks Jamba: the plugin brings its configuration, its model file is named here.
_WITH_THE_MODEL_FILE = {
    "SGLANG_EXTERNAL_MODEL_PACKAGE": "sglang_jenga.models",
    "SGLANG_JENGA_REFERENCE_ATTENTION": "0",
}

REQUESTS = (*prompts.MIXED[::2], *prompts.TALKATIVE[:2], *prompts.BRANCHES)
#: Whose answers are continued: prompts on both sides of a state's chunk, and long answers.
CONTINUED = (*REQUESTS[4:16:3], *prompts.TALKATIVE[:2])

Pairs = list[tuple[Request, Answer]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=STATE_FAMILIES, default=[*STATE_FAMILIES])
    parser.add_argument("--strategy", nargs="+", choices=STRATEGIES, default=[*STRATEGIES])
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "build" / "identity")
    args = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    rows = {}
    if RESULTS.exists():
        stored = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
        rows = {(row["family"], row["strategy"]): row for row in stored}
    failed = False
    for family in args.family:
        checkpoint = build_checkpoint(family, args.work_dir)
        asked = list(zip(REQUESTS, transformers_answers(checkpoint, REQUESTS), strict=True))
        more = [_continued(pair) for pair in asked if pair[0] in CONTINUED]
        continued = list(zip(more, transformers_answers(checkpoint, more), strict=True))
        for strategy in args.strategy:
            if family in NO_BUFFER_ONLY and strategy != "no_buffer":
                continue
            log_path = args.work_dir / "logs" / f"{family}-{strategy}.log"
            row = _row(family, strategy, checkpoint, asked, continued, log_path)
            failed |= not row["agrees"]
            print(json.dumps(row), flush=True)
            rows[family, strategy] = row
            lines = [json.dumps(row, sort_keys=True) for _, row in sorted(rows.items())]
            RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


def _continued(pair: tuple[Request, Answer]) -> Request:
    """The next turn after an answer."""
    request, answer = pair
    return prompts.ask(request.input_ids + answer.ids + prompts.words(9000, 7))


def _row(
    family: str, strategy: str, checkpoint: Path, asked: Pairs, continued: Pairs, log_path: Path
) -> dict[str, Any]:
    spec = ServerSpec(
        model_path=checkpoint,
        jenga=False,
        flags=(*_FLAGS, "--mamba-radix-cache-strategy", strategy, *STRATEGIES[strategy]),
        env=_WITH_THE_MODEL_FILE if family == "jamba" else _ONLY_THE_PLATFORM,
    )
    row: dict[str, Any] = {
        "family": family,
        "strategy": strategy,
        "commit": provenance.commit(),
        "sglang": metadata.version("sglang"),
        "transformers": metadata.version("transformers"),
        "tolerance": LOGPROB_TOLERANCE,
    }
    try:
        with serving(spec, log_path) as server:
            ways = _ask(Client(server.url), asked, continued)
            trouble = server.trouble_since()
    except ServerDied:
        why = last_error(log_path)
        if why is None:  # killed or too slow: that says nothing about what SGLang can serve
            raise
        return row | {"agrees": False, "refused": why}
    agrees = not trouble and all(way["agrees"] for way in ways.values())
    return row | {"agrees": agrees, "trouble": trouble[:5], "ways": ways}


def _ask(client: Client, asked: Pairs, continued: Pairs) -> dict[str, dict[str, Any]]:
    def alone(request: Request) -> Answer:
        client.flush(wait_seconds=10.0)
        return client.generate(request)

    def one_by_one(ask: Callable[[Request], Answer], pairs: Pairs, hits: bool) -> dict[str, Any]:
        return _compare(pairs, [ask(request) for request, _ in pairs], hits)

    ways = {"uncached": one_by_one(alone, asked, False)}
    client.flush(wait_seconds=10.0)
    first = [client.generate(request) for request, _ in asked]
    ways["cached"] = _compare(asked, first, None)
    ways["continued"] = one_by_one(client.generate, continued, True)
    client.flush(wait_seconds=10.0)
    everything = asked + continued
    answers = client.map(client.generate, [request for request, _ in everything], concurrency=6)
    ways["concurrent"] = _compare(everything, answers, None)
    return ways


def _compare(pairs: Pairs, got: Sequence[Answer], hits: bool | None) -> dict[str, Any]:
    """`hits`: whether a cached prefix must have been used; None: it depends on the timing."""
    equal = [expected.tokens == have.tokens for (_, expected), have in zip(pairs, got, strict=True)]
    differences = [
        largest_difference(expected.logprobs, have.logprobs)
        for (_, expected), have, same in zip(pairs, got, equal, strict=True)
        if same
    ]
    cached_tokens = sum(have.cached_tokens for have in got)
    difference = max(differences, default=float("nan"))
    as_cached = hits is None or hits == (cached_tokens > 0)
    return {
        "agrees": all(equal) and difference <= LOGPROB_TOLERANCE and as_cached,
        "answers": len(equal),
        "equal": sum(equal),
        "max_logprob_difference": difference,
        "cached_tokens": cached_tokens,
    }


if __name__ == "__main__":
    sys.exit(main())
