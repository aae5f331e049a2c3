# SPDX-License-Identifier: Apache-2.0
"""The allocators of models whose attention layers all attend to everything."""

from __future__ import annotations

import torch

from sglang_jenga.sglang_ext.allocator import FULL_INDEX, ArenaAllocatorBase
from sglang_jenga.sglang_ext.kind_face import KindFace


class OneTokenKindAllocator(ArenaAllocatorBase):
    """Models in which every attention layer attends to everything."""

    @property
    def free_pages(self) -> torch.Tensor:
        return KindFace(self, FULL_INDEX).get_all_free_pages()

    def get_all_free_pages(self) -> torch.Tensor:
        return self.free_pages


class UniformArenaAllocator(OneTokenKindAllocator):
    """Models with nothing else: the whole arena is the full kind's."""

    @property
    def size(self) -> int:
        return self.usable_slots(FULL_INDEX)

    def available_size(self) -> int:
        # A census: SGLang's idle check wants available + cached + used == size, exactly.
        return self.size - self.used_slots(FULL_INDEX)


class StateArenaAllocator(OneTokenKindAllocator):
    """Models with recurrent layers, whose states take large pages from the same arena."""

    @property
    def size(self) -> int:
        """Tokens at this moment: those handed out and those that could still be."""
        return self.available_size() + self.used_slots(FULL_INDEX)

    def available_size(self) -> int:
        return self.core.num_available(FULL_INDEX) * self.page_size
