# SPDX-License-Identifier: Apache-2.0
"""What the jenga server is asked to do exactly as the stock server does it.

Each function is one claim. It is played twice: while stock answers are recorded (then only the
completions it compares with are asked for), and against a jenga server. Around each, run.py checks
that nothing stays held, that a flush brings every large page back, and that the log is clean.
"""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from server import prompts
from server.client import Answer, Chat, Refused, Request
from server.image_scenarios import IMAGE_SCENARIOS
from server.run import ENDS_ONLY, Failed, Run, Scenario

# ---- prefixes ----------------------------------------------------------------------------------


def uncached(run: Run) -> None:
    """Prompts of every length, one at a time, nothing cached."""
    run.ask(prompts.MIXED)


def prefill_hit(run: Run) -> None:
    """A prompt asked again is served from the cache, all but its last token, with equal answers.

    Prompts that left a cached text half-way are asked twice: the first time SGLang caches the point
    where they left, the second time their end.
    """
    run.ask(prompts.MIXED, concurrency=4)
    own = run.ask(prompts.MIXED[::2], concurrency=4)
    run.ask(prompts.MIXED[1::2], concurrency=4)
    branched = run.ask(prompts.MIXED[1::2])
    if run.setting.roomy and run.setting.radix and not run.recording:
        for requests, answers in ((prompts.MIXED[::2], own), (prompts.MIXED[1::2], branched)):
            most = [len(r.input_ids) - 1 for r in requests]
            _claim_cached(run, requests, answers, most, exact=not run.setting.state_grid_tokens)


def decode_hit(run: Run) -> None:
    """Prompt, answer and more text: everything that was computed before comes from the cache."""
    first = run.ask(prompts.MIXED[::3])
    longer = [
        prompts.ask(request.input_ids + answer.ids + prompts.words(9000 + i, 10))
        for i, (request, answer) in enumerate(zip(prompts.MIXED[::3], first, strict=True))
    ]
    answers = run.ask(longer)
    if run.setting.roomy and run.setting.radix and not run.recording:
        # The last token of an answer was never put through the model.
        # Recurrent states too are cached at the very end of a request, if a page can end there.
        exact = not run.setting.state_grid_tokens or run.setting.page_tokens == 1
        most = [len(r.input_ids) - 10 - 1 for r in longer]
        _claim_cached(run, longer, answers, most, exact=exact)


def branching(run: Run) -> None:
    """Texts that part from a shared prefix at odd places."""
    run.ask([prompts.ask(prompts.SHARED_PREFIX)])
    run.ask(prompts.BRANCHES)
    again = run.ask(tuple(reversed(prompts.BRANCHES)), concurrency=4)
    grid = run.setting.state_grid_tokens
    if grid != ENDS_ONLY and run.setting.roomy and run.setting.radix and not run.recording:
        # Recurrent states are not left inside the shortest of these prompts.
        hits = [a.cached_tokens > 0 for a in again]
        run.claim(any(hits) if grid else all(hits), "a branch asked again hit nothing")


def _claim_cached(
    run: Run,
    requests: tuple[Request, ...] | list[Request],
    answers: list[Answer],
    most: list[int],
    *,
    exact: bool,
) -> None:
    """All of ``most`` tokens were hit; unless ``exact``, up to the last cached state before."""
    grid = run.setting.state_grid_tokens or 0
    page = run.setting.page_tokens
    as_wanted = 0
    for request, answer, tokens in zip(requests, answers, most, strict=True):
        wanted = tokens // page * page
        least = wanted if exact else max(0, wanted - 2 * max(grid, page))
        as_wanted += answer.cached_tokens >= least
        run.claim(
            answer.cached_tokens <= wanted and (not exact or answer.cached_tokens == wanted),
            f"{answer.cached_tokens} of {len(request.input_ids)} prompt tokens came from the "
            f"cache, {wanted} were there",
        )
    # A prompt whose only state lies at its very end cannot use it: the last token is computed anew.
    run.claim(
        4 * as_wanted >= 3 * len(answers),
        f"{len(answers) - as_wanted} of {len(answers)} prompts hit less than was there",
    )


def multi_turn(run: Run) -> None:
    """Three chats of three turns each at the OpenAI endpoint, side by side."""
    topics = ("Count the boats.", "How do you bake bread? Be brief.", "What comes after 4095?")
    chats = [(("system", "You are a helpful assistant."), ("user", topic)) for topic in topics]
    for turn in range(3):
        asked = [Chat(messages=messages, max_new_tokens=20) for messages in chats]
        answers = run.chat(asked, concurrency=len(asked))
        # A turn is shorter than the grid of recurrent states, and a random answer is read back as
        # other tokens: nothing is claimed for those.
        hits_anywhere = run.setting.radix and not run.setting.state_grid_tokens
        if turn and run.setting.roomy and hits_anywhere and not run.recording:
            run.claim(all(a.cached_tokens for a in answers), "a later turn hit nothing")
        chats = [
            (*messages, ("assistant", answer.text), ("user", f"Question {turn}: and then?"))
            for messages, answer in zip(chats, answers, strict=True)
        ]


# ---- load ----------------------------------------------------------------------------------------


def concurrent_8(run: Run) -> None:
    """Eight at a time, twice."""
    run.ask(prompts.MIXED, concurrency=8)
    run.ask(prompts.MIXED, concurrency=8)


def concurrent_32(run: Run) -> None:
    """32 at a time, twice."""
    run.ask(prompts.MIXED, concurrency=32)
    run.ask(prompts.MIXED, concurrency=32)


def pressure(run: Run) -> None:
    """More than fits: slots are evicted, running requests are retracted, no answer changes."""
    for concurrency in (24, 8, 24):
        run.ask(prompts.GROWING, concurrency=concurrency)
        run.ask(prompts.MIXED, concurrency=concurrency)
    if run.recording:
        return
    outran = run.tally.retractions > 0 or not run.setting.outgrown
    run.claim(outran, "no request was retracted: the pool is not tight")
    if run.setting.radix:
        evicted = sum(run.client.arena()["evicted_tokens"].values())
        run.claim(evicted > 0, "nothing was evicted: the pool is not tight")


def forced_retraction(run: Run) -> None:
    """The server retracts requests on its own every few steps (SGLANG_TEST_RETRACT)."""
    run.ask(prompts.GROWING, concurrency=8)
    if not run.recording:
        run.claim(run.tally.retractions > 0, "no request was retracted")


def flush_under_load(run: Run) -> None:
    """A flush while requests run is refused or harmless; one after them empties the arena."""
    if run.recording:
        run.ask(prompts.GROWING, concurrency=4)
        return
    refused = 0
    with ThreadPoolExecutor(1) as background:
        work = background.submit(run.ask, prompts.GROWING, concurrency=8)
        while not work.done():
            refused += not run.client.flush()
            time.sleep(0.05)
        work.result()
    run.claim(refused > 0, "no flush met a running request: the load was too light to test this")
    run.claim(run.client.flush(wait_seconds=30.0), "a flush of the idle server was refused")
    run.ask(prompts.GROWING, concurrency=8)


# ---- ways of asking ------------------------------------------------------------------------------


def streaming(run: Run) -> None:
    """Streamed answers grow token by token into the same answers."""
    chosen = prompts.MIXED[::4]
    if run.recording:
        run.ask(chosen)
        return

    def stream(request: Request) -> list[Answer]:
        return list(run.client.stream(request))

    for request, events in zip(chosen, run.client.map(stream, chosen, concurrency=4), strict=True):
        run.check(request, events[-1])
        lengths = [len(event.tokens) for event in events]
        run.claim(
            len(events) > 1 and lengths == sorted(lengths),
            f"streamed events held {lengths} tokens",
        )


def parallel_sampling(run: Run) -> None:
    """Two samples of each prompt at once; greedy, so both are the answer."""
    chosen = prompts.MIXED[::5]
    if run.recording:
        run.ask(chosen)
        return

    def sample(request: Request) -> list[Answer]:
        return run.client.generate_many(request, 2)

    for request, answers in zip(chosen, run.client.map(sample, chosen, concurrency=3), strict=True):
        run.claim(len(answers) == 2, f"{len(answers)} samples came back, 2 were asked for")
        for answer in answers:
            run.check(request, answer)


def prompt_logprobs(run: Run) -> None:
    """Every prompt token is scored alike, with text in the cache that must not be used for it."""
    scored = [replace(request, prompt_logprobs=True) for request in prompts.MIXED[5::6]]
    run.ask(scored, concurrency=4)
    run.ask(scored)


REGEX = r"(red|green|blue)( and (red|green|blue)){3}\."
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{2,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "active": {"type": "boolean"},
    },
    "required": ["name", "age", "active"],
}


def constraints(run: Run) -> None:
    """A regular expression and a JSON schema bind the answers, next to free requests."""
    plain = [prompts.ask(prompts.words(9100 + i, 30 + 30 * i)) for i in range(4)]
    free = {"ignore_eos": False}
    by_regex = [replace(r, max_new_tokens=60, sampling={"regex": REGEX, **free}) for r in plain]
    by_schema = [
        replace(r, max_new_tokens=120, sampling={"json_schema": json.dumps(SCHEMA), **free})
        for r in plain
    ]
    mixed = [request for group in zip(plain, by_regex, by_schema, strict=True) for request in group]
    answers = run.ask(mixed, concurrency=6)
    for request, answer in zip(mixed, answers, strict=True):
        if "regex" in request.sampling:
            run.claim(
                re.fullmatch(REGEX, answer.text) is not None, f"not in REGEX: {answer.text!r}"
            )
        elif "json_schema" in request.sampling:
            person = json.loads(answer.text)
            run.claim(
                isinstance(person["age"], int) and isinstance(person["active"], bool),
                f"not in SCHEMA: {answer.text!r}",
            )


def lora(run: Run) -> None:
    """Prompts with and without an adapter in one batch: neither reads the other's cache."""

    def adapted(request: Request) -> Request:
        return replace(request, lora=run.setting.lora)

    both = [r for request in prompts.MIXED[12::5] for r in (request, adapted(request))]
    answers = run.ask(both, concurrency=8)
    again = run.ask(both, concurrency=1)
    run.claim(
        all(a.tokens != b.tokens for a, b in zip(answers[::2], answers[1::2], strict=True)),
        "the adapter changes no answer: this test cannot fail",
    )
    base_first, adapted_first = (prompts.ask(prompts.words(9400 + i, 70)) for i in range(2))
    crossed = run.ask([base_first, adapted(base_first), adapted(adapted_first), adapted_first])
    if not run.recording:
        run.claim(all(answer.cached_tokens for answer in again), "a prompt asked again hit nothing")
        cached = [answer.cached_tokens for answer in crossed]
        run.claim(
            not any(cached),
            f"prompts that only the other model had seen hit {cached} cached tokens",
        )


# ---- sessions ------------------------------------------------------------------------------------


def sessions(run: Run) -> None:
    """Turns appended to a session, two of them to the same turn, answer like whole prompts."""
    opening, more, other = (prompts.words(9200 + i, 60 + 7 * i) for i in range(3))
    first = run.ask([prompts.ask(opening)])[0]
    history = opening + first.ids
    second = run.ask([prompts.ask(history + more)])[0]
    turns = (
        (more, "turn-1", prompts.ask(history + more)),
        (other, "turn-1", prompts.ask(history + other)),
        (other, "turn-2", prompts.ask(history + more + second.ids + other)),
    )
    run.ask([whole for _, _, whole in turns])
    if run.recording:
        return
    session = run.client.open_session(streaming=False)
    try:
        answer = run.client.generate(
            prompts.ask(opening), rid=f"{session}-turn-1", session_params={"id": session}
        )
        run.check(prompts.ask(opening), answer)
        for number, (ids, parent, whole) in enumerate(turns, start=2):
            answer = run.client.generate(
                prompts.ask(ids),
                rid=f"{session}-turn-{number}",
                session_params={"id": session, "rid": f"{session}-{parent}"},
            )
            run.check(whole, answer)
    finally:
        run.client.close_session(session)


def streaming_sessions(run: Run) -> None:
    """Sessions keep their slots between turns, while others come and go, until they are closed."""
    num_sessions, num_turns = 3, 4
    history: list[tuple[int, ...]] = [()] * num_sessions
    plan: list[list[tuple[tuple[int, ...], Request]]] = []
    for turn in range(num_turns):
        texts = [prompts.words(9300 + 10 * s + turn, 25 + 20 * s) for s in range(num_sessions)]
        wholes = [prompts.ask(past + text) for past, text in zip(history, texts, strict=True)]
        answers = run.ask(wholes)
        plan.append(list(zip(texts, wholes, strict=True)))
        history = [w.input_ids + a.ids for w, a in zip(wholes, answers, strict=True)]
    if run.recording:
        run.ask(prompts.MIXED[:8])
        return
    opened = [run.client.open_session(streaming=True) for _ in range(num_sessions)]
    try:
        for turn, steps in enumerate(plan):

            def one(index: int, turn: int = turn, steps: list = steps) -> Answer:
                return run.client.generate(
                    prompts.ask(steps[index][0]),
                    rid=f"{opened[index]}-{turn}",
                    session_params={"id": opened[index]},
                )

            answers = run.client.map(one, range(num_sessions), concurrency=num_sessions)
            for (_, whole), answer in zip(steps, answers, strict=True):
                run.check(whole, answer)
            run.ask(prompts.MIXED[:8], concurrency=4)
        held = run.client.arena()["kinds"][0]["slots_sessions"]
        run.claim(held > 0, "an open streaming session holds no slot between its turns")
    finally:
        for session in opened:
            run.client.close_session(session)


# ---- interruptions -------------------------------------------------------------------------------


def abort_prefill(run: Run) -> None:
    """A request aborted between two prefill chunks gives everything back; the next is served."""
    if run.recording:
        run.ask(prompts.MIXED[:4])
        return
    with ThreadPoolExecutor(1) as background:
        work = background.submit(run.client.generate, prompts.LONG, rid="abort-prefill")
        _wait(lambda: run.client.arena()["kinds"][0]["slots_held"] > 0, "the prefill to begin")
        run.client.abort("abort-prefill")
        finish, num_tokens = _outcome(work.result)
    run.claim(
        finish == "abort" and num_tokens == 0,
        f"the request finished by {finish!r} after {num_tokens} tokens: the abort came too late",
    )
    run.ask(prompts.MIXED[:4])


def abort_decode(run: Run) -> None:
    """Some requests are aborted, one client hangs up, the others finish as if alone."""
    if run.recording:
        run.ask(prompts.TALKATIVE, concurrency=4)
        return
    # A tight arena may not hold all of them at once: there nobody waits for the others.
    spoke = threading.Barrier(len(prompts.TALKATIVE) if run.setting.roomy else 1)
    aborted, gone = (0, 1, 2), 3

    def talk(number: int) -> Answer:
        request = prompts.TALKATIVE[number]
        answer = None
        for event in run.client.stream(request, rid=f"talk-{number}"):
            # Under load a first event may hold several tokens.
            first, answer = answer is None, event
            if first:
                spoke.wait(timeout=120.0)
                if number == gone:
                    break  # closes the connection
                if number in aborted:
                    run.client.abort(f"talk-{number}")
        if answer is None:
            raise Failed("a stream ended without an event")
        return answer

    numbers = range(len(prompts.TALKATIVE))
    answers = run.client.map(talk, numbers, concurrency=len(prompts.TALKATIVE))
    for number, request, answer in zip(numbers, prompts.TALKATIVE, answers, strict=True):
        cut = number in aborted or number == gone
        run.check(request, answer, prefix=cut)
        if number in aborted:
            run.claim(answer.finish == "abort", f"aborted, but it finished by {answer.finish!r}")
    run.ask(prompts.TALKATIVE, concurrency=3)


def too_long(run: Run) -> None:
    """A prompt that can never fit is refused in words; the server goes on."""
    if not run.recording:
        limits = [4096]
        if not run.setting.roomy:
            limits.append(run.client.arena()["longest_request_tokens"])
        for limit in limits:
            request = prompts.ask(prompts.words(7000, limit + 1))
            try:
                run.client.generate(request)
            except Refused as refusal:
                run.claim(
                    400 <= refusal.status < 500 and str(limit + 1) in refusal.message,
                    f"refused without saying why: {refusal}",
                )
            else:
                raise Failed(f"{limit + 1} tokens were accepted, the limit is {limit}")
    run.ask(prompts.MIXED[:4])


def _wait(condition, what: str, timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {timeout_seconds:.0f} s for {what}")
        time.sleep(0.01)


def _outcome(result) -> tuple[str, int]:
    """Finish reason and number of tokens of an aborted request, however the server words it."""
    try:
        answer = result()
    except Refused as refusal:
        return ("abort" if "bort" in refusal.message else str(refusal)), 0
    return answer.finish, len(answer.tokens)


_ALL = (
    uncached, prefill_hit, decode_hit, branching, multi_turn, concurrent_8, concurrent_32, pressure,
    forced_retraction, flush_under_load, streaming, parallel_sampling, prompt_logprobs, constraints,
    lora, sessions, streaming_sessions, abort_prefill, abort_decode, too_long,
)  # fmt: skip
SCENARIOS = {
    **{play.__name__: Scenario(name=play.__name__, play=play) for play in _ALL},
    **IMAGE_SCENARIOS,
}
