# SPDX-License-Identifier: Apache-2.0
"""Hit predicates: what a cached prefix of n tokens needs of each kind (design section 5).

Pure functions of positions, so that a truth table can be read against the paper:

    full          slots [0, n)
    window(W)     slots [n - W, n)
    chunked(C)    slots [floor(n / C) * C, n)

``live_tail`` is how many consecutive tokens that end at n still have their slot of the kind.
"""

from __future__ import annotations

from sglang_jenga.core.kinds import Dependency


def needed_tail(dependency: Dependency, prefix_tokens: int, span_tokens: int) -> int:
    """How many of the last tokens of a hit of ``prefix_tokens`` need a slot of the kind."""
    match dependency:
        case Dependency.WINDOW:
            return min(prefix_tokens, span_tokens)
        case Dependency.CHUNKED:
            return prefix_tokens % span_tokens
        case _:
            return prefix_tokens


def is_hit(dependency: Dependency, prefix_tokens: int, live_tail: int, span_tokens: int) -> bool:
    """Whether a cached prefix of ``prefix_tokens`` tokens is valid for the kind."""
    return live_tail >= needed_tail(dependency, prefix_tokens, span_tokens)


def dead_before(
    dependency: Dependency, num_tokens: int, span_tokens: int, *, page_tokens: int = 1
) -> int:
    """Positions below this are dead for the kind once a request has ``num_tokens`` tokens.

    A whole number of pages. The kept tail also covers a prefix cached at the last page boundary,
    so that the hit it makes possible is valid:

        window(W)    keeps max(W, page) tokens, rounded up to pages
        chunked(C)   keeps the chunk that the last page boundary lies in
    """
    boundary = num_tokens // page_tokens * page_tokens
    if dependency is Dependency.CHUNKED:
        start = boundary // span_tokens * span_tokens
    else:
        kept = -(-max(span_tokens, page_tokens) // page_tokens) * page_tokens
        start = num_tokens - kept
    return max(0, start // page_tokens * page_tokens)
