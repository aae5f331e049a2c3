# SPDX-License-Identifier: Apache-2.0
"""The allocator of models whose cross layers attend to images (Llama 3.2 Vision).

SGLang puts a request's image tokens in front of its text and gives every token a slot in every
layer. But a cross layer reads image tokens only and a self layer text only, so here each takes
slots from its own kind:

    row of a request    | image tokens       | text tokens ...
    cross layers        | slot of cross kind |
    self layers         |                    | slot of full kind

An image's slots are written ``image_base + slot`` wherever the host keeps them
(:class:`~sglang_jenga.arena.tables.RowTable`): rows, tree and frees then know the kind from the id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.large_pages import IntArray
from sglang_jenga.sglang_ext.allocator import FULL_INDEX, logger
from sglang_jenga.sglang_ext.req_pool import Extent
from sglang_jenga.sglang_ext.uniform import UniformArenaAllocator


class CrossArenaAllocator(UniformArenaAllocator):
    """Text in full layers, images in cross layers. Pages are single tokens in both."""

    cross_kind: int
    image_base: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.rows.image_base is None:
            raise ValueError("the rows of a model with cross layers need an image_base")
        self.image_base = self.rows.image_base
        #: Image tokens at the start of each row.
        self.image_tokens: IntArray = np.zeros(self.req_pool.num_rows, dtype=np.int64)
        #: Image slots that the tree owns, pinned or not; kept by the tree.
        self.cached_images = 0

    def available_size(self) -> int:
        # A census of text, as SGLang's checks want it. While requests run they also count image
        # tokens that no tree owns; where there is no tree these can outnumber the arena's text
        # slots, and the difference is negative.
        return super().available_size() - self.used_slots(self.cross_kind) + self.cached_images

    @property
    def free_pages(self) -> torch.Tensor:
        """Ids that name no slot in use, of either kind: what kernels see does not tell the kind."""
        names = [kind.spec.name for kind in self.plan.kinds]
        used = np.zeros(max(map(self.plan.num_slots, names)), dtype=np.bool_)
        for kind, name in enumerate(names):
            of_kind = np.ones(self.plan.num_slots(name), dtype=np.bool_)
            of_kind[self.core.unused_small_pages(kind)] = False
            used[: len(of_kind)] |= of_kind
        return torch.from_numpy(np.flatnonzero(~used)).to(self.device)

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> bool | None:
        images = self.req_pool.new_image_tokens
        return self.reclaim(tree_cache, self.demand_of(num_tokens - images, images=images))

    # ---- allocation ------------------------------------------------------------------------

    def _extend(self, extents: list[Extent]) -> torch.Tensor | None:
        rows = [extent.row for extent in extents]
        images = [extent.new_image_tokens for extent in extents]
        text = [e.end - e.start - n for e, n in zip(extents, images, strict=True)]
        try:
            pages = self.core.extend(
                rows, [images if kind == self.cross_kind else text for kind in self.kinds]
            )
        except Exhausted as error:
            logger.error("arena: prefill allocation failed: %s", error)
            return None
        slots = self._in_request_order(
            (pages[self.cross_kind] + self.image_base, images), (pages[FULL_INDEX], text)
        )
        for extent in extents:
            self.image_tokens[extent.row] = extent.image_tokens
        self._write_rows(extents, slots)
        return to_device(self.rows.kernel_ids(slots), self.torch_device)

    @staticmethod
    def _in_request_order(*parts: tuple[IntArray, list[int]]) -> IntArray:
        """Interleave ids of several kinds: each request's images, then its text."""
        cut = [np.split(ids, np.cumsum(counts)[:-1]) for ids, counts in parts]
        return np.concatenate([ids for request in zip(*cut, strict=True) for ids in request])

    def decode(self, rows: IntArray, seq_lens: IntArray) -> IntArray:
        """As the base does; ``seq_lens`` count text alone, as SGLang's batches do here."""
        return super().decode(rows, seq_lens + self.image_tokens[rows])

    # ---- giving back -----------------------------------------------------------------------

    def _free_full_pages(self, pages: IntArray) -> None:
        is_image = pages >= self.image_base
        if is_image.any():
            self.core.free(self.cross_kind, pages[is_image] - self.image_base)
            pages = pages[~is_image]
        if len(pages):
            self.core.free(FULL_INDEX, pages)

    def close_row(self, row: int) -> None:
        super().close_row(row)
        self.image_tokens[row] = 0

    def clear(self) -> None:
        super().clear()
        self.image_tokens.fill(0)
        self.cached_images = 0
        self.candidate_images = 0
