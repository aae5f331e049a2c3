# SPDX-License-Identifier: Apache-2.0
"""What requests cost on a plan: slots, small pages, large pages, bytes and waste. Integers only.

Three sizes per kind, each at least the one before:

    needed_bytes  = needed slots * payload bytes        what the layers read
    small_bytes   = small pages * small_page_bytes      adds padding and the ends of small pages
    large_bytes   = large pages * large_page_bytes      adds the ends of large pages
    waste         = 1 - needed_bytes / large_bytes
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sglang_jenga.core.errors import ConfigError, require_positive
from sglang_jenga.core.kinds import KindSpec, held_slots, slots_needed
from sglang_jenga.core.plan import ArenaPlan, KindPlan, PartialWaste
from sglang_jenga.core.policies import State, Vision

__all__ = [
    "Footprint",
    "KindFootprint",
    "PartialWaste",
    "RequestShape",
    "held_slots",
    "mix_footprint",
    "request_footprint",
    "requests_that_fit",
    "slots_needed",
    "small_pages_needed",
    "uniform_paging_waste",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """A running request: num_tokens so far (the chunk included), of which chunk_tokens are being
    prefilled in this step (0 while decoding), and image_tokens for cross and vision kinds."""

    num_tokens: int
    chunk_tokens: int = 0
    image_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KindFootprint:
    """What requests hold of one kind. See the module docstring for the three sizes."""

    name: str
    needed_slots: int
    small_pages: int
    large_pages: int
    needed_bytes: int
    small_bytes: int
    large_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What requests hold of every kind, in plan order."""

    kinds: tuple[KindFootprint, ...]

    @property
    def needed_bytes(self) -> int:
        """Bytes the layers read."""
        return sum(kind.needed_bytes for kind in self.kinds)

    @property
    def large_pages(self) -> int:
        """Large pages held, over all kinds."""
        return sum(kind.large_pages for kind in self.kinds)

    @property
    def large_bytes(self) -> int:
        """Bytes held in whole large pages."""
        return sum(kind.large_bytes for kind in self.kinds)

    @property
    def waste(self) -> float:
        """1 - needed / held, where held counts whole large pages; 0 when nothing is held."""
        return 1 - self.needed_bytes / self.large_bytes if self.large_bytes else 0.0


def small_pages_needed(kind: KindPlan, shape: RequestShape) -> int:
    """Small pages that the live slots of one request touch.

    Position p of a request lies in its small page p // P, P = slots_per_small_page, so a live
    range [lo, hi) touches ceil(hi / P) - floor(lo / P) of them: a window of W slots may straddle
    one page more than ceil(W / P). A page that two ranges touch counts once.
    """
    size = kind.slots_per_small_page
    pages = counted = 0
    held = held_slots(
        kind.spec,
        shape.num_tokens,
        chunk_tokens=shape.chunk_tokens,
        image_tokens=shape.image_tokens,
    )
    for live in held:
        if live:
            end = -(-live.stop // size)
            pages += end - max(counted, live.start // size)
            counted = end
    return pages


def request_footprint(plan: ArenaPlan, shape: RequestShape) -> Footprint:
    """One request that shares no large page with another, at its worst alignment.

    With q small pages in use and k small pages per large page, it holds

        full, state, cross, vision   ceil(q / k)              (it fills them from their start)
        window, chunked              1 + ceil((q - 1) / k)    (the live pages may start anywhere)
    """
    kinds = []
    for kind in plan.kinds:
        pages = small_pages_needed(kind, shape)
        per_large = kind.small_pages_per_large_page
        if kind.spec.policy.SLIDES and pages:
            large = 1 + -(-(pages - 1) // per_large)
        else:
            large = -(-pages // per_large)
        kinds.append(_footprint(plan, kind, _num_slots(kind.spec, shape), pages, large))
    return Footprint(kinds=tuple(kinds))


def mix_footprint(plan: ArenaPlan, shapes: Iterable[RequestShape]) -> Footprint:
    """Requests packed as tightly as large pages allow, without any shared prefix.

    No small page is shared; large pages of a kind are: ceil(sum of small pages / k). This is what
    the allocator reaches when no free large page is left and holes are filled.
    """
    requests = list(shapes)
    kinds = []
    for kind in plan.kinds:
        slots = sum(_num_slots(kind.spec, shape) for shape in requests)
        pages = sum(small_pages_needed(kind, shape) for shape in requests)
        large = -(-pages // kind.small_pages_per_large_page)
        kinds.append(_footprint(plan, kind, slots, pages, large))
    return Footprint(kinds=tuple(kinds))


def requests_that_fit(
    plan: ArenaPlan,
    prompt_tokens: int,
    output_tokens: int,
    *,
    image_tokens: int = 0,
    chunk_tokens: int = 0,
    slide_tokens: int = 0,
    share_large_pages: bool = True,
) -> int:
    """How many equal requests fit at once, each at its final length, none sharing a prefix.

    chunk_tokens: prefill chunk size; room is kept for ONE request whose prompt ends with a whole
        chunk, because a step's prefill tokens are shared by all requests. 0 where prefill needs
        no slots beyond those kept afterwards.
    slide_tokens: dead slots of a window kind that every request may still hold, since a window
        slides some tokens at a time (core/demand.py).
    share_large_pages: True packs requests into large pages (mix_footprint), False gives each its
        own (request_footprint): the truth under load lies near the first.
    """
    require_positive(prompt_tokens=prompt_tokens)
    if output_tokens < 0 or chunk_tokens < 0:
        raise ConfigError(
            f"output_tokens {output_tokens} and chunk_tokens {chunk_tokens} must be >= 0"
        )
    final = at_its_end(prompt_tokens + output_tokens, slide_tokens, image_tokens)
    prefill = RequestShape(
        num_tokens=prompt_tokens,
        chunk_tokens=min(chunk_tokens, prompt_tokens),
        image_tokens=image_tokens,
    )
    large_pages = _large_pages_packed if share_large_pages else _large_pages_apart
    # The answer is below the first count that does not fit; every request holds at least one
    # small page of some kind, so doubling ends.
    fits, too_many = 0, 1
    while large_pages(plan, final, prefill, too_many) <= plan.usable_large_pages:
        fits, too_many = too_many, too_many * 2
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if large_pages(plan, final, prefill, middle) <= plan.usable_large_pages:
            fits = middle
        else:
            too_many = middle
    return fits


def at_its_end(num_tokens: int, slide_tokens: int, image_tokens: int) -> RequestShape:
    """A decoding request of ``num_tokens`` whose window has not slid for ``slide_tokens``: it holds
    what a chunk of as many tokens would."""
    return RequestShape(
        num_tokens=num_tokens,
        chunk_tokens=min(slide_tokens, num_tokens),
        image_tokens=image_tokens,
    )


def uniform_paging_waste(
    kinds: Sequence[KindSpec], num_tokens: int, *, image_tokens: int = 0
) -> float:
    """Waste of one pool in which every layer stores every token (paper, section on waste).

    Text and image tokens alike take a slot in every kind, so one decoding request wastes

        1 - sum(slots_needed * payload_bytes) / ((num_tokens + image_tokens) * sum(payload_bytes))

    Only for attention kinds: a recurrent state or a vision embedding is no per-token row, so a
    uniform pool has no place for it (ConfigError). Pass image_tokens only to models that give
    images layers of their own; elsewhere they are ordinary tokens of the prompt.
    """
    require_positive(num_tokens=num_tokens)
    odd = [kind.name for kind in kinds if isinstance(kind.policy, State | Vision)]
    if odd:
        raise ConfigError(f"uniform paging has no slots for kinds {odd}: compare attention only")
    needed = sum(
        slots_needed(kind, num_tokens, image_tokens=image_tokens) * kind.payload_bytes
        for kind in kinds
    )
    held = (num_tokens + image_tokens) * sum(kind.payload_bytes for kind in kinds)
    return 1 - needed / held


def _num_slots(spec: KindSpec, shape: RequestShape) -> int:
    return slots_needed(
        spec, shape.num_tokens, chunk_tokens=shape.chunk_tokens, image_tokens=shape.image_tokens
    )


def _footprint(
    plan: ArenaPlan, kind: KindPlan, slots: int, small_pages: int, large_pages: int
) -> KindFootprint:
    return KindFootprint(
        name=kind.spec.name,
        needed_slots=slots,
        small_pages=small_pages,
        large_pages=large_pages,
        needed_bytes=slots * kind.spec.payload_bytes,
        small_bytes=small_pages * kind.small_page_bytes,
        large_bytes=large_pages * plan.large_page_bytes,
    )


def _large_pages_packed(
    plan: ArenaPlan, final: RequestShape, prefill: RequestShape, requests: int
) -> int:
    total = 0
    for kind in plan.kinds:
        at_end = small_pages_needed(kind, final)
        # One of the requests may be at its prefill peak instead of its end, whichever is larger.
        peak = max(at_end, small_pages_needed(kind, prefill))
        pages = (requests - 1) * at_end + peak
        total += -(-pages // kind.small_pages_per_large_page)
    return total


def _large_pages_apart(
    plan: ArenaPlan, final: RequestShape, prefill: RequestShape, requests: int
) -> int:
    at_end = request_footprint(plan, final)
    in_prefill = request_footprint(plan, prefill)
    peak = sum(
        max(a.large_pages, b.large_pages)
        for a, b in zip(at_end.kinds, in_prefill.kinds, strict=True)
    )
    return (requests - 1) * at_end.large_pages + peak
