# SPDX-License-Identifier: Apache-2.0
"""Claims about kernels and plans: what is refused would go wrong, and what is served does not.

Addresses are computed here as the kernels compute them, with integers of their width.
"""

from dataclasses import replace

import pytest

from sglang_jenga.core import kernels
from sglang_jenga.core.catalog import CATALOG, model_kinds
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kernels import (
    EVERY_GPU,
    LIGHTNING,
    SHORT_CONVOLUTION,
    UNCHECKED,
    XQA_GPUS,
    AttentionUse,
    attention_problems,
    attention_warnings,
    state_problem,
)
from sglang_jenga.core.kinds import KindSpec, RowSpec, attention_kind, state_kind
from sglang_jenga.core.plan import ArenaPlan, KindPlan, slot_unit_bytes
from sglang_jenga.core.policies import Full

GIB = 2**30


def use(backend: str, gpu: str = "sm90", *, prefill: str | None = None) -> AttentionUse:
    return AttentionUse(prefill=prefill or backend, decode=backend, gpu=gpu)


def full(*, layers=4, heads=8, k=128, v=None, itemsize=2):
    return attention_kind(
        "full",
        Full(),
        range(layers),
        num_kv_heads=heads,
        k_head_dim=k,
        v_head_dim=v or k,
        itemsize=itemsize,
    )


def xqa_element(slot: int, page_tokens: int, slot_elements: int, head_elements: int) -> int:
    """Where XQA looks for a slot (xqa/mha.cu:3047, mhaUtils.cuh:85): strides in whole heads, the
    page times its stride in 32 bits."""
    page_heads = (page_tokens * slot_elements // head_elements) % 2**32
    token_heads = (slot_elements // head_elements) % 2**32
    page, token = divmod(slot, page_tokens)
    return (page * page_heads + token * token_heads) % 2**32 * head_elements


def misread(slot_bytes: int, head_bytes: int, arena_bytes: int, page_tokens: int) -> bool:
    """Whether XQA looks elsewhere for some slot of the last page."""
    last = arena_bytes // slot_bytes // page_tokens * page_tokens - 1
    return any(
        xqa_element(slot, page_tokens, slot_bytes // 2, head_bytes // 2) != slot * slot_bytes // 2
        for slot in range(max(0, last - page_tokens + 1), last + 1)
    )


@pytest.mark.parametrize("model", sorted(CATALOG))
def test_xqa_reads_every_plan_of_every_page_size_where_it_was_written(model):
    for page_tokens in range(1, 129):
        plan = plan_arena(model_kinds(model), arena_bytes=80 * GIB, page_tokens=page_tokens)
        for kind in plan.kinds:
            head = kind.spec.head_bytes
            if head:
                assert kind.slot_bytes % head == 0
                assert not misread(kind.slot_bytes, head, plan.arena_bytes, page_tokens)
        assert not [
            said for gpu in XQA_GPUS for said in attention_problems(plan, use("trtllm_mha", gpu))
        ]


def test_xqa_would_misread_the_slot_that_padding_alone_would_give():
    """Falcon-H1 with pages of 16, as the planner cut it before slots were counted in heads."""
    assert misread(45_152, 256, 80 * GIB, 16)
    (kind, _) = plan_arena(model_kinds("falcon-h1-7b"), arena_bytes=80 * GIB, page_tokens=16).kinds
    assert kind.slot_bytes == 45_056 and not misread(45_056, 256, 80 * GIB, 16)


def test_a_plan_whose_slots_are_not_whole_heads_cannot_be_made():
    kind = plan_arena([full()], arena_bytes=GIB).kinds[0]
    with pytest.raises(ConfigError, match=r"no multiple of 256 B \(32 B, elements and heads of"):
        replace(
            kind,
            slot_bytes=kind.slot_bytes + 32,
            padding_bytes_per_slot=32,
        )


def test_rows_and_slots_off_their_alignment_cannot_be_made():
    spec = KindSpec(name="odd", policy=Full(), rows=(RowSpec(layer_id=0, part="k", row_bytes=32),))
    good = {
        "spec": spec,
        "slot_bytes": 64,
        "row_offsets_bytes": (16,),
        "slots_per_small_page": 1,
        "small_pages_per_large_page": 1,
        "padding_bytes_per_slot": 32,
    }
    KindPlan(**good)
    with pytest.raises(ConfigError, match="starts at byte 8, and rows start at multiples of 16 B"):
        KindPlan(**{**good, "row_offsets_bytes": (8,)})
    with pytest.raises(ConfigError, match="a slot of 80 B is no multiple of 32 B"):
        KindPlan(**{**good, "slot_bytes": 80, "padding_bytes_per_slot": 48})


def test_heads_of_several_sizes_ask_for_no_common_multiple():
    """K of 192 and V of 128: XQA does not serve them, so nobody pays for a multiple of 768."""
    assert slot_unit_bytes(full(k=192, v=128)) == 32
    assert slot_unit_bytes(full(k=80, itemsize=1)) == 160


def test_xqa_counts_heads_of_an_arena_in_32_bits():
    """64-byte heads: fp8 of 64 elements. One large page below 256 GiB is served."""
    spec = full(layers=24, heads=8, k=64, itemsize=1)
    page = plan_arena([spec], arena_bytes=GIB).large_page_bytes
    for arena_bytes, refused in ((2**32 * 64 - page, False), (2**32 * 64 + 2 * page, True)):
        plan = plan_arena([spec], arena_bytes=arena_bytes)
        said = attention_problems(plan, use("trtllm_mha"))
        assert bool(said) is refused
        last = plan.num_slots("full") - 1
        looked_for = xqa_element(last, 1, plan.kinds[0].slot_bytes, 64)
        assert (looked_for != last * plan.kinds[0].slot_bytes) is refused
    assert "below 4,294,967,296" in said[0] and "256.00 GiB (--jenga-arena-size)" in said[0]
    assert not attention_problems(plan, use("trtllm_mha", "sm100"))
    assert not attention_problems(plan, use("triton", prefill="trtllm_mha")), "XQA only decodes"


@pytest.mark.parametrize("gpu", EVERY_GPU)
@pytest.mark.parametrize("prefill", ["fa4", "triton"])
def test_fa4_is_refused_where_it_would_copy_the_arena(prefill, gpu):
    plan = plan_arena(model_kinds("gemma2-9b"), arena_bytes=80 * GIB)
    said = attention_problems(plan, use("fa4", gpu, prefill=prefill))
    assert [line.split("for kind ")[1].split()[0] for line in said] == ["full", "window"]
    copied = plan.num_slots("full") * 2 * 8 * 256 * 2
    assert f"copies {copied / 2**30:,.2f} GiB in each of 21 layers" in said[0]
    assert f"({gpu})" in said[0] and "Instead: use" in said[0]
    assert not attention_problems(
        plan_arena(model_kinds("llama31-8b"), arena_bytes=80 * GIB), use("fa4", gpu)
    )


@pytest.mark.parametrize("backend", ["flashinfer", "trtllm_mha"])
def test_k_and_v_of_two_widths_are_refused_where_kernels_take_one(backend):
    plan = plan_arena([full(k=192, v=128)], arena_bytes=GIB)
    said = attention_problems(plan, use(backend, "sm100"))
    assert "heads of 128 and 192 elements" in said[0]
    for served in ("triton", "fa3", "fa4", "jenga_ref"):
        assert not attention_problems(plan, use(served))


def test_a_page_that_a_c_int_cannot_span_is_refused():
    """16,777,216 elements of a slot: 128 tokens are 2**31 apart, 127 are below."""
    spec = full(layers=128, heads=256, k=256, itemsize=1)
    assert spec.payload_bytes == 2**24
    for page_tokens, refused in ((127, False), (128, True)):
        plan = plan_arena([spec], arena_bytes=2**34, page_tokens=page_tokens)
        said = attention_problems(plan, use("trtllm_mha", "sm100"))
        assert bool(said) is refused
        assert (page_tokens * plan.kinds[0].slot_bytes > 2**31 - 1) is refused
    assert "a page of 128 tokens of kind full has 2,147,483,648" in said[0]
    assert not attention_problems(plan, use("flashinfer", "sm100")), "its pages are one token"


@pytest.mark.parametrize("gpu", EVERY_GPU)
def test_every_way_out_that_is_named_serves(gpu):
    specs = [full(k=256), full(k=192, v=128), full(k=64, itemsize=1), full(k=256, v=128)]
    for spec in specs:
        for arena_bytes in (GIB, 300 * GIB):
            plan = plan_arena([spec], arena_bytes=arena_bytes)
            for backend in ("fa4", "trtllm_mha", "flashinfer"):
                for said in attention_problems(plan, use(backend, gpu)):
                    ways = said.rpartition("Instead: use ")[2].rstrip(".").split(" or ")
                    assert ways
                    assert not [w for w in ways if attention_problems(plan, use(w, gpu))]


def test_the_copies_of_a_prefill_are_told_with_their_bytes():
    plan = plan_arena(model_kinds("llama31-8b"), arena_bytes=80 * GIB, page_tokens=16)
    for gpu in XQA_GPUS:
        (said,) = attention_warnings(plan, use("trtllm_mha", gpu), 131_072)
        assert "4,096 B per token, 512.00 MiB per layer for 131,072 tokens" in said
    assert not attention_warnings(plan, use("trtllm_mha", "sm100"), 131_072)
    assert not attention_warnings(plan, use("trtllm_mha", prefill="triton"), 131_072)


# ---- states --------------------------------------------------------------------------------------


def states_plan(arena_bytes: int) -> ArenaPlan:
    """LFM2-1.2B's convolutions: 10 layers of 2,048 channels, two inputs each, in bfloat16."""
    conv = state_kind(
        "state",
        range(10, 20),
        conv_shapes=[(2048, 2)],
        conv_itemsize=2,
        temporal_shape=None,
        temporal_itemsize=4,
    )
    return plan_arena([full(layers=6, heads=8, k=64), conv], arena_bytes=arena_bytes)


def wrapped(product: int, *, signed: bool) -> int:
    low = product % 2**32
    return low - 2**32 if signed and low >= 2**31 else low


@pytest.mark.parametrize(
    ("family", "signed"), [(SHORT_CONVOLUTION, False), (LIGHTNING, True), (UNCHECKED, True)]
)
def test_the_first_wrong_slot_is_the_first_whose_address_wraps(family, signed):
    kind = states_plan(20 * GIB).kind("state")
    elements = kind.slot_bytes // 2
    wrong = family.first_wrong_slot(kind)
    end = elements - 1 if family.sums else 0

    def right(slot):
        return wrapped(slot * elements + end, signed=signed) == slot * elements + end

    assert right(wrong - 1) and not right(wrong)


@pytest.mark.parametrize("family", [SHORT_CONVOLUTION, LIGHTNING, UNCHECKED])
def test_states_are_served_below_their_limit_and_refused_above_with_the_slot(family):
    wrong = family.first_wrong_slot(states_plan(20 * GIB).kind("state"))
    said = state_problem(states_plan(20 * GIB), family)
    assert said is not None
    assert f"those from {wrong:,} on" in said and family.why in said
    advised = int(said.partition("--jenga-arena-size ")[2].split()[0])
    assert state_problem(states_plan(advised), family) is None
    assert states_plan(advised).num_slots("state") <= wrong
    page = states_plan(20 * GIB).large_page_bytes
    assert state_problem(states_plan(advised + page), family) is not None


@pytest.mark.parametrize("family", [kernels.MAMBA1, kernels.MAMBA2, kernels.DELTA_NET])
def test_kernels_that_multiply_in_64_bits_serve_any_arena(family):
    assert state_problem(states_plan(200 * GIB), family) is None


def test_a_state_that_no_arena_could_hold_names_no_size():
    """Two slots of it are past the limit: a smaller arena would serve nobody."""
    huge = state_kind(
        "state",
        [1],
        conv_shapes=[],
        conv_itemsize=2,
        temporal_shape=(2**30,),
        temporal_itemsize=4,
    )
    plan = plan_arena([full(), huge], arena_bytes=64 * GIB)
    said = state_problem(plan, LIGHTNING)
    assert "--jenga-arena-size" not in said and "Instead: drop --radix-cache-backend" in said


def test_a_plan_without_states_has_no_problem_of_states():
    plan = plan_arena([full()], arena_bytes=80 * GIB)
    assert state_problem(plan, UNCHECKED) is None
