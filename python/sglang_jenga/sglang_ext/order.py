# SPDX-License-Identifier: Apache-2.0
"""In what order cached pieces go (design section 7). Pure choice: no tree is walked here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeNode

from sglang_jenga.core.memory import Sparing

#: The last use of what nobody will miss: below every value of the clock.
WORTHLESS = -1.0


class Victim(NamedTuple):
    """A piece that may go: a whole leaf, or the window or state of an inner node.

    last_use: the tree's clock when it last served a hit, or WORTHLESS.
    """

    node: UnifiedTreeNode
    last_use: float
    is_leaf: bool
    kind: ComponentType = ComponentType.FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionOrder:
    """Three rules, all in force on a server; ``benchmark/retention`` measures what each is worth.

    balanced: one clock for all kinds, the piece whose last use is longest ago goes. Without it each
        kind has a list of its own, and the kind that starves gives up its oldest.
    aligned: what no hit can use any more goes first, of whichever kind: a leaf whose window or
        state is gone is of no use, however recently its full slots served.
    retention: windows and states are kept where traffic can come back. Those inside a prompt are
        spare (first to go) unless somebody branches there; the window of an inner node outlives
        older leaves while it is cheap, for losing it makes every full slot before it unreachable
        for prompts that branch there. Where many part it is cheap for all of them together. States
        have no such privilege: one costs hundreds of tokens.
    """

    balanced: bool = True
    aligned: bool = True
    retention: bool = True

    def choose(
        self,
        leaf: Victim | None,
        pieces: Sequence[Victim],
        *,
        is_cheap: Callable[[Victim], bool],
        is_shared: Callable[[Victim], bool],
        starving: Callable[[], ComponentType],
        sparing: Sparing,
    ) -> Victim | None:
        """The next to go, None: nothing may.

        Args:
            leaf: the evictable leaf that would go first among leaves.
            pieces: of each other kind the window or state that would go first.
            is_cheap: whether a piece has fewer bytes than the full slots reachable through it.
            is_shared: whether prompts part behind it; asked of cheap pieces alone.
            starving: says which kind lacks bytes; asked where the rules need it.
            sparing: rather take nothing than a cheap window, or a cheap window that is shared, or
                anything that is not spare.
        """
        if sparing is Sparing.ALL:
            return next((piece for piece in pieces if piece.last_use == WORTHLESS), None)
        if not pieces:
            return leaf
        if not self.balanced:
            kind = starving()
            own = [piece for piece in (leaf, *pieces) if piece and piece.kind is kind]
            return next(iter([*own, *filter(None, (leaf, *pieces))]), None)
        for piece in pieces:
            if piece.last_use == WORTHLESS:
                return piece
        older = [p for p in pieces if leaf is None or p.last_use < leaf.last_use]
        free_to_go = [p for p in older if p.is_leaf or not (self.retention and is_cheap(p))]
        if free_to_go:
            return min(free_to_go, key=_last_use)
        if leaf is not None or sparing is Sparing.CHEAP:
            return leaf
        spares = sparing is Sparing.SHARED
        return min((p for p in older if not (spares and is_shared(p))), key=_last_use, default=None)


def _last_use(victim: Victim) -> float:
    return victim.last_use
