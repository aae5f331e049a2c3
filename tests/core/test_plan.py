# SPDX-License-Identifier: Apache-2.0
"""Claims about the plan itself: rows in a slot, the printed lines, and what it refuses to be."""

import json

import pytest

from sglang_jenga.core.catalog import model_kinds
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kinds import KindSpec, RowSpec, state_kind
from sglang_jenga.core.plan import ArenaPlan, KindPlan
from sglang_jenga.core.policies import Full

GIB = 2**30


# ---------------------------------------------------------------- rows inside a slot


def test_attention_rows_lie_k_then_v_layer_by_layer():
    plan = plan_arena(model_kinds("gemma3-27b"), arena_bytes=GIB)
    full = plan.kind("full")
    assert full.row_offset_bytes(5, "k") == 0
    assert full.row_offset_bytes(5, "v") == 4096
    assert full.row_offset_bytes(11, "k") == 8192
    assert full.layer_stride_bytes("v") == 8192
    with pytest.raises(KeyError, match="kind 'full' has no row for layer 0 part 'k'"):
        full.row_offset_bytes(0, "k")


def test_state_rows_lie_part_by_part_at_one_layer_stride():
    plan = plan_arena(model_kinds("qwen3-next-80b-fp32ssm"), arena_bytes=GIB)
    state = plan.kind("state")
    assert state.layer_stride_bytes("conv0") == 8192 * 3 * 2
    assert state.layer_stride_bytes("temporal") == 32 * 128 * 128 * 4
    assert state.row_offset_bytes(0, "temporal") == 36 * 8192 * 3 * 2
    with pytest.raises(KeyError, match="no part 'k'"):
        state.layer_stride_bytes("k")


def test_a_state_row_that_is_no_multiple_of_16_bytes_keeps_a_constant_stride():
    spec = state_kind(
        "state",
        range(3),
        conv_shapes=[(5, 3)],  # 30 B rows
        conv_itemsize=2,
        temporal_shape=(7,),  # 28 B rows
        temporal_itemsize=4,
    )
    kind = plan_arena([spec], arena_bytes=4096).kinds[0]
    assert kind.row_offsets_bytes == (0, 32, 64, 96, 128, 160)
    assert kind.layer_stride_bytes("conv0") == kind.layer_stride_bytes("temporal") == 32
    assert kind.slot_bytes == 192
    assert kind.padding_bytes_per_slot == 192 - 3 * 30 - 3 * 28


def test_uneven_layers_have_no_single_stride():
    rows = tuple(RowSpec(layer_id=i, part="k", row_bytes=n) for i, n in enumerate((16, 32, 16)))
    spec = KindSpec(name="odd", policy=Full(), rows=rows)
    kind = plan_arena([spec], arena_bytes=4096).kinds[0]
    with pytest.raises(ConfigError, match="16 to 32 B apart, one strided tensor needs one"):
        kind.layer_stride_bytes("k")


# ---------------------------------------------------------------- what it prints


def test_describe_gives_one_line_per_kind_one_of_the_arena_and_one_of_its_waste():
    lines = plan_arena(model_kinds("gemma3-27b"), arena_bytes=17 * GIB).describe()
    assert lines == [
        "kind full: full, 10 layers, slot 81,920 B, small page 1 slot, large page 26 slots, "
        "at most 222,794 slots, padding 0.0000 %",
        "kind window: window(1,024), 52 layers, slot 425,984 B, small page 1 slot, "
        "large page 5 slots, at most 42,845 slots, padding 0.0000 %",
        "arena: 17.00 GiB = 8,570 large pages of 2.03 MiB (lcm, one is the sink)",
        "waste: padding at most 0.0000 %, a request that shares no large page leaves "
        "2.60 MiB expected and 5.20 MiB worst in partly filled ones",
    ]


# ---------------------------------------------------------------- what it refuses


def small_plan() -> dict:
    kinds = [
        KindSpec(
            name=name,
            policy=Full(),
            rows=(RowSpec(layer_id=0, part="k", row_bytes=size),),
        )
        for name, size in (("a", 32), ("b", 96))
    ]
    return json.loads(plan_arena(kinds, arena_bytes=960).to_json())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(schema=2), "plan schema 2 is unknown, this version reads schema 1"),
        (lambda d: d.pop("schema"), "plan schema None is unknown"),
        (lambda d: d.pop("geometry"), r"damaged arena plan .*\['geometry'\]"),
        (lambda d: d.update(extra=1), r"damaged arena plan .*\['extra'\]"),
        (lambda d: d.update(geometry="best"), "geometry must be 'lcm' or 'padded', got 'best'"),
        (lambda d: d.update(large_page_bytes=97), "not one large page of 97 B"),
        (lambda d: d.update(kinds=[]), "at least one kind"),
        (lambda d: d["kinds"][0].update(slot_bytes=0), "slot_bytes must be a positive"),
        (lambda d: d["kinds"][0].update(row_offsets_bytes=[]), "0 row offsets for 1 rows"),
        (lambda d: d["kinds"][0].update(row_offsets_bytes=[16]), "rows end at byte 48 of a 32 B"),
        (lambda d: d["kinds"][0].update(row_offsets_bytes=[-1]), "starts at byte -1"),
        (lambda d: d["kinds"][0].update(padding_bytes_per_slot=1), "the plan states 1 B"),
        (lambda d: d["kinds"][0]["spec"].update(policy={"name": "odd"}), "policy .odd. is unknown"),
    ],
)
def test_a_damaged_plan_is_refused(damage, message):
    data = small_plan()
    ArenaPlan.from_json(json.dumps(data))
    damage(data)
    with pytest.raises(ConfigError, match=message):
        ArenaPlan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "not json", "3"])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(ConfigError, match="an arena plan must be a JSON object"):
        ArenaPlan.from_json(text)


def test_plans_cannot_be_changed():
    plan = ArenaPlan.from_json(json.dumps(small_plan()))
    with pytest.raises(AttributeError):
        plan.num_large_pages = 7
    with pytest.raises(TypeError):
        KindPlan(plan.kinds[0].spec, 32, (0,), 1, 1, 0)
