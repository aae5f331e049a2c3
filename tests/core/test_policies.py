# SPDX-License-Identifier: Apache-2.0
"""Policies as tables, to be read beside the Jenga paper.

A row of a table is a cached prompt: ``#`` where a token's slot of the kind still exists (for a
state: where the state after that token does), ``.`` where it was given back. Beside it stand all
prefix lengths that are valid hits.
"""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sink_window.policy import SinkWindow

from sglang_jenga.core import policies
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.policies import (
    Chunked,
    Cross,
    Full,
    LiveSlots,
    Policy,
    State,
    TokenPolicy,
    Vision,
    Window,
)


def live_slots(prompt: str) -> LiveSlots:
    live = LiveSlots()
    for cell in prompt:
        live.extend(1, live=cell == "#")
    return live


def hits(policy: Policy, prompt: str, **more: int) -> list[int]:
    """As the tree asks: at the end of every prefix, knowing what it walked past."""
    return [n for n in range(len(prompt) + 1) if policy.is_hit(n, live_slots(prompt[:n]), **more)]


# ---- hits --------------------------------------------------------------------------------------


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
    assert hits(Full(), prompt) == expected


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
    assert hits(Window(window_tokens=3), prompt) == expected


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
    assert hits(Chunked(chunk_tokens=3), prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("#######", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("##...##", [0, 1, 2, 7]),  # the end of a prompt that slid
        ("...####", [0]),  # the sinks are gone, and with them every hit
        ("#....##", [0, 1]),  # all of them are needed
        ("##.....", [0, 1, 2]),
        ("##.####", [0, 1, 2, 5, 6, 7]),
    ],
)
def test_two_sinks_and_a_window_of_2_need_both(prompt: str, expected: list[int]) -> None:
    assert hits(SinkWindow(sink_tokens=2, window_tokens=2), prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("......", [0]),
        ("..#..#", [0, 3, 6]),  # nothing between: the state there is another one
        ("######", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_state_is_hit_exactly_where_it_was_kept(prompt: str, expected: list[int]) -> None:
    assert hits(State(), prompt) == expected


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("####", [0, 4, 5, 6]),  # two images of two tokens, then text
        ("##..", [0]),  # one of them is gone: the request computes both again
        ("....", [0]),
    ],
)
def test_images_are_hit_all_or_none(images: str, expected: list[int]) -> None:
    policy, live = Cross(), live_slots(images)
    assert [n for n in range(7) if policy.is_hit(n, live, image_tokens=4)] == expected


def test_embeddings_of_images_stand_in_no_hits_way() -> None:
    assert hits(Vision(), "......", image_tokens=4) == list(range(7))


# ---- what a hit needs is what the next token reads --------------------------------------------


def reads(policy: TokenPolicy, position: int) -> set[int]:
    """Positions below ``position`` whose keys a query there reads, by definition."""
    match policy:
        case Window(window_tokens=w):
            return set(range(max(0, position - w), position))
        case Chunked(chunk_tokens=c):
            return set(range(position // c * c, position))
        case SinkWindow(sink_tokens=s, window_tokens=w):
            return {p for p in range(position) if p < s or p >= position - w}
        case _:
            return set(range(position))


def with_span(span: int) -> list[TokenPolicy]:
    return [
        Window(window_tokens=span),
        Chunked(chunk_tokens=span),
        SinkWindow(sink_tokens=1, window_tokens=span),
        SinkWindow(sink_tokens=5, window_tokens=span),
    ]


SPANNED = [policy for span in (1, 3, 4, 7, 16) for policy in with_span(span)]


@pytest.mark.parametrize("policy", [Full(), *SPANNED], ids=str)
def test_a_hit_has_what_the_next_token_reads(policy: TokenPolicy) -> None:
    """Every pattern of eight live or dead tokens, against the definition of the attention."""
    for cells in product("#.", repeat=8):
        prompt = "".join(cells)
        defined = [n for n in range(9) if all(prompt[i] == "#" for i in reads(policy, n))]
        assert hits(policy, prompt) == defined, prompt


@pytest.mark.parametrize("policy", [Full(), *SPANNED], ids=str)
def test_a_hit_needs_no_more_than_that(policy: TokenPolicy) -> None:
    for n in range(60):
        needed = [p for part in policy.needed(n) for p in part]
        assert needed == sorted(reads(policy, n))
        assert policy.needed_tokens(n) == len(needed)
        if policy.most_needed_tokens is not None:
            assert len(needed) <= policy.most_needed_tokens


@given(cells=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), data=st.data())
def test_live_slots_cover_a_range_if_every_token_of_it_is_live(cells, data) -> None:
    live, flat = LiveSlots(), []
    for tokens, is_live in cells:
        live.extend(tokens, live=is_live)
        flat += [is_live] * tokens
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    assert live.cover([range(start, stop)]) == all(flat[start:stop])
    assert live.num_tokens == len(flat)


# ---- what a running request gives back ---------------------------------------------------------


@pytest.mark.parametrize("page_tokens", [1, 2, 4, 8])
@pytest.mark.parametrize("policy", SPANNED, ids=str)
def test_behind_the_head_all_below_dead_before_is_dead_and_the_next_page_is_not(
    policy: TokenPolicy, page_tokens: int
) -> None:
    """As many whole pages as neither a later token nor a hit at the last page boundary reads."""
    for n in range(1, 60):
        boundary = n // page_tokens * page_tokens
        needed = reads(policy, boundary)
        for later in range(n, n + 2 * (policy.span_tokens or 0) + 1):
            needed |= reads(policy, later) & set(range(n))
        head_end = end = -(-policy.head_tokens // page_tokens) * page_tokens
        while end < boundary and needed.isdisjoint(range(end, end + page_tokens)):
            end += page_tokens
        assert max(head_end, policy.dead_before(n, page_tokens=page_tokens)) == end, n


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
    assert Window(window_tokens=4).dead_before(tokens, page_tokens=page_tokens) == window
    assert Chunked(chunk_tokens=4).dead_before(tokens, page_tokens=page_tokens) == chunked


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        *(Full(), Window(window_tokens=8), Chunked(chunk_tokens=8), State(), Cross(), Vision()),
        SinkWindow(sink_tokens=2, window_tokens=8),
    ],
    ids=str,
)
def test_a_policy_survives_being_written_down(policy: Policy) -> None:
    assert policies.from_dict(policies.to_dict(policy)) == policy


def test_an_unknown_policy_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'ring' is unknown, known are chunked, .*import the"):
        policies.from_dict({"name": "ring"})


def test_two_policies_cannot_have_one_name() -> None:
    class Impostor(Window):
        NAME = "full"

    with pytest.raises(ConfigError, match="'full' is taken by Full: rename it"):
        policies.register(Impostor)
