# SPDX-License-Identifier: Apache-2.0
"""`jenga_ref` on SGLang's own classes: pools, layers, forward modes.

Requests are served step by step (chunked prefill, then decode) on real KV pools, and every step is
compared with the per-token loop over the request's whole history.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed")

from brute_force import brute_force_attention
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_jenga.attention import backend as backend_module
from sglang_jenga.attention.backend import ReferenceAttnBackend

HEADS, KEY_HEADS, DIM = 4, 2, 8
FULL_SLOTS, WINDOW_SLOTS = 160, 96
WINDOW = 5
FULL_LAYER, WINDOW_LAYER = 0, 1


def make_layer(layer_id: int, **arguments) -> RadixAttention:
    return RadixAttention(
        arguments.pop("heads", HEADS),
        arguments.pop("head_dim", DIM),
        0.35,
        num_kv_heads=arguments.pop("key_heads", KEY_HEADS),
        layer_id=layer_id,
        **arguments,
    )


def plain_pool(layers: int = 2, *, v_head_dim: int = DIM, dtype=torch.float32) -> MHATokenToKVPool:
    return MHATokenToKVPool(
        size=FULL_SLOTS,
        page_size=1,
        dtype=dtype,
        head_num=KEY_HEADS,
        head_dim=DIM,
        v_head_dim=v_head_dim,
        layer_num=layers,
        device="cpu",
        enable_memory_saver=False,
    )


def hybrid_pool(*, one_buffer: bool = False, swa_head_dim: int = DIM) -> SWAKVPool:
    """Layer 0 full, layer 1 window; with `one_buffer`, views of one buffer as an arena has them."""
    pool = SWAKVPool(
        size=FULL_SLOTS,
        size_swa=WINDOW_SLOTS,
        page_size=1,
        dtype=torch.float32,
        head_num=KEY_HEADS,
        head_dim=DIM,
        swa_head_num=KEY_HEADS,
        swa_head_dim=swa_head_dim,
        swa_v_head_dim=swa_head_dim,
        swa_attention_layer_ids=[WINDOW_LAYER],
        full_attention_layer_ids=[FULL_LAYER],
        device="cpu",
    )
    pool.register_mapping(torch.zeros(FULL_SLOTS + 2, dtype=torch.int64))
    pool.full_to_swa_index_mapping[-1] = -1
    if one_buffer:
        # Full slots from the front and window slots from the middle: ids differ, bytes are shared.
        row = 2 * KEY_HEADS * DIM
        flat = torch.zeros((FULL_SLOTS + WINDOW_SLOTS + 2) * row)
        for index, leaf in enumerate((pool.full_kv_pool, pool.swa_kv_pool)):
            slots = leaf.k_buffer[0].shape[0]
            start = index * (FULL_SLOTS + 1) * row
            size, stride = (slots, KEY_HEADS, DIM), (row, DIM, 1)
            leaf.k_buffer = [flat.as_strided(size, stride, start)]
            leaf.v_buffer = [flat.as_strided(size, stride, start + KEY_HEADS * DIM)]
    return pool


def make_backend(pool, *, rows: int = 8, chunk_tokens: int | None = None) -> ReferenceAttnBackend:
    runner = SimpleNamespace(
        device="cpu",
        token_to_kv_pool=pool,
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(rows, 128, dtype=torch.int32)),
        kv_index_translator=None,
        model_config=SimpleNamespace(context_len=128),
        kv_cache_dtype=torch.float32,
        attention_chunk_size=chunk_tokens,
    )
    return ReferenceAttnBackend(runner)


def make_batch(mode: ForwardMode, rows, seq_lens, prefix_lens, out_cache_loc, **extra):
    extend = [s - p for s, p in zip(seq_lens, prefix_lens, strict=True)]
    is_decode = mode.is_decode()
    return SimpleNamespace(
        forward_mode=mode,
        batch_size=len(rows),
        req_pool_indices=torch.tensor(rows, dtype=torch.int64),
        seq_lens=torch.tensor(seq_lens),
        seq_lens_cpu=torch.tensor(seq_lens),
        extend_seq_lens=None if is_decode else torch.tensor(extend),
        extend_seq_lens_cpu=None if is_decode else extend,
        extend_prefix_lens_cpu=None if is_decode else list(prefix_lens),
        out_cache_loc=out_cache_loc,
        out_cache_loc_is_physical=False,
        encoder_lens=extra.pop("encoder_lens", None),
        encoder_lens_cpu=extra.pop("encoder_lens_cpu", None),
        encoder_out_cache_loc=extra.pop("encoder_out_cache_loc", None),
    )


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
            )
            torch.testing.assert_close(out[new].double(), expected, rtol=1e-4, atol=1e-5)
            start += count

    def _free_behind_window(self, table) -> None:
        for request in self.requests:
            for position in range(max(0, request.cached - WINDOW)):
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


def test_a_layer_without_keys_reads_what_the_layer_before_it_wrote():
    pool = plain_pool(1)
    backend = make_backend(pool)
    backend.req_to_token_pool.req_to_token[3, :4] = torch.tensor([9, 4, 6, 2])
    batch = make_batch(ForwardMode.EXTEND, [3], [4], [0], torch.tensor([9, 4, 6, 2]))
    backend.init_forward_metadata(batch)
    layer = make_layer(0)
    k, v = torch.randn(4, KEY_HEADS, DIM), torch.randn(4, KEY_HEADS, DIM)
    backend.forward(torch.randn(4, HEADS * DIM), k, v, layer, batch)
    q = torch.randn(4, HEADS, DIM)
    out = backend.forward(q.flatten(1), None, None, layer, batch, save_kv_cache=False)
    expected = brute_force_attention(q, k, v, first_query_position=0, scaling=layer.scaling)
    torch.testing.assert_close(out.view(4, HEADS, DIM).double(), expected, rtol=1e-4, atol=1e-5)


def test_sinks_and_soft_cap_reach_the_softmax():
    backend = make_backend(plain_pool(1))
    backend.req_to_token_pool.req_to_token[1, :3] = torch.tensor([7, 8, 3])
    batch = make_batch(ForwardMode.EXTEND, [1], [3], [0], torch.tensor([7, 8, 3]))
    backend.init_forward_metadata(batch)
    layer = make_layer(0, logit_cap=0.5)
    q, k, v = (
        torch.randn(3, HEADS, DIM),
        torch.randn(3, KEY_HEADS, DIM),
        torch.randn(3, KEY_HEADS, DIM),
    )
    sinks = torch.randn(HEADS)
    out = backend.forward(q.flatten(1), k, v, layer, batch, sinks=sinks)
    expected = brute_force_attention(
        q, k, v, first_query_position=0, scaling=layer.scaling, logit_cap=0.5, sinks=sinks
    )
    torch.testing.assert_close(out.view(3, HEADS, DIM).double(), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_pools_answer_in_the_dtype_of_the_query():
    backend = make_backend(plain_pool(1, dtype=torch.bfloat16))
    backend.req_to_token_pool.req_to_token[1, 0] = 5
    batch = make_batch(ForwardMode.EXTEND, [1], [1], [0], torch.tensor([5]))
    backend.init_forward_metadata(batch)
    k = v = torch.ones(1, KEY_HEADS, DIM, dtype=torch.bfloat16)
    q = torch.ones(1, HEADS * DIM, dtype=torch.bfloat16)
    out = backend.forward(q, k, v, make_layer(0), batch)
    assert out.dtype == torch.bfloat16
    assert out.eq(1).all()


def encoder_decoder_batch(backend, mode, *, encoder, text, prefix, new_image):
    """Two requests: one with `encoder` image tokens in columns [0, encoder), one with none."""
    table = backend.req_to_token_pool.req_to_token
    table[4, : encoder + text] = torch.arange(10, 10 + encoder + text)
    table[6, :text] = torch.arange(60, 60 + text)
    new = list(range(prefix, text))
    out_cache_loc = [10 + encoder + i for i in new] + [60 + i for i in new]
    return make_batch(
        mode,
        [4, 6],
        [text, text],
        [prefix, prefix],
        torch.tensor(out_cache_loc),
        encoder_lens=torch.tensor([encoder, 0]),
        encoder_lens_cpu=[encoder, 0],
        encoder_out_cache_loc=torch.arange(10, 10 + encoder)
        if new_image
        else torch.tensor([]).long(),
    )


def test_cross_layers_read_the_encoder_columns_and_decoder_layers_the_ones_behind():
    backend = make_backend(plain_pool(2))
    self_layer, cross_layer = make_layer(0), make_layer(1, is_cross_attention=True)
    encoder, text = 5, 3
    image_k, image_v = torch.randn(encoder, KEY_HEADS, DIM), torch.randn(encoder, KEY_HEADS, DIM)
    keys, values = [], []
    for mode, prefix, length in (
        (ForwardMode.EXTEND, 0, text),
        (ForwardMode.DECODE, text, text + 1),
    ):
        first = prefix == 0
        batch = encoder_decoder_batch(
            backend, mode, encoder=encoder, text=length, prefix=prefix, new_image=first
        )
        backend.init_forward_metadata(batch)
        new = length - prefix
        k, v = torch.randn(2, new, KEY_HEADS, DIM), torch.randn(2, new, KEY_HEADS, DIM)
        keys.append(k)
        values.append(v)
        q = torch.randn(2, new, HEADS, DIM)
        out = backend.forward(
            q.reshape(2 * new, -1), k.flatten(0, 1), v.flatten(0, 1), self_layer, batch
        ).view(2, new, HEADS, DIM)
        for request in range(2):
            expected = brute_force_attention(
                q[request],
                torch.cat(keys, dim=1)[request],
                torch.cat(values, dim=1)[request],
                first_query_position=prefix,
                scaling=self_layer.scaling,
            )
            torch.testing.assert_close(out[request].double(), expected, rtol=1e-4, atol=1e-5)
        cross = backend.forward(
            q.reshape(2 * new, -1),
            image_k if first else None,
            image_v if first else None,
            cross_layer,
            batch,
        ).view(2, new, HEADS, DIM)
        expected = brute_force_attention(
            q[0], image_k, image_v, first_query_position=0, scaling=0.35, causal=False
        )
        torch.testing.assert_close(cross[0].double(), expected, rtol=1e-4, atol=1e-5)
        assert cross[1].eq(0).all(), "a request without an image attends to nothing"


def test_idle_batches_and_empty_batches_return_no_rows():
    backend = make_backend(plain_pool(1))
    for mode in (ForwardMode.IDLE, ForwardMode.DECODE, ForwardMode.EXTEND):
        batch = make_batch(mode, [], [], [], torch.zeros(0, dtype=torch.int64))
        backend.init_forward_metadata(batch)
        nothing = torch.zeros(0, KEY_HEADS, DIM)
        out = backend.forward(torch.zeros(0, HEADS * DIM), nothing, nothing, make_layer(0), batch)
        assert out.shape == (0, HEADS * DIM)


def test_device_lengths_serve_when_the_host_has_no_copy():
    backend = make_backend(plain_pool(1))
    backend.req_to_token_pool.req_to_token[1, :2] = torch.tensor([7, 8])
    batch = make_batch(ForwardMode.EXTEND, [1], [2], [0], torch.tensor([7, 8]))
    batch.seq_lens_cpu = batch.extend_seq_lens_cpu = None
    backend.init_forward_metadata(batch)
    assert backend.forward_metadata.decoder_spans[0].num_queries == 2


def test_bidirectional_layers_follow_the_prefill_chunking(monkeypatch):
    layer = make_layer(0, attn_type=AttentionType.DECODER_BIDIRECTIONAL)
    backend = make_backend(plain_pool(1))
    backend.req_to_token_pool.req_to_token[1, :3] = torch.tensor([7, 8, 3])
    q, k, v = (
        torch.randn(3, HEADS, DIM),
        torch.randn(3, KEY_HEADS, DIM),
        torch.randn(3, KEY_HEADS, DIM),
    )
    for chunked_prefill_size, causal in ((-1, False), (2048, True)):
        monkeypatch.setattr(
            backend_module,
            "get_schedule",
            lambda size=chunked_prefill_size: SimpleNamespace(chunked_prefill_size=size),
        )
        batch = make_batch(ForwardMode.EXTEND, [1], [3], [0], torch.tensor([7, 8, 3]))
        backend.init_forward_metadata(batch)
        out = backend.forward(q.flatten(1), k, v, layer, batch)
        expected = brute_force_attention(
            q, k, v, first_query_position=0, scaling=layer.scaling, causal=causal
        )
        torch.testing.assert_close(out.view(3, HEADS, DIM).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_bidirectional_window_on_a_cached_prefix_is_refused(monkeypatch):
    monkeypatch.setattr(
        backend_module, "get_schedule", lambda: SimpleNamespace(chunked_prefill_size=-1)
    )
    layer = make_layer(0, attn_type=AttentionType.DECODER_BIDIRECTIONAL, sliding_window_size=4)
    backend = make_backend(plain_pool(1))
    batch = make_batch(ForwardMode.EXTEND, [1], [3], [2], torch.tensor([7]))
    backend.init_forward_metadata(batch)
    nothing = torch.zeros(1, KEY_HEADS, DIM)
    with pytest.raises(NotImplementedError, match="--disable-radix-cache"):
        backend.forward(torch.zeros(1, HEADS * DIM), nothing, nothing, layer, batch)


def test_speculative_forwards_are_refused_by_name():
    backend = make_backend(plain_pool(1))
    batch = make_batch(ForwardMode.TARGET_VERIFY, [1], [3], [2], torch.tensor([7]))
    with pytest.raises(NotImplementedError, match="TARGET_VERIFY"):
        backend.init_forward_metadata(batch)


def test_unknown_attention_arguments_are_refused_not_ignored():
    backend = make_backend(plain_pool(1))
    batch = make_batch(ForwardMode.DECODE, [1], [1], [0], torch.tensor([7]))
    backend.init_forward_metadata(batch)
    nothing = torch.zeros(1, KEY_HEADS, DIM)
    with pytest.raises(NotImplementedError, match="q_rope"):
        backend.forward(
            torch.zeros(1, HEADS * DIM), nothing, nothing, make_layer(0), batch, q_rope=nothing
        )


def test_what_hybrid_state_backends_copy_is_there():
    backend = make_backend(plain_pool(1))
    for name in ("token_to_kv_pool", "req_to_token_pool", "kv_index_translator", "max_context_len"):
        assert hasattr(backend, name)
    assert backend.needs_cpu_seq_lens
    assert not backend.support_triton()
