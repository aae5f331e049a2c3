# SPDX-License-Identifier: Apache-2.0
"""Kernels of recurrent states on an arena: read, written, and the bytes around them left alone.

States lie where a server's would: one slot per request, all layers in it, in large pages shared
with K/V. Each kernel runs on the arena's views and on dense states with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sglang_jenga.arena.buffer import ArenaBuffer
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kinds import attention_kind, state_kind
from sglang_jenga.core.policies import Full

#: A layer of Granite 4: Mamba-2 with 128 heads of 64, states of 128 numbers, a convolution of 4.
HEADS, HEAD_DIM, STATE, CHANNELS, WIDTH = 128, 64, 128, 8448, 4
LAYERS = (0, 1)
BATCH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCheck:
    """One kernel on the arena beside itself on dense states.

    equal: output and states after it agree to the bit. untouched: no other byte of the arena moved.
    """

    kernel: str
    first_byte: int
    equal: bool
    untouched: bool


class States:
    """Convolution and recurrent states of :data:`BATCH` requests, past ``below_bytes``."""

    def __init__(self, *, device: str, below_bytes: int) -> None:
        kv = attention_kind(
            "full", Full(), [9], num_kv_heads=8, k_head_dim=128, v_head_dim=128, itemsize=2
        )
        states = state_kind(
            "state",
            LAYERS,
            conv_shapes=[(CHANNELS, WIDTH - 1)],
            conv_itemsize=2,
            temporal_shape=(HEADS, HEAD_DIM, STATE),
            temporal_itemsize=4,
        )
        room = below_bytes + 16 * states.payload_bytes
        plan = plan_arena([kv, states], arena_bytes=room)
        kind = plan.kind("state")
        first = max(1, -(-below_bytes // kind.slot_bytes))
        if first + 2 * BATCH > plan.num_slots("state"):
            raise ValueError(f"{plan.num_slots('state')} state slots, {first + 2 * BATCH} needed")
        self.buffer = ArenaBuffer(plan, device)
        self.first_byte = first * kind.slot_bytes
        # Every second one, so that a kernel which counts dense states reads a neighbour.
        self.slots = torch.arange(first, first + 2 * BATCH, 2, dtype=torch.int32, device=device)
        layer = LAYERS[-1]
        self.conv = self.buffer.view(kind, layer, "conv0", torch.bfloat16, (CHANNELS, WIDTH - 1))
        self.temporal = self.buffer.view(
            kind, layer, "temporal", torch.float32, (HEADS, HEAD_DIM, STATE)
        )
        self.generator = torch.Generator(device).manual_seed(0)
        ids = self.slots.long()
        self.conv[ids] = self.random(BATCH, CHANNELS, WIDTH - 1).to(torch.bfloat16)
        self.temporal[ids] = self.random(BATCH, HEADS, HEAD_DIM, STATE)

    def random(self, *shape: int) -> torch.Tensor:
        device = self.buffer.bytes.device
        return torch.randn(shape, generator=self.generator, device=device)

    def check(
        self,
        kernel: str,
        view: torch.Tensor,
        call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> StateCheck:
        """Run ``call(states, slots)`` on the view and on dense copies."""
        ids = self.slots.long()
        dense, before = view[ids].contiguous(), self.buffer.bytes.clone()
        theirs = call(dense, torch.arange(BATCH, dtype=torch.int32, device=dense.device))
        ours = call(view, self.slots)
        equal = torch.equal(ours, theirs) and torch.equal(view[ids], dense)
        start, stop = self._rows(view)
        changed = self.buffer.bytes != before
        moved = bool(changed.any())
        for slot in ids.tolist():
            size = self.buffer.plan.kind("state").slot_bytes
            changed[slot * size + start : slot * size + stop] = False
        return StateCheck(
            kernel=kernel,
            first_byte=self.first_byte,
            equal=equal and moved,
            untouched=not bool(changed.any()),
        )

    def _rows(self, view: torch.Tensor) -> tuple[int, int]:
        part = "conv0" if view is self.conv else "temporal"
        kind = self.buffer.plan.kind("state")
        start = kind.row_offset_bytes(LAYERS[-1], part)
        return start, start + view[0].numel() * view.element_size()


def convolution(states: States) -> StateCheck:
    """SGLang's triton ``causal_conv1d_update``."""
    from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_update

    x = states.random(BATCH, CHANNELS).to(torch.bfloat16)
    weight = states.random(CHANNELS, WIDTH).to(torch.bfloat16)

    def call(conv: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return causal_conv1d_update(
            x.clone(), conv, weight, None, "silu", conv_state_indices=slots
        ).clone()

    return states.check("conv1d update (triton)", states.conv, call)


def recurrence(states: States) -> StateCheck:
    """SGLang's triton ``selective_state_update`` of Mamba-2."""
    from sglang.kernels.ops.mamba.triton_ops.mamba_ssm import selective_state_update

    x, step = states.random(BATCH, HEADS, HEAD_DIM), states.random(BATCH, HEADS, 1)
    decay = -states.random(HEADS, 1, 1).abs().expand(HEADS, HEAD_DIM, STATE)
    b, c = states.random(BATCH, 1, STATE), states.random(BATCH, 1, STATE)

    def call(temporal: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        selective_state_update(
            temporal,
            x,
            step.expand(BATCH, HEADS, HEAD_DIM),
            decay,
            b,
            c,
            dt_softplus=True,
            state_batch_indices=slots,
            out=out,
        )
        return out

    return states.check("SSM update (triton)", states.temporal, call)


CHECKS: tuple[Callable[[States], StateCheck], ...] = (convolution, recurrence)


def lines(checks: list[StateCheck]) -> list[str]:
    """The checks as a markdown table."""
    head = ["| state kernel | first byte | equal to dense | other bytes untouched |"]
    head.append("| --- " * 4 + "|")
    yes = {True: "yes", False: "NO"}
    return head + [
        f"| {c.kernel} | {c.first_byte:,} | {yes[c.equal]} | {yes[c.untouched]} |" for c in checks
    ]
