# SPDX-License-Identifier: Apache-2.0
"""SGLang's overlapped scheduling in miniature, on a device that is as late as it may be.

The scheduler changes tables (rows, translation) while forwards are in flight:

    scheduler   tables for 2 | launch 2 | free by result 1 | tables for 3 | launch 3 | ...
    forwards          1 runs .............|  2 runs ...........................|  3 runs

:class:`LateDevice` runs a forward only when its result is waited for, which is after the tables of
the next one were made. Forwards run in the order of their launches. ``fenced`` says when a forward
reads the tables: at its launch, behind SGLang's barrier on the scheduler's stream, or when it runs.
Marks in the slots (tests/unit/marked_machine.py) tell whose a slot is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.allocation import alloc_for_decode
from sglang.srt.mem_cache.common import checkpoint_kv_cache
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from machine import VOCABULARY, Machine
from marked_machine import prefix_marks
from scheduler import Loop, Stuck
from sglang_jenga.sglang_ext.hybrid import HybridArenaAllocator


@dataclass(kw_only=True)
class Lane:
    """One request in a forward: positions ``[start, end)`` of its row are computed.

    tokens: all tokens up to ``end``, None: those that the device sampled itself. samples: whether
    it ends with a new token.
    """

    req: Req
    row: int
    start: int
    end: int
    tokens: list[int] | None
    samples: bool


@dataclass(kw_only=True)
class Forward:
    """A launched forward. slots: per kind and lane what it read from the tables, None: not yet."""

    lanes: list[Lane]
    slots: dict[str, list[np.ndarray]] | None = None
    sampled: list[int] = field(default_factory=list)


class LateDevice:
    """Runs launched forwards in order, each as late as possible. ``wrong``: what it noticed."""

    def __init__(self, machine: Machine, *, fenced: bool) -> None:
        self.machine = machine
        self.fenced = fenced
        self.marks = {
            kind.spec.name: np.zeros(machine.plan.num_slots(kind.spec.name), np.int64)
            for kind in machine.plan.kinds
        }
        self.tokens: dict[str, list[int]] = {}
        self.wrong: list[str] = []
        self.read_slots = 0

    def launch(self, lanes: list[Lane]) -> Forward:
        forward = Forward(lanes=lanes)
        if self.fenced:
            self._read_tables(forward)
        return forward

    def _read_tables(self, forward: Forward) -> None:
        """What a backend's metadata holds: rows, and window slots translated from them."""
        table = self.machine.rows.req_to_token
        full = [table[lane.row, : lane.end].numpy().copy() for lane in forward.lanes]
        forward.slots = {"full": full}
        if isinstance(self.machine.arena, HybridArenaAllocator):
            translation = self.machine.arena.translation.device_table.numpy()
            forward.slots["window"] = [translation[ids] for ids in full]

    def run(self, forward: Forward) -> None:
        if forward.slots is None:
            self._read_tables(forward)
        assert forward.slots is not None
        for lane in forward.lanes:
            if lane.tokens is not None:
                self.tokens[lane.req.rid] = list(lane.tokens)
        for name, slots in forward.slots.items():
            # Every layer writes the whole batch's K/V before it attends.
            for lane, ids in zip(forward.lanes, slots, strict=True):
                marks = prefix_marks(self.tokens[lane.req.rid][: lane.end])
                self.marks[name][ids[lane.start :]] = marks[lane.start :]
            for lane, ids in zip(forward.lanes, slots, strict=True):
                self._check(name, lane, ids)
        for lane in forward.lanes:
            tokens = self.tokens[lane.req.rid]
            token = (7 * tokens[lane.end - 1] + lane.end) % VOCABULARY
            if lane.samples:
                del tokens[lane.end :]
                tokens.append(token)
            forward.sampled.append(token)

    def _check(self, name: str, lane: Lane, ids: np.ndarray) -> None:
        policy = self.machine.plan.kind(name).spec.policy
        read = [p for part in policy.needed(lane.start) for p in part]
        read.extend(range(lane.start, lane.end))
        expected = prefix_marks(self.tokens[lane.req.rid][: lane.end])[read]
        different = np.flatnonzero(self.marks[name][ids[read]] != expected)
        self.read_slots += len(read)
        if len(different):
            self.wrong.append(
                f"{lane.req.rid} at {lane.start}-{lane.end} reads the {name} slot of token "
                f"{read[int(different[0])]} of another prompt"
            )


@dataclass(kw_only=True)
class OverlapLoop(Loop):
    """The loop whose results come one launch late, as ``Scheduler.event_loop_overlap`` has it."""

    fenced: bool
    in_flight: deque[Forward] = field(default_factory=deque)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.device = LateDevice(self.machine, fenced=self.fenced)

    def step(self) -> None:
        if self.chunked is not None and self.chunked.extend_end > self.chunked.prefix_len:
            self.machine.stash(self.chunked)
        admitted = self._admit()
        if admitted:
            self._prefill(admitted)
        elif self.running:
            self._decode()
        if self.in_flight and (len(self.in_flight) > 1 or not (admitted or self.running)):
            self._take_result(self.in_flight.popleft())
        elif not (admitted or self.running or self.in_flight):
            raise Stuck(f"idle, but nobody is admitted: {self._state()}")

    def run(self, *, steps: int = 10_000) -> None:
        super().run(steps=steps)
        while self.in_flight:
            self._take_result(self.in_flight.popleft())

    def _launch(self, lanes: list[Lane]) -> None:
        self.in_flight.append(self.device.launch(lanes))
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))

    def _prefill(self, reqs: list[Req]) -> None:
        starts = [req.prefix_len for req in reqs]
        self.machine.extend(reqs)
        self._launch(
            [
                Lane(
                    req=req,
                    row=req.kv.req_pool_idx,
                    start=start,
                    end=req.extend_end,
                    tokens=list(req.full_untruncated_fill_ids[: req.extend_end]),
                    samples=req is not self.chunked,
                )
                for req, start in zip(reqs, starts, strict=True)
            ]
        )
        self.running.extend(req for req in reqs if req is not self.chunked)

    def _decode(self) -> None:
        batch = self.machine.batch(self.running, ForwardMode.DECODE)
        if not batch.check_decode_mem():
            retracted, _, aborted = batch.retract_decode()
            if aborted:
                raise Stuck(f"{aborted[0].rid} would be aborted: {self._state()}")
            self.retractions += len(retracted)
            self.running = list(batch.reqs)
            self.waiting = retracted + self.waiting
        if not self.running:
            return
        batch = self.machine.batch(self.running, ForwardMode.DECODE)
        lengths = batch.seq_lens_cpu.tolist()
        alloc_for_decode(batch, 1)
        lanes = []
        for req, length in zip(self.running, lengths, strict=True):
            req.decode_batch_idx += 1
            row = req.kv.req_pool_idx
            lanes.append(
                Lane(req=req, row=row, start=length, end=length + 1, tokens=None, samples=True)
            )
        self._launch(lanes)

    def _take_result(self, forward: Forward) -> None:
        """Wait for a forward; tokens are known, prompts are cached, answers end."""
        self.device.run(forward)
        for lane, token in zip(forward.lanes, forward.sampled, strict=True):
            req = lane.req
            if not lane.samples or req.finished() or req not in self.running:
                continue  # half of a prompt, one step too many, or retracted meanwhile
            req.output_ids.append(token)
            if len(req.output_ids) >= req.sampling_params.max_new_tokens:
                self.machine.finish(req)
            elif lane.tokens is not None:
                checkpoint_kv_cache(req, self.machine.tree)
        self.running = [req for req in self.running if not req.finished()]
