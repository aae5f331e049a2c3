# SPDX-License-Identifier: Apache-2.0
"""Marconi's order of eviction (Pan et al., MLSys 2025, arXiv:2411.19379) in our tree, to compare.

The victim is the candidate with the least

    recency + alpha * FLOPs that a hit there saves / bytes that it holds

both scaled to 0 .. 1 over all candidates. Candidates are the paper's: nodes with at most one child.
A leaf goes whole; of a node with a child its state (or window) goes, its full slots stay. What a
hit saves is counted from the last place before it where one could continue. Everything else
(which states are taken, who is admitted) is as on a server, so that the order alone is compared.
The paper tunes alpha online; here it is given, and the best of several is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sglang.srt.mem_cache.unified_cache.components import BASE_COMPONENT_TYPE, ComponentType

from sglang_jenga.core.memory import Sparing
from sglang_jenga.sglang_ext.order import EvictionOrder, Victim


def install(core: Any, alpha: float, flops: Callable[[int], float]) -> None:
    """Let ``core`` (an ``ArenaTreeCore``) evict by it. ``flops(n)``: of the first n tokens."""
    core.order = EvictionOrder(aligned=False, retention=False)
    pieces = list(core._piece_kinds)

    def saved_per_byte(node: Any, is_leaf: bool, kind: ComponentType) -> float:
        begin = node.parent
        while begin is not core.root_node and any(
            begin.component_data[ct].value is None for ct in pieces
        ):
            begin = begin.parent
        held = {ct: node.component_data[ct].value for ct in pieces if is_leaf or ct is kind}
        num_bytes = sum(len(v) * core._slot_bytes[ct] for ct, v in held.items() if v is not None)
        if is_leaf:
            num_bytes += len(node.key) * core._slot_bytes[BASE_COMPONENT_TYPE]
        return (flops(node.end_tokens) - flops(begin.end_tokens)) / max(1, num_bytes)

    def candidates() -> list[Victim]:
        found = [
            Victim(node=node, last_use=node.last_access_time, is_leaf=True)
            for node in sorted(core.evictable_device_leaves, key=lambda node: node.id)
        ]
        for kind in pieces:
            lru = core.lru_lists[kind]
            node = lru.get_lru_no_lock()
            while node is not None:
                if len(node.children) == 1:
                    found.append(Victim(node, lru.last_use(node), False, kind))
                node = lru.get_prev_no_lock(node)
        return found

    def oldest(sparing: Sparing = Sparing.NOTHING, starving: Any = None) -> Victim | None:
        found = [] if sparing is Sparing.ALL else candidates()
        if not found:
            # Nothing but branch points is left.
            last = [core.oldest_piece(kind) for kind in pieces if sparing is Sparing.NOTHING]
            return next((victim for victim in last if victim is not None), None)
        recency = scaled([victim.last_use for victim in found])
        worth = scaled([saved_per_byte(v.node, v.is_leaf, v.kind) for v in found])
        return found[int(np.argmin(recency + alpha * worth))]

    core.oldest = oldest


def scaled(values: list[float]) -> Any:
    """0 for the least, 1 for the greatest."""
    array = np.array(values, dtype=float)
    span = float(array.max() - array.min())
    return (array - array.min()) / span if span else np.zeros(len(array))
