# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's and SGLang's kernels serve arena views unchanged: right, and to the bit as on pools.

Everything in the arena that the batch does not own is a NaN bit pattern, so one byte read from a
neighbour's slot, another layer's row or a free large page would show.
"""

from dataclasses import replace

import pytest
import torch

from batches import BATCHES, HEADS, make_case
from paged_calls import calls_for
from paged_cases import FULL, KIND_NAMES, WINDOW, Case, Workload, reference

pytestmark = pytest.mark.gpu

# Probabilities and outputs are bfloat16 (8 bits) around a float32 accumulator.
TOLERANCE = {"atol": 2e-2, "rtol": 2e-2}


def check(case: Case, kind: int) -> None:
    problem = Workload(case, device="cuda", dtype=torch.bfloat16).problem(kind)
    contiguous = problem.on_contiguous_pools()
    expected = reference(problem)
    assert expected.isfinite().all(), "the reference read a slot that the batch does not own"
    for name, prepare in calls_for(problem).items():
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
@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_offsets_beyond_32_bits_are_reached(batch: str, kind: int) -> None:
    """Slots behind 2**31 bfloat16 elements: a kernel that multiplies in int32 wraps around."""
    below_bytes = 2**32 + 2**20
    room = 3 * below_bytes  # the arena, and a contiguous copy of the kind with fewest layers
    free = torch.cuda.mem_get_info()[0]
    if free < room:
        pytest.skip(f"not run, needs {room >> 30} GiB of free GPU memory, {free >> 30} are free")
    case = replace(make_case("full 1x128, window 2x64", batch, 1), below_bytes=below_bytes)
    check(case, kind)
    torch.cuda.empty_cache()
