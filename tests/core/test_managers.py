# SPDX-License-Identifier: Apache-2.0
"""Claims about how many requests each manager holds in the same bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglang_jenga.core.capacity import uniform_paging_waste
from sglang_jenga.core.configs.find import find_config
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.read import StoredModel, read_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.managers import Capacity, Lengths, Scene, compare
from sglang_jenga.core.managers import sglang as sglang_module
from sglang_jenga.core.managers.base import Store
from sglang_jenga.core.managers.sglang import sglang_static
from sglang_jenga.core.managers.vllm import block_layout
from sglang_jenga.core.sizing import size_arena

GIB = 2**30


def model(name: str) -> StoredModel:
    return read_model(find_config(name).config)


def scene_of(
    stored: StoredModel, lengths: Lengths, *, gib: int = 40, page_tokens: int = 1
) -> Scene:
    return Scene(
        specs=stored.specs,
        stock=stored.stock,
        total_bytes=gib * GIB,
        page_tokens=page_tokens,
        lengths=lengths,
        state_slots=stored.family.state_slots,
    )


def rows(
    name: str, prompt: int, output: int, *, gib: int = 40, images: int = 0, page_tokens: int = 1
) -> dict[str, Capacity]:
    stored = model(name)
    lengths = Lengths(prompt_tokens=prompt, output_tokens=output, image_tokens=images)
    sized = size_arena(
        stored.specs,
        arena_bytes=gib * GIB,
        page_tokens=page_tokens,
        window=stored.kinds.window_policy,
        chunk_tokens=8192,
    )
    scene = scene_of(stored, lengths, gib=gib, page_tokens=page_tokens)
    return {row.manager: row for row in compare(sized, scene)}


# ---- the paper's figures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "images", "percent"),
    [
        ("llama32-11b-vision", 43, 6193, 79.59),  # lengths of MMMU-Pro
        ("gemma2-9b", 8192, 0, 25.0),  # its whole context
        ("ministral-8b", 131072, 0, 56.25),
    ],
)
def test_all_full_wastes_what_the_rfc_says_at_its_lengths(
    name: str, text: int, images: int, percent: float
) -> None:
    found = rows(name, text - 1, 1, images=images)["all-full"]
    assert round(100 * found.waste, 2) == percent
    by_formula = uniform_paging_waste(model(name).specs, text, image_tokens=images)
    assert found.waste == pytest.approx(by_formula, abs=1e-4)


# ---- what no manager may do ----------------------------------------------------------------------

SHAPES = [(1, 0), (100, 28), (4096, 512), (8000, 500), (30000, 2000)]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("page_tokens", [1, 64])
def test_no_manager_holds_less_than_it_needs_or_more_than_there_is(
    name: str, page_tokens: int
) -> None:
    if page_tokens > 1 and model(name).family.page_one:
        return
    for prompt, output in SHAPES:
        images = model(name).image_tokens
        for row in rows(name, prompt, output, images=images, page_tokens=page_tokens).values():
            assert 0 <= row.waste < 1, row
            if row.requests:
                assert row.held_bytes <= row.total_bytes, row
                assert 0 < row.used <= 1 - row.waste + 1e-9, row


@pytest.mark.parametrize("name", PUBLISHED)
def test_nobody_fits_more_requests_than_their_needed_bytes_allow(name: str) -> None:
    for prompt, output in SHAPES[1:]:
        images = model(name).image_tokens
        for row in rows(name, prompt, output, images=images).values():
            each = row.needed_bytes // max(1, row.requests)
            assert row.requests * each <= row.total_bytes, row


def test_more_bytes_never_hold_fewer_requests() -> None:
    for name in ("gemma3-27b", "gpt-oss-20b", "qwen3-next-80b", "llama32-11b-vision"):
        images = model(name).image_tokens
        few, many = (rows(name, 4096, 512, gib=gib, images=images) for gib in (20, 41))
        for manager, row in few.items():
            assert many[manager].requests >= row.requests


def test_on_a_uniform_model_all_managers_hold_the_same() -> None:
    found = rows("llama31-8b", 8000, 500)
    assert {row.requests for row in found.values()} == {40 * GIB // (131072 * 8500)}


def test_a_prefill_step_takes_window_slots_for_its_chunk() -> None:
    """One request more is not admitted while the last one's chunk is in the window layers."""
    stored = model("gemma3-27b")
    counts = []
    for chunk in (512, 8192, None):
        lengths = Lengths(prompt_tokens=30000, output_tokens=100, chunk_tokens=chunk)
        sized = size_arena(
            stored.specs,
            arena_bytes=20 * GIB,
            page_tokens=1,
            window=stored.kinds.window_policy,
            chunk_tokens=chunk,
        )
        counts.append([r.requests for r in compare(sized, scene_of(stored, lengths, gib=20))])
    few, many, whole = counts
    assert few[0] > many[0] > whole[0]
    assert few[3] > many[3] > whole[3], "vllm"


@pytest.mark.parametrize(("output", "held"), [(192, 1215), (256, 1279), (512, 1078), (1400, 1056)])
def test_an_answer_unpins_its_prompts_window_once_a_quarter_of_it_is_dead(
    output: int, held: int
) -> None:
    """Window slots of one request at its end, recorded from ``sglang-jenga simulate`` with a prompt
    of 4,096 tokens, where the dead part was between none and the interval of 65 tokens."""
    found = rows("gemma3-27b", 4096, output)["jenga"]
    slots = (found.held_bytes / found.requests - (4096 + output) * 81920) / 425984
    assert held - 6 <= slots <= max(held, 1024 + 65) + 6


# ---- SGLang --------------------------------------------------------------------------------------


def test_the_default_window_ratio_divides_as_sglang_does() -> None:
    """gpt-oss-20b, 8 GiB: pool_configurator gives full_tokens * (24,576 + 0.8 * 24,576) bytes."""
    full_tokens = int(8 * GIB / (24576 + 0.8 * 24576))
    found = rows("gpt-oss-20b", 8000, 500, gib=8)["sglang-static"]
    assert found.requests == full_tokens // 8500
    assert found.split is not None and found.split.flag == "--swa-full-tokens-ratio"


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gemma4-31b", "llama4-scout", "jamba-v0.1"])
@pytest.mark.parametrize("lengths", [(500, 100), (8000, 500), (30000, 2000)])
def test_no_other_ratio_holds_more_than_the_best(name: str, lengths: tuple[int, int]) -> None:
    scene = scene_of(model(name), Lengths(prompt_tokens=lengths[0], output_tokens=lengths[1]))
    split = sglang_static(scene).split
    assert split is not None
    pools = sglang_module._window_pools if scene.stock == "windows" else sglang_module._state_pools
    tried = [10 ** (exponent / 50) for exponent in range(-150, 100)]
    best = max(sglang_module.most_requests(pools(scene, ratio)) for ratio in tried)
    assert split.requests >= best
    assert sglang_module.most_requests(pools(scene, split.best)) == split.requests


@pytest.mark.parametrize(
    ("name", "waste"),
    [("gpt-oss-20b", 0.0274), ("llama4-scout", 0.7229), ("qwen3-next-80b", 0.3231)],
)
def test_one_request_wastes_what_sglangs_own_pools_wasted(name: str, waste: float) -> None:
    """Recorded from SGLang 0.5.23's allocators and tree, which ran 8,000 + 500 tokens."""
    found = rows(name, 8000, 500)
    assert found["sglang-static"].waste == pytest.approx(waste, abs=0.003)
    assert found["sglang-unified"].waste == pytest.approx(waste, abs=0.003)


@pytest.mark.parametrize(
    ("name", "gib", "tokens", "others"),
    [
        ("gpt-oss-20b", 8, 194180, 155344),
        ("llama4-scout", 20, 128501, 102800),
        ("qwen3-next-80b", 6, 138328, 76),
        ("jamba-v0.1", 4, 138188, 232),
    ],
)
def test_pools_are_as_large_as_sglangs(name: str, gib: int, tokens: int, others: int) -> None:
    """Full tokens, and window tokens or states, recorded from SGLang 0.5.23."""
    scene = scene_of(model(name), Lengths(prompt_tokens=1, output_tokens=1), gib=gib)
    split = sglang_module._window_pools if scene.stock == "windows" else sglang_module._state_pools
    ratio = 0.8 if scene.stock == "windows" else 0.9
    assert [store.capacity for store in split(scene, ratio)] == [tokens, others]


def test_sglangs_pools_count_layers_that_share_the_k_and_v_of_others() -> None:
    """Gemma 4 E4B: 7 full and 35 window layers, of which 3 and 15 store nothing."""
    stored = model("gemma4-e4b")
    scene = replace(
        scene_of(stored, Lengths(prompt_tokens=1000, output_tokens=1000)),
        stock_specs=stored.stock_specs,
    )
    assert [spec.num_layers for spec in stored.stock_specs] == [7, 35]
    assert sglang_module._cells(scene) == (7 * 2 * 2 * 512 * 2, 35 * 2 * 2 * 256 * 2)
    assert model("gemma3-27b").stock_specs == model("gemma3-27b").specs


def test_states_that_are_set_aside_limit_running_requests() -> None:
    """Qwen3-Next, float32 states, 3 GiB, short prompts: the judge saw 3 run at once (RESULTS)."""
    found = rows("qwen3-next-80b-fp32ssm", 1000, 50, gib=3)
    state = 77266944
    slots = int((3 * GIB * 0.9 / 1.9 - state) // state)
    assert found["sglang-static"].requests == slots // 5 == 3
    assert found["sglang-unified"].requests == 3, "its cap is that of the split"
    assert found["jenga"].requests > 20


def test_a_model_that_sglang_does_not_split_keeps_every_token() -> None:
    found = rows("gemma3-27b", 8000, 500)
    assert found["sglang-static"].requests == found["all-full"].requests
    assert "no second pool" in found["sglang-static"].note


# ---- vLLM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "groups", "block_tokens", "bytes_per_block"),
    [
        ("llama31-8b", 1, 16, 2_097_152),
        ("gemma2-9b", 2, 16, 2_752_512),
        ("gemma3-27b", 7, 16, 1_310_720),
        ("gpt-oss-20b", 2, 16, 393_216),
        ("ministral-8b", 4, 16, 589_824),
        ("llama32-11b-vision", 5, 16, 524_288),
        ("jamba-v0.1", 8, 80, 1_310_720),
        ("qwen3-next-80b", 4, 544, 13_369_344),
        ("qwen3-next-80b-fp32ssm", 4, 1056, 25_952_256),
        ("llama4-scout", 4, 16, 786_432),
        ("gemma3-12b", 6, 16, 1_048_576),
        ("gemma4-31b", 6, 32, 2_621_440),
        ("gemma4-e4b", 6, 16, 262_144),
        ("falcon-h1-7b", 2, 3104, 139_853_824),
        ("granite-4.0-h-small", 10, 1040, 17_039_360),
        ("nemotron-h-8b", 7, 1040, 17_039_360),
    ],
)
def test_blocks_are_those_of_vllms_own_planner(
    name: str, groups: int, block_tokens: int, bytes_per_block: int
) -> None:
    """Recorded from vLLM 0.33.0's get_kv_cache_configs for these geometries."""
    layout = block_layout(model(name).specs)
    assert sum(group.num_groups for group in layout.groups) == groups
    assert layout.groups[0].block_tokens == block_tokens
    assert layout.bytes_per_block == bytes_per_block


@pytest.mark.parametrize(
    ("name", "prompt", "output", "waste"),
    [
        ("gemma4-31b", 8000, 500, 0.0091),
        ("gemma4-31b", 300, 40, 0.0369),
        ("gemma4-e4b", 8000, 500, 0.0094),
        ("gemma3-12b", 8000, 500, 0.0068),
        ("gemma3-12b", 300, 40, 0.0369),
        ("falcon-h1-7b", 8000, 500, 0.0664),
        ("falcon-h1-7b", 300, 40, 0.4472),
        ("granite-4.0-h-small", 8000, 500, 0.0477),
        ("granite-4.0-h-small", 300, 40, 0.0705),
        ("nemotron-h-8b", 300, 40, 0.0971),
    ],
)
def test_one_request_wastes_what_vllms_own_manager_wasted(
    name: str, prompt: int, output: int, waste: float
) -> None:
    """Recorded from vLLM 0.33.0's KVCacheManager, which ran the request; its snapshot is one token
    before the end."""
    assert rows(name, prompt, output)["vllm"].waste == pytest.approx(waste, abs=0.003)


# ---- parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "most"),
    [
        (Store(capacity=10, at_end=3), 3),
        (Store(capacity=10, at_end=3, peak=5), 2),
        (Store(capacity=10, at_end=3, peak=11), 0),
        (Store(capacity=2, at_end=3), 0),
        (Store(capacity=10, at_end=0), None),
    ],
)
def test_a_store_keeps_room_for_one_request_at_its_peak(store: Store, most: int | None) -> None:
    assert store.most_requests == most
    if most:
        assert (most - 1) * store.at_end + max(store.peak, store.at_end) <= store.capacity
        assert most * store.at_end + max(store.peak, store.at_end) > store.capacity


def test_lengths_that_make_no_sense_are_refused() -> None:
    for prompt, output, images in ((0, 1, 0), (1, -1, 0), (1, 1, -1)):
        with pytest.raises(ConfigError, match="at least 1 prompt token"):
            Lengths(prompt_tokens=prompt, output_tokens=output, image_tokens=images)
