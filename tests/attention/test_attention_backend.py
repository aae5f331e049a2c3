# SPDX-License-Identifier: Apache-2.0
"""`jenga_ref` on SGLang's own KV pools equals the per-token loop over the request's history.

Requests are served step by step (chunked prefill, mixed batches, decode), with scattered slots and
window slots that are freed, poisoned and reused behind the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sink_window.policy import SinkWindow

from backend_fakes import (
    DIM,
    FULL_LAYER,
    FULL_SLOTS,
    HEADS,
    KEY_HEADS,
    WINDOW,
    WINDOW_LAYER,
    WINDOW_SLOTS,
    hybrid_pool,
    make_backend,
    make_batch,
    make_layer,
    plain_pool,
)
from brute_force import brute_force_attention
from sglang_jenga.attention import backend as backend_module
from sglang_jenga.core.policies import KV_POLICY

HEAD = 3


@dataclass
class Request:
    row: int
    cached: int = 0
    history: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)


class Serving:
    """Plays a scheduler: scattered slots, a window map, and slots freed behind the window."""

    def __init__(self, pool, layers: list[RadixAttention], *, chunk_tokens: int | None = None):
        self.pool, self.layers = pool, layers
        self.backend = make_backend(pool, chunk_tokens=chunk_tokens)
        self.generator = torch.Generator().manual_seed(11)
        self.free = (torch.randperm(FULL_SLOTS, generator=self.generator) + 1).tolist()
        self.free_window = (torch.randperm(WINDOW_SLOTS, generator=self.generator) + 1).tolist()
        self.window_map = getattr(pool, "full_to_swa_index_mapping", None)
        self.keeps_head = any(hasattr(layer, KV_POLICY) for layer in layers)
        self.requests = [Request(row=row) for row in (5, 2, 7)]

    def step(self, mode: ForwardMode, new_tokens: list[int]) -> None:
        """Run every layer for `new_tokens` of each request, and compare each with the loop."""
        table = self.backend.req_to_token_pool.req_to_token
        prefixes = [r.cached for r in self.requests]
        slots = []
        for request, count in zip(self.requests, new_tokens, strict=True):
            for position in range(request.cached, request.cached + count):
                slot = self.free.pop()
                table[request.row, position] = slot
                slots.append(slot)
                if self.window_map is not None:
                    self.window_map[slot] = self.free_window.pop()
            request.cached += count
        batch = make_batch(
            mode,
            [r.row for r in self.requests],
            [r.cached for r in self.requests],
            prefixes,
            torch.tensor(slots, dtype=torch.int64),
        )
        self.backend.init_forward_metadata(batch)
        for layer in self.layers:
            self._check_layer(layer, batch, prefixes, new_tokens)
        if self.window_map is not None:
            self._free_behind_window(table)

    def _check_layer(self, layer, batch, prefixes, new_tokens) -> None:
        total = sum(new_tokens)
        q = torch.randn(total, layer.tp_q_head_num, layer.qk_head_dim, generator=self.generator)
        k = torch.randn(total, layer.tp_k_head_num, layer.qk_head_dim, generator=self.generator)
        v = torch.randn(total, layer.tp_k_head_num, layer.v_head_dim, generator=self.generator)
        out = self.backend.forward(q.flatten(1), k, v, layer, batch)
        out = out.view(total, layer.tp_q_head_num, layer.v_head_dim)
        start = 0
        for request, prefix, count in zip(self.requests, prefixes, new_tokens, strict=True):
            new = slice(start, start + count)
            request.history.setdefault(layer.layer_id, []).append((k[new], v[new]))
            keys, values = (
                torch.cat(x) for x in zip(*request.history[layer.layer_id], strict=True)
            )
            window = layer.sliding_window_size
            expected = brute_force_attention(
                q[new],
                keys,
                values,
                first_query_position=prefix,
                scaling=layer.scaling,
                window=window if window > -1 else None,
                chunk=self.backend.chunk_tokens if layer.use_irope else None,
                causal=layer.attn_type == AttentionType.DECODER,
                head_keys=HEAD if hasattr(layer, KV_POLICY) else 0,
            )
            torch.testing.assert_close(out[new].double(), expected, rtol=1e-4, atol=1e-5)
            start += count

    def _free_behind_window(self, table) -> None:
        for request in self.requests:
            for position in range(HEAD if self.keeps_head else 0, request.cached - WINDOW):
                slot = int(table[request.row, position])
                if self.window_map[slot] > 0:
                    freed = int(self.window_map[slot])
                    self.window_map[slot] = 0
                    self.pool.get_key_buffer(WINDOW_LAYER)[freed] = torch.nan
                    self.pool.get_value_buffer(WINDOW_LAYER)[freed] = torch.nan
                    self.free_window.insert(0, freed)
        # Slot 0 is what a freed window slot maps to: reading it would show as well.
        self.pool.get_key_buffer(WINDOW_LAYER)[0] = torch.nan
        self.pool.get_value_buffer(WINDOW_LAYER)[0] = torch.nan

    def serve(self) -> None:
        self.step(ForwardMode.EXTEND, [7, 1, 12])
        self.step(ForwardMode.EXTEND, [6, 9, 3])
        for _ in range(4):
            self.step(ForwardMode.DECODE, [1, 1, 1])
        self.step(ForwardMode.MIXED, [1, 8, 1])
        for _ in range(3):
            self.step(ForwardMode.DECODE, [1, 1, 1])


def window_and_full_layers() -> list[RadixAttention]:
    return [make_layer(FULL_LAYER), make_layer(WINDOW_LAYER, sliding_window_size=WINDOW)]


POOLS = {
    "plain": plain_pool,
    "hybrid": hybrid_pool,
    "views-of-one-buffer": lambda: hybrid_pool(one_buffer=True),
}


@pytest.mark.parametrize("make_pool", POOLS.values(), ids=POOLS.keys())
def test_serving_on_each_pool_equals_the_per_token_loop(make_pool):
    Serving(make_pool(), window_and_full_layers()).serve()


def test_window_layers_may_have_their_own_head_dim():
    layers = [
        make_layer(FULL_LAYER),
        make_layer(WINDOW_LAYER, sliding_window_size=WINDOW, head_dim=4),
    ]
    Serving(hybrid_pool(swa_head_dim=4), layers).serve()


def test_values_may_be_narrower_than_keys():
    Serving(plain_pool(v_head_dim=4), [make_layer(0, v_head_dim=4)]).serve()


def test_irope_layers_see_their_chunk_only_and_other_layers_everything():
    layers = [make_layer(0, use_irope=True), make_layer(1, use_irope=False)]
    Serving(plain_pool(), layers, chunk_tokens=6).serve()


@pytest.mark.parametrize("make_pool", POOLS.values(), ids=POOLS.keys())
def test_a_layer_reads_what_its_own_policy_says(make_pool):
    sinking = make_layer(WINDOW_LAYER, sliding_window_size=WINDOW)
    sinking.kv_policy = SinkWindow(sink_tokens=HEAD, window_tokens=WINDOW)
    Serving(make_pool(), [make_layer(FULL_LAYER), sinking]).serve()


def test_encoder_only_layers_see_the_whole_text():
    layers = [make_layer(0, attn_type=AttentionType.ENCODER_ONLY)]
    Serving(plain_pool(1), layers).step(ForwardMode.EXTEND, [7, 1, 12])


def test_gathers_are_planned_once_per_kind_and_forward(monkeypatch):
    planned = []
    plan_batches = backend_module.plan_batches
    monkeypatch.setattr(
        backend_module,
        "plan_batches",
        lambda spans, rule, **rest: planned.append(rule) or plan_batches(spans, rule, **rest),
    )
    backend = make_backend(hybrid_pool())
    batch = make_batch(ForwardMode.EXTEND, [1], [3], [0], torch.tensor([7, 8, 3]))
    backend.init_forward_metadata(batch)
    new = torch.zeros(3, KEY_HEADS, DIM)
    for layer in window_and_full_layers() * 3:
        backend.forward(torch.zeros(3, HEADS * DIM), new, new, layer, batch)
    assert len(planned) == 2
