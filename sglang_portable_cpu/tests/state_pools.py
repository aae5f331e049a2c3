# SPDX-License-Identifier: Apache-2.0
"""State pools as the engine may lay them out: slots far apart, other bytes in between."""

from __future__ import annotations

import torch

GUARD = 777.0


class StridedPool:
    """`slots` states of `shape`, each followed by guard values that nobody may touch."""

    def __init__(self, slots: int, *shape: int, gap: int = 5) -> None:
        numel = torch.Size(shape).numel()
        self._memory = torch.full((slots, numel + gap), GUARD)
        inner = torch.empty(shape, device="meta").stride()
        self.states = self._memory.as_strided((slots, *shape), (numel + gap, *inner))
        self.states.copy_(torch.randn(slots, *shape))
        self._numel = numel

    def guards_hold(self) -> bool:
        return bool((self._memory[:, self._numel :] == GUARD).all())


def offsets(lengths: list[int]) -> torch.Tensor:
    """Where each of several prompts begins, and where the last one ends."""
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
