# SPDX-License-Identifier: Apache-2.0
"""Say which kind starved and who holds the bytes (design sections 4 and 8).

A wait is normal under load and happens every scheduling step while it lasts, so the line is printed
when a wait begins and then at most once per ``INTERVAL_SECONDS``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
_last_logged = -INTERVAL_SECONDS


def starving_kind(allocator: ArenaAllocatorBase, small_pages: Sequence[int]) -> str:
    """The kind whose demand takes the most large pages beyond what it already owns."""
    core = allocator.core
    worst, name = -1, allocator.plan.kinds[0].spec.name
    for kind, asked in zip(allocator.kinds, small_pages, strict=True):
        alone = [0] * len(small_pages)
        alone[kind] = asked
        large = core.large_pages_for(alone)
        if large > worst:
            worst, name = large, allocator.plan.kinds[kind].spec.name
    return name


def describe_holders(allocator: ArenaAllocatorBase, tree_cache: Any) -> str:
    """Large pages per kind and how much of them running requests pin."""
    parts = []
    for kind, census in zip(allocator.kinds, allocator.core.census(), strict=True):
        cached = tree_cache.evictable_slots(kind)
        used = allocator.used_slots(kind)
        parts.append(
            f"{census.name}: {census.large_pages} large pages, {used - cached} slots held, "
            f"{cached} cached"
        )
    free = allocator.core.num_free_large_pages
    return f"{'; '.join(parts)}; {free} of {allocator.plan.usable_large_pages} large pages free"


def log_starvation(
    allocator: ArenaAllocatorBase, tree_cache: Any, small_pages: Sequence[int]
) -> None:
    """One INFO line for a request that has to wait for bytes."""
    global _last_logged
    now = time.monotonic()
    if now - _last_logged < INTERVAL_SECONDS:
        return
    _last_logged = now
    logger.info(
        "Jenga: a request waits for memory, starving kind: %s (asked for %s small pages). %s",
        starving_kind(allocator, small_pages),
        "/".join(str(asked) for asked in small_pages),
        describe_holders(allocator, tree_cache),
    )
