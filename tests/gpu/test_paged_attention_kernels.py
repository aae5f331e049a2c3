# SPDX-License-Identifier: Apache-2.0
"""Kernels of every backend that this GPU has serve arena views: right, and to the bit as on pools.

Everything in the arena that the batch does not own is a NaN bit pattern, so one byte read from a
neighbour's slot, another layer's row or a free large page would show.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from batches import BATCHES, HEADS, make_case
from paged_calls import calls_for
from paged_cases import FULL, KIND_NAMES, WINDOW, Case, Workload, reference
from sglang_jenga.sglang_ext.kernel_checks import gpu_of

pytestmark = pytest.mark.gpu

# Probabilities and outputs are bfloat16 (8 bits) around a float32 accumulator.
TOLERANCE = {"atol": 2e-2, "rtol": 2e-2}


def check(case: Case, kind: int) -> None:
    problem = Workload(case, device="cuda", dtype=torch.bfloat16).problem(kind)
    contiguous = problem.on_contiguous_pools()
    expected = reference(problem)
    assert expected.isfinite().all(), "the reference read a slot that the batch does not own"
    for name, prepare in calls_for(problem, gpu_of("cuda")).items():
        on_arena = prepare(problem)().clone()
        on_pools = prepare(contiguous)().clone()
        torch.testing.assert_close(
            on_arena.double(),
            expected,
            **TOLERANCE,
            msg=lambda text, name=name: f"{name} on arena views: {text}",
        )
        assert torch.equal(on_arena, on_pools), f"{name} differs between arena views and pools"


@pytest.mark.parametrize("kind", [FULL, WINDOW], ids=KIND_NAMES)
@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("batch", sorted(BATCHES))
@pytest.mark.parametrize("heads", sorted(HEADS))
def test_kernels_read_arena_views(heads: str, batch: str, page_tokens: int, kind: int) -> None:
    check(make_case(heads, batch, page_tokens), kind)


@pytest.mark.parametrize("kind", [FULL, WINDOW], ids=KIND_NAMES)
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_kernels_read_arena_views_with_a_soft_cap(batch: str, kind: int) -> None:
    check(make_case("full 1x128, window 2x64", batch, 1, logit_cap=4.0), kind)


@pytest.mark.parametrize("kind", [FULL, WINDOW], ids=KIND_NAMES)
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_triton_reads_arena_views_with_sinks(batch: str, kind: int) -> None:
    check(make_case("equal heads", batch, 1, has_sinks=True), kind)


@pytest.mark.parametrize("kind", [FULL, WINDOW], ids=KIND_NAMES)
@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_offsets_beyond_32_bits_are_reached(
    batch: str, page_tokens: int, kind: int, room_for: Callable[[int], int]
) -> None:
    """Slots behind 2**32 bfloat16 elements: a kernel that multiplies in 32 bits wraps around."""
    # The arena, and a contiguous copy of the kind with fewest layers.
    case = make_case("full 1x128, window 2x64", batch, page_tokens)
    check(replace(case, below_bytes=room_for(3)), kind)
    torch.cuda.empty_cache()
