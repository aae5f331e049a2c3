# SPDX-License-Identifier: Apache-2.0
"""The comparison that every identity test relies on does notice a difference."""

from __future__ import annotations

from dataclasses import replace

from server.client import Answer
from server.compare import LOGPROB_TOLERANCE, first_difference, until_tie

STOCK = Answer(
    tokens=(7, 8, 9),
    logprobs=(-0.5, -1.0, -1.5),
    text="abc",
    finish="length",
    prompt_logprobs=(-2.0, -3.0),
)


def test_rounding_is_no_difference() -> None:
    rounded = replace(STOCK, logprobs=tuple(p + LOGPROB_TOLERANCE / 2 for p in STOCK.logprobs))
    assert first_difference(STOCK, rounded) is None


def test_how_an_answer_was_served_is_no_difference() -> None:
    assert first_difference(STOCK, replace(STOCK, cached_tokens=40, retractions=2)) is None


def test_another_token_is_named_with_its_position() -> None:
    assert "token 1 of 3 is 5" in str(first_difference(STOCK, replace(STOCK, tokens=(7, 5, 9))))


def test_an_answer_that_is_too_short_or_too_long_differs() -> None:
    for tokens in ((7, 8), (7, 8, 9, 10)):
        assert first_difference(STOCK, replace(STOCK, tokens=tokens)) is not None


def test_a_logprob_beyond_the_tolerance_differs() -> None:
    for wrong in (-1.0 - 2 * LOGPROB_TOLERANCE, float("nan"), float("-inf")):
        difference = first_difference(STOCK, replace(STOCK, logprobs=(-0.5, wrong, -1.5)))
        assert "logprob 1" in str(difference)


def test_prompt_logprobs_are_compared() -> None:
    assert "prompt logprob 1" in str(
        first_difference(STOCK, replace(STOCK, prompt_logprobs=(-2.0, -3.1)))
    )
    assert first_difference(STOCK, replace(STOCK, prompt_logprobs=())) is not None


def test_text_and_finish_reason_are_compared() -> None:
    assert "text" in str(first_difference(STOCK, replace(STOCK, text="abd")))
    assert "finish" in str(first_difference(STOCK, replace(STOCK, finish="abort")))


def test_an_aborted_answer_must_be_a_beginning() -> None:
    cut = replace(STOCK, tokens=(7, 8), logprobs=(-0.5, -1.0), text="ab", finish="abort")
    assert first_difference(STOCK, cut, prefix=True) is None
    assert first_difference(STOCK, cut) is not None
    assert first_difference(STOCK, replace(cut, tokens=(7, 9)), prefix=True) is not None
    longer = replace(STOCK, tokens=(7, 8, 9, 10), logprobs=(-0.5, -1.0, -1.5, -1.0))
    assert first_difference(STOCK, longer, prefix=True) is not None


def test_the_other_one_of_two_tokens_that_tie_ends_the_comparison() -> None:
    tied = replace(STOCK, ties=((1, 5),))
    other = replace(STOCK, tokens=(7, 5, 6), logprobs=(-0.5, -1.0, -9.0))
    assert until_tie(tied, other) == replace(other, tokens=(7,), logprobs=(-0.5,))
    for different in (
        replace(other, tokens=(7, 4, 6)),  # no token that ties
        replace(other, tokens=(5, 5, 6)),  # a difference before the tie
        replace(STOCK, tokens=(7, 8, 5)),  # one behind it
    ):
        assert until_tie(tied, different) is different
