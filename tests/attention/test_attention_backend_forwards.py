# SPDX-License-Identifier: Apache-2.0
"""`jenga_ref` forward by forward: shared KV, cross attention, empty batches, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from backend_fakes import DIM, HEADS, KEY_HEADS, make_backend, make_batch, make_layer, plain_pool
from brute_force import brute_force_attention
from sglang_jenga.attention import backend as backend_module


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
