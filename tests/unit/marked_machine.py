# SPDX-License-Identifier: Apache-2.0
"""Machines whose slots carry owner marks: what a forward reads must be what was written for it.

The mark of a token's slot is a checksum of the prompt up to that token, so it is the same for every
request that shares the prefix and differs for all others. A forward first reads every slot that the
attention of its kind reads, then writes those of its new tokens. A slot that was freed too early,
handed out twice, or found under the wrong prefix is caught at its first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from machine import Machine
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator
from state_machine import StateMachine


def prefix_marks(tokens: Sequence[int]) -> np.ndarray:
    """Mark of each token: a checksum of all tokens up to it, never 0."""
    marks, total = [], 17
    for token in tokens:
        total = (total * 1_000_003 + token + 1) % ((1 << 61) - 1)
        marks.append(total)
    return np.array(marks, dtype=np.int64)


class MarkedMachine(Machine):
    """See the module's docstring. Marks are of full and of window slots, by slot id."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = [kind.spec.name for kind in self.plan.kinds]
        self.slot_marks = {name: np.zeros(self.plan.num_slots(name), np.int64) for name in names}
        #: Slots that forwards read, so that a test knows that it tested something.
        self.read_slots = 0

    def forward_extend(self, batch: ScheduleBatch) -> None:
        super().forward_extend(batch)
        for req in batch.reqs:
            self._forward(req, req.full_untruncated_fill_ids[: req.extend_end], req.prefix_len)

    def forward_decode(self, batch: ScheduleBatch) -> None:
        super().forward_decode(batch)
        for req in batch.reqs:
            tokens = [*req.origin_input_ids, *req.output_ids][: req.kv.kv_committed_len]
            self._forward(req, tokens, len(tokens) - 1)

    def _forward(self, req: Req, tokens: Sequence[int], computed: int) -> None:
        full = self.slots(req).numpy()[: len(tokens)]
        marks = prefix_marks(tokens)
        slots = {"full": full}
        if isinstance(self.arena, HybridArenaAllocator):
            slots["window"] = self.arena.translation.host[full]
        for name, ids in slots.items():
            policy = self.plan.kind(name).spec.policy
            read = [p for part in policy.needed(computed) for p in part]
            found = self.slot_marks[name][ids[read]]
            assert (found == marks[read]).all(), (
                f"{req.rid} reads the {name} slot of token "
                f"{read[int(np.flatnonzero(found != marks[read])[0])]} of another prompt"
            )
            self.read_slots += len(read)
            new = ids[computed:]
            assert (new > 0).all() and len(set(new.tolist())) == len(new), f"{req.rid}: sink, twice"
            self.slot_marks[name][new] = marks[computed:]


class MarkedStateMachine(MarkedMachine, StateMachine):
    """Marks of full and window slots and of states."""
