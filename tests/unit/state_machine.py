# SPDX-License-Identifier: Apache-2.0
"""A machine whose model has recurrent states, and whose "forward" writes down what each one is of.

A state's bytes are a mark of the tokens it has seen. Every forward first reads the mark that it
continues from, so a state that was lost, handed to somebody else or copied too late is caught where
a real model would go on with garbage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.runtime_context import get_context, get_server_args

from machine import Machine, make_kinds
from sglang_jenga.sglang_ext.model_kinds import ModelKinds
from sglang_jenga.sglang_ext.state_rows import ArenaStateReqPool
from sglang_jenga.sglang_ext.states import StateLayers

GRID_TOKENS = 8
_NOTHING = (0.0, 0.0)


def state_layers(*, elements: int = 40) -> StateLayers:
    """Two layers, whose states weigh a few full tokens of :func:`machine.make_kinds`."""
    return StateLayers(
        layer_ids=(10, 11),
        conv_shapes=((1, 2),),
        conv_dtype=torch.float64,
        temporal_shape=(elements,),
        temporal_dtype=torch.float32,
    )


def state_kinds(**kwargs: Any) -> ModelKinds:
    return make_kinds(states=state_layers(), **kwargs)


def mark(tokens: Sequence[int]) -> tuple[float, float]:
    """Length and checksum of what a state has seen."""
    total = 0
    for position, token in enumerate(tokens, start=1):
        total = (total * 31 + (token + 1) * position) % 1_000_003
    return float(len(tokens)), float(total)


@contextmanager
def caching_strategy(
    name: str, *, grid_tokens: int = GRID_TOKENS, backend: str | None = "jenga"
) -> Iterator[None]:
    """A published configuration with one of SGLang's ways of caching states.

    ``grid_tokens``: the longer one of the kernels' chunk and a page.
    """
    fields = {"radix_cache_backend": backend, "device": "cpu", "mamba_radix_cache_strategy": name}
    with get_context().override_server_args(**fields):
        get_server_args()._mamba_cache_chunk_size = grid_tokens
        yield


class StateMachine(Machine):
    """See the module's docstring.

    snapshots: the kernels write states of earlier lengths, at multiples of ``grid_tokens``.
    """

    def __init__(
        self,
        kinds: ModelKinds,
        *,
        snapshots: bool = True,
        grid_tokens: int = GRID_TOKENS,
        **kwargs: Any,
    ) -> None:
        self.snapshot_grid_tokens = grid_tokens if snapshots else None
        super().__init__(kinds, **kwargs)
        assert isinstance(self.rows, ArenaStateReqPool)
        #: [slots, 2], None on a device without data.
        self.marks = self.rows.mamba_pool.mamba_cache.conv[0][0, :, 0]
        if self.marks.device.type == "meta":
            self.marks = None

    # ---- the forward -----------------------------------------------------------------------

    def forward_extend(self, batch: ScheduleBatch) -> None:
        reqs = batch.reqs
        tracked = [self._snapshot_length(req) for req in reqs]
        batch._collect_deferred_mamba_cow_and_clear(reqs)
        pool = self.rows.mamba_pool
        if batch.mamba_clear_indices is not None:
            pool.clear_slots(batch.mamba_clear_indices)
        if batch.mamba_cow_src_indices is not None:
            self.rows.copy_mamba_state(batch.mamba_cow_src_indices, batch.mamba_cow_dst_indices)
        if self.marks is None:
            return
        for req, length in zip(reqs, tracked, strict=True):
            tokens = req.full_untruncated_fill_ids
            own = self._own_slot(req)
            self._expect(own, tokens[: req.prefix_len], f"{req.rid} continues its prefix")
            if length is not None:
                slots = self.rows.req_index_to_mamba_ping_pong_track_buffer_mapping
                index = req.kv.mamba_last_track_idx
                self._write(int(slots[req.kv.req_pool_idx, index]), tokens[:length])
            self._write(own, tokens[: req.extend_end])

    def _snapshot_length(self, req: Req) -> int | None:
        if self.snapshot_grid_tokens is None:
            return None
        batch: Any = SimpleNamespace(
            tree_cache=self.tree,
            req_to_token_pool=self.rows,
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace(mamba_chunk_size=8)),
        )
        entry = ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend(batch, req)
        return req.kv.mamba_last_track_seqlen if entry.track_mask else None

    def forward_decode(self, batch: ScheduleBatch) -> None:
        for req in [] if self.marks is None else batch.reqs:
            tokens = [*req.origin_input_ids, *req.output_ids][: req.kv.kv_committed_len]
            own = self._own_slot(req)
            self._expect(own, tokens[:-1], f"{req.rid} decodes")
            self._write(own, tokens)

    def _own_slot(self, req: Req) -> int:
        slot = int(self.rows.req_index_to_mamba_index_mapping[req.kv.req_pool_idx])
        assert slot == int(req.kv.mamba_pool_idx), "kernels and scheduler disagree on a state"
        assert slot > 0, f"{req.rid} runs on the sink"
        return slot

    def _write(self, slot: int, tokens: Sequence[int]) -> None:
        self.marks[slot] = torch.tensor(mark(tokens), dtype=torch.float64)

    def _expect(self, slot: int, tokens: Sequence[int], what: str) -> None:
        found = tuple(self.marks[slot].tolist())
        assert found == (mark(tokens) if len(tokens) else _NOTHING), (
            f"{what}: its state has seen {found[0]:.0f} tokens, or others, not {len(tokens)}"
        )

    # ---- questions -------------------------------------------------------------------------

    def cached_states(self) -> dict[int, list[int]]:
        """Slot of every state in the tree -> the tokens that it must have seen."""
        found = {}
        core = self.tree.tree_core
        for node in core._collect_all_nodes():
            value = node.component_data[ComponentType.MAMBA].value
            if value is None:
                continue
            tokens: list[int] = []
            above = node
            while above is not core.root_node:
                tokens = [*above.key.token_ids, *tokens]
                above = above.parent
            found[int(value)] = tokens
        return found

    def held_states(self) -> int:
        """States in use that the tree does not own."""
        kind = self.arena.state_kind
        return self.arena.used_slots(kind) - self.tree_tokens(kind)

    def check_states(self) -> None:
        """Every cached state is the one of its prefix."""
        for slot, tokens in self.cached_states().items():
            self._expect(slot, tokens, "a cached state")
