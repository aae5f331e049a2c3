# SPDX-License-Identifier: Apache-2.0
"""Requests whose lives pass through every way in which slots change hands."""

from __future__ import annotations

from collections.abc import Iterator

from machine import Machine

SYSTEM = list(range(100, 190))


def live(machine: Machine, *, decode_tokens: int = 96) -> Iterator[str]:
    """Run the requests; yields the name of every step that is done.

    ``decode_tokens`` should be a few windows, so that windows slide.
    """
    first = machine.prefill([*SYSTEM, *range(40)], chunk=48)
    yield "a prefill in three chunks, no prefix"
    for _ in range(decode_tokens):
        machine.decode([first])
    yield "decoding alone"
    machine.finish(first)
    yield "its tokens become the cache's"

    again = machine.prefill([*SYSTEM, *range(40), *range(300, 340)])
    yield "a prefill that continues a cached prefix"
    branch = machine.prefill([*SYSTEM, *range(500, 530)])
    yield "a prefill that leaves a cached prefix half-way"
    for _ in range(decode_tokens // 3):
        machine.decode([again, branch])
    yield "decoding together"
    machine.retract(branch)
    yield "a request retracted"
    machine.admit(branch)
    machine.extend([branch])
    machine.end_prefill(branch)
    yield "and started again"

    fresh = [machine.request(range(i, i + 30)) for i in (600, 700)]
    for req in fresh:
        machine.admit(req)
    machine.extend(fresh)
    for req in fresh:
        machine.end_prefill(req)
    yield "two prefills in one batch"
    everybody = [again, branch, *fresh]
    machine.decode(everybody)
    yield "everybody decodes"
    for req in everybody:
        machine.finish(req)
    yield "everybody is finished"

    half = [machine.arena.usable_slots(k) // 2 for k in machine.arena.kinds]
    machine.arena.reclaim(machine.tree, [n // machine.page_tokens for n in half])
    yield "the cache gave up what others asked for"
    late = machine.prefill(range(800, 880))
    machine.retract(late)
    yield "a request after that"
    machine.tree.evict_until(lambda: False)
    yield "the cache is empty"
    machine.flush()
    yield "flushed"
