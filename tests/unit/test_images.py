# SPDX-License-Identifier: Apache-2.0
"""Images of models with cross layers: slots of their own kind, shared, hit and evicted whole."""

from __future__ import annotations

import os
import random

import pytest
import torch

from image_machine import IMAGE_TOKENS, ImageMachine, image_kinds, picture
from scheduler import Loop
from sglang_jenga.core.policies import Cross, Full
from sglang_jenga.sglang_ext.config import TEST_SEED
from sglang_jenga.sglang_ext.model_kinds import AttentionLayer, ModelKinds

FULL, CROSS = 0, 1
SEED = int(os.environ.get(TEST_SEED, "0"))
TEXT = list(range(10, 40))


def make_machine(*, large_pages: int = 400, **kwargs: object) -> ImageMachine:
    return ImageMachine(large_pages=large_pages, **kwargs)


def used(machine: ImageMachine) -> tuple[int, int]:
    return machine.arena.used_slots(FULL), machine.arena.used_slots(CROSS)


# ---- slots -------------------------------------------------------------------------------------


def test_image_tokens_hold_slots_in_cross_layers_alone_and_text_in_self_layers_alone() -> None:
    machine = make_machine()
    req = machine.prefill([*picture(1), *TEXT])
    assert used(machine) == (len(TEXT), IMAGE_TOKENS)
    machine.decode([req])
    assert used(machine) == (len(TEXT) + 1, IMAGE_TOKENS)
    text = machine.prefill(TEXT)
    assert used(machine) == (2 * len(TEXT) + 1, IMAGE_TOKENS)
    for _ in range(5):
        machine.decode([text, req])
    assert machine.arena.core.audit() == []


def test_kernels_see_plain_slots_of_each_kind() -> None:
    """The host's rows tell the kinds apart; the device's table has what a view is indexed by."""
    machine = make_machine()
    req = machine.prefill([*picture(1), *TEXT])
    row = machine.rows.req_to_token[req.kv.req_pool_idx, : IMAGE_TOKENS + len(TEXT)]
    host = machine.slots(req)
    base = machine.arena.image_base
    assert torch.equal(row[:IMAGE_TOKENS] + base, host[:IMAGE_TOKENS])
    assert torch.equal(row[IMAGE_TOKENS:], host[IMAGE_TOKENS:])
    assert int(host[IMAGE_TOKENS:].max()) < base
    for kind, slots in ((CROSS, row[:IMAGE_TOKENS]), (FULL, row[IMAGE_TOKENS:])):
        name = machine.plan.kinds[kind].spec.name
        assert int(slots.min()) > 0 and int(slots.max()) < machine.plan.num_slots(name)


# ---- sharing -----------------------------------------------------------------------------------


def test_the_same_image_is_stored_once_however_many_requests_have_it() -> None:
    machine = make_machine()
    reqs = [machine.prefill([*picture(1), *range(100 * i, 100 * i + 9)]) for i in range(1, 6)]
    assert used(machine) == (5 * 9, IMAGE_TOKENS)
    for req in reqs:
        machine.decode(reqs)
        machine.finish(req)
        reqs = [other for other in reqs if other is not req]
        if not reqs:
            break
    assert machine.problems() == []
    assert used(machine)[CROSS] == IMAGE_TOKENS


def test_text_behind_the_same_image_is_hit_and_behind_another_is_not() -> None:
    machine = make_machine()
    machine.finish(machine.prefill([*picture(1), *TEXT]))
    assert machine.hit([*picture(1), *TEXT[:7]]) == IMAGE_TOKENS + 7
    assert machine.hit(picture(1)) == IMAGE_TOKENS
    assert machine.hit([*picture(2), *TEXT]) == 0
    assert machine.hit(TEXT) == 0


@pytest.mark.parametrize(
    ("cached", "asked", "hit_images"),
    [
        ((1,), (1,), 1),
        ((1,), (1, 2), 0),  # computed in one go: a part of them is no hit
        ((1, 2), (1,), 1),
        ((1, 2), (2,), 0),  # the text behind would differ, and images come first
        ((1, 2), (1, 3), 0),
        ((1, 2), (1, 2), 2),
        ((1, 2), (2, 1), 0),
        ((1, 1), (1,), 1),
    ],
)
def test_a_request_hits_all_of_its_images_or_none(
    cached: tuple[int, ...], asked: tuple[int, ...], hit_images: int
) -> None:
    machine = make_machine()
    machine.finish(machine.prefill([*picture(*cached), *TEXT]))
    assert machine.hit([*picture(*asked), 5, 6]) == hit_images * IMAGE_TOKENS
    assert machine.problems() == []


def test_images_that_begin_alike_share_the_first_once_they_are_computed() -> None:
    machine = make_machine()
    reqs = [machine.prefill([*picture(1, other), *TEXT]) for other in (2, 3, 4)]
    assert used(machine)[CROSS] == (1 + 3) * IMAGE_TOKENS
    machine.decode(reqs)
    for req in reqs:
        machine.finish(req)
    assert machine.problems() == []


# ---- eviction ----------------------------------------------------------------------------------


def test_images_are_evicted_whole_and_after_the_text_behind_them() -> None:
    machine = make_machine()
    for name in (1, 2):
        machine.finish(machine.prefill([*picture(name), *TEXT], max_new=1))
    seen: list[tuple[int, int]] = []

    def look() -> bool:
        seen.append(used(machine))
        assert machine.problems() == []
        return False

    machine.tree.evict_until(look)
    text = len(TEXT)
    assert seen == [
        (2 * text, 2 * IMAGE_TOKENS),
        (text, 2 * IMAGE_TOKENS),
        (text, IMAGE_TOKENS),
        (0, IMAGE_TOKENS),
        (0, 0),
    ]
    assert machine.tree.evicted_tokens_by_kind() == {"full": 2 * text, "cross": 2 * IMAGE_TOKENS}
    assert machine.arena.core.num_free_large_pages == machine.plan.usable_large_pages


def test_an_image_that_a_request_attends_to_is_never_evicted() -> None:
    machine = make_machine()
    req = machine.prefill([*picture(1), *TEXT])
    machine.finish(machine.prefill([*picture(1), *range(500, 520)], max_new=1))
    machine.tree.evict_until(lambda: False)
    assert used(machine) == (len(TEXT), IMAGE_TOKENS)
    machine.decode([req])  # reads its image
    assert machine.tree.evictable_slots(CROSS) == 0
    machine.finish(req)
    assert machine.tree.evictable_slots(CROSS) == IMAGE_TOKENS


# ---- admission ---------------------------------------------------------------------------------


def visitors(machine: ImageMachine, seed: int, *, requests: int) -> Loop:
    """Requests with none to three of a few images, many with a text that another one had."""
    rng = random.Random(seed)
    loop = Loop(machine=machine, new_token_ratio=rng.choice((0.05, 0.3, 1.0)))
    texts = [[rng.randrange(1000) for _ in range(40)] for _ in range(4)]
    for _ in range(requests):
        names = [rng.randrange(6) for _ in range(rng.randrange(4))]
        text = [*rng.choice(texts)[: rng.randrange(1, 40)], rng.randrange(1000)]
        req = machine.request([*picture(*names), *text], max_new=rng.randrange(1, 40))
        assert loop.submit(req)
        for _ in range(rng.randrange(5)):
            if loop.waiting or loop.running:
                loop.step()
                assert machine.arena.core.audit() == []
    return loop


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "radix disabled"])
@pytest.mark.parametrize(
    "kinds",
    [
        image_kinds(),
        image_kinds(full_layers=1, cross_layers=3),
        image_kinds(full_layers=3, cross_layers=2),
    ],
    ids=["cheap images", "dear images", "neither divides the other"],
)
def test_no_allocation_fails_after_admission_and_nobody_starves(
    kinds: ModelKinds, cached: bool
) -> None:
    machine = make_machine(kinds=kinds, large_pages=140, rows=12, cached=cached)
    loop = visitors(machine, SEED + 1, requests=60)
    loop.run()
    assert machine.problems() == []
    machine.flush()
    assert machine.arena.core.num_free_large_pages == machine.plan.usable_large_pages


def test_the_visitors_of_these_tests_evict_images_and_retract() -> None:
    """Guard: in a roomy arena the claim above would be empty."""
    machine = make_machine(large_pages=140, rows=12)
    loop = visitors(machine, 1, requests=60)
    loop.run()
    assert loop.retractions > 0
    assert all(machine.tree.evicted_tokens_by_kind().values())


def test_admission_counts_images_in_cross_slots_and_not_again_when_they_are_cached() -> None:
    """60 large pages: a request's 40 image tokens take 10 of them, its 9 of text take 9."""
    machine = make_machine(large_pages=1 + 60, rows=12)
    loop = Loop(machine=machine, new_token_ratio=1.0)
    for first in range(4):
        assert loop.submit(machine.request([*picture(1, 2), *range(first, first + 5)], max_new=4))
    loop.step()
    assert len(loop.running) == 3, "one of 49 slots in every layer would fill the arena"
    loop.step()
    assert len(loop.running) == 4, "the images are there: only text is asked for"
    loop.run()
    assert loop.retractions == 0


def test_decisions_depend_on_the_stream_of_requests_alone() -> None:
    logs = []
    for _ in range(2):
        loop = visitors(make_machine(large_pages=140, rows=12), SEED + 3, requests=40)
        loop.run()
        logs.append(loop.log)
    assert len(logs[0]) > 100 and logs[0] == logs[1]


# ---- the published numbers ---------------------------------------------------------------------


def llama_vision() -> ModelKinds:
    """Llama-3.2-11B-Vision: 8 cross layers among 40."""
    cross = (3, 8, 13, 18, 23, 28, 33, 38)

    def layer(i: int) -> AttentionLayer:
        return AttentionLayer(
            layer_id=i,
            num_kv_heads=8,
            k_head_dim=128,
            v_head_dim=128,
            policy=Cross() if i in cross else Full(),
        )

    layers = [layer(i) for i in range(40)]
    return ModelKinds(
        full=tuple(x for x in layers if x.policy == Full()),
        cross=tuple(x for x in layers if x.policy == Cross()),
    )


def test_43_text_and_6193_image_tokens_waste_nothing_where_stock_wastes_four_fifths() -> None:
    """The averages of MMMU-Pro, by which the paper measures (paper section 2)."""
    text, image = 43, 6193
    kinds = llama_vision()
    machine = ImageMachine(kinds, large_pages=1600, context_tokens=8192)
    req = machine.request([*picture(7, tokens=image), *range(text)])
    machine.admit(req)
    machine.extend([req])
    full, cross = machine.plan.kinds
    needed = text * full.slot_bytes + image * cross.slot_bytes
    held = machine.plan.large_page_bytes * (
        machine.plan.usable_large_pages - machine.arena.core.num_free_large_pages
    )
    per_token_of_stock = full.slot_bytes + cross.slot_bytes
    stock_waste = 1 - needed / ((text + image) * per_token_of_stock)
    assert round(stock_waste, 3) == 0.796
    assert 1 - needed / held < 0.001
