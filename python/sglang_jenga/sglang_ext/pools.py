# SPDX-License-Identifier: Apache-2.0
"""SGLang KV pools whose buffers are strided views of the arena.

Upstream classes stay in charge of reading and writing; only where the bytes come from changes.
"""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.plan import KindPlan
from sglang_jenga.sglang_ext.model_kinds import CROSS, FULL, WINDOW, AttentionLayer, ModelKinds
from sglang_jenga.sglang_ext.req_pool import ArenaReqToTokenPool

_NO_COPY_OUT = (
    "the arena interleaves layers inside a slot, so {} cannot describe it as per-layer regions; "
    "the feature that asked should have been refused at start"
)


class ArenaKVPool(MHATokenToKVPool):
    """K/V of one kind: per layer a ``[num_slots, heads, dim]`` view over the whole arena.

    ``cross``: further layers, of the cross kind, whose views count that kind's slots. SGLang keeps
    them in one pool; a forward hands each layer the slots of its own kind.
    """

    def __init__(
        self,
        buffer: ArenaBuffer,
        kind: KindPlan,
        layers: tuple[AttentionLayer, ...],
        dtype: torch.dtype,
        *,
        cross: tuple[AttentionLayer, ...] = (),
    ) -> None:
        self._buffer = buffer
        kind_of = {layer: kind for layer in layers}
        for layer in cross:
            kind_of[layer] = buffer.plan.kind(CROSS)
        self._kind_of = kind_of
        self._layers = layers = tuple(sorted(kind_of, key=lambda layer: layer.layer_id))
        page_tokens = buffer.plan.page_tokens
        heads, k_dim, v_dim = layers[0].heads()
        super().__init__(
            # Slot ids run over the whole arena; upstream adds one page for the sink.
            size=buffer.plan.num_slots(kind.spec.name) - page_tokens,
            page_size=page_tokens,
            dtype=dtype,
            head_num=heads,
            head_dim=k_dim,
            v_head_dim=v_dim,
            layer_num=len(layers),
            device=str(buffer.bytes.device),
            enable_memory_saver=False,
            enable_alt_stream=False,
            # The label switches off upstream fast paths that assume contiguous buffers.
            kv_cache_layout="page_major",
            allocation_label=f"Jenga {kind.spec.name}",
        )
        self.model_layer_ids = tuple(layer.layer_id for layer in layers)

    def _create_buffers(self) -> None:
        self.k_scale_buffer = self.v_scale_buffer = None
        self.native_k_scale_buffer = self.native_v_scale_buffer = None
        self.dq_k_buffer = self.dq_v_buffer = None
        self.k_buffer = [self._view(layer, "k", self.head_dim) for layer in self._layers]
        self.v_buffer = [self._view(layer, "v", self.v_head_dim) for layer in self._layers]
        self._kv_buffer_descs: list[object] = []
        self._init_data_ptrs_and_strides()

    def _view(self, layer: AttentionLayer, part: str, dim: int) -> torch.Tensor:
        shape = (layer.num_kv_heads, dim)
        kind = self._kind_of[layer]
        return self._buffer.view(kind, layer.layer_id, part, self.store_dtype, shape)

    def _kv_tokens_per_row(self) -> int:
        return 1

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """K and V bytes of the kind if it held the whole arena, halves of the shared buffer."""
        half = self._buffer.plan.arena_bytes // 2
        return half, half

    def move_kv_cache(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        for buffer in (*self.k_buffer, *self.v_buffer):
            buffer[tgt_loc] = buffer[src_loc]

    def get_contiguous_buf_infos(self) -> tuple[list[int], list[int], list[int]]:
        raise NotImplementedError(_NO_COPY_OUT.format("get_contiguous_buf_infos"))


def state_model_pool(
    full: ArenaKVPool, kinds: ModelKinds, rows: ArenaReqToTokenPool
) -> HybridLinearKVPool:
    """The pool of a model with recurrent layers: finds ``full``'s layers by their model ids."""
    return HybridLinearKVPool(
        size=full.size,
        dtype=full.dtype,
        page_size=full.page_size,
        head_num=full.head_num,
        head_dim=full.head_dim,
        full_attention_layer_ids=[layer.layer_id for layer in kinds.full],
        device=full.device,
        mamba_pool=rows.mamba_pool,
        full_kv_pool=full,
    )


class ArenaHybridKVPool(SWAKVPool):
    """Full and window kinds behind SGLang's hybrid interface, one arena underneath.

    The upstream constructor allocates two buffers of its own, so it is not called; the attributes
    below are the ones its methods and users read (seams 3.2).
    """

    def __init__(self, buffer: ArenaBuffer, kinds: ModelKinds, dtype: torch.dtype) -> None:
        plan = buffer.plan
        self.full_kv_pool = ArenaKVPool(buffer, plan.kind(FULL), kinds.full, dtype)
        self.swa_kv_pool = ArenaKVPool(buffer, plan.kind(WINDOW), kinds.window, dtype)
        self.size = self.full_kv_pool.size
        self.size_swa = self.swa_kv_pool.size
        self.page_size = plan.page_tokens
        self.dtype = dtype
        self.store_dtype = self.full_kv_pool.store_dtype
        self.device = str(buffer.bytes.device)
        self.head_num = self.full_kv_pool.head_num
        self.head_dim = self.full_kv_pool.head_dim
        self.full_layer_nums = len(kinds.full)
        self.swa_layer_nums = len(kinds.window)
        self.layer_num = self.full_layer_nums + self.swa_layer_nums
        self.start_layer = 0
        self.end_layer = self.layer_num - 1
        self.layer_transfer_counter = None
        self.enable_custom_mem_pool = False
        self.custom_mem_pool = None
        self.dsa_kv_cache_store_fp8 = False
        self.kv_cache_dim = None
        self.index_head_dim = None
        self.full_to_swa_index_mapping = None
        self.layers_mapping = {
            layer.layer_id: (index, is_window)
            for is_window, layers in ((False, kinds.full), (True, kinds.window))
            for index, layer in enumerate(layers)
        }
        self.mem_usage = plan.arena_bytes / 2**30

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Halves of the one buffer that both kinds share."""
        return self.full_kv_pool.get_kv_size_bytes()
