# SPDX-License-Identifier: Apache-2.0
"""What "equal" means: the same tokens, and log probabilities within a stated tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from server.client import Answer

#: Largest accepted difference of one natural-log probability. Both servers compute in float32 with
#: the same code, but batches of another shape sum in another order: differences of a few 1e-5 are
#: seen, while one wrong key changes logits by about 1.
LOGPROB_TOLERANCE = 1e-3


def until_tie(expected: Answer, got: Answer) -> Answer:
    """``got`` up to where it takes the other one of two tokens that tie for the stock server.

    What follows such a token is an answer to another question.
    """
    for position, (want, have) in enumerate(zip(expected.tokens, got.tokens, strict=False)):
        if want != have and (position, have) in expected.ties:
            return replace(got, tokens=got.tokens[:position], logprobs=got.logprobs[:position])
        if want != have:
            break
    return got


def largest_difference(expected: Sequence[float], got: Sequence[float]) -> float:
    """Between logprobs pairwise, over the shorter of the two."""
    return max((abs(a - b) for a, b in zip(expected, got, strict=False)), default=0.0)


def first_difference(expected: Answer, got: Answer, *, prefix: bool = False) -> str | None:
    """Why the answers are not equal, None when they are.

    prefix: ``got`` was cut short by an abort, so it must equal the beginning of ``expected``.
    """
    if prefix:
        length = len(got.tokens)
        tokens, logprobs = expected.tokens[:length], expected.logprobs[:length]
        return _other_token(tokens, got) or _other_logprob("", logprobs, got.logprobs)
    found = (
        _other_token(expected.tokens, got)
        or _other_logprob("", expected.logprobs, got.logprobs)
        or _other_logprob("prompt ", expected.prompt_logprobs, got.prompt_logprobs)
    )
    if found is None and expected.text != got.text:
        found = f"text {got.text!r}, the stock server says {expected.text!r}"
    if found is None and expected.finish != got.finish:
        found = f"finish reason {got.finish!r}, the stock server says {expected.finish!r}"
    return found


def _other_token(expected: Sequence[int | str], got: Answer) -> str | None:
    for position, (want, have) in enumerate(zip_longest(expected, got.tokens)):
        if want != have:
            return (
                f"token {position} of {len(expected)} is {have!r}, the stock server says {want!r} "
                f"({got.prompt_tokens} prompt tokens, {got.cached_tokens} cached, "
                f"{got.retractions} retractions)"
            )
    return None


def _other_logprob(part: str, expected: Sequence[float], got: Sequence[float]) -> str | None:
    if len(expected) != len(got):
        return f"{len(got)} {part}logprobs, the stock server gives {len(expected)}"
    for position, (want, have) in enumerate(zip(expected, got, strict=True)):
        if not abs(want - have) <= LOGPROB_TOLERANCE:  # written so that NaN is a difference
            return (
                f"{part}logprob {position} is {have:.6f}, the stock server says {want:.6f}: more "
                f"than {LOGPROB_TOLERANCE} apart"
            )
    return None
