# SPDX-License-Identifier: Apache-2.0
"""What requests will ask of each kind, in tokens: the arithmetic behind admission.

A windowed kind needs the slots of a prefill chunk while the chunk runs and afterwards only what its
policy keeps, r tokens at most (window W, chunk C, head and tail together). With e tokens to prefill
in chunks of at most c and m tokens to generate:

    full kind    e + m
    window kind  max(min(e, c + r), min(e + m, r + slide_interval))

Pure integers; the core's :meth:`ArenaAllocator.fits` turns small pages into large pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import Cross, Full, State, TokenPolicy, Vision

#: Longest open run of a row, in tokens. A run is memory set aside: it must stay small beside a
#: request, yet long enough that a decode step rarely opens a new one.
MAX_RUN_TOKENS = 128
#: Most dead window slots a running request keeps (SGLANG_SWA_EVICTION_INTERVAL's default).
MAX_SLIDE_TOKENS = 128
#: Recurrent states that a lone request pins at its worst moment: its own, and the cached one that
#: it continues from until its first forward has copied it.
LONE_REQUEST_STATES = 2


@dataclass(frozen=True, kw_only=True)
class DemandModel:
    """Numbers of one server. What depends on the server alone is worked out once.

    plan: its arena.
    window: policy of the window kind, None when every layer attends to everything.
    chunk_tokens: most tokens of one request a prefill step computes, None: the whole prompt.
    """

    plan: ArenaPlan
    window: TokenPolicy | None
    chunk_tokens: int | None

    @property
    def page_tokens(self) -> int:
        return self.plan.page_tokens

    @cached_property
    def kept_tokens(self) -> int | None:
        """Most slots of the window kind that a request keeps while it decodes; None: no such kind.
        Dead ones that it has not given back yet come on top."""
        return None if self.window is None else self.window.most_needed_tokens

    @property
    def run_small_pages(self) -> list[int]:
        """Longest open run per kind: a whole large page unless that is long for one request.

        One small page for kinds that do not grow with the text: they have no runs.
        """
        longest = max(1, MAX_RUN_TOKENS // self.page_tokens)
        return [
            min(kind.small_pages_per_large_page, longest) if kind.spec.policy.GROWS_WITH_TEXT else 1
            for kind in self.plan.kinds
        ]

    @cached_property
    def slide_interval_tokens(self) -> int:
        """Tokens a window moves before its dead slots are given back.

        At least a large page's worth (less frees none) and otherwise a sixteenth of the span, so
        that dead slots cost little of a window; no more than SGLang's own default, beyond which
        sliding less often saves no work worth having.
        """
        if self.window is None:
            return 0
        unit = self.plan.kinds[1].slots_per_large_page
        wanted = max(
            unit, min((self.window.span_tokens or 0) // 16, MAX_SLIDE_TOKENS), self.page_tokens
        )
        return -(-wanted // unit) * unit

    @cached_property
    def unpin_tokens(self) -> int:
        """Dead tokens of a prompt's window before a decoding request unpins any of them.

        Once one is evicted nothing can continue at the prompt's end, so that end is put at risk
        only where it frees a quarter of a window (benchmark/capacity: a page at a time costs
        Gemma-2 two points of hits and saves nothing).
        """
        return 0 if self.window is None else (self.window.span_tokens or 0) // 4

    def window_tokens(self, extend: int, max_new: int, chunk: int | None, interval: int) -> int:
        """Peak window slots of a request that extends by ``extend`` and then generates."""
        kept = self.kept_tokens or 0
        prefill = extend if chunk is None else min(extend, chunk + kept)
        return max(prefill, min(extend + max_new, kept + interval))

    def pages_of_longest(self, num_tokens: int) -> list[int]:
        """Small pages per kind that a lone request of ``num_tokens`` needs at its worst moment.

        For a window kind that moment is early in decoding, with page-rounded span A, interval I:

            A       the prompt's last span, pinned in the tree until a span has been generated (a
                    policy with a head: the head, too, and for good)
            A + I   the request's own tokens before they slide for the first time
            3       pages: one more that the tree pins, the one that prompt and output share, the
                    one being taken

        Prefill needs less: its chunks shrink to a page when memory is that tight. A recurrent kind
        needs :data:`LONE_REQUEST_STATES`. With cross layers any token may be an image's: all of
        them are priced at the dearer of the two slots, and the other kind begins a large page.
        """
        full = -(-num_tokens // self.page_tokens)
        window = full
        if self.window is not None and self.chunk_tokens is not None:
            span_pages = -(-(self.window.span_tokens or 0) // self.page_tokens)
            head_pages = -(-self.window.head_tokens // self.page_tokens)
            interval_pages = -(-self.slide_interval_tokens // self.page_tokens)
            window = min(full, head_pages + 2 * span_pages + interval_pages + 3)
        pages_of = {Full: full, State: LONE_REQUEST_STATES, Vision: 0}  # can be encoded again
        slots = {type(kind.spec.policy): kind.slot_bytes for kind in self.plan.kinds}
        if Cross in slots:
            images_cost_more = slots[Cross] > slots[Full]
            pages_of[Cross] = full if images_cost_more else 1
            pages_of[Full] = 1 if images_cost_more else full
        return [pages_of.get(type(kind.spec.policy), window) for kind in self.plan.kinds]

    @cached_property
    def longest_request_tokens(self) -> int:
        """Longest request (prompt and output) that always fits an arena it has to itself."""
        plan = self.plan

        def fits(num_pages: int) -> bool:
            pages = self.pages_of_longest(num_pages * self.page_tokens)
            large = sum(
                -(-need // kind.small_pages_per_large_page)
                for need, kind in zip(pages, plan.kinds, strict=True)
            )
            return large <= plan.usable_large_pages

        low, high = 0, plan.usable_large_pages * plan.kinds[0].small_pages_per_large_page
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low * self.page_tokens
