# SPDX-License-Identifier: Apache-2.0
"""Paged attention equals the per-token float64 loop, for every feature and their combinations.

Each case runs on contiguous buffers and on strided views of one buffer, and every slot that no
query of its request may see holds NaN: a gather that strays makes the result NaN.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from sink_window.policy import SinkWindow

from brute_force import brute_force_attention, sees
from sglang_jenga.attention import paged
from sglang_jenga.attention.paged import Span, attend_paged, plan_batches
from sglang_jenga.attention.reference import Visibility, attend, visible_keys

NUM_SLOTS = 512


@dataclass(frozen=True, kw_only=True)
class Shape:
    heads: int = 4
    key_heads: int = 2
    key_dim: int = 8
    value_dim: int = 8


def layer_buffers(shape: Shape, *, strided: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of one layer, NaN everywhere: contiguous, or views of a token-major buffer."""
    key_row, value_row = shape.key_heads * shape.key_dim, shape.key_heads * shape.value_dim
    if not strided:
        keys = torch.full((NUM_SLOTS, shape.key_heads, shape.key_dim), torch.nan)
        return keys, torch.full((NUM_SLOTS, shape.key_heads, shape.value_dim), torch.nan)
    row = 3 * (key_row + value_row)  # as if three layers shared the slot, and this is the second
    flat = torch.full((NUM_SLOTS * row,), torch.nan)
    start = key_row + value_row
    keys = flat.as_strided(
        (NUM_SLOTS, shape.key_heads, shape.key_dim), (row, shape.key_dim, 1), start
    )
    values = flat.as_strided(
        (NUM_SLOTS, shape.key_heads, shape.value_dim), (row, shape.value_dim, 1), start + key_row
    )
    return keys, values


def check(
    requests: list[tuple[int, int]],
    shape: Shape,
    *,
    window: int | None = None,
    chunk: int | None = None,
    causal: bool = True,
    head: int = 0,
    with_sinks: bool = False,
    logit_cap: float = 0.0,
    first_columns: list[int] | None = None,
) -> None:
    """`requests` is (cached tokens, new tokens) each; new tokens are the queries."""
    generator = torch.Generator().manual_seed(7)
    layouts = [layer_buffers(shape, strided=strided) for strided in (False, True)]
    scattered = torch.randperm(NUM_SLOTS - 1, generator=generator) + 1
    req_to_token = torch.zeros(len(requests) + 3, 128, dtype=torch.int32)
    rows = torch.randperm(len(requests) + 3, generator=generator)[: len(requests)]
    sinks = torch.randn(shape.heads, generator=generator) if with_sinks else None
    scaling = shape.key_dim**-0.5

    spans, expected, queries = [], [], []
    query_start = used = 0
    for index, (cached, new) in enumerate(requests):
        total = cached + new
        column = first_columns[index] if first_columns else 0
        slots = scattered[used : used + total]
        used += total
        req_to_token[rows[index], column : column + total] = slots.int()
        key = torch.randn(total, shape.key_heads, shape.key_dim, generator=generator)
        value = torch.randn(total, shape.key_heads, shape.value_dim, generator=generator)
        query = 3 * torch.randn(new, shape.heads, shape.key_dim, generator=generator)
        for k in range(total):
            if any(
                sees(cached + q, k, window=window, chunk=chunk, causal=causal, head_keys=head)
                for q in range(new)
            ):
                for keys, values in layouts:
                    keys[slots[k]], values[slots[k]] = key[k], value[k]
        expected.append(
            brute_force_attention(
                query,
                key,
                value,
                first_query_position=cached,
                scaling=scaling,
                window=window,
                chunk=chunk,
                causal=causal,
                head_keys=head,
                logit_cap=logit_cap,
                sinks=sinks,
            )
        )
        queries.append(query)
        spans.append(
            Span(
                first_column=column,
                num_keys=total,
                query_start=query_start,
                num_queries=new,
                first_query_position=cached,
            )
        )
        query_start += new

    rule = Visibility(window_tokens=window, chunk_tokens=chunk, causal=causal)
    if head:
        rule = Visibility(policy=SinkWindow(sink_tokens=head, window_tokens=window))
    batches = plan_batches(
        spans,
        rule,
        req_to_token=req_to_token,
        rows=rows,
    )
    for keys, values in layouts:
        result = attend_paged(
            torch.cat(queries),
            keys,
            values,
            batches,
            scaling=scaling,
            logit_cap=logit_cap,
            sinks=sinks,
        )
        torch.testing.assert_close(result.double(), torch.cat(expected), rtol=1e-4, atol=1e-5)


BATCHES = {
    "decode": [(12, 1), (0, 1), (5, 1)],
    "prefill": [(0, 7), (0, 1), (0, 10)],
    "chunked-prefill-on-a-prefix": [(9, 4), (4, 6)],
    "prefill-mixed-with-decode": [(0, 8), (13, 1)],
}
SHAPES = {
    "one-key-head-per-query-head": Shape(heads=2, key_heads=2),
    "grouped-queries": Shape(heads=4, key_heads=2),
    "one-key-head-for-all": Shape(heads=4, key_heads=1),
    "wider-values-than-keys": Shape(heads=4, key_heads=2, key_dim=4, value_dim=12),
    "wider-keys-than-values": Shape(heads=2, key_heads=1, key_dim=12, value_dim=4),
}
RULES = {
    "full": {},
    "window-4": {"window": 4},
    "window-0": {"window": 0},
    "chunk-5": {"chunk": 5},
    "chunk-5-and-window-3": {"chunk": 5, "window": 3},
    "head-2-and-window-3": {"window": 3, "head": 2},
}
SOFTMAXES = {
    "plain": {},
    "sinks": {"with_sinks": True},
    "soft-cap": {"logit_cap": 1.5},
    "sinks-and-soft-cap": {"with_sinks": True, "logit_cap": 1.5},
}


def _product() -> list:
    return [
        pytest.param(
            BATCHES[batch], SHAPES[shape], RULES[rule], SOFTMAXES[softmax],
            id="/".join([batch, shape, rule, softmax]),
        )
        for batch, shape, rule, softmax in itertools.product(BATCHES, SHAPES, RULES, SOFTMAXES)
    ]  # fmt: skip


@pytest.mark.parametrize(("requests", "shape", "rule", "softmax"), _product())
def test_paged_attention_equals_the_per_token_loop(requests, shape, rule, softmax):
    check(requests, shape, **rule, **softmax)


def test_a_window_wider_than_the_text_hides_nothing():
    check([(9, 4), (0, 6)], Shape(), window=99)


@pytest.mark.parametrize("window", [None, 3])
def test_encoders_see_both_directions(window):
    check([(0, 11), (0, 4)], Shape(), causal=False, window=window)


def test_decoder_keys_may_start_at_a_later_column_than_zero():
    check([(6, 3), (0, 5), (9, 1)], Shape(), first_columns=[13, 0, 40])


def test_long_prompts_are_cut_into_tiles_and_still_agree(monkeypatch):
    monkeypatch.setattr(paged, "MAX_TILE_QUERIES", 4)
    monkeypatch.setattr(paged, "MAX_BATCH_SCORES", 64)
    monkeypatch.setattr(paged, "MAX_BATCH_KEYS", 32)
    check([(7, 33), (0, 21), (30, 1)], Shape(heads=2, key_heads=1))
    check([(7, 33), (0, 21), (30, 1)], Shape(heads=2, key_heads=1), window=18)
    check([(7, 33), (0, 21), (30, 1)], Shape(heads=2, key_heads=1), chunk=6)


def test_a_window_layer_gathers_no_more_than_its_window_however_long_the_text():
    req_to_token = torch.arange(4096, dtype=torch.int32).view(1, 4096)
    span = Span(
        first_column=0, num_keys=4000, query_start=0, num_queries=1, first_query_position=3999
    )
    (batch,) = plan_batches(
        [span],
        Visibility(window_tokens=64),
        req_to_token=req_to_token,
        rows=torch.tensor([0]),
    )
    assert batch.slots.tolist() == [list(range(3999 - 64, 4000))]


def test_a_chunk_layer_gathers_from_the_start_of_the_chunk_only():
    req_to_token = torch.arange(512, dtype=torch.int32).view(1, 512)
    span = Span(
        first_column=0, num_keys=200, query_start=0, num_queries=1, first_query_position=199
    )
    (batch,) = plan_batches(
        [span], Visibility(chunk_tokens=64), req_to_token=req_to_token, rows=torch.tensor([0])
    )
    assert batch.slots.tolist() == [list(range(192, 200))]


def test_a_layer_with_a_head_gathers_nothing_between_it_and_its_window():
    span = Span(
        first_column=0, num_keys=200, query_start=0, num_queries=1, first_query_position=199
    )
    (batch,) = plan_batches(
        [span],
        Visibility(policy=SinkWindow(sink_tokens=3, window_tokens=8)),
        req_to_token=torch.arange(512, dtype=torch.int32).view(1, 512),
        rows=torch.tensor([0]),
    )
    assert batch.slots.tolist() == [[0, 1, 2, *range(191, 200)]]


def test_a_prompt_over_chunk_borders_gathers_one_chunk_per_tile():
    span = Span(first_column=0, num_keys=45, query_start=0, num_queries=40, first_query_position=5)
    batches = plan_batches(
        [span],
        Visibility(chunk_tokens=16),
        req_to_token=torch.arange(64, dtype=torch.int32).view(1, 64),
        rows=torch.tensor([0]),
    )
    for batch in batches:
        assert (batch.slots // 16 == batch.slots[:, :1] // 16).all()


def test_every_query_is_answered_exactly_once():
    spans, start = [], 0
    for cached, new in [(3, 5), (0, 7), (2, 6), (11, 1), (0, 20)]:
        spans.append(
            Span(
                first_column=0,
                num_keys=cached + new,
                query_start=start,
                num_queries=new,
                first_query_position=cached,
            )
        )
        start += new
    batches = plan_batches(
        spans,
        Visibility(window_tokens=6),
        req_to_token=torch.zeros(5, 32, dtype=torch.int32),
        rows=torch.arange(5),
    )
    answered = [
        batch.queries.flatten()
        if batch.answered is None
        else batch.queries.flatten()[batch.answered]
        for batch in batches
    ]
    assert sorted(torch.cat(answered).tolist()) == list(range(start))


def test_decode_of_similar_lengths_is_one_gather_and_padding_stays_below_twice_the_keys():
    lengths = [65, 80, 100, 127, 128]
    spans = [
        Span(
            first_column=0,
            num_keys=n,
            query_start=i,
            num_queries=1,
            first_query_position=n - 1,
        )
        for i, n in enumerate(lengths)
    ]
    (batch,) = plan_batches(
        spans,
        Visibility(),
        req_to_token=torch.zeros(len(lengths), 128, dtype=torch.int32),
        rows=torch.arange(len(lengths)),
    )
    assert batch.slots.shape == (5, 128)
    assert batch.slots.numel() < 2 * sum(lengths)


def test_requests_without_queries_or_without_keys_come_out_as_zero():
    spans = [
        Span(first_column=0, num_keys=0, query_start=0, num_queries=2, first_query_position=0),
        Span(first_column=0, num_keys=5, query_start=2, num_queries=0, first_query_position=5),
    ]
    batches = plan_batches(
        spans,
        Visibility(causal=False),
        req_to_token=torch.zeros(2, 8, dtype=torch.int32),
        rows=torch.tensor([0, 1]),
    )
    assert batches == []
    query = torch.ones(2, 4, 8)
    buffer = torch.full((8, 2, 8), torch.nan)
    assert attend_paged(query, buffer, buffer, batches, scaling=1.0).eq(0).all()


def test_half_precision_is_computed_in_float32_and_cast_back():
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(1, 6, 2, 8, generator=generator).bfloat16() for _ in range(3))
    position = torch.arange(6)
    seen = visible_keys(position, position, Visibility())[None]
    out = attend(query, key, value, seen, scaling=0.3)
    exact = brute_force_attention(query[0], key[0], value[0], first_query_position=0, scaling=0.3)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0].double(), exact, rtol=1e-5, atol=1e-6)


def test_key_ranges_are_exactly_the_visible_keys():
    for window, chunk, causal in itertools.product((None, 0, 3), (None, 1, 4), (True, False)):
        rule = Visibility(window_tokens=window, chunk_tokens=chunk, causal=causal)
        for query in range(12):
            visible = [
                k for k in range(12) if sees(query, k, window=window, chunk=chunk, causal=causal)
            ]
            assert (rule.first_key(query), rule.end_key(query, 12)) == (
                visible[0],
                visible[-1] + 1,
            ), (rule, query)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_tokens": -1}, "window_tokens is -1"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
    ],
)
def test_impossible_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Visibility(**arguments)


def test_query_heads_must_be_a_multiple_of_key_heads():
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
        attend(
            torch.ones(1, 1, 3, 4),
            torch.ones(1, 1, 2, 4),
            torch.ones(1, 1, 2, 4),
            None,
            scaling=1.0,
        )
