# SPDX-License-Identifier: Apache-2.0
"""The last match, so that a head of the queue that waits on is not matched at every step.

SGLang matches the first waiting request in each pass over the queue, that is at each decode step of
a hybrid model. A match finds the same again, and makes young what is the youngest already, unless
something happened in between:

    uses and changes    the tree's clock ticks with every match, insertion, new or cut node, and it
                        stands where the match left it if there was none
    what does not tick  pieces that go, and windows that are unpinned: the cache forgets the match

Only the very last match is kept: of two that take turns each is younger after its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult


class LastMatch:
    """One remembered match. ``tick`` advances the tree's clock and returns its value before."""

    def __init__(self, tick: Callable[[], Any]) -> None:
        self._tick = tick
        self._of: tuple[Any, ...] | None = None
        self._result: MatchResult | None = None
        self._ticked: Any = None

    def forget(self) -> None:
        """Something that the match depends on changed, or its request started."""
        self._of = self._result = None

    def keep(self, params: MatchPrefixParams, result: MatchResult) -> None:
        """``params`` was matched just now, with this result."""
        self._of, self._result = _identity(params), result
        self._ticked = self._tick()

    def again(self, params: MatchPrefixParams) -> MatchResult | None:
        """The result of matching ``params``, None: it has to be matched."""
        if self._of is None:
            return None
        now = self._tick()
        if now != self._ticked + 1 or not _is_same(self._of, _identity(params)):
            return None
        self._ticked = now
        return self._result


def _identity(params: MatchPrefixParams) -> tuple[Any, ...] | None:
    """What a match is of; None: of something that is matched for its effects on the request."""
    req, key = params.req, params.key
    if req is None or req.session is not None:
        return None
    # A request's ids change by appending, or are another array; whose state a hit continues from
    # is noted in its record.
    return (
        req,
        req.kv,
        req.origin_input_ids,
        len(req.output_ids),
        len(key),
        key.extra_key,
        key.cache_salt,
        params.cow_mamba,
    )


def _is_same(one: tuple[Any, ...], other: tuple[Any, ...] | None) -> bool:
    if other is None:
        return False
    same_objects = all(a is b for a, b in zip(one[:3], other[:3], strict=True))
    return same_objects and one[3:] == other[3:]
