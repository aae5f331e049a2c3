# SPDX-License-Identifier: Apache-2.0
"""States at branches: no later visitor hits less than on SGLang's own pools and cache.

Both caches get the same requests, cut into the same chunks, and nothing is evicted. The kernels'
chunk is 8 tokens here; only its ratio to pages, chunks and prefixes matters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from machine import Machine
from sglang_jenga.sglang_ext.state_strategy import LAZY
from state_machine import StateMachine, caching_strategy, state_kinds
from stock_machine import StockMachine

KERNEL_CHUNK = 8
CHUNKS = (4, 8, 12, 16, 24, 32, None)
#: At, before and behind pages, chunks and multiples of the kernels' chunk.
PREFIXES = (1, 7, 8, 15, 16, 17, 24, 31, 32, 39, 40, 47, 65)


def visit(machine: Machine, prompt: Sequence[int], chunk: int | None) -> int:
    """A request from arrival to end; the length of its hit."""
    req = machine.request(prompt, max_new=1)
    machine.admit(req, tokens=chunk)
    hit = int(req.prefix_len)
    machine.extend([req])
    while req.extend_end < len(prompt):
        machine.stash(req)
        machine._set_end(req, chunk)
        machine.extend([req])
    machine.end_prefill(req)
    machine.finish(req)
    return hit


def hits(
    prompts: Sequence[Sequence[int]], *, chunk: int | None, page: int, snapshots: bool
) -> tuple[list[int], list[int]]:
    """What each of ``prompts``, one after the other, hits on stock and on ours."""
    grid = max(KERNEL_CHUNK, page)
    if chunk is not None:
        chunk = max(page, chunk // page * page)
    with caching_strategy(
        "extra_buffer" if snapshots else "no_buffer", grid_tokens=grid, backend=None
    ):
        stock = StockMachine(snapshots=snapshots, page_tokens=page)
        theirs = [visit(stock, prompt, chunk) for prompt in prompts]
    with caching_strategy(LAZY if snapshots else "no_buffer", grid_tokens=grid):
        machine = StateMachine(
            state_kinds(),
            snapshots=snapshots,
            grid_tokens=grid,
            page_tokens=page,
            large_pages=4000,
        )
        ours = [visit(machine, prompt, chunk) for prompt in prompts]
        machine.check_states()
        assert not machine.problems()
        assert not any(machine.tree.evicted_tokens.values()), "it was to be roomy"
    return theirs, ours


def fresh_ids() -> Iterator[int]:
    return iter(range(10_000, 10**9))


def visitors(prefix_tokens: int, *, number: int = 4) -> list[list[int]]:
    """Prompts with a common beginning, and then tails of their own, of unequal lengths."""
    ids = fresh_ids()
    common = [next(ids) for _ in range(prefix_tokens)]
    return [[*common, *(next(ids) for _ in range(23 + 5 * i))] for i in range(number)]


@pytest.mark.parametrize("page", [1, 2, 8, 16])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_no_visitor_of_a_shared_prefix_hits_less_than_on_stock(
    chunk: int | None, page: int
) -> None:
    for prefix in PREFIXES:
        theirs, ours = hits(visitors(prefix), chunk=chunk, page=page, snapshots=True)
        assert all(a <= b for a, b in zip(theirs, ours, strict=True)), (prefix, theirs, ours)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_nor_where_states_are_kept_at_ends_alone(chunk: int | None) -> None:
    for prefix in PREFIXES:
        theirs, ours = hits(visitors(prefix), chunk=chunk, page=1, snapshots=False)
        assert all(a <= b for a, b in zip(theirs, ours, strict=True)), (prefix, theirs, ours)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (31, [0, 16, 24, 24]),
        (32, [0, 32, 32, 32]),
        (39, [0, 32, 32, 32]),
        (40, [0, 32, 40, 40]),
        (47, [0, 32, 40, 40]),
    ],
)
def test_the_second_visitor_hits_a_chunks_end_and_the_third_the_branch(
    prefix: int, expected: list[int]
) -> None:
    theirs, ours = hits(visitors(prefix), chunk=16, page=1, snapshots=True)
    assert theirs == expected
    assert ours == expected


@pytest.mark.parametrize("chunk", [10, 20, 28])
def test_a_branch_is_kept_in_chunks_that_are_no_multiple_of_the_kernels(chunk: int) -> None:
    """SGLang asks for a place on the grid from 0, which such chunks do not have: it keeps none."""
    for prefix in range(30, 60, 3):
        theirs, ours = hits(visitors(prefix, number=6), chunk=chunk, page=1, snapshots=True)
        assert prefix - ours[-1] < KERNEL_CHUNK, (prefix, theirs, ours)
        assert all(a <= b for a, b in zip(theirs, ours, strict=True)), (prefix, theirs, ours)


@pytest.mark.parametrize("seed", range(6))
def test_prompts_that_part_anywhere_hit_no_less_than_on_stock(seed: int) -> None:
    """A random tree of prompts. Ends of requests are states that stock has not: what is behind one
    lies off its grid, so a single hit may be shorter, by less than the grid and a chunk."""
    rng = random.Random(seed)
    ids = fresh_ids()
    page, chunk = rng.choice([1, 4, 16]), rng.choice(CHUNKS)
    known: list[list[int]] = [[]]
    for _ in range(14):
        start = rng.choice(known)
        start = start[: rng.randrange(len(start) + 1)]
        known.append([*start, *(next(ids) for _ in range(rng.randrange(1, 50)))][:400])
    theirs, ours = hits(known[1:], chunk=chunk, page=page, snapshots=True)
    assert sum(ours) >= sum(theirs), (page, chunk, theirs, ours)
    if page > 1:  # no state at the exact end of a request
        assert all(a <= b for a, b in zip(theirs, ours, strict=True)), (chunk, theirs, ours)
