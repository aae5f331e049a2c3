# SPDX-License-Identifier: Apache-2.0
"""Embeddings in the arena: an encoder runs once per image while bytes allow, and no byte is lost.

The functions of SGLang that ask the encoder run as they are, on this cache and on SGLang's own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem
from sglang.srt.mem_cache.multimodal_cache import EmbeddingResult, MultiModalStaticCache

from machine import Machine, make_kinds
from no_sync import DEVICE, no_device_sync
from scheduler import Loop
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext.config import TEST_SEED
from sglang_jenga.sglang_ext.embeddings import ArenaEmbeddings
from sglang_jenga.sglang_ext.model_kinds import ModelKinds

HIDDEN = 16
IMAGE_TOKENS = 24
SEED = int(os.environ.get(TEST_SEED, "0"))
EMBEDDING = (HIDDEN, torch.bfloat16)
KINDS = {
    "full": make_kinds(embedding=EMBEDDING),
    "full and window": make_kinds(
        full_layers=1, window_layers=5, policy=Window(window_tokens=16), embedding=EMBEDDING
    ),
}


def make_machine(kinds: ModelKinds | None = None, *, large_pages: int = 200, **kw: Any) -> Machine:
    return Machine(kinds or KINDS["full and window"], large_pages=large_pages, **kw)


def cache_of(machine: Machine) -> ArenaEmbeddings:
    embeddings = machine.arena.embeddings
    assert embeddings is not None and machine.tree.embeddings is embeddings
    return embeddings


def rows(name: int, tokens: int = IMAGE_TOKENS, dtype: torch.dtype = torch.bfloat16) -> Any:
    generator = torch.Generator().manual_seed(name)
    values = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    return EmbeddingResult(embedding=values)


def vision_slots(machine: Machine) -> int:
    return machine.arena.used_slots(machine.arena.vision_kind)


# ---- keeping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "slots"),
    [
        ((IMAGE_TOKENS, HIDDEN), torch.bfloat16, IMAGE_TOKENS),
        ((3, 4, HIDDEN), torch.bfloat16, 12),
        ((5, 3 * HIDDEN), torch.bfloat16, 15),  # several levels of an encoder side by side
        ((5, HIDDEN), torch.float32, 10),
        ((3, HIDDEN + 1), torch.bfloat16, 4),
    ],
)
def test_what_was_put_in_comes_out_bit_for_bit(
    shape: tuple[int, ...], dtype: torch.dtype, slots: int
) -> None:
    machine = make_machine()
    cache = cache_of(machine)
    kept = torch.randn(shape).to(dtype)
    assert cache.set(1, EmbeddingResult(embedding=kept))
    assert cache.set(2, rows(2))
    found = cache.get_single(1)
    assert found is not None and found.embedding.dtype is dtype
    assert torch.equal(found.embedding, kept)
    assert vision_slots(machine) == slots + IMAGE_TOKENS
    assert machine.problems() == []
    assert cache.get_single(3) is None


def test_a_forward_reads_a_copy_that_later_owners_of_the_bytes_cannot_touch() -> None:
    machine = make_machine()
    cache = cache_of(machine)
    cache.set(1, rows(1))
    read = cache.get_single(1)
    assert cache.evict()
    for name in range(2, 60):
        cache.set(name, rows(name))
    assert torch.equal(read.embedding, rows(1).embedding)


def test_an_embedding_larger_than_the_arena_is_not_kept_and_costs_nobody_anything() -> None:
    machine = make_machine(large_pages=60)
    cache = cache_of(machine)
    machine.finish(machine.prefill(range(30), max_new=1))
    cached = machine.tree.full_evictable_size()
    cache.set(1, rows(1))
    assert not cache.set(2, rows(2, tokens=10_000))
    assert machine.tree.full_evictable_size() == cached > 0
    assert cache.has(1) and not cache.has(2)


def test_what_is_pinned_leaves_no_room_and_an_embedding_then_is_not_kept() -> None:
    machine = make_machine(KINDS["full"], large_pages=60)
    machine.prefill(range(machine.arena.available_size()), max_new=1)
    assert not cache_of(machine).set(1, rows(1))
    assert machine.arena.core.audit() == []


# ---- giving way --------------------------------------------------------------------------------


def test_text_and_embeddings_give_way_by_one_clock() -> None:
    machine = make_machine(KINDS["full"])
    cache = cache_of(machine)
    machine.finish(machine.prefill(range(10), max_new=1))
    cache.set(1, rows(1))
    machine.finish(machine.prefill(range(100, 110), max_new=1))
    cache.set(2, rows(2))
    machine.hit(range(10))  # the first text is used again
    order = []

    def look() -> bool:
        names = [name for name in (1, 2) if cache.has(name)]
        order.append((machine.tree.full_evictable_size(), names))
        assert machine.problems() == []
        return False

    machine.tree.evict_until(look)
    assert order == [(20, [1, 2]), (20, [2]), (10, [2]), (10, []), (0, [])]
    assert machine.tree.evicted_tokens_by_kind()["vision"] == 2 * IMAGE_TOKENS


def prompt_with_image(machine: Machine, name: int, *, half_done: bool) -> Any:
    """A request whose image takes positions 4..27; with ``half_done`` a chunk ends inside it."""
    req = machine.request(range(1000 + 100 * name, 1060 + 100 * name))
    item = SimpleNamespace(hash=name, offsets=[(4, 4 + IMAGE_TOKENS - 1)])
    req.multimodal_inputs = SimpleNamespace(
        mm_items=[item], num_image_tokens=None, mrope_positions=None
    )
    machine.admit(req, tokens=10 if half_done else None)
    machine.extend([req])
    return req


def test_an_image_that_the_next_chunk_reads_goes_last_and_gives_way_all_the_same() -> None:
    machine = make_machine()
    cache = cache_of(machine)
    for name in (1, 2):
        cache.set(name, rows(name))
    req = prompt_with_image(machine, 1, half_done=True)
    machine.finish(machine.prefill(range(20), max_new=1))
    gone: list[str] = []

    def look() -> bool:
        kinds = {"text": machine.tree.full_evictable_size() == 0}
        kinds |= {f"image {name}": not cache.has(name) for name in (1, 2)}
        gone.extend(what for what, is_gone in kinds.items() if is_gone and what not in gone)
        return False

    machine.tree.evict_until(look)
    assert gone == ["image 2", "text", "image 1"]
    machine.stash(req)


def test_an_image_that_was_computed_or_whose_request_is_gone_is_nobodys() -> None:
    for half_done in (False, True):
        machine = make_machine()
        cache = cache_of(machine)
        cache.set(1, rows(1))
        req = prompt_with_image(machine, 1, half_done=half_done)
        assert (cache.oldest() is None) is half_done
        machine.retract(req)
        assert cache.oldest() is not None


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "radix disabled"])
def test_requests_take_what_embeddings_hold(cached: bool) -> None:
    machine = make_machine(KINDS["full"], large_pages=100, cached=cached)
    cache = cache_of(machine)
    name = 0
    while not cache.evicted_slots:
        cache.set(name := name + 1, rows(name))
    longest = machine.demand.longest_request_tokens
    loop = Loop(machine=machine)
    assert loop.submit(machine.request(range(longest - 6), max_new=5))
    loop.run()
    assert len(cache) < 3
    assert machine.problems() == []
    machine.flush()
    assert len(cache) == 0
    assert machine.arena.core.num_free_large_pages == machine.plan.usable_large_pages


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "radix disabled"])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
def test_no_allocation_fails_however_many_embeddings_come_and_go(
    kinds: ModelKinds, cached: bool
) -> None:
    rng = random.Random(SEED)
    machine = make_machine(kinds, large_pages=130, rows=12, chunk_tokens=20, cached=cached)
    cache = cache_of(machine)
    loop = Loop(machine=machine)
    texts = [[rng.randrange(1000) for _ in range(60)] for _ in range(4)]
    for _ in range(60):
        text = [*rng.choice(texts)[: rng.randrange(1, 60)], rng.randrange(1000)]
        loop.submit(machine.request(text, max_new=rng.randrange(1, 30)))
        for _ in range(rng.randrange(5)):
            if loop.waiting or loop.running or loop.chunked:
                loop.step()
            name = rng.randrange(12)  # a forward that sees this image
            if cache.get_single(name) is None:
                cache.set(name, rows(name))
            elif rng.random() < 0.1:
                cache.free(name)
            assert machine.arena.core.audit() == []
    loop.run()
    assert cache.evicted_slots > 0 and cache.reused > 0
    for name in range(12):
        found = cache.get_single(name)
        assert found is None or torch.equal(found.embedding, rows(name).embedding)
    assert machine.problems() == []


def test_no_embedding_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, DEVICE, torch.cpu, raising=False)
    machine = make_machine(KINDS["full"], large_pages=60, device=DEVICE)
    cache = cache_of(machine)
    image = EmbeddingResult(
        embedding=torch.empty(IMAGE_TOKENS, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
    )
    with no_device_sync() as guard:
        for name in range(30):
            cache.set(name, image)
            assert cache.get_single(name) is not None
    assert guard.copies > 0 and cache.evicted_slots > 0


# ---- encoder runs, by SGLang's own functions -----------------------------------------------------


@dataclass
class Encoder:
    """Counts the images that it is asked to encode."""

    runs: int = 0

    def __call__(self, items: list[MultimodalDataItem]) -> torch.Tensor:
        self.runs += len(items)
        return torch.cat([rows(item.hash).embedding for item in items])


def image_item(name: int, start: int) -> MultimodalDataItem:
    item = MultimodalDataItem(modality=Modality.IMAGE, feature=torch.zeros(1))
    item.hash = name
    item.offsets = [(start, start + IMAGE_TOKENS - 1)]
    return item


def embed_prompt(encoder: Encoder, names: list[int], chunk_tokens: int) -> torch.Tensor:
    """Prefill a prompt of images, one behind another, in chunks; the embeddings in order."""
    items = [image_item(name, i * IMAGE_TOKENS) for i, name in enumerate(names)]
    total = len(names) * IMAGE_TOKENS
    parts = []
    for start in range(0, total, chunk_tokens):
        length = min(chunk_tokens, total - start)
        part, _ = mm_schedule._get_chunked_prefill_embedding(
            encoder,
            items,
            [0, len(items)],
            [start],
            [length],
            [[offset for item in items for offset in item.offsets]],
            torch.zeros(length, dtype=torch.int64),
        )
        parts.append(part)
    return torch.cat(parts)


@pytest.fixture
def side_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put a cache where SGLang's functions look for it."""
    yield lambda cache: monkeypatch.setattr(mm_schedule, "embedding_cache", cache)


def test_a_prompt_in_chunks_encodes_each_of_its_images_once(side_cache: Any) -> None:
    side_cache(cache_of(make_machine()))
    encoder = Encoder()
    names = [1, 2, 3, 2]
    whole = embed_prompt(encoder, names, chunk_tokens=7)
    assert encoder.runs == 3
    assert torch.equal(whole, torch.cat([rows(name).embedding for name in names]))


def test_in_the_same_bytes_the_encoder_runs_less_than_behind_stocks_fixed_cache(
    side_cache: Any,
) -> None:
    """Stock sets a tenth aside for embeddings for ever; here they may use what text leaves."""
    machine = make_machine(KINDS["full"], large_pages=400)
    arena_bytes = machine.plan.usable_bytes
    runs = {}
    for name, cache in (
        ("stock", MultiModalStaticCache(arena_bytes // 10)),
        ("jenga", cache_of(machine)),
    ):
        side_cache(cache)
        encoder = Encoder()
        rng = random.Random(7)
        for _ in range(300):
            embed_prompt(encoder, [rng.randrange(12)], chunk_tokens=16)
        runs[name] = encoder.runs
    assert runs["jenga"] == 12, "every image once"
    assert runs["stock"] > 3 * runs["jenga"]
