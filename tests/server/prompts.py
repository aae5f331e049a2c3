# SPDX-License-Identifier: Apache-2.0
"""The workload: deterministic prompts whose lengths straddle pages, windows and chunks."""

from __future__ import annotations

import random

from server.client import Request

#: Ids below are special tokens of the tiny tokenizer; a session strips a leading BOS.
_FIRST_ID, _VOCABULARY = 5, 1024
ANSWER_TOKENS = 24


def words(seed: int, length: int) -> tuple[int, ...]:
    """``length`` token ids, the same for the same seed, a prefix of those of a greater length."""
    rng = random.Random(seed)
    return tuple(rng.randrange(_FIRST_ID, _VOCABULARY) for _ in range(length))


def ask(ids: tuple[int, ...], max_new_tokens: int = ANSWER_TOKENS) -> Request:
    return Request(input_ids=ids, max_new_tokens=max_new_tokens)


# One token to several chunks of 128; one less, equal and one more than a page of 16, the windows
# of the tiny models (32, 40, 48, 64) and a chunk.
_LENGTHS = (
    *(1, 2, 15, 16, 17, 30, 31, 32, 33, 39, 40, 41, 47, 48, 49, 63),
    *(64, 65, 80, 96, 112, 127, 128, 129, 144, 160, 191, 200, 240, 255, 257, 300),
)
#: 32 requests; every second one starts with the same text.
MIXED = tuple(
    ask(words(1000 if i % 2 else i, length - length // 4) + words(2000 + i, length // 4))
    for i, length in enumerate(_LENGTHS)
)

#: Requests that grow while they run, so that a small pool must take memory back from some. They may
#: end early (they do not): SGLang without a radix cache admits others by their exact future.
GROWING = tuple(
    Request(
        input_ids=words(3000 + i // 3, 60) + words(4000 + i, 20 + 9 * (i % 5)),
        max_new_tokens=64,
        sampling={"ignore_eos": False},
    )
    for i in range(24)
)

#: Long enough that a prefill in chunks can be interrupted.
LONG = ask(words(5000, 3000), max_new_tokens=4)

#: Answers long enough to be interrupted.
TALKATIVE = tuple(ask(words(6000 + i, 40 + 5 * i), max_new_tokens=160) for i in range(6))


SHARED_PREFIX = words(8000, 150)
#: Two texts that part inside a page, at a page, inside and at a window's edge.
BRANCHES = tuple(
    ask(SHARED_PREFIX[:keep] + words(8100 + keep, 20))
    for keep in (150, 149, 144, 128, 119, 100, 33)
)
