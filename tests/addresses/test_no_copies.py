# SPDX-License-Identifier: Apache-2.0
"""No accepted backend's Python copies or stacks a view of the arena on its way to a kernel.

A view spans the whole arena, so ``contiguous()`` on one is tens of GiB for every layer and step.
The backends' own forwards run here; kernels are replaced by notes of what they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sglang.kernels.ops.attention import flash_attention_v4_sm120
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode

import bare_backends
from arena_guard import ArenaCopied, NoCopies
from bare_backends import Calls, make_batch
from machine import make_kinds
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.policies import Window
from sglang_jenga.sglang_ext.pools import ArenaHybridKVPool
from sparse import SparseArena

DTYPE, REQUESTS = torch.bfloat16, 3
SLOTS = torch.tensor([11, 300, 77])
BACKENDS: dict[str, Callable[..., Any]] = {
    "flashinfer": partial(bare_backends.flashinfer, use_ragged=False),
    "flashinfer, ragged": partial(bare_backends.flashinfer, use_ragged=True),
    "fa3": partial(bare_backends.flash_attention, version=3),
    "fa4": partial(bare_backends.flash_attention, version=4),
    "trtllm_mha": partial(bare_backends.trtllm, xqa=False),
    "trtllm_mha, XQA": partial(bare_backends.trtllm, xqa=True),
}
MODES = {"decode": ForwardMode.DECODE, "extend": ForwardMode.EXTEND}


class Bench:
    """A pool over a sparse arena of 8 GiB, and one backend on it."""

    def __init__(
        self, backend: str, mode: str, page: int, patch: pytest.MonkeyPatch, head_dim: int = 128
    ) -> None:
        heads = (4, head_dim, head_dim)
        self.kinds = make_kinds(
            full_layers=2,
            window_layers=3,
            policy=Window(window_tokens=31),
            full_heads=heads,
            window_heads=heads,
        )
        plan = plan_arena(self.kinds.specs(DTYPE), arena_bytes=2**33, page_tokens=page)
        self.arena = SparseArena(plan)
        self.pool = ArenaHybridKVPool(self.arena, self.kinds, DTYPE)
        self.head_dim = head_dim
        self.batch = make_batch(MODES[mode], SLOTS)
        self.calls = Calls()
        make = BACKENDS[backend]
        if "flashinfer" not in backend:
            make = partial(make, page=page)
        self.backend = make(self.pool, self.batch, self.calls, patch)
        self.forward = getattr(self.backend, f"forward_{mode}")

    def layers(self) -> list[RadixAttention]:
        """A full and a window layer."""
        made = []
        for layers, window in ((self.kinds.full, -1), (self.kinds.window, 31)):
            made.append(
                RadixAttention(
                    8,
                    self.head_dim,
                    0.1,
                    num_kv_heads=4,
                    layer_id=layers[-1].layer_id,
                    sliding_window_size=window,
                )
            )
        return made

    def run(self, layer: RadixAttention) -> None:
        q = torch.ones(REQUESTS, 8 * self.head_dim, dtype=DTYPE)
        k, v = (torch.ones(REQUESTS, 4, self.head_dim, dtype=DTYPE) for _ in "kv")
        with NoCopies(self.arena.bytes, slots=1000):
            self.forward(q, k, v, layer, self.batch)


def paged_calls(bench: Bench, layer: RadixAttention) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Calls that were given the layer's own view, at any page size."""
    views = bench.pool.get_kv_buffer(layer.layer_id)
    return [
        pair
        for pair in bench.calls.kv
        if all(t.data_ptr() == view.data_ptr() for t, view in zip(pair, views, strict=True))
    ]


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "trtllm_mha, XQA"])
def test_kernels_get_the_views_themselves(
    backend: str, mode: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(backend, mode, page, monkeypatch)
    for layer in bench.layers():
        bench.run(layer)
        calls = paged_calls(bench, layer)
        assert calls, f"no kernel was given the view of layer {layer.layer_id}"
        slot = bench.pool.get_kv_buffer(layer.layer_id)[0].stride(0)
        for pair in calls:
            for tensor in pair:
                assert slot in tensor.stride(), "the slot's stride is kept"
                assert tensor.stride(-1) == 1


def test_new_tokens_were_written_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("fa3", "decode", 1, monkeypatch)
    for layer in bench.layers():
        bench.run(layer)
        for view in bench.pool.get_kv_buffer(layer.layer_id):
            assert bool((view[SLOTS] == 1).all())
            assert not bool(view[SLOTS + 1].any())


@pytest.mark.parametrize("mode", list(MODES))
def test_fa4_copies_views_of_heads_of_256(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is refused."""
    bench = Bench("fa4", mode, 128, monkeypatch, head_dim=256)
    with pytest.raises(ArenaCopied, match="clone"):
        bench.run(bench.layers()[0])


def test_and_so_does_fa4_on_sm120(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("fa4", "decode", 128, monkeypatch, head_dim=256)
    k, v = bench.backend.get_paged_mha_kv_cache(bench.layers()[0])
    q = torch.ones(REQUESTS, 8, 256, dtype=DTYPE)
    monkeypatch.setattr(
        flash_attention_v4_sm120, "_flash_attn_varlen_func", lambda **_: None, raising=False
    )
    with NoCopies(bench.arena.bytes, slots=1000), pytest.raises(ArenaCopied, match="clone"):
        flash_attention_v4_sm120.flash_attn_varlen_func(q, k, v)


def test_xqa_decode_gets_the_views_and_its_prefill_copies_the_pages_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = Bench("trtllm_mha, XQA", "decode", 16, monkeypatch)
    for layer in decode.layers():
        decode.run(layer)
        assert paged_calls(decode, layer)
    prefill = Bench("trtllm_mha, XQA", "extend", 16, monkeypatch)
    prefill.run(prefill.layers()[0])
    ((k, _),) = prefill.calls.kv
    assert k.shape[0] == REQUESTS, "one page for each request, copied"


def test_xqa_prefill_without_host_lengths_stacks_the_arena(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench("trtllm_mha, XQA", "extend", 16, monkeypatch)
    bench.backend.forward_metadata.fmha_v2_copy_rows = None
    with pytest.raises(ArenaCopied):
        bench.run(bench.layers()[0])


@pytest.mark.parametrize(
    "copy",
    [
        lambda view: view.contiguous(),
        lambda view: torch.stack([view, view]),
        lambda view: torch.cat([view, view]),
        lambda view: view.to(torch.float32),
        lambda view: view.clone(),
        lambda view: view.reshape(-1),
    ],
)
def test_a_copy_of_a_view_is_noticed(
    copy: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench("fa3", "decode", 1, monkeypatch)
    view = bench.pool.get_kv_buffer(bench.layers()[0].layer_id)[0]
    with NoCopies(bench.arena.bytes, slots=1000), pytest.raises(ArenaCopied):
        copy(view)
