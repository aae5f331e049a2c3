# SPDX-License-Identifier: Apache-2.0
"""SGLang's JIT ``store_cache`` writes rows into arena views, and nothing else."""

from collections.abc import Callable

import pytest
import torch

from pool_writes import assert_only_written_rows_changed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("page_tokens", [1, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_store_cache_writes_exactly_its_rows(dtype: torch.dtype, page_tokens: int) -> None:
    assert_only_written_rows_changed(device="cuda", dtype=dtype, page_tokens=page_tokens)
    torch.cuda.synchronize()


@pytest.mark.parametrize("page_tokens", [1, 16])
def test_store_cache_writes_behind_2_33_bytes(
    page_tokens: int, room_for: Callable[[int], int]
) -> None:
    assert_only_written_rows_changed(
        device="cuda",
        dtype=torch.bfloat16,
        page_tokens=page_tokens,
        below_bytes=room_for(6),
    )
    torch.cuda.synchronize()


def test_the_kernel_serves_the_row_sizes_of_the_models_measured() -> None:
    """Otherwise SGLang falls back to two index assignments, slower by far."""
    from sglang.kernels.ops.kvcache.kvcache import can_use_store_cache

    for heads, dim in ((1, 128), (2, 64), (8, 64), (8, 256), (16, 128), (4, 512), (16, 256)):
        assert can_use_store_cache(heads * dim * 2, heads * dim * 2), f"{heads} heads of {dim}"
