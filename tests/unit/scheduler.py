# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduling loop in miniature around its own ``PrefillAdder``, on a :class:`Machine`.

What is left out of the real loop has no part in memory: sampling, streaming, overlap, LoRA.
Requests run to their ``max_new`` tokens. What would crash or hang SGLang raises here:

* an allocation that fails after admission (SGLang's own RuntimeError)
* nothing runs, somebody waits, nobody is admitted for :data:`MOST_IDLE_TURNS` (:class:`Stuck`)
* a request is aborted for want of memory (:class:`Stuck`), unless ``may_give_up``
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from machine import Machine

#: Turns in which nobody is served although somebody waits: a request that is alone gives up its
#: session's record in one, the prefix that it hit in one, and is found not to fit in one.
MOST_IDLE_TURNS = 3


class Stuck(AssertionError):
    """The loop can make no progress."""


@dataclass(kw_only=True)
class Loop:
    """One server's queues. ``log`` records every decision, for comparing runs.

    new_token_ratio: how much of the outputs still to come admission counts; low values admit
        boldly and retract.
    """

    machine: Machine
    new_token_ratio: float = 0.3
    waiting: list[Req] = field(default_factory=list)
    running: list[Req] = field(default_factory=list)
    chunked: Req | None = None
    log: list[str] = field(default_factory=list)
    retractions: int = 0
    may_give_up: bool = False
    #: Errors that requests were answered with, by name.
    errors: dict[str, str] = field(default_factory=dict)
    _idle_turns: int = 0

    def submit(self, req: Req) -> bool:
        """Queue a request, clipped as the scheduler does; False when it can never fit."""
        longest = self.machine.demand.longest_request_tokens
        allowed = self.machine.arena.max_new_tokens_for_memory(
            len(req.origin_input_ids),
            req.sampling_params.max_new_tokens,
            token_capacity=longest,
            sliding_window_size=self.machine.kinds.span_tokens,
            chunk_size=self.machine.chunk_tokens,
        )
        if not allowed:
            return False
        req.sampling_params.max_new_tokens = allowed
        self.waiting.append(req)
        return True

    def run(self, *, steps: int = 10_000) -> None:
        """Step until everybody is answered."""
        for _ in range(steps):
            if not (self.waiting or self.running or self.chunked):
                return
            self.step()
        raise Stuck(f"not done after {steps} steps: {len(self.waiting)} requests wait")

    def step(self) -> None:
        if self.chunked is not None and self.chunked.extend_end > self.chunked.prefix_len:
            self.machine.stash(self.chunked)
        admitted = self._admit()
        served = True
        if admitted:
            self._prefill(admitted)
        elif self.running:
            self._decode()
        else:
            served = False
        self._idle_turns = 0 if served else self._idle_turns + 1
        if self._idle_turns > MOST_IDLE_TURNS:
            raise Stuck(f"idle, but nobody is admitted: {self._state()}")

    def _admit(self) -> list[Req]:
        machine = self.machine
        if self.chunked is None and machine.rows.available_size() <= 0:
            return []
        machine.tree.waiting = self.waiting
        adder = PrefillAdder(
            machine.page_tokens,
            machine.tree,
            machine.arena,
            machine.batch(self.running, ForwardMode.DECODE),
            self.new_token_ratio,
            16_384,
            machine.chunk_tokens,
        )
        if self.chunked is not None:
            self.chunked.init_next_round_input()
            self.chunked = adder.add_chunked_req(self.chunked)
        for req in self.waiting:
            if adder.budget_state() is AddReqResult.OTHER:
                break
            new = sum(not r.kv.holds_kv for r in adder.can_run_list)
            if new >= machine.rows.available_size():
                break
            req.init_next_round_input(machine.tree)
            verdict = adder.add_one_req(req, self.chunked is not None, None)
            if verdict is not AddReqResult.CONTINUE:
                break
        if adder.new_chunked_req is not None:
            assert self.chunked is None
            self.chunked = adder.new_chunked_req
        admitted = adder.can_run_list
        self.waiting = [req for req in self.waiting if req not in admitted]
        return list(admitted)

    def _prefill(self, reqs: list[Req]) -> None:
        self.machine.extend(reqs)
        self._note("prefill", reqs)
        for req in reqs:
            if req is self.chunked:
                continue
            if req.to_finish is not None:
                self._answer_with_error(req)
            else:
                self.machine.end_prefill(req)
                self.running.append(req)
        self._retire()

    def _decode(self) -> None:
        batch = self.machine.batch(self.running, ForwardMode.DECODE)
        if not batch.check_decode_mem():
            retracted, _, aborted = batch.retract_decode()
            for req in aborted:
                if not self.may_give_up:
                    raise Stuck(f"{req.rid} would be aborted: {self._state()}")
                self.errors[req.rid] = req.to_finish.message
            self._note("retract", retracted)
            self.retractions += len(retracted)
            self.running = list(batch.reqs)
            self.waiting = retracted + self.waiting
        if not self.running:
            return  # a half-done prompt took the memory of the last one
        self.machine.decode(self.running)
        self._note("decode", self.running)
        self._retire()

    def _answer_with_error(self, req: Req) -> None:
        if not self.may_give_up:
            raise Stuck(f"{req.rid}: {req.to_finish.message}")
        self.errors[req.rid] = req.to_finish.message
        req.finished_reason = req.to_finish
        release_kv_cache(req, self.machine.tree, checkpoint=False)

    def _retire(self) -> None:
        for req in self.running:
            if len(req.output_ids) >= req.sampling_params.max_new_tokens:
                self.machine.finish(req)
        self.running = [req for req in self.running if not req.finished()]

    def _state(self) -> str:
        machine = self.machine
        chunked = self.chunked and f"{self.chunked.rid} at {self.chunked.prefix_len} tokens"
        held = [machine.arena.used_slots(k) - machine.tree_tokens(k) for k in machine.arena.kinds]
        return (
            f"{len(self.running)} run, half-done prompt: {chunked}, waiting: "
            f"{[(req.rid, len(req.origin_input_ids)) for req in self.waiting[:3]]}, "
            f"tokens held outside the tree: {held}; {machine.tree.available_and_evictable_str()} "
            f"{machine.arena.debug_print()}"
        )

    def _note(self, what: str, reqs: list[Req]) -> None:
        def slots(req: Req) -> str:
            held = self.machine.slots(req).tolist() if req.kv.holds_kv else []
            return f"{req.rid}:{req.prefix_len}-{req.extend_end}@{hash(tuple(held))}"

        self.log.append(f"{what} {' '.join(slots(req) for req in reqs)}")
