# SPDX-License-Identifier: Apache-2.0
"""One kind of the arena as SGLang's tree and invariant checks look at a sub-allocator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase


class KindFace:
    """See the module's docstring. ``kind``: its index in the plan."""

    debug_mode = False

    def __init__(self, owner: ArenaAllocatorBase, kind: int) -> None:
        self._owner = owner
        self._kind = kind
        self.page_size = owner.page_size

    @property
    def size(self) -> int:
        return self._owner.usable_slots(self._kind)

    def available_size(self) -> int:
        return self._owner.core.num_available(self._kind) * self.page_size

    def free_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        """Free this kind's slots alone. The tree frees the paired window slots by itself, in an
        order of its own, so the pairing is not looked at here."""
        self._owner.check_start(start_pos)
        if free_index.numel():
            self._owner.core.free(self._kind, self._owner.segment_pages(free_index))

    @property
    def free_pages(self) -> torch.Tensor:
        return self.get_all_free_pages()

    def get_all_free_pages(self) -> torch.Tensor:
        """Small page ids that nobody uses. ``[n]`` int64 on the table's device."""
        pages = self._owner.core.unused_small_pages(self._kind)
        return torch.from_numpy(pages).to(self._owner.device)
