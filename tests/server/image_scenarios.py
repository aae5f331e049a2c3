# SPDX-License-Identifier: Apache-2.0
"""Claims about requests with images, for models whose cross layers attend to them.

Played like those of scenarios.py: against the stock server for its answers, then against jenga.
"""

from __future__ import annotations

import threading

from server import prompts
from server.client import Answer, Chat, Request
from server.run import Failed, Run, Scenario
from sglang_jenga.tiny.tokenizer import FIRST_IMAGE_ID

_QUESTIONS = (
    "Describe the picture.",
    "Which colour is most of it?",
    "Describe the picture to a child, in one sentence.",
    "What differs?",
    "Count the boats.",
)
#: None to three pictures, alone and together, in this order and in that; most come back.
_PICTURES = ((), (1,), (2,), (1, 2), (2, 1), (1, 3), (3,), (1, 2, 3), (), (1, 1))

VISITS = tuple(
    Chat(
        messages=(("user", _QUESTIONS[i % len(_QUESTIONS)]),),
        max_new_tokens=12 + i % 7,
        pictures=pictures,
    )
    for i, pictures in enumerate(_PICTURES * 2)
)


#: No answer to these prompts has two best tokens within 5e-4 of each other, on either family: a
#: smaller margin is decided by how a batch is summed up, on SGLang's own pools too.
_SEED = 9700


def _with_pictures(number: int, *, max_new_tokens: int) -> Request:
    """A completion behind none, one or two pictures, with a text that grows with ``number``."""
    pictures = (), (number % 5,), (number % 3, 7)
    chosen = pictures[number % 3]
    return Request(
        input_ids=(FIRST_IMAGE_ID,) * len(chosen) + prompts.words(_SEED + number, 12 + 3 * number),
        max_new_tokens=max_new_tokens,
        pictures=chosen,
    )


#: Enough to outgrow a tight pool.
CROWD = tuple(_with_pictures(i, max_new_tokens=40) for i in range(20))
SPEAKERS = tuple(_with_pictures(i, max_new_tokens=120) for i in range(6))


def images_hit(run: Run) -> None:
    """Chats with no, one and several pictures, in mixed batches; asked again, all of them hit.

    Where embeddings are cached, no picture goes through the encoder twice.
    """
    encoded_before = 0 if run.recording else (run.client.arena()["encoder"] or {}).get("encoded", 0)
    run.chat(VISITS)
    answers = run.chat(VISITS, concurrency=8)
    if run.setting.roomy and run.setting.radix and not run.recording:
        encoder = run.client.arena()["encoder"]
        pictures = len({name for visit in VISITS for name in visit.pictures})
        run.claim(
            encoder is None or encoder["encoded"] - encoded_before == pictures,
            f"{pictures} pictures were shown: {encoder}, {encoded_before} before",
        )
    if (
        run.setting.roomy
        and run.setting.radix
        and run.setting.page_tokens == 1
        and (not run.recording)
    ):
        missed = [a.prompt_tokens - a.cached_tokens for a in answers]
        run.claim(set(missed) == {1}, f"prompts asked again computed {missed} tokens")


def images_branch(run: Run) -> None:
    """Other questions about pictures that were seen before: the pictures are not computed again.

    Pictures that only begin alike are computed together, and give no hit.
    """
    run.chat([Chat(messages=(("user", "Begin."),), max_new_tokens=4, pictures=(4, 5))])
    for pictures, whole in (((4, 5), True), ((4,), True), ((5,), False), ((4, 6), False)):
        chats = [
            Chat(messages=(("user", f"Question {n}?"),), max_new_tokens=8, pictures=pictures)
            for n in range(3)
        ]
        first, *later = run.chat(chats)
        if run.recording or not (run.setting.roomy and run.setting.radix):
            continue
        if whole or run.setting.images_lead:
            hit = first.cached_tokens > 0
            run.claim(hit is whole, f"{pictures}: {first.cached_tokens} cached")
        images = min(a.cached_tokens for a in later)
        run.claim(images >= 2 * first.prompt_tokens // 3, f"{pictures}: only {images} cached")


def images_multi_turn(run: Run) -> None:
    """Two conversations of three turns about pictures, side by side; every later turn hits."""
    chats = [(("user", question),) for question in _QUESTIONS[:2]]
    shown = ((1, 2), (8,))
    for turn in range(3):
        asked = [
            Chat(messages=messages, max_new_tokens=16, pictures=pictures)
            for messages, pictures in zip(chats, shown, strict=True)
        ]
        answers = run.chat(asked, concurrency=len(asked))
        if turn and run.setting.roomy and run.setting.radix and not run.recording:
            run.claim(all(a.cached_tokens for a in answers), "a later turn hit nothing")
        chats = [
            (*messages, ("assistant", answer.text), ("user", f"Question {turn}: and then?"))
            for messages, answer in zip(chats, answers, strict=True)
        ]


def images_crowd(run: Run) -> None:
    """More requests with and without pictures than fit, twice."""
    run.ask(CROWD, concurrency=16)
    run.ask(tuple(reversed(CROWD)), concurrency=16)
    if run.recording or run.setting.roomy or not run.setting.radix:
        return
    evicted = run.client.arena()["evicted_tokens"]
    pictures = evicted["cross" if run.setting.images_lead else "vision"]
    run.claim(pictures > 0, f"no picture was evicted, the pool is not tight: {evicted}")


def images_abort(run: Run) -> None:
    """Some requests with pictures are aborted while they answer; the others do not notice."""
    if run.recording:
        run.ask(SPEAKERS, concurrency=2)
        return
    spoke = threading.Barrier(len(SPEAKERS) if run.setting.roomy else 1)
    aborted = (1, 2)

    def talk(number: int) -> Answer:
        answer = None
        events = run.client.stream(SPEAKERS[number], rid=f"speaker-{number}")
        for event in events:
            # Under load a first event may hold several tokens.
            first, answer = answer is None, event
            if first:
                spoke.wait(timeout=120.0)
                if number in aborted:
                    run.client.abort(f"speaker-{number}")
        if answer is None:
            raise Failed("a stream ended without an event")
        return answer

    numbers = range(len(SPEAKERS))
    answers = run.client.map(talk, numbers, concurrency=len(SPEAKERS))
    for number, answer in zip(numbers, answers, strict=True):
        run.check(SPEAKERS[number], answer, prefix=number in aborted)
    run.ask(SPEAKERS, concurrency=3)


_ALL = (images_hit, images_branch, images_multi_turn, images_crowd, images_abort)
IMAGE_SCENARIOS = {play.__name__: Scenario(name=play.__name__, play=play) for play in _ALL}
