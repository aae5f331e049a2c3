# SPDX-License-Identifier: Apache-2.0
"""Recurrent states in the arena: what one holds, where its tensors lie, who hands its slots out.

A state is one slot for a whole request (all its recurrent layers), not one per token. Its slots
come from the same large pages as everything else, so there is no pool of states to size and no
number of requests that follows from it.

Slot ids are host tensors everywhere (the request, the tree, the allocator); the device copies that
kernels index with are made by :class:`ArenaStatePool` and the request table. Slot 0 is the sink.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sglang.srt.mem_cache.allocator.mamba import MambaSlotAllocator
from sglang.srt.mem_cache.memory_pool import MambaPool
from sglang.srt.utils.torch_memory_saver_adapter import TorchMemorySaverAdapter

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.arena.tables import to_device
from sglang_jenga.core.errors import Exhausted
from sglang_jenga.core.model_kinds import STATE, StateLayers
from sglang_jenga.core.plan import KindPlan

if TYPE_CHECKING:
    from sglang_jenga.sglang_ext.allocator import ArenaAllocatorBase

SINK_SLOT = 0


def state_layers(params: Any) -> StateLayers:
    """From SGLang's ``mamba2_cache_params`` (every recurrent family states its own)."""
    temporal = tuple(params.shape.temporal)
    return StateLayers(
        layer_ids=tuple(params.layers),
        conv_shapes=tuple(tuple(shape) for shape in params.shape.conv),
        conv_dtype=params.dtype.conv,
        temporal_shape=temporal if prod(temporal) else None,
        temporal_dtype=params.dtype.temporal,
    )


class ArenaStateSlots(MambaSlotAllocator):
    """SGLang's state slot allocator as a face of the arena's."""

    def __init__(self) -> None:
        # Upstream builds a free list here: ours is the arena's.
        self._arena: ArenaAllocatorBase | None = None
        self.device = "cpu"

    def attach(self, arena: ArenaAllocatorBase) -> None:
        self._arena = arena

    @property
    def owner(self) -> tuple[ArenaAllocatorBase, int]:
        """The arena whose slots these are, and the index of the kind in its plan."""
        if self._arena is None or self._arena.state_kind is None:
            raise RuntimeError("state slots are asked for before the arena was attached")
        return self._arena, self._arena.state_kind

    @property
    def size(self) -> int:
        """Slots at this moment: those handed out and those that could still be."""
        arena, kind = self.owner
        return arena.used_slots(kind) + arena.core.num_available(kind)

    @property
    def free_slots(self) -> torch.Tensor:
        """Ids nobody uses, for SGLang's leak report. ``[n]`` int64."""
        arena, kind = self.owner
        return torch.from_numpy(arena.core.unused_small_pages(kind))

    def available_size(self) -> int:
        arena, kind = self.owner
        return arena.core.num_available(kind)

    def alloc_group_begin(self, num_reqs: int) -> None:
        """Nothing: a state is taken when its request is admitted, not for each that waits."""

    def alloc_group_end(self) -> None:
        """Nothing was set aside."""

    def alloc(self, need_size: int) -> torch.Tensor | None:
        """``[need_size]`` int64 host slot ids, None when they do not fit."""
        arena, kind = self.owner
        try:
            return torch.from_numpy(arena.core.take(kind, need_size))
        except Exhausted:
            return None

    def free(self, free_index: torch.Tensor) -> None:
        """Give slots back (host ids; the sink, which stands for "no slot", is passed over)."""
        arena, kind = self.owner
        ids = free_index.numpy().reshape(-1)
        arena.core.free(kind, ids[ids != SINK_SLOT].astype(np.int64, copy=False))

    def clear(self) -> None:
        """Nothing: the arena forgets its slots of every kind at once."""


class ArenaStatePool(MambaPool):
    """State tensors of every recurrent layer as strided views over the whole arena.

    ``mamba_cache.conv[i]`` and ``mamba_cache.temporal`` are ``[layers, slots, *shape]``; the slot
    stride is the slot of the kind. The upstream constructor allocates, so it is not called; the
    attributes below are those its methods and users read (seams 3.2).
    """

    def __init__(self, buffer: ArenaBuffer, states: StateLayers, slots: ArenaStateSlots) -> None:
        kind = buffer.plan.kind(STATE)
        self._slots = slots
        self.device = str(buffer.bytes.device)
        self._torch_device = buffer.bytes.device
        self.mamba_layer_ids = list(states.layer_ids)
        self.num_mamba_layers = len(states.layer_ids)
        self.memory_saver_adapter = TorchMemorySaverAdapter.create(enable=False)
        self.enable_custom_mem_pool = False
        self.custom_mem_pool = None
        self.debug_memory_pool = False
        self.conv_shard_groups = None
        self.conv_slice_axis = 0
        self.enable_linear_replayssm = False
        self.enable_linear_replayssm_spec = False
        self.linear_replayssm_cache_len = 16
        self.replayssm_write_pos = None
        self.replayssm_is_kda = False
        self.replayssm_spec_fold = False
        self.replayssm_spec_write_pos = None
        self.replayssm_cache_base = None
        self.replayssm_is_flush = None
        self.mem_usage = buffer.plan.arena_bytes / 2**30
        conv = [
            buffer.layers_view(kind, f"conv{i}", states.conv_dtype, shape)
            for i, shape in enumerate(states.conv_shapes)
        ]
        self.mamba_cache = self.State(conv=conv, temporal=_temporal(buffer, kind, states))

    @property
    def size(self) -> int:
        return self._slots.size

    def clear_slots(self, indices: torch.Tensor) -> None:
        super().clear_slots(self._on_device(indices))

    def copy_from(self, src_indices: torch.Tensor, dst_indices: torch.Tensor) -> None:
        super().copy_from(self._on_device(src_indices), self._on_device(dst_indices))

    def _on_device(self, slots: torch.Tensor) -> torch.Tensor:
        return to_device(slots.numpy(), self._torch_device) if slots.device.type == "cpu" else slots

    def get_contiguous_buf_infos(self) -> Any:
        raise NotImplementedError(
            "states are strided inside the arena, they are no contiguous regions; the feature "
            "that asked should have been refused at start"
        )


def _temporal(buffer: ArenaBuffer, kind: KindPlan, states: StateLayers) -> torch.Tensor:
    if states.temporal_shape is not None:
        return buffer.layers_view(kind, "temporal", states.temporal_dtype, states.temporal_shape)
    slots = buffer.plan.num_slots(kind.spec.name)
    shape = (len(states.layer_ids), slots, 0)
    return torch.empty(shape, dtype=states.temporal_dtype, device=buffer.bytes.device)
