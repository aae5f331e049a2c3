# SPDX-License-Identifier: Apache-2.0
"""Choosing the large page: exact LCM, or padding bounded by what it saves (paper: LCM allocator).

A large page must be a whole number of small pages of every kind. Slots may be padded to get
there. The candidates are the best fractions of page sizes (the convergents of their ratio and the
steps between them): the last one is the exact LCM, with no padding and the largest page; the
earlier ones trade padding for a smaller page. One score decides, in bytes lost by a declared
reference load:

    score = sum over kinds of  R * slots_needed * (slot_bytes - unpadded slot bytes)     padding
                             + (slots_per_large_page - 1) / 2 * slot_bytes               partial

The partial term counts one half-filled large page per kind: when memory is short, requests share
large pages, so a kind has about one open page however many requests run. A large exact LCM
therefore loses by its size (Granite-4: 1.1 GiB), a small one wins by having no padding, and no
threshold decides which is which.

Slots stay multiples of 32 bytes and of a head (:func:`sglang_jenga.core.plan.slot_unit_bytes`), so
padding comes in steps of that, and the score counts what the steps cost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd, lcm

from sglang_jenga.core.errors import ConfigError, require_positive
from sglang_jenga.core.kinds import KindSpec, slots_needed
from sglang_jenga.core.plan import (
    ROW_ALIGN_BYTES,
    ArenaPlan,
    KindPlan,
    PartialWaste,
    require_distinct,
    slot_unit_bytes,
)
from sglang_jenga.core.sizes import count, format_bytes

__all__ = [
    "ArenaPlan",
    "BaselineGeometry",
    "BaselineKind",
    "KindPlan",
    "PartialWaste",
    "ReferenceLoad",
    "gcd_geometry",
    "max_geometry",
    "plan_arena",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceLoad:
    """The load whose lost bytes the planner minimises.

    num_requests requests run at once, each num_tokens long and still decoding, each with
    image_tokens image tokens (read only by cross and vision kinds). The defaults are a modest
    serving load: a heavier one makes partial pages matter less and padding more. image_tokens
    is one Llama-3.2-Vision tile.
    """

    num_requests: int = 32
    num_tokens: int = 4096
    image_tokens: int = 1601

    def __post_init__(self) -> None:
        require_positive(
            num_requests=self.num_requests,
            num_tokens=self.num_tokens,
            image_tokens=self.image_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """A kind before padding to the large page. unit_bytes divides every legal small page."""

    spec: KindSpec
    row_offsets_bytes: tuple[int, ...]
    slot_bytes: int
    slots_per_small_page: int
    align_bytes: int
    reference_slots: int

    @property
    def small_page_bytes(self) -> int:
        return self.slot_bytes * self.slots_per_small_page

    @property
    def unit_bytes(self) -> int:
        return self.align_bytes * self.slots_per_small_page


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A large page of small_pages[i] small pages of kind i, with its score in bytes."""

    large_page_bytes: int
    small_pages: tuple[int, ...]
    padding_bytes: int
    partial_bytes: int

    @property
    def rank(self) -> tuple[int, int, int, tuple[int, ...]]:
        score = self.padding_bytes + self.partial_bytes
        return score, self.padding_bytes, self.large_page_bytes, self.small_pages


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _layout(spec: KindSpec, page_tokens: int, reference: ReferenceLoad) -> _Layout:
    """Rows in order, each start and the slot aligned."""
    offsets = []
    end = 0
    for row in spec.rows:
        offsets.append(_round_up(end, lcm(ROW_ALIGN_BYTES, row.itemsize_bytes)))
        end = offsets[-1] + row.row_bytes
    align = slot_unit_bytes(spec)
    return _Layout(
        spec=spec,
        row_offsets_bytes=tuple(offsets),
        slot_bytes=_round_up(end, align),
        slots_per_small_page=page_tokens if spec.policy.PAGED_BY_TOKENS else 1,
        align_bytes=align,
        reference_slots=reference.num_requests
        * slots_needed(spec, reference.num_tokens, image_tokens=reference.image_tokens),
    )


def _candidate(layouts: Sequence[_Layout], small_pages: tuple[int, ...]) -> _Candidate:
    """The smallest large page that holds small_pages of every kind, and what it loses."""
    pairs = list(zip(layouts, small_pages, strict=True))
    large = _round_up(
        max(n * layout.small_page_bytes for layout, n in pairs),
        lcm(*(n * layout.unit_bytes for layout, n in pairs)),
    )
    padding = partial = 0
    for layout, n in pairs:
        slots = n * layout.slots_per_small_page
        padding += layout.reference_slots * (large // slots - layout.slot_bytes)
        partial += (slots - 1) * (large // slots) // 2
    return _Candidate(
        large_page_bytes=large,
        small_pages=small_pages,
        padding_bytes=padding,
        partial_bytes=partial,
    )


def _fractions(numerator: int, denominator: int) -> Iterator[tuple[int, int]]:
    """Pairs (a, b) with a / b approaching numerator / denominator from both sides, exact last.

    These are the convergents of the continued fraction and the intermediate fractions between two
    of them: the fractions that no smaller pair beats from the same side. Intermediates are taken
    at doubling steps, which keeps their number logarithmic.
    """
    a_prev, b_prev, a, b = 0, 1, 1, 0
    while denominator:
        quotient, remainder = divmod(numerator, denominator)
        step = 1
        while step < quotient:
            yield a_prev + step * a, b_prev + step * b
            step *= 2
        a_prev, b_prev, a, b = a, b, a_prev + quotient * a, b_prev + quotient * b
        yield a, b
        numerator, denominator = denominator, remainder


def _candidates(layouts: Sequence[_Layout]) -> list[_Candidate]:
    """Merge kinds one by one, smallest first, keeping groups that no other beats on both counts.

    A group of merged kinds has one large page; the next kind joins by every useful fraction
    (repeats of the group : small pages of the kind). Order and ties are deterministic.
    """
    order = sorted(
        range(len(layouts)), key=lambda i: (layouts[i].small_page_bytes, layouts[i].spec.name)
    )
    merged = [layouts[i] for i in order]
    groups = [_candidate(merged[:1], (1,))]
    for size in range(2, len(merged) + 1):
        joined: dict[tuple[int, ...], _Candidate] = {}
        for group in groups:
            for repeats, pages in _fractions(
                merged[size - 1].small_page_bytes, group.large_page_bytes
            ):
                if repeats and pages:
                    counts = (*(repeats * n for n in group.small_pages), pages)
                    joined[counts] = _candidate(merged[:size], counts)
        groups = _undominated(joined.values())
    slot_of = {kind: position for position, kind in enumerate(order)}
    return [
        _candidate(layouts, tuple(group.small_pages[slot_of[i]] for i in range(len(layouts))))
        for group in groups
    ]


def _undominated(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """Candidates with less padding than every one whose large page is not larger."""
    kept: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.large_page_bytes, *c.rank)):
        if not kept or candidate.padding_bytes < kept[-1].padding_bytes:
            kept.append(candidate)
    return kept


def plan_arena(
    kinds: Sequence[KindSpec],
    *,
    arena_bytes: int,
    page_tokens: int = 1,
    reference: ReferenceLoad | None = None,
    min_large_pages: int | None = None,
    min_run_slots: int = 1,
) -> ArenaPlan:
    """Cut an arena for these kinds. Deterministic: the same arguments give the same plan.

    arena_bytes: bytes on offer; what does not fill a large page stays unused.
    page_tokens: slots of a small page of every kind that is paged by tokens.
    reference: the load to score candidates with, ReferenceLoad() by default.
    min_large_pages: fewest large pages to accept, the sink included; by default the sink and one
        for each kind.
    min_run_slots: fewest consecutive slots a large page must offer each kind paged by tokens. The
        large page is repeated until it does, which buys longer runs between two visits to a free
        list for more bytes per partly filled page.

    Raises ConfigError: contradictory kinds, an arena too small for any candidate, or more slot
    ids than int32 tables can hold.
    """
    require_positive(
        arena_bytes=arena_bytes,
        page_tokens=page_tokens,
        min_run_slots=min_run_slots,
    )
    require_distinct(tuple(kinds))
    reference = reference or ReferenceLoad()
    fewest = 1 + len(kinds) if min_large_pages is None else min_large_pages
    require_positive(min_large_pages=fewest)
    layouts = [_layout(kind, page_tokens, reference) for kind in kinds]
    ranked = sorted(
        (_with_runs(layouts, c, min_run_slots) for c in _candidates(layouts)),
        key=lambda candidate: candidate.rank,
    )
    fitting = [c for c in ranked if arena_bytes // c.large_page_bytes >= fewest]
    if not fitting:
        smallest = min(c.large_page_bytes for c in ranked)
        raise ConfigError(
            f"arena of {arena_bytes:,} B is too small: it holds "
            f"{count(arena_bytes // smallest, 'large page')} of {smallest:,} B where "
            f"{count(fewest, 'large page')} are needed (one is the sink): give it at least "
            f"{fewest * smallest:,} B or lower the page size of {count(page_tokens, 'token')}"
        )
    best = fitting[0]
    return ArenaPlan(
        page_tokens=page_tokens,
        large_page_bytes=best.large_page_bytes,
        num_large_pages=arena_bytes // best.large_page_bytes,
        kinds=tuple(_place(layout, best, i) for i, layout in enumerate(layouts)),
        geometry="padded" if best.padding_bytes else "lcm",
        explanation=_explain(layouts, best, ranked, reference),
    )


def _with_runs(layouts: Sequence[_Layout], candidate: _Candidate, min_run_slots: int) -> _Candidate:
    runs = [
        n * layout.slots_per_small_page
        for layout, n in zip(layouts, candidate.small_pages, strict=True)
        if layout.spec.policy.PAGED_BY_TOKENS
    ]
    repeats = -(-min_run_slots // min(runs)) if runs else 1
    return _candidate(layouts, tuple(repeats * n for n in candidate.small_pages))


def _place(layout: _Layout, candidate: _Candidate, index: int) -> KindPlan:
    small_pages = candidate.small_pages[index]
    slot_bytes = candidate.large_page_bytes // (small_pages * layout.slots_per_small_page)
    return KindPlan(
        spec=layout.spec,
        slot_bytes=slot_bytes,
        row_offsets_bytes=layout.row_offsets_bytes,
        slots_per_small_page=layout.slots_per_small_page,
        small_pages_per_large_page=small_pages,
        padding_bytes_per_slot=slot_bytes - layout.spec.payload_bytes,
    )


def _explain(
    layouts: Sequence[_Layout],
    best: _Candidate,
    ranked: Sequence[_Candidate],
    reference: ReferenceLoad,
) -> str:
    needed = sum(layout.reference_slots * layout.slot_bytes for layout in layouts)

    def line(candidate: _Candidate) -> str:
        pages = ", ".join(
            f"{layout.spec.name} x{n:,}"
            for layout, n in zip(layouts, candidate.small_pages, strict=True)
        )
        padding = 100 * candidate.padding_bytes / needed
        partial = 100 * candidate.partial_bytes / needed
        return (
            f"large page {candidate.large_page_bytes:,} B (small pages: {pages}) loses "
            f"{padding + partial:.4f} % = padding {padding:.4f} % + partial pages {partial:.4f} %"
        )

    exact = next(c for c in ranked if not c.padding_bytes)
    others = [c for c in ranked if c is not best]
    texts = [
        f"reference load of {count(reference.num_requests, 'request')} of "
        f"{count(reference.num_tokens, 'token')} needs {format_bytes(needed)}",
        f"chosen {'exact LCM' if best is exact else 'padded'}: {line(best)}",
        f"runner-up: {line(others[0])}" if others else "no other candidate",
    ]
    if exact is not best and exact is not others[0]:
        texts.append(f"exact LCM: {line(exact)}")
    if best is not ranked[0]:
        texts.append("better ones leave too few large pages in this arena")
    return "; ".join(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineKind:
    """What a baseline costs one kind.

    ids_per_small_page: page ids a kernel would have to follow for one small page.
    waste_percent: share of the pages it holds that is not the kind's payload.
    """

    name: str
    ids_per_small_page: int
    waste_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineGeometry:
    """A geometry the paper argues against, for comparison only: nothing can run on it."""

    name: str
    page_bytes: int
    kinds: tuple[BaselineKind, ...]


def gcd_geometry(kinds: Sequence[KindSpec], *, page_tokens: int = 1) -> BaselineGeometry:
    """Pages of the greatest common divisor: no waste, but many ids per small page (paper: GCD)."""
    return _baseline("gcd", kinds, page_tokens)


def max_geometry(kinds: Sequence[KindSpec], *, page_tokens: int = 1) -> BaselineGeometry:
    """Pages as large as the largest small page: one id each, smaller kinds waste the rest."""
    return _baseline("max", kinds, page_tokens)


def _baseline(name: str, kinds: Sequence[KindSpec], page_tokens: int) -> BaselineGeometry:
    require_positive(page_tokens=page_tokens)
    require_distinct(tuple(kinds))
    sizes = [
        kind.payload_bytes * (page_tokens if kind.policy.PAGED_BY_TOKENS else 1) for kind in kinds
    ]
    page = gcd(*sizes) if name == "gcd" else max(sizes)
    return BaselineGeometry(
        name=name,
        page_bytes=page,
        kinds=tuple(
            BaselineKind(
                name=kind.name,
                ids_per_small_page=-(-size // page),
                waste_percent=100 * (1 - size / _round_up(size, page)),
            )
            for kind, size in zip(kinds, sizes, strict=True)
        ),
    )
