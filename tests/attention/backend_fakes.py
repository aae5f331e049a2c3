# SPDX-License-Identifier: Apache-2.0
"""Real SGLang pools and layers, with the thinnest stand-ins for a runner and a forward batch."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode

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
