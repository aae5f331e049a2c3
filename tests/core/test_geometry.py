# SPDX-License-Identifier: Apache-2.0
"""Claims about how an arena is cut: sizes by hand, properties by hypothesis, errors by text."""

import itertools
import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglang_jenga.core.catalog import CATALOG, model_kinds
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import ReferenceLoad, gcd_geometry, max_geometry, plan_arena
from sglang_jenga.core.kinds import KindSpec, RowSpec, attention_kind
from sglang_jenga.core.plan import MAX_SLOT_IDS, ArenaPlan
from sglang_jenga.core.policies import Chunked, Cross, Full, Policy, State, Vision, Window

GIB = 2**30

# model: large page bytes, geometry, {kind: (slot bytes, slots per large page)}, page_tokens 1.
# Bytes per token = layers * 2 (K, V) * KV heads * head size * 2 B; states as written out.
BY_HAND = {
    "llama31-8b": (131_072, "lcm", {"full": (32 * 4096, 1)}),
    "gemma2-9b": (172_032, "lcm", {"full": (21 * 8192, 1), "window": (21 * 8192, 1)}),
    "gemma3-27b": (2_129_920, "lcm", {"full": (81_920, 26), "window": (425_984, 5)}),
    "gemma4-31b": (819_200, "lcm", {"full": (10 * 8192, 10), "window": (50 * 16_384, 1)}),
    "gemma4-e4b": (81_920, "lcm", {"full": (4 * 4096, 5), "window": (20 * 2048, 2)}),
    "gpt-oss-20b": (24_576, "lcm", {"full": (24_576, 1), "window": (24_576, 1)}),
    "ministral-8b": (110_592, "lcm", {"full": (36_864, 3), "window": (110_592, 1)}),
    "llama4-scout": (147_456, "lcm", {"full": (49_152, 3), "chunked": (147_456, 1)}),
    "llama32-11b-vision": (131_072, "lcm", {"full": (131_072, 1), "cross": (32_768, 4)}),
    # 28 * (8192 * 3 * 2 + 8192 * 16 * 2)
    "jamba-v0.1": (8_716_288, "lcm", {"full": (16_384, 532), "state": (28 * 311_296, 1)}),
    # 36 * (8192 * 3 * 2 + 32 * 128 * 128 * 2), then * 4
    "qwen3-next-80b": (39_518_208, "lcm", {"full": (24_576, 1608), "state": (39_518_208, 1)}),
    "qwen3-next-80b-fp32ssm": (
        77_266_944,
        "lcm",
        {"full": (24_576, 3144), "state": (77_266_944, 1)},
    ),
    # 44 * (3584 * 3 * 2 + 24 * 128 * 256 * 4)
    "falcon-h1-7b": (139_358_208, "lcm", {"full": (45_056, 3093), "state": (139_358_208, 1)}),
    # 36 * (8448 * 3 * 2 + 128 * 64 * 128 * 4) = 152,819,712, rounded up to 9,328 tokens
    "granite-4.0-h-small": (
        152_829_952,
        "padded",
        {"full": (16_384, 9328), "state": (152_829_952, 1)},
    ),
    # 24 * (10240 * 3 * 2 + 128 * 64 * 128 * 4)
    "nemotron-h-8b": (102_137_856, "lcm", {"full": (16_384, 6234), "state": (102_137_856, 1)}),
}


FULL = Full()


def flat_kind(name: str, size: int, policy: Policy = FULL) -> KindSpec:
    """A kind of one row of size bytes."""
    row = RowSpec(layer_id=0, part="k", row_bytes=size)
    return KindSpec(name=name, policy=policy, rows=(row,))


# ---------------------------------------------------------------- facts about real models


def test_the_table_covers_the_catalogue():
    assert set(BY_HAND) == set(CATALOG)


@pytest.mark.parametrize("model", BY_HAND)
def test_large_page_and_slots_equal_the_hand_computed_ones(model):
    large_page_bytes, geometry, kinds = BY_HAND[model]
    plan = plan_arena(model_kinds(model), arena_bytes=20 * GIB)
    assert plan.geometry == geometry
    assert plan.large_page_bytes == large_page_bytes
    found = {k.spec.name: (k.slot_bytes, k.slots_per_large_page) for k in plan.kinds}
    assert found == kinds
    assert plan.num_large_pages == 20 * GIB // large_page_bytes


@pytest.mark.parametrize("model", BY_HAND)
def test_real_models_lose_at_most_a_hundredth_of_a_percent_to_padding(model):
    plan = plan_arena(model_kinds(model), arena_bytes=20 * GIB)
    assert plan.padding_percent <= 0.01


def test_granite_is_padded_because_its_exact_lcm_exceeds_a_gibibyte():
    plan = plan_arena(model_kinds("granite-4.0-h-small"), arena_bytes=20 * GIB)
    state = plan.kind("state")
    exact = math.lcm(16_384, state.spec.payload_bytes)
    assert exact == 1_222_557_696  # 1.14 GiB
    assert state.padding_bytes_per_slot == 10_240
    assert plan.padding_bytes_per_large_page == 10_240
    assert "chosen padded: large page 152,829,952 B" in plan.explanation
    assert f"exact LCM: large page {exact:,} B" in plan.explanation
    assert "runner-up: large page 305,643,520 B (small pages: full x18,655, state x2)" in (
        plan.explanation
    )


def test_explanation_names_the_reference_load_the_choice_and_the_runner_up():
    plan = plan_arena(model_kinds("gemma3-27b"), arena_bytes=20 * GIB)
    load, chosen, runner_up = plan.explanation.split("; ")
    assert load.startswith("reference load of 32 requests of 4,096 tokens needs ")
    assert chosen.startswith(
        "chosen exact LCM: large page 2,129,920 B (small pages: full x26, window x5) loses "
    )
    assert runner_up.startswith("runner-up: large page ")


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 128])
@pytest.mark.parametrize("model", BY_HAND)
def test_every_model_plans_in_under_50_ms_at_every_page_size(model, page_tokens):
    kinds = model_kinds(model)
    took = []
    for _ in range(3):
        start = time.process_time()  # of this process: others may share its core
        plan = plan_arena(kinds, arena_bytes=80 * GIB, page_tokens=page_tokens)
        took.append(time.process_time() - start)
    assert min(took) < 0.050
    for kind in plan.kinds:
        assert kind.slots_per_small_page == (page_tokens if kind.spec.policy.PAGED_BY_TOKENS else 1)


@pytest.mark.parametrize("page_tokens", [16, 64, 128])
@pytest.mark.parametrize("model", [m for m, row in BY_HAND.items() if "state" not in row[2]])
def test_attention_only_models_stay_exact_at_every_page_size(model, page_tokens):
    plan = plan_arena(model_kinds(model), arena_bytes=80 * GIB, page_tokens=page_tokens)
    assert plan.geometry == "lcm"
    assert plan.large_page_bytes == page_tokens * BY_HAND[model][0]


def test_four_kinds_of_two_models_share_one_large_page():
    draft = attention_kind(
        "draft:full",
        Full(),
        range(1),
        num_kv_heads=8,
        k_head_dim=128,
        v_head_dim=128,
        itemsize=2,
    )
    vision = KindSpec(
        name="vision",
        policy=Vision(),
        rows=(RowSpec(layer_id=0, part="embed", row_bytes=2560 * 2, itemsize_bytes=2),),
    )
    kinds = (*model_kinds("granite-4.0-h-small"), draft, vision)
    plan = plan_arena(kinds, arena_bytes=20 * GIB)
    assert [k.spec.name for k in plan.kinds] == ["full", "state", "draft:full", "vision"]
    assert plan.large_page_bytes < 160 * 2**20
    assert plan.padding_percent < 0.05
    assert plan.kind("vision").slots_per_small_page == 1


def test_a_heavier_reference_load_moves_the_choice_towards_the_exact_lcm():
    kinds = model_kinds("granite-4.0-h-small")
    heavy = ReferenceLoad(num_requests=1_000_000, num_tokens=4096)
    light = plan_arena(kinds, arena_bytes=40 * GIB)
    assert light.geometry == "padded"
    assert plan_arena(kinds, arena_bytes=40 * GIB, reference=heavy).geometry == "lcm"


def test_a_small_arena_falls_back_to_a_smaller_large_page_and_says_so():
    kinds = [flat_kind("a", 32 * 7), flat_kind("b", 32 * 11, Window(window_tokens=64))]
    roomy = plan_arena(kinds, arena_bytes=2**20)
    assert (roomy.geometry, roomy.large_page_bytes) == ("lcm", 32 * 77)
    tight = plan_arena(kinds, arena_bytes=3 * 32 * 76)
    assert tight.geometry == "padded"
    assert tight.large_page_bytes < 32 * 77
    assert tight.explanation.endswith("better ones leave too few large pages in this arena")


def test_min_run_slots_repeats_the_large_page_until_runs_are_long_enough():
    kinds = model_kinds("gpt-oss-20b")
    plan = plan_arena(kinds, arena_bytes=GIB, min_run_slots=64)
    assert [k.slots_per_large_page for k in plan.kinds] == [64, 64]
    assert plan.large_page_bytes == 64 * 24_576
    assert plan.geometry == "lcm"
    uneven = plan_arena(model_kinds("gemma3-27b"), arena_bytes=GIB, min_run_slots=16)
    assert [k.slots_per_large_page for k in uneven.kinds] == [4 * 26, 4 * 5]


def test_planning_is_deterministic_and_the_order_of_kinds_changes_no_size():
    kinds = model_kinds("falcon-h1-7b")
    plan = plan_arena(kinds, arena_bytes=20 * GIB, page_tokens=16)
    again = plan_arena(kinds, arena_bytes=20 * GIB, page_tokens=16)
    turned = plan_arena(kinds[::-1], arena_bytes=20 * GIB, page_tokens=16)
    assert plan == again
    assert plan.kinds == turned.kinds[::-1]


# ---------------------------------------------------------------- properties


@st.composite
def kind_specs(draw, name: str, max_row_bytes: int):
    span = draw(st.integers(1, 5000))
    spanned = [Window(window_tokens=span), Chunked(chunk_tokens=span)]
    policy = draw(st.sampled_from([Full(), *spanned, State(), Cross(), Vision()]))
    itemsize = draw(st.sampled_from([1, 2, 4]))
    rows = tuple(
        RowSpec(
            layer_id=layer,
            part=part,
            row_bytes=itemsize * draw(st.integers(1, max_row_bytes // itemsize)),
            itemsize_bytes=itemsize,
        )
        for layer in range(draw(st.integers(1, 3)))
        for part in ("k", "v")
    )
    return KindSpec(name=name, policy=policy, rows=rows)


@st.composite
def kind_lists(draw, max_kinds: int = 4, max_row_bytes: int = 3000):
    count = draw(st.integers(1, max_kinds))
    return [draw(kind_specs(f"kind{i}", max_row_bytes)) for i in range(count)]


def smallest_fitting_plan(kinds, page_tokens: int) -> ArenaPlan:
    arena_bytes = 2**26
    while True:
        try:
            return plan_arena(kinds, arena_bytes=arena_bytes, page_tokens=page_tokens)
        except ConfigError as error:
            assert "too small" in str(error)
            arena_bytes *= 4


@settings(max_examples=150, deadline=None)
@given(kinds=kind_lists(), page_tokens=st.sampled_from([1, 16, 64, 128]))
def test_any_plan_addresses_every_row_inside_the_arena_without_overlap(kinds, page_tokens):
    plan = smallest_fitting_plan(kinds, page_tokens)
    assert plan.usable_bytes + plan.large_page_bytes == plan.arena_bytes
    for kind in plan.kinds:
        assert plan.large_page_bytes % kind.small_page_bytes == 0  # a common multiple
        assert kind.slot_bytes % 32 == 0
        ends = []
        for row, offset in zip(kind.spec.rows, kind.row_offsets_bytes, strict=True):
            assert kind.row_offset_bytes(row.layer_id, row.part) == offset
            assert offset % 16 == 0
            assert offset % row.itemsize_bytes == 0
            assert kind.slot_bytes % row.itemsize_bytes == 0
            ends.append((offset, offset + row.row_bytes))
        for (_, end), (start, _) in itertools.pairwise(sorted(ends)):
            assert end <= start
        slots = plan.num_slots(kind.spec.name)
        assert slots <= MAX_SLOT_IDS
        last_slot_byte = (slots - 1) * kind.slot_bytes
        assert last_slot_byte + max(end for _, end in ends) <= plan.arena_bytes
        # the first id after the sink is the first slot of large page 1
        assert kind.slots_per_large_page * kind.slot_bytes == plan.large_page_bytes


@settings(max_examples=100, deadline=None)
@given(kinds=kind_lists(), page_tokens=st.sampled_from([1, 16]))
def test_any_plan_survives_json_unchanged(kinds, page_tokens):
    plan = smallest_fitting_plan(kinds, page_tokens)
    text = plan.to_json()
    assert ArenaPlan.from_json(text) == plan
    assert ArenaPlan.from_json(text).to_json() == text


def lost_bytes(reference_slots, aligned, slot_sizes, slots_per_large) -> int:
    """The score in geometry's docstring, computed apart from it; halves round down per kind."""
    return sum(
        need * (size - least) + (slots - 1) * size // 2
        for need, least, size, slots in zip(
            reference_slots, aligned, slot_sizes, slots_per_large, strict=True
        )
    )


@pytest.mark.parametrize("page_tokens", [1, 16, 64, 128])
@pytest.mark.parametrize("model", [m for m, row in BY_HAND.items() if "state" in row[2]])
def test_on_real_state_models_an_exhaustive_search_finds_nothing_better(model, page_tokens):
    plan = plan_arena(model_kinds(model), arena_bytes=80 * GIB, page_tokens=page_tokens)
    full, state = plan.kinds
    sizes = [full.spec.payload_bytes, state.spec.payload_bytes]
    needed = [32 * 4096, 32]
    chosen = lost_bytes(
        needed,
        sizes,
        [full.slot_bytes, state.slot_bytes],
        [full.slots_per_large_page, state.slots_per_large_page],
    )
    for states in range(1, 60):
        most = states * sizes[1] // (page_tokens * sizes[0]) + 2
        for small_pages in range(max(1, most - 20), most):
            tokens = small_pages * page_tokens
            unit = math.lcm(full.spec.head_bytes * tokens, 32 * states)
            large = -(-max(tokens * sizes[0], states * sizes[1]) // unit) * unit
            slots = [tokens, states]
            assert chosen <= lost_bytes(needed, sizes, [large // n for n in slots], slots)


@settings(max_examples=200, deadline=None)
@given(
    units=st.lists(st.integers(1, 200), min_size=2, max_size=3),
    requests=st.integers(1, 200),
    tokens=st.integers(1, 20_000),
)
def test_no_plan_loses_more_than_the_exact_lcm_or_than_rounding_the_largest_kind_up(
    units, requests, tokens
):
    policies = [Full(), Window(window_tokens=64), State()]
    kinds = [flat_kind(f"kind{i}", 32 * n, policies[i]) for i, n in enumerate(units)]
    sizes = [kind.payload_bytes for kind in kinds]
    exact = math.lcm(*sizes)
    reference = ReferenceLoad(num_requests=requests, num_tokens=tokens)
    plan = plan_arena(kinds, arena_bytes=exact, min_large_pages=1, reference=reference)
    needed = [requests * n for n in (tokens, min(tokens, 64), 1)[: len(kinds)]]
    slot_sizes = [kind.slot_bytes for kind in plan.kinds]
    slots = [kind.slots_per_large_page for kind in plan.kinds]
    chosen = lost_bytes(needed, sizes, slot_sizes, slots)
    assert chosen <= lost_bytes(needed, sizes, sizes, [exact // size for size in sizes])
    largest = max(range(len(sizes)), key=lambda i: sizes[i])
    others = math.lcm(*(size for i, size in enumerate(sizes) if i != largest))
    rounded = -(-sizes[largest] // others) * others
    padded = [rounded if i == largest else size for i, size in enumerate(sizes)]
    assume(sum(size == sizes[largest] for size in sizes) == 1)
    assert chosen <= lost_bytes(needed, sizes, padded, [rounded // size for size in padded])


# ---------------------------------------------------------------- errors say what to do


def test_an_arena_too_small_names_both_sizes_and_the_remedy():
    with pytest.raises(ConfigError) as error:
        plan_arena(model_kinds("gemma3-27b"), arena_bytes=400_000)
    text = str(error.value)
    assert "arena of 400,000 B is too small" in text
    assert "3 large pages are needed (one is the sink)" in text
    assert "give it at least 1,277,952 B" in text


def test_more_slot_ids_than_int32_are_refused_with_the_largest_arena():
    with pytest.raises(ConfigError, match=r"4,294,967,296 slot ids.*at or below 64\.00 GiB"):
        plan_arena([flat_kind("tiny", 32)], arena_bytes=128 * GIB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kinds=[]), "at least one kind, got none"),
        (dict(kinds=[flat_kind("a", 32), flat_kind("a", 64)]), "kind names must differ"),
        (dict(arena_bytes=0), "arena_bytes must be a positive integer, got 0"),
        (dict(page_tokens=0), "page_tokens must be a positive integer, got 0"),
        (dict(min_large_pages=0), "min_large_pages must be a positive integer, got 0"),
    ],
)
def test_contradictory_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_arena(**{"kinds": [flat_kind("a", 32)], "arena_bytes": 4096, **arguments})


# ---------------------------------------------------------------- the paper's baselines


def test_gcd_paging_wastes_nothing_but_needs_many_ids_per_token():
    geometry = gcd_geometry(model_kinds("gemma3-27b"))
    assert geometry.page_bytes == 16_384
    assert [(k.name, k.ids_per_small_page) for k in geometry.kinds] == [("full", 5), ("window", 26)]
    assert [k.waste_percent for k in geometry.kinds] == [0, 0]


def test_max_paging_needs_one_id_but_wastes_most_of_the_smaller_kind():
    geometry = max_geometry(model_kinds("gemma3-27b"))
    assert geometry.page_bytes == 425_984
    assert [k.ids_per_small_page for k in geometry.kinds] == [1, 1]
    full, window = geometry.kinds
    assert full.waste_percent == pytest.approx(100 * (1 - 81_920 / 425_984))  # 80.8 %
    assert window.waste_percent == 0
    state = max_geometry(model_kinds("qwen3-next-80b-fp32ssm"), page_tokens=16)
    assert state.kinds[0].waste_percent == pytest.approx(100 * (1 - 16 / 3144))
