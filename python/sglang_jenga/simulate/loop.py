# SPDX-License-Identifier: Apache-2.0
"""A scheduler of continuous batching around an engine's memory.

Everybody is there from the start and waits in the order of the trace. One step is one forward:

1. Requests that decode get a slot each. Where that is not possible for all, they get it one by
   one, oldest first, and the newest request that runs is preempted until the others have theirs.
2. A prompt under way gets its next chunk, out of what is left of the step's token budget.
3. Unless somebody was preempted, newcomers are admitted in order, until one has to wait, the budget
   is used up or ``max_running`` requests run. One whose conversation still waits for the answer
   before lets others pass.
4. The forward: slots are filled, whole prompts and decodes gain a token, finished requests leave.

A preempted request goes back to the head of the queue; it keeps its answer so far and computes that
part anew. Nothing is set aside for answers to come.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sglang_jenga.core.errors import JengaError
from sglang_jenga.simulate.engine import Engine, Request
from sglang_jenga.simulate.timeline import Timeline

#: Steps in a row in which nothing runs and nobody is admitted, before the replay is given up.
_STUCK_STEPS = 3
_PROGRESS_SECONDS = 0.2


class Stuck(JengaError):
    """Requests wait and none can ever run."""


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a replay added up.

    steps: forwards until the last request had finished. running_sum: requests that ran, over steps.
    starts: admissions, those after a preemption too. recomputed_tokens: slots given up by
    preempted requests. hit_tokens of hit_prompt_tokens: first admissions alone. chunks: parts of
    prompts computed. waiting_steps: steps at whose end an admissible request waited.
    """

    steps: int = 0
    finished: int = 0
    starts: int = 0
    chunks: int = 0
    preemptions: int = 0
    peak_running: int = 0
    running_sum: int = 0
    waiting_steps: int = 0
    decode_tokens: int = 0
    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    hit_tokens: int = 0
    hit_prompt_tokens: int = 0
    seconds: float = 0.0

    @property
    def events(self) -> int:
        """Decisions taken: starts, chunks, tokens decoded, preemptions and ends."""
        return self.starts + self.chunks + self.decode_tokens + self.preemptions + self.finished


class _Queue:
    """Who waits, in order. Requests of the trace come by position, preempted ones before them."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        #: The first of the trace that has not been asked for yet; ``_fresh`` is the one before it.
        self._next = 0
        self._fresh: Request | None = None
        #: Preempted, and next turns whose answer before is there: by position.
        self._returned: list[tuple[int, Request]] = []
        self._front = 0
        self._blocked: dict[int, list[Request]] = {}
        self._num_blocked = 0
        self._is_done = bytearray(len(requests))

    def __len__(self) -> int:
        waiting = len(self._requests) - self._next + len(self._returned) + self._num_blocked
        return waiting + (self._fresh is not None)

    def head(self) -> Request | None:
        """The first that may be admitted; None: all that wait, wait for an answer."""
        while self._fresh is None and self._next < len(self._requests):
            request = self._requests[self._next]
            self._next += 1
            if request.after < 0 or self._is_done[request.after]:
                self._fresh = request
            else:
                self._blocked.setdefault(request.after, []).append(request)
                self._num_blocked += 1
        if not self._returned or (
            self._fresh is not None and self._fresh.index < self._returned[0][0]
        ):
            return self._fresh
        return self._returned[0][1]

    def take(self, request: Request) -> None:
        """The head starts."""
        if request is self._fresh:
            self._fresh = None
        else:
            heapq.heappop(self._returned)

    def put_first(self, request: Request) -> None:
        """A preempted request."""
        self._front -= 1
        heapq.heappush(self._returned, (self._front, request))

    def note_finished(self, request: Request) -> None:
        """Its next turn, if one waits, need wait no longer."""
        self._is_done[request.index] = True
        for waiting in self._blocked.pop(request.index, ()):
            heapq.heappush(self._returned, (waiting.index, waiting))
            self._num_blocked -= 1


class Loop:
    """One replay. ``requests``: in the order of the trace, their ``index`` counting from 0; each is
    asked for once.

    token_budget: tokens that a step computes at most. progress: called now and then with the
    totals so far.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        *,
        token_budget: int,
        max_running: int,
        progress: Callable[[Totals], None] | None = None,
    ) -> None:
        self.engine = engine
        self.totals = Totals()
        self.timeline = Timeline()
        self._queue = _Queue(requests)
        self._running: list[Request] = []
        self._token_budget = token_budget
        self._max_running = max_running
        self._progress = progress

    def run(self) -> Totals:
        """Replay to the end.

        Raises:
            Stuck: no request can run any more.
        """
        totals, queue = self.totals, self._queue
        start = time.perf_counter()
        next_look = start + _PROGRESS_SECONDS
        idle_steps = 0
        while self._running or len(queue):
            idle_steps = 0 if self._step() else idle_steps + 1
            if idle_steps > _STUCK_STEPS:
                raise Stuck(self._who_is_stuck())
            if self._progress is not None and time.perf_counter() > next_look:
                totals.seconds = time.perf_counter() - start
                self._progress(totals)
                next_look = time.perf_counter() + _PROGRESS_SECONDS
        totals.seconds = time.perf_counter() - start
        return totals

    def _who_is_stuck(self) -> str:
        head = self._queue.head()
        who = "" if head is None else f"; request {head.index} of {head.length:,} tokens is next"
        return (
            f"step {self.totals.steps:,}: nothing can run; {len(self._running):,} requests hold "
            f"memory, {len(self._queue):,} wait{who}"
        )

    # ---- one step --------------------------------------------------------------------------

    def _step(self) -> bool:
        """One forward; False: there was nothing to compute."""
        engine, totals = self.engine, self.totals
        totals.steps += 1
        engine.begin_step()
        decoding, preempted = self._decode()
        budget = self._token_budget - len(decoding)
        chunks = self._continue_prompts(budget)
        budget -= sum(tokens for _, tokens in chunks)
        if not preempted:
            chunks += self._admit(budget)
        engine.place_newcomers()
        done = self._forward(decoding, chunks)
        running = len(self._running)
        totals.running_sum += running
        totals.peak_running = max(totals.peak_running, running)
        waits = self._queue.head() is not None
        totals.waiting_steps += waits
        if self.timeline.is_due(totals.steps):
            self.timeline.add(totals.steps, running, len(self._queue), engine.occupancy())
        self._leave(done)
        for request, _ in chunks:
            if not request.decodes:
                engine.end_chunk(request)
        return bool(decoding or chunks)

    def _decode(self) -> tuple[list[Request], bool]:
        """Who decodes in this step, and whether somebody was preempted for it."""
        engine, running = self.engine, self._running
        decoding = [request for request in running if request.decodes]
        if not decoding or engine.decode(decoding):
            return decoding, False
        decoding = []
        at = 0
        preempted = False
        while at < len(running):
            request = running[at]
            if not request.decodes:
                at += 1
            elif engine.decode([request]):
                decoding.append(request)
                at += 1
            else:
                preempted = True
                self._preempt(running.pop())
        return decoding, preempted

    def _preempt(self, request: Request) -> None:
        self.engine.preempt(request)
        self.totals.preemptions += 1
        self.totals.recomputed_tokens += request.computed_tokens
        request.preemptions += 1
        request.computed_tokens = 0
        self._queue.put_first(request)

    def _continue_prompts(self, budget: int) -> list[tuple[Request, int]]:
        chunks = []
        # Only a request admitted with a part of its prompt is not decoding: one of the last.
        for request in [r for r in self._running if not r.decodes]:
            limit = min(request.length - request.computed_tokens, budget)
            tokens = self.engine.next_chunk(request, limit) if limit > 0 else 0
            if tokens > 0:
                chunks.append((request, tokens))
                budget -= tokens
        return chunks

    def _admit(self, budget: int) -> list[tuple[Request, int]]:
        engine, totals, queue = self.engine, self.totals, self._queue
        admitted: list[tuple[Request, int]] = []
        while budget > 0 and len(self._running) < self._max_running:
            request = queue.head()
            if request is None:
                break
            hit = engine.match(request)
            tokens = engine.check(request, min(request.length - hit, budget), hit)
            if tokens <= 0:
                break
            engine.admit(request, tokens, hit)
            queue.take(request)
            self._running.append(request)
            admitted.append((request, tokens))
            budget -= tokens
            request.computed_tokens = hit
            totals.starts += 1
            if not request.preemptions:
                totals.hit_tokens += hit
                totals.hit_prompt_tokens += request.prompt_tokens
        return admitted

    def _forward(
        self, decoding: Sequence[Request], chunks: Iterable[tuple[Request, int]]
    ) -> list[Request]:
        """Fill the slots of the step; who has all of its answer now."""
        engine, totals = self.engine, self.totals
        done = []
        for request in decoding:
            request.computed_tokens += 1
            request.generated_tokens += 1
            if request.generated_tokens >= request.output_tokens:
                done.append(request)
        totals.decode_tokens += len(decoding)
        if decoding:
            engine.decoded(decoding)
        for request, tokens in chunks:
            totals.chunks += 1
            totals.prefill_tokens += tokens
            request.computed_tokens += tokens
            if request.computed_tokens == request.length:
                request.generated_tokens += 1
                engine.prefilled(request)
                if request.generated_tokens >= request.output_tokens:
                    done.append(request)
        return done

    def _leave(self, done: Sequence[Request]) -> None:
        if not done:
            return
        for request in done:
            self.engine.finish(request)
            self._queue.note_finished(request)
        gone = {id(request) for request in done}
        self._running = [request for request in self._running if id(request) not in gone]
        self.totals.finished += len(done)
