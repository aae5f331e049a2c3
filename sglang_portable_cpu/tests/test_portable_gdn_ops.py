# SPDX-License-Identifier: Apache-2.0
"""The gated delta rule against a float64 loop; the fusions of Qwen3-Next against plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from state_pools import StridedPool, offsets

pytest.importorskip("sglang", reason="SGLang is not installed")

from sglang_portable_cpu import gdn_ops

HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 2, 4, 5, 3
STATE_SHAPE = (VALUE_HEADS, VALUE_DIM, KEY_DIM)
CHUNK = 64
"""Of SGLang's kernel: where a request's states are kept during a prefill."""
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@dataclass
class Layer:
    tokens: int

    def __post_init__(self) -> None:
        self.q, self.k = torch.randn(2, self.tokens, HEADS, KEY_DIM)
        self.v = torch.randn(self.tokens, VALUE_HEADS, VALUE_DIM)
        self.a, self.b = torch.randn(2, self.tokens, VALUE_HEADS)
        self.A_log, self.dt_bias = torch.randn(2, VALUE_HEADS)

    def gates(self):
        step = torch.nn.functional.softplus(self.a + self.dt_bias)
        return -self.A_log.exp() * step, self.b.sigmoid()

    def reference(self, state, start, end):
        """Outputs of the tokens `start` to `end`, and the state before each and after the last."""
        q, k = (
            (t / t.square().sum(-1, keepdim=True).add(1e-6).sqrt())
            .repeat_interleave(VALUE_HEADS // HEADS, dim=1)
            .double()
            for t in (self.q, self.k)
        )
        g, beta = (t.double() for t in self.gates())
        state, states, outputs = state.double(), [], []
        for t in range(start, end):
            states.append(state.float())
            state = g[t].exp()[:, None, None] * state
            recalled = (state * k[t][:, None]).sum(-1)
            written = beta[t][:, None] * (self.v[t].double() - recalled)
            state = state + written[..., None] * k[t][:, None]
            outputs.append(((state * q[t][:, None]).sum(-1) * KEY_DIM**-0.5).float())
        return torch.stack(outputs), [*states, state.float()]

    def prefill(self, lengths, pool, slots, start=0, **extra):
        part = slice(start, start + sum(lengths))
        g, beta = self.gates()
        out, none, states = gdn_ops.chunk_gated_delta_rule(
            self.q[None, part],
            self.k[None, part],
            self.v[None, part],
            g[None, part],
            beta[None, part],
            initial_state=pool.states,
            initial_state_indices=torch.tensor(slots, dtype=torch.int32),
            cu_seqlens=offsets(lengths),
            use_qk_l2norm_in_kernel=True,
            **extra,
        )
        assert none is None
        return out[0], states[0]

    def decode(self, rows, pool, slots):
        packed = torch.cat([t[rows].flatten(1) for t in (self.q, self.k, self.v)], dim=1)
        out = torch.full((len(rows), 1, VALUE_HEADS, VALUE_DIM), float("nan"))
        returned, states = gdn_ops.fused_recurrent_gated_delta_rule_packed_decode(
            packed,
            self.a[rows],
            self.b[rows],
            self.A_log,
            self.dt_bias,
            KEY_DIM**-0.5,
            pool.states,
            out,
            torch.tensor(slots, dtype=torch.int32),
            use_qk_l2norm_in_kernel=True,
        )
        assert returned is out
        assert states is pool.states
        return out[:, 0]


def test_prompts_of_a_batch_continue_their_slots_and_keep_states_per_chunk():
    lengths, slots = [1, CHUNK, 2 * CHUNK + 9], [3, 5, 1]
    layer, pool = Layer(sum(lengths)), StridedPool(6, *STATE_SHAPE)
    before = pool.states.clone()
    out, states = layer.prefill(lengths, pool, slots)
    kept = []
    for slot, (start, end) in zip(slots, pairwise(offsets(lengths).tolist()), strict=True):
        expected, along = layer.reference(before[slot], start, end)
        torch.testing.assert_close(out[start:end], expected, **CLOSE)
        torch.testing.assert_close(pool.states[slot], along[-1], **CLOSE)
        kept += along[: end - start : CHUNK]
    torch.testing.assert_close(states, torch.stack(kept), **CLOSE)
    for slot in (0, 2, 4):
        assert torch.equal(pool.states[slot], before[slot])
    assert pool.guards_hold()


@pytest.mark.parametrize("cuts", [[150], [1, 149], [64, 86], [50, 50, 50]])
def test_a_prompt_cut_into_chunks_gives_the_same_answer(cuts):
    layer, pool = Layer(150), StridedPool(2, *STATE_SHAPE)
    expected, along = layer.reference(pool.states[1], 0, 150)
    parts, start = [], 0
    for length in cuts:
        parts.append(layer.prefill([length], pool, [1], start)[0])
        start += length
    torch.testing.assert_close(torch.cat(parts), expected, **CLOSE)
    torch.testing.assert_close(pool.states[1], along[-1], **CLOSE)


def test_a_strong_decay_over_a_long_chunk_does_not_overflow():
    layer, pool = Layer(CHUNK), StridedPool(2, *STATE_SHAPE)
    layer.A_log = torch.full((VALUE_HEADS,), 6.0)
    expected, _ = layer.reference(pool.states[1], 0, CHUNK)
    out, _ = layer.prefill([CHUNK], pool, [1])
    torch.testing.assert_close(out, expected, **CLOSE)


def test_padding_in_prefill_starts_from_zeros_and_writes_nothing():
    layer, pool = Layer(10), StridedPool(2, *STATE_SHAPE)
    before = pool.states.clone()
    out, _ = layer.prefill([10], pool, [-1])
    torch.testing.assert_close(out, layer.reference(torch.zeros(STATE_SHAPE), 0, 10)[0], **CLOSE)
    assert torch.equal(pool.states, before)


def test_a_prefill_can_leave_the_pool_as_it_was():
    layer, pool = Layer(10), StridedPool(2, *STATE_SHAPE)
    before = pool.states.clone()
    out, _ = layer.prefill([10], pool, [1], inplace_update=False)
    torch.testing.assert_close(out, layer.reference(before[1], 0, 10)[0], **CLOSE)
    assert torch.equal(pool.states, before)


def test_a_decode_step_updates_the_slots_of_a_strided_pool_in_place():
    layer, pool = Layer(4), StridedPool(6, *STATE_SHAPE)
    before = pool.states.clone()
    out = layer.decode([0, 1, 2, 3], pool, [5, -1, 1, 0])
    assert not out[1].any()
    for row, slot in ((0, 5), (2, 1), (3, 0)):
        expected, along = layer.reference(before[slot], row, row + 1)
        torch.testing.assert_close(out[row], expected[0], **CLOSE)
        torch.testing.assert_close(pool.states[slot], along[-1], **CLOSE)
    for slot in (2, 3, 4):
        assert torch.equal(pool.states[slot], before[slot])
    assert pool.guards_hold()


def test_the_gates_are_those_of_the_recurrence():
    layer = Layer(7)
    g, beta = gdn_ops.fused_gdn_gating(layer.A_log, layer.a, layer.b, layer.dt_bias)
    for gate, expected in zip((g, beta), layer.gates(), strict=True):
        torch.testing.assert_close(gate, expected[None])


def test_projections_are_sorted_as_the_model_file_sorts_them():
    from sglang.srt.models.qwen3_next import Qwen3GatedDeltaNet

    class Sizes:
        num_k_heads, num_v_heads, attn_tp_size = HEADS, VALUE_HEADS, 1
        head_k_dim, head_v_dim = KEY_DIM, VALUE_DIM

    qkvz = torch.randn(6, 2 * HEADS * KEY_DIM + 2 * VALUE_HEADS * VALUE_DIM)
    ba = torch.randn(6, 2 * VALUE_HEADS)
    q, k, v, *rest = Qwen3GatedDeltaNet.fix_query_key_value_ordering(Sizes(), qkvz, ba)
    expected = torch.cat([t.reshape(6, -1) for t in (q, k, v)], dim=1), *rest
    got = gdn_ops.fused_qkvzba_split_reshape_cat(qkvz, ba, HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM)
    for have, want in zip(got, expected, strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize("activation", ["silu", "swish", "sigmoid"])
def test_the_norm_comes_before_the_gate(activation):
    x, g, weight = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    gate = torch.sigmoid(g) if activation == "sigmoid" else g * torch.sigmoid(g)
    expected = torch.nn.functional.rms_norm(x, (8,), weight, eps=1e-3) * gate
    out = gdn_ops.rms_norm_gated(x, g, weight, None, activation, eps=1e-3)
    torch.testing.assert_close(out, expected)


def test_a_shared_expert_is_added_in_place_through_its_gate():
    hidden, shared, routed, gate = (*torch.randn(3, 5, 8), torch.randn(8))
    expected = routed + torch.sigmoid(hidden @ gate)[:, None] * shared
    gdn_ops.fused_gate_sigmoid_mul_add(hidden, gate, shared, routed)
    torch.testing.assert_close(routed, expected)


def test_what_it_does_not_compute_is_refused():
    layer, x = Layer(2), torch.randn(2, 3)
    with pytest.raises(NotImplementedError, match="state pool"):
        gdn_ops.chunk_gated_delta_rule(
            layer.q[None], layer.k[None], layer.v[None], layer.a[None], layer.b[None]
        )
    with pytest.raises(NotImplementedError, match="residual"):
        gdn_ops.rms_norm_gated(x, x, None, None, residual=x)
