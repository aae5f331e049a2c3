# SPDX-License-Identifier: Apache-2.0
"""SGLang's triton kernels of recurrent states read and write arena views, and nothing else."""

from collections.abc import Callable

import pytest
import torch

from state_calls import CHECKS, StateCheck, States

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_states_are_updated_where_they_lie(check: Callable[[States], StateCheck]) -> None:
    found = check(States(device="cuda", below_bytes=0))
    assert found.equal and found.untouched, found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_states_behind_2_33_bytes_are_updated_where_they_lie(
    check: Callable[[States], StateCheck], room_for: Callable[[int], int]
) -> None:
    found = check(States(device="cuda", below_bytes=room_for(4)))
    assert found.first_byte > 2**33
    assert found.equal and found.untouched, found
    torch.cuda.empty_cache()
