# SPDX-License-Identifier: Apache-2.0
"""Causal convolution against a float64 loop: batches, chunks, strided pools, padding."""

from __future__ import annotations

import pytest
import torch
from state_pools import StridedPool, offsets

from sglang_portable_cpu import conv_ops

CHANNELS, WIDTH = 6, 4
DTYPES = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def weight():
    return torch.randn(CHANNELS, WIDTH)


@pytest.fixture
def bias():
    return torch.randn(CHANNELS)


def reference(x, state, weight, bias, *, silu=True):
    """Token by token in float64: outputs `[channels, tokens]` and the state behind them."""
    window, outputs = state.double(), []
    for token in x.double().T:
        window = torch.cat([window, token[:, None]], dim=1)
        y = (window * weight.double()).sum(1) + bias.double()
        outputs.append(y * torch.sigmoid(y) if silu else y)
        window = window[:, 1:]
    return torch.stack(outputs, 1).float(), window.float()


def prefill(x, pool, slots, lengths, weight, bias, resumes, **extra):
    return conv_ops.causal_conv1d_fn(
        x,
        weight,
        bias,
        conv_states=pool.states,
        query_start_loc=offsets(lengths),
        seq_lens_cpu=lengths,
        cache_indices=torch.tensor(slots, dtype=torch.int32),
        has_initial_state=torch.tensor(resumes),
        **extra,
    )


def test_prompts_of_a_batch_start_from_their_own_state_or_from_zeros(weight, bias):
    lengths, slots, resumes = [1, 2, 9], [4, 1, 3], [True, False, True]
    pool = StridedPool(6, CHANNELS, WIDTH - 1)
    before = pool.states.clone()
    x = torch.randn(sum(lengths), CHANNELS).T
    out = prefill(x, pool, slots, lengths, weight, bias, resumes)
    start = 0
    for length, slot, resumed in zip(lengths, slots, resumes, strict=True):
        state = before[slot] if resumed else torch.zeros_like(before[slot])
        expected, last = reference(x[:, start : start + length], state, weight, bias)
        torch.testing.assert_close(out[:, start : start + length], expected)
        torch.testing.assert_close(pool.states[slot], last)
        start += length
    for slot in (0, 2, 5):
        assert torch.equal(pool.states[slot], before[slot])
    assert pool.guards_hold()


@pytest.mark.parametrize("cuts", [[12], [1, 11], [5, 7], [1] * 12])
def test_a_prompt_cut_into_chunks_gives_the_same_bits(cuts, weight, bias):
    x = torch.randn(12, CHANNELS).T
    whole = StridedPool(2, CHANNELS, WIDTH - 1)
    expected = prefill(x, whole, [1], [12], weight, bias, [False])
    pool, parts, start = StridedPool(2, CHANNELS, WIDTH - 1), [], 0
    for length in cuts:
        part = x[:, start : start + length]
        parts.append(prefill(part, pool, [1], [length], weight, bias, [start > 0]))
        start += length
    assert torch.equal(torch.cat(parts, 1), expected)
    assert torch.equal(pool.states[1], whole.states[1])


def test_decode_continues_a_prompt(weight, bias):
    x = torch.randn(7, CHANNELS).T
    whole, pool = (StridedPool(3, CHANNELS, WIDTH - 1) for _ in range(2))
    expected = prefill(x, whole, [2], [7], weight, bias, [False])
    prefill(x[:, :6], pool, [2], [6], weight, bias, [False])
    slots = torch.tensor([2])
    out = conv_ops.causal_conv1d_update(
        x[:, 6:].T, pool.states, weight, bias, "silu", conv_state_indices=slots
    )
    assert torch.equal(out[0], expected[:, 6])
    assert torch.equal(pool.states[2], whole.states[2])


def test_the_output_of_a_prefill_can_be_viewed_token_by_token(weight, bias):
    pool = StridedPool(2, CHANNELS, WIDTH - 1)
    x = torch.randn(5, 2 * CHANNELS)[:, :CHANNELS].T  # a slice of a wider projection
    out = prefill(x, pool, [1], [5], weight, bias, [False])
    assert out.T.view(1, 5, 2, -1).shape == (1, 5, 2, CHANNELS // 2)


def test_padding_is_neither_read_nor_written(weight, bias):
    pool = StridedPool(3, CHANNELS, WIDTH - 1)
    before = pool.states.clone()
    x = torch.randn(4, CHANNELS)
    out = prefill(x.T, pool, [-1], [3], weight, bias, [True])
    assert not out.any()
    out = conv_ops.causal_conv1d_update(
        x, pool.states, weight, bias, "silu", conv_state_indices=torch.tensor([-1, 0, 0, 2])
    )
    assert not out[0].any()
    for row, slot in ((1, 0), (2, 0), (3, 2)):  # rows of the sink share slot 0
        expected, _ = reference(x[[row]].T, before[slot], weight, bias)
        torch.testing.assert_close(out[row], expected[:, 0])
    assert torch.equal(pool.states[1], before[1])
    assert pool.guards_hold()


def test_without_activation_and_bias_it_is_the_plain_sum(weight):
    pool = StridedPool(2, CHANNELS, WIDTH - 1)
    x = torch.randn(3, CHANNELS).T
    out = prefill(x, pool, [1], [3], weight, None, [False], activation=None)
    state = torch.zeros(CHANNELS, WIDTH - 1)
    expected, _ = reference(x, state, weight, torch.zeros(CHANNELS), silu=False)
    torch.testing.assert_close(out, expected)


def test_what_it_does_not_compute_is_refused(weight, bias):
    x, pool = torch.randn(1, CHANNELS), StridedPool(2, CHANNELS, WIDTH - 1)
    for name in ("cache_seqlens", "intermediate_conv_window", "retrieve_parent_token"):
        with pytest.raises(NotImplementedError, match="speculative"):
            conv_ops.causal_conv1d_update(x, pool.states, weight, **{name: torch.zeros(1)})
    with pytest.raises(NotImplementedError, match="gelu"):
        conv_ops.causal_conv1d_update(x, pool.states, weight, bias, "gelu")


def test_a_pool_of_another_dtype_rounds_states_and_nothing_else(weight, bias):
    x = torch.randn(6, CHANNELS).T
    exact, rounded = (torch.zeros(2, CHANNELS, WIDTH - 1, dtype=d) for d in DTYPES)
    for pool in (exact, rounded):
        out = conv_ops.causal_conv1d_fn(
            x, weight, bias, pool, offsets([6]), [6], cache_indices=torch.tensor([1])
        )
        assert out.dtype == torch.float32
        torch.testing.assert_close(
            out, reference(x, torch.zeros(CHANNELS, WIDTH - 1), weight, bias)[0]
        )
    assert torch.equal(rounded, exact.bfloat16())
    step = torch.randn(1, CHANNELS)
    outs = [
        conv_ops.causal_conv1d_update(
            step, pool, weight, bias, "silu", conv_state_indices=torch.tensor([1])
        )
        for pool in (exact, rounded)
    ]
    torch.testing.assert_close(*outs, rtol=0.05, atol=0.05)
    assert torch.equal(rounded[1, :, -1], step[0].bfloat16())
