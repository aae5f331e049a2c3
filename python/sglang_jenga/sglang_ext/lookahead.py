# SPDX-License-Identifier: Apache-2.0
"""What the queue already knows: where prompts that wait will leave the one being computed.

Full slots of a prompt are cached at every position, a window or a state at few of them. Of two
prompts with a common beginning the second would only find out where they part, and the third be the
first to hit there. The queue knows it before: the first one leaves a window and a state there.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import MatchResult

    from sglang_jenga.sglang_ext.radix import ArenaRadixCache

#: Requests at the head of the queue that are looked at, so that a pass stays cheap.
DEPTH_REQUESTS = 32
_FIRST_LOOK_TOKENS = 16


def common_tokens(one: array[int], other: array[int]) -> int:
    """Length of the common beginning of two ``array('q')`` of token ids."""
    num = min(len(one), len(other))
    begin = min(num, _FIRST_LOOK_TOKENS)
    if not num or one[:begin] != other[:begin]:
        return 0  # near enough: nothing is kept for so few tokens
    differs = np.frombuffer(one, np.int64, num) != np.frombuffer(other, np.int64, num)
    first = int(differs.argmax())
    return first if differs[first] else num


def branches(req: Req, waiting: Sequence[Req], *, after: int, before: int) -> list[int]:
    """Lengths between ``after`` and ``before``, both left out, at which waiting prompts leave
    ``req``'s: one for each such prompt."""
    found = [
        common_tokens(req.origin_input_ids, other.origin_input_ids)
        for other in islice(waiting, DEPTH_REQUESTS)
        if other is not req
        and other.extra_key == req.extra_key
        and other.cache_salt == req.cache_salt
    ]
    return [length for length in found if after < length < before]


def keep_branches(cache: ArenaRadixCache, req: Req, start: int, end: int) -> None:
    """``req`` was just cached from ``start`` to ``end``: keep the windows by which prompts that
    wait will hit it in between, as if they had."""
    for num_tokens in {*branches(req, cache.waiting, after=start, before=end)}:
        cache.touch_prefix(
            RadixKey(
                token_ids=req.origin_input_ids,
                extra_key=req.extra_key,
                limit=num_tokens,
                cache_salt=req.cache_salt,
            )
        )


def state_branch(cache: ArenaRadixCache, req: Req, match: MatchResult) -> int | None:
    """Where ``req``, about to be computed, leaves a prompt that is cached, or else prompts that
    wait: it should leave a state there, or at the last place before it that a chunk can."""
    hit = match.device_prefix_len
    states = cache.tree_core.components_by_type[ComponentType.MAMBA]
    grid = states.mamba_checkpoint_grid
    if match.full_kv_hit_length >= hit + grid:
        return match.full_kv_hit_length
    lengths = branches(req, cache.waiting, after=hit, before=len(req.origin_input_ids))
    return best_branch(lengths, after=hit, grid_tokens=grid)


def best_branch(lengths: Sequence[int], *, after: int, grid_tokens: int) -> int | None:
    """The length that saves waiting prompts the most tokens if a state is left there; None if none
    does. A state can be left at multiples of ``grid_tokens``, counted from ``after``."""

    def saved(length: int) -> int:
        reachable = (length - after) // grid_tokens * grid_tokens
        return reachable * sum(length <= other for other in lengths)

    best = max(lengths, key=saved, default=after)
    return best if best >= after + grid_tokens else None
