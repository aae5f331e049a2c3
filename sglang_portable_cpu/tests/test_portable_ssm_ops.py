# SPDX-License-Identifier: Apache-2.0
"""Mamba2 against a float64 loop: batches, chunks, snapshots, strided pools, padding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from state_pools import StridedPool, offsets

from sglang_portable_cpu import ssm_ops

HEADS, GROUPS, HEAD_DIM, STATE, CHUNK = 4, 2, 3, 5, 8
STATE_SHAPE = (HEADS, HEAD_DIM, STATE)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@dataclass
class Layer:
    """Inputs of one layer for `tokens` tokens, and its parameters."""

    tokens: int

    def __post_init__(self) -> None:
        self.x = torch.randn(self.tokens, HEADS, HEAD_DIM)
        self.dt = torch.randn(self.tokens, HEADS)
        self.B, self.C = torch.randn(2, self.tokens, GROUPS, STATE)
        self.A = -torch.rand(HEADS) * 4
        self.D, self.dt_bias = torch.randn(2, HEADS)

    def reference(self, state, start, end):
        """Outputs of the tokens `start` to `end`, and the state before each and after the last."""
        state, states, outputs = state.double(), [], []
        step = torch.nn.functional.softplus(self.dt.double() + self.dt_bias.double())
        keys, queries = (
            t.double().repeat_interleave(HEADS // GROUPS, dim=1) for t in (self.B, self.C)
        )
        for t in range(start, end):
            states.append(state.float())
            x = self.x[t].double()
            decay = torch.exp(step[t] * self.A.double())[:, None, None]
            state = decay * state + (step[t][:, None] * x)[..., None] * keys[t][:, None]
            y = (state * queries[t][:, None]).sum(-1) + self.D.double()[:, None] * x
            outputs.append(y.float())
        return torch.stack(outputs), [*states, state.float()]

    def scan(self, lengths, initial=None, start=0, chunk=CHUNK, tracks=()):
        """(outputs, states on the grid, final states, tracked states) of prompts from `start`."""
        part = slice(start, start + sum(lengths))
        out = torch.full((1, sum(lengths), HEADS, HEAD_DIM), float("nan"))
        states, final, tracked = ssm_ops.mamba_chunk_scan_combined(
            self.x[None, part],
            self.dt[None, part],
            self.A,
            self.B[None, part],
            self.C[None, part],
            chunk_size=chunk,
            D=self.D,
            dt_bias=self.dt_bias,
            initial_states=initial,
            cu_seqlens=offsets(lengths),
            dt_softplus=True,
            out=out,
            return_varlen_states=True,
            return_track_states=True,
            track_seq_idx=torch.tensor([request for request, _ in tracks]),
            track_end_locs=torch.tensor([end for _, end in tracks]),
            state_dtype=torch.float32,
        )
        return out[0], states[0], final, None if tracked is None else tracked[0]


def test_prompts_of_a_batch_with_initial_states():
    lengths = [1, 13, 8, 30]
    layer, initial = Layer(sum(lengths)), torch.randn(len(lengths), *STATE_SHAPE)
    out, states, final, _ = layer.scan(lengths, initial)
    bounds = offsets(lengths).tolist()
    for request, (start, end) in enumerate(pairwise(bounds)):
        expected, along = layer.reference(initial[request], start, end)
        torch.testing.assert_close(out[start:end], expected, **CLOSE)
        torch.testing.assert_close(final[request], along[-1], **CLOSE)
        for position in range(start, end):
            if position % CHUNK == 0:
                there = along[position - start]
                torch.testing.assert_close(states[position // CHUNK], there, **CLOSE)
    assert len(states) == -(-sum(lengths) // CHUNK)


def test_without_initial_states_a_prompt_starts_from_zeros():
    layer = Layer(20)
    out, states, final, tracked = layer.scan([20])
    expected, along = layer.reference(torch.zeros(STATE_SHAPE), 0, 20)
    torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(final[0], along[-1], **CLOSE)
    assert not states[0].any()
    assert tracked is None


@pytest.mark.parametrize("cuts", [[40], [1, 39], [8, 32], [13, 14, 13]])
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_a_prompt_cut_into_chunks_gives_the_same_answer(cuts, chunk):
    layer = Layer(40)
    expected, along = layer.reference(torch.zeros(STATE_SHAPE), 0, 40)
    parts, state, start = [], None, 0
    for length in cuts:
        out, _, state, _ = layer.scan([length], state, start, chunk)
        parts.append(out)
        start += length
    torch.testing.assert_close(torch.cat(parts), expected, **CLOSE)
    torch.testing.assert_close(state[0], along[-1], **CLOSE)


def test_states_are_tracked_at_any_position_of_their_own_request():
    lengths = [11, 29]
    layer, initial = Layer(40), torch.randn(2, *STATE_SHAPE)
    _, _, _, tracked = layer.scan(lengths, initial, tracks=[(1, 35), (0, 7), (1, 11), (0, 11)])
    first, second = (
        layer.reference(initial[request], start, end)[1]
        for request, start, end in ((0, 0, 11), (1, 11, 40))
    )
    # At the shared boundary 11, one request has ended and the other has not begun.
    expected = torch.stack([second[35 - 11], first[7], second[0], first[11]])
    torch.testing.assert_close(tracked, expected, **CLOSE)


def test_a_strong_decay_over_a_long_chunk_does_not_overflow():
    layer = Layer(64)
    layer.A = torch.full((HEADS,), -500.0)
    out, _, final, _ = layer.scan([64], chunk=64)
    expected, along = layer.reference(torch.zeros(STATE_SHAPE), 0, 64)
    torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(final[0], along[-1], **CLOSE)


def decode(layer, rows, pool, slots):
    """One step: row i takes token `rows[i]` of `layer` and continues slot `slots[i]`."""
    out = torch.full((len(rows), HEADS, HEAD_DIM), float("nan"))

    def wide(per_head):  # as SGLang's Mamba2 layer expands them
        return per_head[..., None].expand(*per_head.shape, HEAD_DIM)

    ssm_ops.selective_state_update(
        pool.states,
        layer.x[rows],
        wide(layer.dt[rows]),
        layer.A[:, None, None].expand(STATE_SHAPE),
        layer.B[rows],
        layer.C[rows],
        wide(layer.D),
        dt_bias=wide(layer.dt_bias),
        dt_softplus=True,
        state_batch_indices=torch.tensor(slots, dtype=torch.int32),
        out=out,
    )
    return out


def test_a_decode_step_updates_the_slots_of_a_strided_pool_in_place():
    layer, pool = Layer(3), StridedPool(6, *STATE_SHAPE)
    before = pool.states.clone()
    out = decode(layer, [0, 1, 2], pool, [5, 1, 3])
    for row, slot in enumerate([5, 1, 3]):
        expected, along = layer.reference(before[slot], row, row + 1)
        torch.testing.assert_close(out[row], expected[0], **CLOSE)
        torch.testing.assert_close(pool.states[slot], along[-1], **CLOSE)
    for slot in (0, 2, 4):
        assert torch.equal(pool.states[slot], before[slot])
    assert pool.guards_hold()


def test_decode_padding_writes_nothing_and_the_sink_may_be_shared():
    layer, pool = Layer(4), StridedPool(3, *STATE_SHAPE)
    before = pool.states.clone()
    out = decode(layer, [0, 1, 2, 3], pool, [-1, 0, 0, 2])
    assert not out[0].any()
    torch.testing.assert_close(out[3], layer.reference(before[2], 3, 4)[0][0], **CLOSE)
    assert torch.equal(pool.states[1], before[1])
    assert pool.guards_hold()


def pools():
    return StridedPool(6, 2, 3), StridedPool(6, *STATE_SHAPE)


def test_a_snapshot_copies_the_states_of_the_tracked_rows_only():
    conv, ssm = pools()
    before = [pool.states.clone() for pool in (conv, ssm)]
    ssm_ops.track_mamba_states_if_needed(
        conv.states,
        ssm.states,
        cache_indices=torch.tensor([1, 2, 3, -1, 5], dtype=torch.int32),
        mamba_track_mask=torch.tensor([True, False, True, True, True]),
        mamba_track_indices=torch.tensor([4, 0, -1, 2, 0]),
        batch_size=5,
    )
    for pool, old in zip((conv, ssm), before, strict=True):
        assert torch.equal(pool.states[4], old[1])
        assert torch.equal(pool.states[0], old[5])  # the sink takes anything
        assert torch.equal(pool.states[[1, 2, 3, 5]], old[[1, 2, 3, 5]])
        assert pool.guards_hold()


def test_a_snapshot_of_all_layers_leaves_rows_behind_the_batch_alone():
    conv, ssm = torch.randn(3, 4, 2, 3), torch.randn(3, 4, *STATE_SHAPE)
    before = conv.clone(), ssm.clone()
    ssm_ops.track_mamba_states_all_layers(
        conv,
        ssm,
        cache_indices=torch.tensor([1, 2]),
        mamba_track_mask=torch.tensor([True, True]),
        mamba_track_indices=torch.tensor([3, 0]),
        batch_size=1,
    )
    for pool, old in zip((conv, ssm), before, strict=True):
        assert torch.equal(pool[:, 3], old[:, 1])
        assert torch.equal(pool[:, :3], old[:, :3])


def test_what_it_does_not_compute_is_refused():
    layer, pool = Layer(2), StridedPool(2, *STATE_SHAPE)
    with pytest.raises(NotImplementedError, match="return_track_states"):
        ssm_ops.mamba_chunk_scan_combined(
            layer.x[None], layer.dt[None], layer.A, layer.B[None], layer.C[None], CHUNK
        )
    with pytest.raises(NotImplementedError, match="speculative"):
        ssm_ops.selective_state_update(
            pool.states, layer.x, layer.dt, layer.A, layer.B, layer.C, disable_state_update=True
        )
