# SPDX-License-Identifier: Apache-2.0
"""Streaming sessions on a :class:`machine.Machine`: SGLang's controller, requests and records."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from sglang.srt.managers.io_struct import (
    CloseSessionReqInput,
    OpenSessionReqInput,
    SessionParams,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.pool_stats_observer import (
    kv_mamba_slots,
    kv_private_swa_tokens,
    kv_private_tokens,
)
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.session.session_controller import SessionController

from machine import VOCABULARY, Machine


class Conversations:
    """The sessions of one server."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.controller = SessionController(machine.tree)

    def open(self, name: str) -> str:
        """A new streaming session."""
        asked = OpenSessionReqInput(capacity_of_str_len=10_000, session_id=name, streaming=True)
        assert self.controller.open(asked).success
        return name

    def close(self, name: str) -> None:
        self.controller.close(CloseSessionReqInput(session_id=name))

    def turn(self, name: str, tokens: Sequence[int], *, max_new: int, rid: str) -> Req:
        """The session's next request: all that was said, and ``tokens``."""
        none: Any = None
        sampling = SamplingParams(max_new_tokens=max_new, temperature=0)
        sampling.normalize(None)
        arrived = TokenizedGenerateReqInput(
            rid=rid,
            input_text=None,
            input_ids=array("q", tokens),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=sampling,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
            session_params=SessionParams(id=name),
        )
        return self.controller.get(name).create_req(arrived, none, VOCABULARY)

    def problems(self, running: Sequence[Req]) -> list[str]:
        """Slots that nobody has, or two have: SGLang's leak equation, by kind, also when busy."""
        machine = self.machine
        arena, page = machine.arena, machine.page_tokens
        found = list(arena.core.audit())
        records = list(machine.tree.session_records().values())
        lent = {id(kv) for kv in records}
        owners = [*records, *(req.kv for req in running if id(req.kv) not in lent)]
        owners = [kv for kv in owners if kv.holds_kv]
        of_kind = dict(
            zip(arena.token_kinds, (kv_private_tokens, kv_private_swa_tokens), strict=False)
        )
        for kind in arena.kinds:
            if kind == arena.state_kind:
                private = sum(kv_mamba_slots(kv) for kv in owners)
            else:
                private = sum(of_kind[kind](kv, page) for kv in owners)
            tree, used = machine.tree_tokens(kind), arena.used_slots(kind)
            if private + tree != used:
                found.append(f"kind {kind}: {used} slots used; tree {tree}, records {private}")
        rows = len(machine.rows.free_slots) + len(owners)
        if rows != machine.rows.size:
            found.append(f"{machine.rows.size} rows; free and held: {rows}")
        return found
