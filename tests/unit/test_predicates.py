# SPDX-License-Identifier: Apache-2.0
"""Hit predicates and retention as tables, to be read beside the Jenga paper.

A row of a table is a cached prompt: ``#`` where a token's slot of the kind still exists, ``.``
where it was given back. Beside it stand all prefix lengths that are valid hits.
"""

from __future__ import annotations

from itertools import product

import pytest

from sglang_jenga.cache.predicates import dead_before, is_hit, needed_tail
from sglang_jenga.core.kinds import Dependency

FULL, WINDOW, CHUNKED = Dependency.FULL, Dependency.WINDOW, Dependency.CHUNKED


def live_tail(prompt: str, prefix_tokens: int) -> int:
    return len(prompt[:prefix_tokens]) - len(prompt[:prefix_tokens].rstrip("#"))


def hits(dependency: Dependency, prompt: str, span: int) -> list[int]:
    return [n for n in range(len(prompt) + 1) if is_hit(dependency, n, live_tail(prompt, n), span)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("######", [0, 1, 2, 3, 4, 5, 6]),
        ("###..#", [0, 1, 2, 3]),
        (".#####", [0]),
        ("", [0]),
    ],
)
def test_full_attention_needs_every_token(prompt: str, expected: list[int]) -> None:
    assert hits(FULL, prompt, 0) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("######", [0, 1, 2, 3, 4, 5, 6]),
        ("...###", [0, 6]),  # the end of a prompt that slid
        (".####.", [0, 4, 5]),
        ("##....", [0, 1, 2]),  # shorter than the window: all of it
        ("##.###", [0, 1, 2, 6]),  # a later request branched off at 3
        ("......", [0]),
    ],
)
def test_a_window_of_3_needs_the_last_3_tokens(prompt: str, expected: list[int]) -> None:
    assert hits(WINDOW, prompt, 3) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("######", [0, 1, 2, 3, 4, 5, 6]),
        ("......", [0, 3, 6]),  # a chunk that ends at the hit is never read again
        ("...##.", [0, 3, 4, 5, 6]),
        (".#####", [0, 3, 4, 5, 6]),
        ("##....", [0, 1, 2, 3, 6]),
        ("....##", [0, 3, 6]),
    ],
)
def test_chunks_of_3_need_the_tokens_since_the_last_multiple_of_3(
    prompt: str, expected: list[int]
) -> None:
    assert hits(CHUNKED, prompt, 3) == expected


def reads(dependency: Dependency, position: int, span: int) -> range:
    """Positions below ``position`` whose keys a query at ``position`` reads, by definition."""
    match dependency:
        case Dependency.WINDOW:
            return range(max(0, position - span), position)
        case Dependency.CHUNKED:
            return range(position // span * span, position)
        case _:
            return range(position)


@pytest.mark.parametrize("span", [1, 3, 4, 7])
@pytest.mark.parametrize("dependency", [FULL, WINDOW, CHUNKED])
def test_a_hit_has_what_the_next_token_reads(dependency: Dependency, span: int) -> None:
    """Every pattern of eight live or dead tokens, against the definition of the attention."""
    for cells in product("#.", repeat=8):
        prompt = "".join(cells)
        for n in range(9):
            defined = all(prompt[i] == "#" for i in reads(dependency, n, span))
            assert is_hit(dependency, n, live_tail(prompt, n), span) == defined, (prompt, n)


@pytest.mark.parametrize("span", [1, 3, 4, 7])
@pytest.mark.parametrize("dependency", [FULL, WINDOW, CHUNKED])
def test_a_hit_needs_no_more_than_its_prefix(dependency: Dependency, span: int) -> None:
    for n in range(40):
        assert needed_tail(dependency, n, span) == len(reads(dependency, n, span))


@pytest.mark.parametrize("page_tokens", [1, 2, 4, 8])
@pytest.mark.parametrize("span", [1, 3, 4, 7, 16])
@pytest.mark.parametrize("dependency", [WINDOW, CHUNKED])
def test_everything_below_dead_before_is_dead_and_the_next_page_is_not(
    dependency: Dependency, span: int, page_tokens: int
) -> None:
    """The largest whole number of pages that neither a later token nor a hit at the last page
    boundary can read."""
    for n in range(1, 60):
        boundary = n // page_tokens * page_tokens
        needed = set(reads(dependency, boundary, span))
        for later in range(n, n + 2 * span + 1):
            needed |= set(reads(dependency, later, span)) & set(range(n))
        first_needed = min(needed, default=boundary)
        expected = first_needed // page_tokens * page_tokens
        assert dead_before(dependency, n, span, page_tokens=page_tokens) == expected, n


@pytest.mark.parametrize(
    ("tokens", "page_tokens", "window", "chunked"),
    [
        # span 4: what may be given back once a request has that many tokens
        (3, 1, 0, 0),
        (4, 1, 0, 4),
        (6, 1, 2, 4),
        (9, 1, 5, 8),
        (9, 2, 4, 8),
        (9, 8, 0, 8),
        (17, 8, 8, 16),
    ],
)
def test_dead_before_in_numbers(tokens: int, page_tokens: int, window: int, chunked: int) -> None:
    assert dead_before(WINDOW, tokens, 4, page_tokens=page_tokens) == window
    assert dead_before(CHUNKED, tokens, 4, page_tokens=page_tokens) == chunked
