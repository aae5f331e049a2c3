# SPDX-License-Identifier: Apache-2.0
"""A machine whose model has cross layers, and whose "forward" writes and reads every slot.

A prompt's leading ids from :data:`FIRST_PAD` on are image tokens, all tokens of an image alike.
Each slot's bytes are a mark of the token it holds and, for text, of everything before it. A step
reads back the whole context of its requests through the table that kernels read, so a slot that was
lost, handed to somebody else or taken from the wrong kind is caught.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from machine import Machine, make_kinds
from sglang_jenga.sglang_ext.model_kinds import ModelKinds
from sglang_jenga.sglang_ext.req_pool import image_tokens_of

FIRST_PAD = 1_000_000
IMAGE_TOKENS = 20


def image_kinds(*, full_layers: int = 4, cross_layers: int = 1) -> ModelKinds:
    return make_kinds(full_layers=full_layers, cross_layers=cross_layers)


def picture(*names: int, tokens: int = IMAGE_TOKENS) -> list[int]:
    """Token ids of these images, one after the other."""
    return [FIRST_PAD + name for name in names for _ in range(tokens)]


def count_images(ids: Sequence[int]) -> int:
    return sum(token >= FIRST_PAD for token in ids)


class ImageMachine(Machine):
    """See the module's docstring."""

    def __init__(self, kinds: ModelKinds | None = None, **kwargs: Any) -> None:
        super().__init__(kinds or image_kinds(), **kwargs)
        pool = self.arena.get_kvcache()
        by_layer = dict(zip(pool.model_layer_ids, pool.k_buffer, strict=True))
        self._marks = [
            by_layer[layers[0].layer_id].view(torch.int16)[:, 0, 0]
            for layers in (self.kinds.full, self.kinds.cross)
        ]
        self.has_data = self._marks[0].device.type != "meta"

    def request(self, prompt: Sequence[int], *, max_new: int = 8, name: str | None = None) -> Req:
        req = super().request(prompt, max_new=max_new, name=name)
        if images := count_images(prompt):
            req.multimodal_inputs = SimpleNamespace(
                num_image_tokens=images, mrope_positions=None, release_features=lambda: None
            )
        return req

    def batch(self, reqs: Sequence[Req], mode: ForwardMode) -> ScheduleBatch:
        batch = super().batch(reqs, mode)
        batch.model_config = SimpleNamespace(is_encoder_decoder=True, vocab_size=FIRST_PAD)
        if mode is ForwardMode.DECODE:
            images = torch.tensor([image_tokens_of(req) for req in reqs], dtype=torch.int64)
            batch.seq_lens_cpu = batch.seq_lens_cpu - images
            batch.encoder_lens = images.to(self.device, non_blocking=True)
            batch.encoder_lens_cpu = images.tolist()
            batch.seq_lens = batch.seq_lens_cpu.to(self.device, non_blocking=True)
        return batch

    # ---- the forward -----------------------------------------------------------------------

    def forward_extend(self, batch: ScheduleBatch) -> None:
        for req in batch.reqs:
            images = image_tokens_of(req)
            assert req.prefix_len == 0 or req.prefix_len >= images, "images are computed together"
            assert req.extend_end > images, "text follows its images at once"
            self._run(req, req.full_untruncated_fill_ids[: req.extend_end], req.prefix_len)

    def forward_decode(self, batch: ScheduleBatch) -> None:
        for req in batch.reqs:
            tokens = [*req.origin_input_ids, *req.output_ids][: req.kv.kv_committed_len]
            self._run(req, tokens, len(tokens) - 1)

    def _run(self, req: Req, tokens: Sequence[int], done: int) -> None:
        """Read the slots of ``tokens[:done]``, write those of the rest."""
        if not self.has_data:
            return
        images = image_tokens_of(req)
        slots = self.rows.req_to_token[req.kv.req_pool_idx, : len(tokens)].long()
        marks = _marks_of(tokens)
        for kind, part in ((1, slice(0, images)), (0, slice(images, len(tokens)))):
            old, new = part.start, max(done, part.start)
            stored = self._marks[kind][slots[old : min(done, part.stop)]]
            expected = marks[old : min(done, part.stop)]
            assert torch.equal(stored, expected), f"{req.rid} reads what it did not write"
            self._marks[kind][slots[new : part.stop]] = marks[new : part.stop]

    # ---- questions -------------------------------------------------------------------------

    def tree_tokens(self, kind: int) -> int:
        if kind != self.arena.cross_kind:
            return super().tree_tokens(kind)
        return sum(len(value) for value, _ in self._image_nodes())

    def problems(self) -> list[str]:
        found = super().problems()
        core = self.tree.tree_core
        if self.tree.disable:
            return found
        nodes = self._image_nodes()
        free = sum(len(value) for value, pins in nodes if not pins)
        if (core.evictable_images, self.arena.cached_images) != (free, self.tree_tokens(1)):
            found.append(
                f"{core.evictable_images} of {self.arena.cached_images} image slots count as "
                f"evictable, {free} of {self.tree_tokens(1)} are"
            )
        return found

    def _image_nodes(self) -> list[tuple[torch.Tensor, int]]:
        """Slots and pins of every node with image tokens; each holds nothing else."""
        found = []
        core = self.tree.tree_core
        for node in [] if self.tree.disable else core._collect_all_nodes():
            data = node.component_data[core.components[0].component_type]
            images = count_images(node.key.token_ids) if node is not core.root_node else 0
            if images:
                assert images == len(node.key), "a node mixes image and text"
                found.append((data.value, data.lock_ref))
        return found


def _marks_of(tokens: Sequence[int]) -> torch.Tensor:
    """One number per token: of an image its id alone, of text everything before it as well."""
    marks, before = [], 0
    for position, token in enumerate(tokens):
        if token >= FIRST_PAD:
            marks.append(token % 30_000)
            before += token % 30_000
        else:
            before = (before * 31 + (token + 1) * (position + 1)) % 29_989
            marks.append(before)
    return torch.tensor(marks, dtype=torch.int16)
