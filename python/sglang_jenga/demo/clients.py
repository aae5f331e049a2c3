# SPDX-License-Identifier: Apache-2.0
"""What users do with a server: a frontend-language program and an OpenAI chat."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

DOCUMENT = """\
The harbour town had one long quay and three kinds of boats. The ferries kept their places all day,
because people wanted to find them where they had left them. The fishing boats came in, unloaded,
and gave their berth to whoever arrived next. The barges were so large that one barge needed the
room of forty rowing boats. The old harbour master had painted lines on the quay: this part for
ferries, that part for fishing boats, the far end for barges. On some days the ferries were turned
away while the far end lay empty. His daughter scraped off the paint. She measured every boat in
whole rings, let each captain keep his own boats together, and gave every empty stretch to whoever
came next.
"""
ANGLES = ("Ferries", "Fishing boats", "Barges")
VERDICTS = ("the quay is full", "the quay has room")
YEAR = r"(18|19|20)[0-9]{2}"
CHAT = (
    "Where should a barge go when the quay is full?",
    "And a rowing boat?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One generated text. Token counts of its prompt: all, and those found in the prefix cache."""

    label: str
    text: str
    prompt_tokens: int
    cached_tokens: int


def read_together(url: str, *, max_tokens: int) -> list[Answer]:
    """A frontend-language program: one shared document, three forks, a choice and a regex.

    The forks share the document's slots; what each writes afterwards is its own.
    """
    import sglang as sgl

    def program(s: Any) -> None:
        s += DOCUMENT
        s.sync()  # fork() prefills what it shares only if the text has arrived by then
        forks = s.fork(len(ANGLES))
        for fork, angle in zip(forks, ANGLES, strict=True):
            fork += f"\n{angle}:"
            fork += sgl.gen("note", max_tokens=max_tokens, temperature=0)
        for fork, angle in zip(forks, ANGLES, strict=True):
            s += f"\n{angle}:" + fork["note"]
            s.set_var(angle, (fork["note"], fork.get_meta_info("note")))
        s += "\nToday " + sgl.gen("verdict", choices=list(VERDICTS))
        s += ". The year is " + sgl.gen("year", regex=YEAR, max_tokens=8, temperature=0)

    state = sgl.function(program).run(backend=sgl.RuntimeEndpoint(url))
    if state.error() is not None:
        raise RuntimeError(f"the frontend program failed: {state.error()}")
    notes = [(f"fork: {angle}", *state[angle]) for angle in ANGLES]
    year = ("regex: year", state["year"], state.get_meta_info("year"))
    answers = [_answer(*one) for one in (*notes, year)]
    # A choice scores its options in several requests: there is no one prompt to count.
    choice = Answer(label="choice: today", text=state["verdict"], prompt_tokens=0, cached_tokens=0)
    return [*answers[:-1], choice, answers[-1]]


def _answer(label: str, text: str, meta: dict[str, Any]) -> Answer:
    return Answer(
        label=label,
        text=text,
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta["cached_tokens"],
    )


def chat(
    url: str, *, max_tokens: int, on_turn: Callable[[str], None], on_piece: Callable[[str], None]
) -> Iterator[Answer]:
    """A streaming chat through the OpenAI client; each turn builds on the ones before it.

    ``on_turn`` gets each question, ``on_piece`` every piece of text as it arrives.
    """
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    messages: list[Any] = []
    for question in CHAT:
        on_turn(question)
        messages.append({"role": "user", "content": question})
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, usage = "", None
        for chunk in stream:
            usage = chunk.usage or usage
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                text += piece
                on_piece(piece)
        messages.append({"role": "assistant", "content": text})
        if usage is None:
            raise RuntimeError("the server streamed an answer without its usage")
        details = usage.prompt_tokens_details
        yield Answer(
            label="chat",
            text=text,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
        )


def read_arena(url: str) -> dict[str, Any]:
    """The ``jenga`` entry of ``/server_info``.

    Raises:
        RuntimeError: the server does not serve from an arena.
    """
    with urllib.request.urlopen(f"{url}/server_info", timeout=60) as reply:
        state = json.load(reply)["internal_states"][0]
    if "jenga" not in state:
        raise RuntimeError("this server has no arena: start it with --radix-cache-backend jenga")
    arena: dict[str, Any] = state["jenga"]
    return arena
