# SPDX-License-Identifier: Apache-2.0
"""vLLM 0.33.0's hybrid KV manager: blocks of one size for all groups of layers.

Its planner's rules (kv_cache_planning.py), with prefix caching on and its default layout:

    a layer's page       block_tokens * bytes per token; pages of all layers are made equal: a
                         smaller one gets more tokens per block, or padding where it does not divide
    a state's page       attention blocks grow to the next multiple of 16 tokens that holds a
                         layer's state, and the state is padded to it
    groups               layers of a kind in equal parts; as many layers as the smallest kind has,
                         or as the largest where that is less than 1.5 times as many; the last
                         group of a kind is padded
    a block              one page in each layer of a group; any group may take it
    states               one block per request and group; two while it passes from one to the next
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.managers.base import Capacity, Scene, Store, demands
from sglang_jenga.core.policies import Cross, State

#: --block-size, and the alignment of its attention kernels.
BLOCK_TOKENS = 16
STATE_PEAK_BLOCKS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGroup:
    """The groups of one kind. block_tokens: 0 for states."""

    spec: KindSpec
    num_groups: int
    block_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLayout:
    """How vLLM cuts a model. bytes_per_block: of every group, padding included."""

    groups: tuple[BlockGroup, ...]
    layers_per_group: int
    bytes_per_block: int


def block_layout(specs: tuple[KindSpec, ...], *, page_tokens: int = BLOCK_TOKENS) -> BlockLayout:
    """The layout that vLLM's planner chooses. See the module docstring."""
    block_tokens = max(BLOCK_TOKENS, -(-page_tokens // BLOCK_TOKENS) * BLOCK_TOKENS)
    token_bytes = {
        spec.name: spec.payload_bytes // spec.num_layers
        for spec in specs
        if not isinstance(spec.policy, State)
    }
    state_layer = max(
        (s.payload_bytes // s.num_layers for s in specs if isinstance(s.policy, State)), default=0
    )
    smallest = BLOCK_TOKENS * min(token_bytes.values())
    block_tokens = max(block_tokens, BLOCK_TOKENS * -(-state_layer // smallest))
    page_bytes = block_tokens * max(token_bytes.values())
    layers = [spec.num_layers for spec in specs]
    per_group = max(layers) if max(layers) < 1.5 * min(layers) else min(layers)
    groups = []
    for spec in specs:
        tokens = 0
        if spec.name in token_bytes:
            own_page = block_tokens * token_bytes[spec.name]
            tokens = block_tokens * (page_bytes // own_page if page_bytes % own_page == 0 else 1)
        groups.append(
            BlockGroup(spec=spec, num_groups=-(-spec.num_layers // per_group), block_tokens=tokens)
        )
    return BlockLayout(
        groups=tuple(groups), layers_per_group=per_group, bytes_per_block=per_group * page_bytes
    )


def vllm(scene: Scene) -> Capacity:
    """Requests by whole blocks; one block is never handed out."""
    layout = block_layout(scene.request_specs, page_tokens=scene.page_tokens)
    at_end = peak = 0
    for group in layout.groups:
        (demand,) = demands(scene, (group.spec,), group.block_tokens or 1)
        states = STATE_PEAK_BLOCKS if isinstance(group.spec.policy, State) else 1
        at_end += group.num_groups * demand.at_end_pages
        peak += group.num_groups * demand.peak_pages * states
    store = Store(
        capacity=scene.total_bytes // layout.bytes_per_block - 1, at_end=at_end, peak=peak
    )
    crossing = any(isinstance(spec.policy, Cross) for spec in scene.specs)
    return scene.result(
        "vllm",
        [store],
        at_end * layout.bytes_per_block,
        note="by its rules: it has no model file for this one" if crossing else "",
    )
