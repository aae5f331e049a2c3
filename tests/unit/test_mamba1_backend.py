# SPDX-License-Identifier: Apache-2.0
"""States of Mamba-1 layers: advanced in place in pools of any strides, copied where asked."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_jenga.models import mamba1_backend
from sglang_jenga.models.mamba1_backend import Mamba1AttnBackend, Row, rows_of
from sglang_jenga.models.selective_scan import convolve_sequence, scan_sequence

CHANNELS, STATE, WIDTH, SLOTS = 6, 5, 4, 9
GRID = 4


@pytest.fixture(autouse=True)
def grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba1_backend, "mamba_cache_chunk_size", lambda: GRID)


def contiguous_pools() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(SLOTS, CHANNELS, WIDTH - 1), torch.zeros(SLOTS, CHANNELS, 1, STATE)


def strided_pools() -> tuple[torch.Tensor, torch.Tensor]:
    """Both states of a slot side by side in one row of a wider memory, after a gap."""
    conv_numel, numel = CHANNELS * (WIDTH - 1), CHANNELS * STATE
    memory = torch.zeros(SLOTS, 3 + conv_numel + 2 + numel + 7)
    row = memory.stride(0)
    conv = memory.as_strided((SLOTS, CHANNELS, WIDTH - 1), (row, WIDTH - 1, 1), 3)
    ssm = memory.as_strided((SLOTS, CHANNELS, 1, STATE), (row, STATE, STATE, 1), 5 + conv_numel)
    assert not conv.is_contiguous() and not ssm.is_contiguous()
    return conv, ssm


@pytest.fixture(params=[contiguous_pools, strided_pools])
def pools(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    conv, ssm = request.param()
    conv.copy_(torch.randn(conv.shape))
    ssm.copy_(torch.randn(ssm.shape))
    return conv, ssm


Made = Callable[..., tuple[Mamba1AttnBackend, Any]]


@pytest.fixture
def backend(pools: tuple[torch.Tensor, torch.Tensor]) -> Made:
    """A backend over the pools as it is inside a forward, and the batch."""

    def make(
        slots: Sequence[int],
        *,
        rows: list[Row] | None = None,
        destinations: Sequence[int] | None = None,
        mask: Sequence[bool] | None = None,
    ) -> tuple[Mamba1AttnBackend, Any]:
        made = Mamba1AttnBackend.__new__(Mamba1AttnBackend)
        cache = SimpleNamespace(conv=[pools[0]], temporal=pools[1])
        made.req_to_token_pool = SimpleNamespace(mamba2_layer_cache=lambda layer_id: cache)
        made.forward_metadata = SimpleNamespace(
            mamba_cache_indices=torch.tensor(slots, dtype=torch.int32),
            mamba_track_indices=None if destinations is None else torch.tensor(destinations),
        )
        made._rows = rows
        return made, SimpleNamespace(mamba_track_mask=None if mask is None else torch.tensor(mask))

    return make


class Layer:
    """Inputs of one layer for a number of tokens, and what a single sequence makes of them."""

    def __init__(self, tokens: int) -> None:
        self.x = torch.randn(tokens, CHANNELS)
        self.dt = torch.rand(tokens, CHANNELS)
        self.A = -torch.rand(CHANNELS, STATE) - 0.1
        self.B, self.C = torch.randn(tokens, STATE), torch.randn(tokens, STATE)
        self.weight, self.bias = torch.randn(CHANNELS, WIDTH), torch.randn(CHANNELS)

    def run(self, backend: Mamba1AttnBackend, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        convolved = backend.convolve(0, self.x, self.weight, self.bias, batch)
        scanned = backend.scan(0, self.x, self.dt, self.A, self.B, self.C, batch)
        return convolved, scanned

    def alone(
        self, part: slice, conv: torch.Tensor, ssm: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Outputs for the tokens ``part`` after given states, and the states then."""
        padded = torch.cat([conv.T, self.x[part]])
        convolved = convolve_sequence(padded, self.weight, self.bias)
        x, dt, B, C = (v[part] for v in (self.x, self.dt, self.B, self.C))
        scanned, state = scan_sequence(ssm[:, 0], x, dt, self.A, B, C)
        return convolved, scanned, padded[-(WIDTH - 1) :].T, state[:, None]


def check_states(pools: Any, slot: int, conv: torch.Tensor, ssm: torch.Tensor) -> None:
    torch.testing.assert_close(pools[0][slot], conv, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pools[1][slot], ssm, rtol=1e-6, atol=1e-6)


def copies(pools: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return pools[0].clone(), pools[1].clone()


def row(start: int, num_tokens: int, *, resumes: bool, snapshot: int | None = None) -> Row:
    return Row(start=start, num_tokens=num_tokens, resumes=resumes, snapshot_tokens=snapshot)


def test_a_prefill_starts_from_nothing_or_resumes_and_leaves_its_state(pools, backend) -> None:
    before = copies(pools)
    rows = [row(0, 7, resumes=False), row(7, 2, resumes=True), row(9, 1, resumes=True)]
    made, batch = backend([3, 8, 1], rows=rows)
    layer = Layer(10)
    outputs = layer.run(made, batch)
    for r, slot in zip(rows, (3, 8, 1), strict=True):
        keep = 1.0 if r.resumes else 0.0
        part = slice(r.start, r.end)
        *expected, conv, ssm = layer.alone(part, before[0][slot] * keep, before[1][slot] * keep)
        for got, want in zip(outputs, expected, strict=True):
            torch.testing.assert_close(got[part], want, rtol=1e-6, atol=1e-6)
        check_states(pools, slot, conv, ssm)


def test_slots_of_other_requests_are_untouched(pools, backend) -> None:
    before = copies(pools)
    made, batch = backend([3], rows=[row(0, 6, resumes=True, snapshot=4)], destinations=[5])
    Layer(6).run(made, batch)
    made, batch = backend([2, 7], destinations=[4, 6], mask=[True, False])
    Layer(2).run(made, batch)
    others = [8, 1, 6]  # slot 0 is the padding slot
    assert torch.equal(pools[0][others], before[0][others])
    assert torch.equal(pools[1][others], before[1][others])


@pytest.mark.parametrize("snapshot", [4, 8])
def test_a_snapshot_is_the_state_after_exactly_that_many_tokens(pools, backend, snapshot) -> None:
    before = copies(pools)
    rows = [row(0, 3, resumes=True), row(3, 8, resumes=True, snapshot=snapshot)]
    made, batch = backend([2, 3], rows=rows, destinations=[6, 7])
    layer = Layer(11)
    layer.run(made, batch)
    check_states(pools, 7, *layer.alone(slice(3, 3 + snapshot), before[0][3], before[1][3])[2:])
    check_states(pools, 3, *layer.alone(slice(3, 11), before[0][3], before[1][3])[2:])
    assert torch.equal(pools[0][6], before[0][6]), "no snapshot was asked of the first row"


def test_a_decode_step_advances_each_state_and_copies_those_that_are_tracked(
    pools, backend
) -> None:
    before = copies(pools)
    made, batch = backend([2, 5], destinations=[7, 8], mask=[True, False])
    layer = Layer(2)
    outputs = layer.run(made, batch)
    for i, slot in enumerate((2, 5)):
        part = slice(i, i + 1)
        *expected, conv, ssm = layer.alone(part, before[0][slot], before[1][slot])
        for got, want in zip(outputs, expected, strict=True):
            torch.testing.assert_close(got[part], want, rtol=1e-6, atol=1e-6)
        check_states(pools, slot, conv, ssm)
    check_states(pools, 7, pools[0][2], pools[1][2])
    assert torch.equal(pools[0][8], before[0][8])


def test_a_prefill_and_decode_steps_are_one_longer_prefill(pools, backend) -> None:
    layer = Layer(9)
    made, batch = backend([3], rows=[row(0, 9, resumes=False)])
    whole = layer.run(made, batch)
    after = pools[0][3].clone(), pools[1][3].clone()

    parts = []
    made, batch = backend([4], rows=[row(0, 6, resumes=False)])
    everything = layer.x, layer.dt, layer.B, layer.C
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        layer.x, layer.dt, layer.B, layer.C = (v[start:end] for v in everything)
        parts.append(layer.run(made, batch))
        made, batch = backend([4])
    for i in range(2):
        torch.testing.assert_close(torch.cat([p[i] for p in parts]), whole[i], rtol=1e-6, atol=1e-6)
    check_states(pools, 4, *after)


@pytest.mark.parametrize("nowhere", [0, -1])
def test_padding_rows_and_freed_destinations_touch_no_slot_in_use(pools, backend, nowhere) -> None:
    before = copies(pools)
    made, batch = backend([2, nowhere], destinations=[nowhere, nowhere], mask=[True, True])
    Layer(2).run(made, batch)
    rows = [row(0, 5, resumes=False, snapshot=4)]
    made, batch = backend([nowhere], rows=rows, destinations=[nowhere])
    Layer(5).run(made, batch)
    in_use = [1, *range(3, SLOTS)]
    assert torch.equal(pools[0][in_use], before[0][in_use])
    assert torch.equal(pools[1][in_use], before[1][in_use])


def test_an_empty_batch_is_served(backend) -> None:
    made, batch = backend([])
    convolved, scanned = Layer(0).run(made, batch)
    assert convolved.shape == scanned.shape == (0, CHANNELS)


def test_states_may_be_kept_in_fewer_bits(pools, backend) -> None:
    conv, ssm = pools
    cache = SimpleNamespace(conv=[conv.bfloat16()], temporal=ssm.half())
    made, batch = backend([2], rows=[row(0, 5, resumes=True, snapshot=4)], destinations=[3])
    made.req_to_token_pool.mamba2_layer_cache = lambda layer_id: cache
    layer = Layer(5)
    expected = layer.alone(slice(0, 5), cache.conv[0][2].float(), cache.temporal[2].float())
    outputs = layer.run(made, batch)
    torch.testing.assert_close(outputs[1], expected[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(cache.conv[0][2], expected[2].bfloat16())
    assert torch.equal(cache.temporal[2], expected[3].half())


class TestRows:
    """Which tokens are whose, and where the scheduler wants a snapshot."""

    def batch(self, **given: Any) -> SimpleNamespace:
        fields = (
            *("extend_seq_lens", "extend_prefix_lens", "mamba_track_mask", "mamba_track_seqlens"),
            *("extend_seq_lens_cpu", "extend_prefix_lens_cpu"),
            *("mamba_prefill_track_mask_cpu", "mamba_track_seqlens_cpu"),
        )
        return SimpleNamespace(**dict.fromkeys(fields) | given)

    def test_rows_follow_each_other_and_resume_behind_a_prefix(self) -> None:
        got = rows_of(self.batch(extend_seq_lens_cpu=[5, 1, 2], extend_prefix_lens_cpu=[0, 9, 3]))
        assert got == [row(0, 5, resumes=False), row(5, 1, resumes=True), row(6, 2, resumes=True)]

    @pytest.mark.parametrize(
        ("target", "snapshot"),
        [
            (17, 8),  # the end of the sequence, off the grid: the last point of it before
            (16, 8),  # the end, on the grid as seen from the prefix
            (13, 4),  # one more than a point inside: that point
        ],
    )
    def test_a_snapshot_is_on_the_grid_counted_from_the_prefix(self, target, snapshot) -> None:
        given = {"extend_seq_lens_cpu": [9], "extend_prefix_lens_cpu": [8]}
        tracked = {"mamba_prefill_track_mask_cpu": [True], "mamba_track_seqlens_cpu": [target]}
        assert rows_of(self.batch(**given, **tracked))[0].snapshot_tokens == snapshot

    def test_a_masked_row_has_none(self) -> None:
        given = {"extend_seq_lens_cpu": [9, 9], "extend_prefix_lens_cpu": [0, 0]}
        tracked = {
            "mamba_prefill_track_mask_cpu": [False, True],
            "mamba_track_seqlens_cpu": [-1, 9],
        }
        got = rows_of(self.batch(**given, **tracked))
        assert [r.snapshot_tokens for r in got] == [None, 8]

    def test_tensors_are_read_where_the_host_has_no_copy(self) -> None:
        on_host = self.batch(
            extend_seq_lens_cpu=[5, 9],
            extend_prefix_lens_cpu=[0, 4],
            mamba_prefill_track_mask_cpu=[False, True],
            mamba_track_seqlens_cpu=[-1, 13],
        )
        on_device = self.batch(
            extend_seq_lens=torch.tensor([5, 9]),
            extend_prefix_lens=torch.tensor([0, 4]),
            mamba_track_mask=torch.tensor([False, True]),
            mamba_track_seqlens=torch.tensor([-1, 13]),
        )
        assert rows_of(on_device) == rows_of(on_host)
