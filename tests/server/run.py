# SPDX-License-Identifier: Apache-2.0
"""One scenario against one server: ask, compare with the reference, check that nothing is held."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.client import Answer, Chat, Client, Request
from server.compare import first_difference, largest_difference, until_tie
from server.launch import RunningServer
from server.reference import Reference

DRAIN_TIMEOUT_SECONDS = 30.0


class Failed(AssertionError):
    """A claim of a scenario does not hold."""


#: A grid that no prompt of a scenario reaches.
ENDS_ONLY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a scenario may rely on in the server at hand.

    page_tokens: SGLang's page size. radix: prefixes are cached. roomy: nothing has to be evicted.
    lora: name of the loaded adapter, None: none is loaded.
    outgrown: requests that grow outrun a tight pool. Not where states, which do not grow, hold most
        of it: there requests wait, and none has to be retracted.
    images_lead: images come before all text and are hit all or none; else they stand in the text.
    state_grid_tokens: recurrent states of prompts are cached at multiples of it only (ENDS_ONLY:
        only where a request ended), None: the model has none, a prefix is hit to its last token.
    """

    page_tokens: int = 1
    radix: bool = True
    roomy: bool = True
    lora: str | None = None
    state_grid_tokens: int | None = None
    outgrown: bool = True
    images_lead: bool = False


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the requests of one scenario added up to."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    retractions: int = 0
    evicted_tokens: int = 0
    max_logprob_difference: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``play`` raises Failed (or any error of the client) when the server is wrong."""

    name: str
    play: Callable[[Run], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row of the matrix."""

    scenario: str
    passed: bool
    failure: str
    seconds: float
    tally: Tally

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """What a scenario sees. Subclasses say what asking means."""

    #: Whether stock answers are being recorded: then only ``ask`` and ``chat`` have to happen.
    recording = False

    def __init__(self, client: Client, reference: Reference, setting: Setting) -> None:
        self.client = client
        self.reference = reference
        self.setting = setting
        self.tally = Tally()

    def ask(
        self, requests: Sequence[Request], *, concurrency: int = 1, **extra: Any
    ) -> list[Answer]:
        """Answers to ``requests``, each checked; ``extra`` fields say how to serve."""
        raise NotImplementedError

    def chat(self, chats: Sequence[Chat], *, concurrency: int = 1) -> list[Answer]:
        raise NotImplementedError

    def check(self, request: Request | Chat, answer: Answer, *, prefix: bool = False) -> None:
        """Compare an answer that came some other way with the reference and count it."""
        expected = self.reference.get(request.key)
        tally = self.tally
        tally.requests += 1
        tally.prompt_tokens += answer.prompt_tokens
        tally.cached_tokens += answer.cached_tokens
        tally.answer_tokens += len(answer.tokens)
        tally.retractions += answer.retractions
        comparable = until_tie(expected, answer)
        prefix = prefix or comparable is not answer
        tally.max_logprob_difference = max(
            tally.max_logprob_difference,
            largest_difference(expected.logprobs, comparable.logprobs),
            largest_difference(expected.prompt_logprobs, answer.prompt_logprobs),
        )
        difference = first_difference(expected, comparable, prefix=prefix)
        if difference is not None:
            raise Failed(difference)

    def claim(self, holds: bool, message: str) -> None:
        if not holds:
            raise Failed(message)


#: Most requests at a time while stock answers are recorded: no pressure.
RECORDING_CONCURRENCY = 4


class Recording(Run):
    """Ask the stock server what it was not asked before."""

    recording = True

    def ask(
        self, requests: Sequence[Request], *, concurrency: int = 1, **extra: Any
    ) -> list[Answer]:
        def with_ties(request: Request) -> Answer:
            return self.client.generate(request, top_logprobs_num=2)

        return self._recorded(requests, with_ties, concurrency)

    def chat(self, chats: Sequence[Chat], *, concurrency: int = 1) -> list[Answer]:
        return self._recorded(chats, self.client.chat, concurrency)

    def _recorded(
        self, requests: Sequence[Any], ask: Callable[[Any], Answer], concurrency: int
    ) -> list[Answer]:
        new = [request for request in requests if request.key not in self.reference]
        at_once = min(concurrency, RECORDING_CONCURRENCY)
        for request, answer in zip(
            new, self.client.map(ask, new, concurrency=at_once), strict=True
        ):
            self.reference.put(request.key, answer)
        return [self.reference.get(request.key) for request in requests]


class Checking(Run):
    """Ask the jenga server and compare."""

    def ask(
        self, requests: Sequence[Request], *, concurrency: int = 1, **extra: Any
    ) -> list[Answer]:
        def one(request: Request) -> Answer:
            return self.client.generate(request, **extra)

        return self._checked(requests, self.client.map(one, requests, concurrency=concurrency))

    def chat(self, chats: Sequence[Chat], *, concurrency: int = 1) -> list[Answer]:
        answers = self.client.map(self.client.chat, chats, concurrency=concurrency)
        return self._checked(chats, answers)

    def _checked(self, requests: Sequence[Request | Chat], answers: list[Answer]) -> list[Answer]:
        for request, answer in zip(requests, answers, strict=True):
            self.check(request, answer)
        return answers

    # ---- the arena around a scenario ---------------------------------------------------------

    def evicted_tokens(self) -> int:
        """Tokens evicted since the server started, over all kinds."""
        return sum(self.client.arena()["evicted_tokens"].values())

    def wait_until_drained(self) -> None:
        """No request is left: no kind may hold or reserve a slot."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
        while True:
            arena = self.client.arena()
            held = {
                kind["name"]: (kind["slots_held"], kind["slots_reserved"])
                for kind in arena["kinds"]
            }
            if not any(map(any, held.values())):
                return
            if time.monotonic() > deadline:
                raise Failed(f"no request is left, yet (held, reserved) slots are {held}")
            time.sleep(0.2)

    def flush(self) -> None:
        """Empty the cache of an idle server: every large page must come back."""
        self.claim(self.client.flush(wait_seconds=DRAIN_TIMEOUT_SECONDS), "flush was refused")
        arena = self.client.arena()
        free, total = arena["large_pages_free"], arena["large_pages_total"]
        self.claim(free == total, f"{free} of {total} large pages are free after a flush")


def record(
    scenario: Scenario, server: RunningServer, reference: Reference, setting: Setting
) -> None:
    """Ask the stock server everything that ``scenario`` compares with."""
    scenario.play(Recording(Client(server.url), reference, setting))


def check(
    scenario: Scenario, server: RunningServer, reference: Reference, setting: Setting
) -> Outcome:
    """Play ``scenario`` on a jenga server. Never raises for what the server does wrong."""
    mark = server.log_size()
    begin = time.monotonic()
    run = Checking(Client(server.url), reference, setting)
    failure = ""
    try:
        run.flush()
        evicted = run.evicted_tokens()
        scenario.play(run)
        run.wait_until_drained()
        run.tally.evicted_tokens = run.evicted_tokens() - evicted
        run.flush()
    except Exception as error:  # a row of the matrix must say what happened, whatever it was
        failure = f"{type(error).__name__}: {error}"[:2000]
    trouble = server.trouble_since(mark)
    if trouble:
        failure = "\n".join([failure, "the server logged:", *trouble[:5]]).strip()
    if not server.alive:
        failure = f"{failure}\nthe server died:\n{server.excerpt(30)}".strip()
    return Outcome(
        scenario=scenario.name,
        passed=not failure,
        failure=failure,
        seconds=round(time.monotonic() - begin, 2),
        tally=run.tally,
    )
