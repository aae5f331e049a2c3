# SPDX-License-Identifier: Apache-2.0
"""Claims about what requests cost: truth tables, simulations, and the paper's waste figures."""

import itertools

import pytest

from sglang_jenga.core.capacity import (
    RequestShape,
    mix_footprint,
    request_footprint,
    requests_that_fit,
    small_pages_needed,
    uniform_paging_waste,
)
from sglang_jenga.core.catalog import model_kinds
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kinds import KindSpec, RowSpec, held_slots, slots_needed
from sglang_jenga.core.plan import KindPlan
from sglang_jenga.core.policies import Chunked, Cross, Full, Policy, State, Vision, Window

GIB = 2**30


def kind(policy: Policy, size: int = 32) -> KindSpec:
    row = RowSpec(layer_id=0, part="k", row_bytes=size)
    return KindSpec(name=policy.NAME, policy=policy, rows=(row,))


def window(tokens: int) -> KindSpec:
    return kind(Window(window_tokens=tokens))


def chunks(tokens: int) -> KindSpec:
    return kind(Chunked(chunk_tokens=tokens))


def positions(spec: KindSpec, num_tokens: int, **more: int) -> set[int]:
    return {p for part in held_slots(spec, num_tokens, **more) for p in part}


def placed(spec: KindSpec, *, page: int = 1, small_pages: int = 1) -> KindPlan:
    return KindPlan(
        spec=spec,
        slot_bytes=spec.payload_bytes,
        row_offsets_bytes=(0,),
        slots_per_small_page=page,
        small_pages_per_large_page=small_pages,
        padding_bytes_per_slot=0,
    )


FULL = kind(Full())
WINDOW4 = window(4)
CHUNK4 = chunks(4)
STATE = kind(State())
CROSS = kind(Cross())
VISION = kind(Vision())


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize(
    ("spec", "num_tokens", "chunk_tokens", "expected"),
    [
        (FULL, 0, 0, range(0)),
        (FULL, 9, 0, range(0, 9)),
        (FULL, 9, 5, range(0, 9)),
        (WINDOW4, 0, 0, range(0)),
        (WINDOW4, 3, 0, range(0, 3)),
        (WINDOW4, 4, 0, range(0, 4)),
        (WINDOW4, 9, 0, range(5, 9)),
        (WINDOW4, 9, 3, range(2, 9)),  # what a hit of 6 needs, [2, 6), and the chunk
        (WINDOW4, 9, 9, range(0, 9)),
        (CHUNK4, 0, 0, range(0)),
        (CHUNK4, 3, 0, range(0, 3)),
        (CHUNK4, 4, 0, range(0, 4)),  # token 3 has just read [0, 4)
        (CHUNK4, 5, 0, range(4, 5)),
        (CHUNK4, 9, 3, range(4, 9)),  # token 6 reads from 4
        (CHUNK4, 9, 1, range(8, 9)),
        (CHUNK4, 8, 8, range(0, 8)),
        (STATE, 0, 0, range(0)),
        (STATE, 1, 0, range(1)),
        (STATE, 9000, 512, range(1)),
        (CROSS, 9, 0, range(7)),
        (VISION, 0, 0, range(7)),
    ],
)
def test_live_slots_of_each_dependency(spec, num_tokens, chunk_tokens, expected):
    live = positions(spec, num_tokens, chunk_tokens=chunk_tokens, image_tokens=7)
    assert live == set(expected)
    needed = slots_needed(spec, num_tokens, chunk_tokens=chunk_tokens, image_tokens=7)
    assert needed == len(expected)


@pytest.mark.parametrize(("span", "n", "chunk"), [(1024, 9000, 512), (1024, 700, 700)])
def test_a_window_in_prefill_needs_window_plus_chunk_but_never_more_than_there_is(span, n, chunk):
    spec = window(span)
    assert slots_needed(spec, n, chunk_tokens=chunk) == min(n, span + chunk)
    assert slots_needed(spec, n) == min(n, span)


def attended(spec: KindSpec, position: int) -> set[int]:
    """Positions that the token at position reads, by the definition of its attention."""
    span = spec.policy.span_tokens
    first = position - span + 1 if isinstance(spec.policy, Window) else position // span * span
    return set(range(max(0, first), position + 1))


def needed_by_hit(spec: KindSpec, num_tokens: int) -> set[int]:
    """design.md: a window keeps [n - W, n), a chunked kind [floor(n / C) * C, n)."""
    span = spec.policy.span_tokens
    first = num_tokens - span
    if isinstance(spec.policy, Chunked):
        first = num_tokens // span * span
    return set(range(max(0, first), num_tokens))


@pytest.mark.parametrize("make", [window, chunks])
@pytest.mark.parametrize("span", range(1, 8))
@pytest.mark.parametrize("chunk", range(1, 9))
def test_a_simulated_prefill_holds_exactly_the_slots_of_the_formula(make, span, chunk):
    spec = make(span)
    held: set[int] = set()
    for done in range(chunk, 40, chunk):
        step = set(range(done - chunk, done))
        held |= step
        assert all(attended(spec, token) <= held for token in step)
        assert held == positions(spec, done, chunk_tokens=chunk)
        held = needed_by_hit(spec, done)


@pytest.mark.parametrize("make", [window, chunks])
@pytest.mark.parametrize("span", range(1, 8))
def test_a_simulated_decode_holds_exactly_the_slots_of_the_formula(make, span):
    spec = make(span)
    for num_tokens in range(1, 40):
        token = num_tokens - 1
        held = positions(spec, num_tokens)
        assert held == attended(spec, token)
        assert len(held) == slots_needed(spec, num_tokens)
        assert needed_by_hit(spec, num_tokens) <= held  # so that it can be cached at any time


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_tokens=3, chunk_tokens=4), r"chunk_tokens 4 must lie in \[0, num_tokens 3\]"),
        (dict(num_tokens=3, chunk_tokens=-1), "chunk_tokens -1"),
        (dict(num_tokens=-3), "num_tokens -3"),
        (dict(num_tokens=3, image_tokens=-1), "image_tokens must be >= 0, got -1"),
    ],
)
def test_impossible_lengths_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        slots_needed(FULL, **arguments)


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("spec", [FULL, WINDOW4, CHUNK4, window(7)])
@pytest.mark.parametrize("page", [1, 2, 3, 4, 8])
def test_small_pages_are_the_pages_that_live_positions_lie_in(spec, page):
    for num_tokens, chunk in itertools.product(range(40), (0, 1, 3, 8)):
        if chunk > num_tokens:
            continue
        shape = RequestShape(num_tokens=num_tokens, chunk_tokens=chunk)
        touched = {p // page for p in positions(spec, num_tokens, chunk_tokens=chunk)}
        assert small_pages_needed(placed(spec, page=page), shape) == len(touched)


def test_a_window_straddles_one_small_page_more_unless_it_is_aligned():
    straddling = placed(window(64), page=16)
    assert small_pages_needed(straddling, RequestShape(num_tokens=128)) == 4
    assert small_pages_needed(straddling, RequestShape(num_tokens=129)) == 5


def test_a_lone_request_never_holds_more_large_pages_than_the_worst_case():
    spec = window(11)
    for per_large in range(1, 9):
        plan = plan_arena([spec], arena_bytes=2**16, min_run_slots=per_large)
        footprint = request_footprint(plan, RequestShape(num_tokens=40)).kinds[0]
        seen = max(
            len({(start + page) // per_large for page in range(footprint.small_pages)})
            for start in range(per_large)
        )
        assert footprint.large_pages == seen


def test_kinds_that_only_grow_fill_large_pages_from_their_start():
    plan = plan_arena(model_kinds("gemma3-27b"), arena_bytes=GIB)  # 26 full or 5 window slots
    full, window = request_footprint(plan, RequestShape(num_tokens=2000)).kinds
    assert (full.needed_slots, full.small_pages, full.large_pages) == (2000, 2000, 77)
    assert (window.needed_slots, window.small_pages, window.large_pages) == (1024, 1024, 206)
    assert full.needed_bytes == full.small_bytes == 2000 * 81_920
    assert window.large_bytes == 206 * 2_129_920


def test_waste_is_one_minus_needed_over_held():
    plan = plan_arena(model_kinds("qwen3-next-80b-fp32ssm"), arena_bytes=6 * GIB)
    footprint = request_footprint(plan, RequestShape(num_tokens=1000))
    needed = 1000 * 24_576 + 77_266_944
    assert footprint.needed_bytes == needed
    assert footprint.large_pages == 2
    assert footprint.waste == 1 - needed / (2 * 77_266_944)
    assert request_footprint(plan, RequestShape(num_tokens=0)).waste == 0


def test_a_mix_packs_requests_of_one_kind_into_shared_large_pages():
    plan = plan_arena(model_kinds("qwen3-next-80b-fp32ssm"), arena_bytes=6 * GIB)
    shapes = [RequestShape(num_tokens=1000)] * 3 + [RequestShape(num_tokens=144)]
    full, state = mix_footprint(plan, shapes).kinds
    assert (full.small_pages, full.large_pages) == (3144, 1)
    assert (state.small_pages, state.large_pages) == (4, 4)
    assert mix_footprint(plan, shapes).waste == 0
    assert mix_footprint(plan, []).large_pages == 0


# ---------------------------------------------------------------- partial large pages


@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize("small_pages", [1, 3, 5])
def test_partial_waste_of_a_growing_kind_averages_and_peaks_as_stated(page, small_pages):
    grown = placed(FULL, page=page, small_pages=small_pages)
    size = grown.slots_per_large_page
    empty = [-(-n // size) * size - n for n in range(1, 5 * size + 1)]
    waste = grown.partial_waste()
    assert waste.worst_bytes == max(empty) * grown.slot_bytes
    assert waste.expected_bytes == sum(empty) / len(empty) * grown.slot_bytes


@pytest.mark.parametrize("span", [1, 7, 30])
@pytest.mark.parametrize("small_pages", [1, 3, 10])
def test_partial_waste_of_a_sliding_kind_averages_and_peaks_as_stated(span, small_pages):
    sliding = placed(window(span), small_pages=small_pages)
    size = sliding.slots_per_large_page
    empty = [
        size * len({position // size for position in range(start, start + span)}) - span
        for start in range(size)
    ]
    waste = sliding.partial_waste()
    assert waste.expected_bytes == sum(empty) / len(empty) * sliding.slot_bytes
    assert waste.worst_bytes >= max(empty) * sliding.slot_bytes
    if span % size == 2 % size:  # the length that reaches the bound
        assert waste.worst_bytes == max(empty) * sliding.slot_bytes


def test_a_state_leaves_the_other_states_of_its_large_page_empty():
    waste = placed(STATE, small_pages=3).partial_waste()
    assert waste.expected_bytes == waste.worst_bytes == 2 * 32


# ---------------------------------------------------------------- how many fit


def test_gpt_oss_by_hand():
    kinds = model_kinds("gpt-oss-20b")  # one slot of 24,576 B per large page, window 128
    plan = plan_arena(kinds, arena_bytes=1501 * 24_576)
    assert plan.usable_large_pages == 1500
    # 512 full + 128 window = 640 slots at the end
    assert requests_that_fit(plan, 512, 0) == 2
    # a request prefilling its whole prompt holds 512 + 512, the other 640: 1,664 > 1,500
    assert requests_that_fit(plan, 512, 0, chunk_tokens=512) == 1
    # 128 + 512 tokens: 640 + 128 = 768 at the end, never less than in prefill
    assert requests_that_fit(plan, 128, 512, chunk_tokens=512) == 1
    assert requests_that_fit(plan, 2000, 0) == 0


@pytest.mark.parametrize("model", ["gemma3-27b", "granite-4.0-h-small", "llama32-11b-vision"])
@pytest.mark.parametrize("page_tokens", [1, 16])
def test_what_fits_fits_and_one_more_does_not(model, page_tokens):
    plan = plan_arena(model_kinds(model), arena_bytes=20 * GIB, page_tokens=page_tokens)
    end = RequestShape(num_tokens=2300, image_tokens=1601)
    packed = requests_that_fit(plan, 2000, 300, image_tokens=1601)
    assert mix_footprint(plan, [end] * packed).large_pages <= plan.usable_large_pages
    assert mix_footprint(plan, [end] * (packed + 1)).large_pages > plan.usable_large_pages
    apart = requests_that_fit(plan, 2000, 300, image_tokens=1601, share_large_pages=False)
    assert apart == plan.usable_large_pages // request_footprint(plan, end).large_pages
    assert apart <= packed


def test_a_large_page_per_state_and_shared_pages_for_tokens():
    plan = plan_arena(model_kinds("qwen3-next-80b-fp32ssm"), arena_bytes=101 * 77_266_944)
    # n requests of 786 tokens hold n states and ceil(n * 786 / 3144) = ceil(n / 4) large pages
    assert requests_that_fit(plan, 700, 86) == 80
    assert requests_that_fit(plan, 700, 86, share_large_pages=False) == 50


def test_nonsense_lengths_are_refused():
    plan = plan_arena([FULL], arena_bytes=4096)
    with pytest.raises(ConfigError, match="prompt_tokens must be a positive integer, got 0"):
        requests_that_fit(plan, 0, 10)
    with pytest.raises(ConfigError, match="output_tokens -1"):
        requests_that_fit(plan, 1, -1)


# ---------------------------------------------------------------- the paper's waste figures


@pytest.mark.parametrize(
    ("model", "num_tokens", "image_tokens", "percent"),
    [
        ("llama32-11b-vision", 43, 6193, 79.59),  # MMMU-Pro averages; the paper rounds to 79.6
        ("gemma2-9b", 8192, 0, 25.0),
        ("ministral-8b", 131_072, 0, 56.25),
        # other geometries, by the same formula
        ("gemma2-9b", 4096, 0, 0.0),
        ("gemma2-9b", 6144, 0, 16.67),
        ("ministral-8b", 65_536, 0, 37.5),
        ("gemma3-27b", 8192, 0, 73.39),
        ("gemma3-27b", 32_768, 0, 81.25),
        ("gpt-oss-20b", 8192, 0, 49.22),
        ("llama4-scout", 32_768, 0, 56.25),
        ("llama4-scout", 131_072, 0, 70.31),
        ("llama31-8b", 131_072, 0, 0.0),
    ],
)
def test_uniform_paging_wastes_what_the_paper_says(model, num_tokens, image_tokens, percent):
    waste = uniform_paging_waste(model_kinds(model), num_tokens, image_tokens=image_tokens)
    assert round(100 * waste, 2) == percent


def test_uniform_paging_has_no_place_for_states():
    with pytest.raises(ConfigError, match=r"no slots for kinds \['state'\]"):
        uniform_paging_waste(model_kinds("jamba-v0.1"), 100)
