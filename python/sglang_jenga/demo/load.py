# SPDX-License-Identifier: Apache-2.0
"""A load of chats through the OpenAI client: groups share a system prompt, turns their history."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sglang_jenga.demo.clients import DOCUMENT

#: Times a chat sends a turn again that was lost, and the seconds between.
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 300.0
_QUESTIONS = (
    "Where should a barge go when the quay is full?",
    "And a rowing boat?",
    "What did the daughter do about the paint?",
    "Who may stay where they are?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``groups``: different system prompts. ``chats``: per group. ``at_once``: chats at a time."""

    groups: int
    chats: int
    turns: int
    at_once: int
    output_tokens: int

    @property
    def requests(self) -> int:
        return self.groups * self.chats * self.turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request and how it went. Times in seconds of one monotonic clock.

    rid: its id on the server, as the answer says (a router gives it one of its own); empty: no part
    of an answer arrived. error: why there is no answer, empty: there is one. pieces: parts of the
    answer that had arrived.
    """

    name: str
    rid: str
    began_seconds: float
    ended_seconds: float
    prompt_tokens: int
    cached_tokens: int
    pieces: int
    error: str


def system_prompt(group: int) -> str:
    """Another text for each group from its first word on, of one length."""
    sentences = re.split(r"(?<=\.)\s+", DOCUMENT.strip())
    random.Random(group).shuffle(sentences)
    return f"Harbour {group}. " + " ".join(sentences)


def drive(url: str, load: Load, on_done: Callable[[Asked], None]) -> list[Asked]:
    """Send the whole load; every attempt, lost ones too.

    ``on_done`` gets each attempt as it ends, from the thread that made it.

    Raises:
        RuntimeError: a turn was lost at every attempt.
    """
    import openai

    client = openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_SECONDS
    )
    model = client.models.list().data[0].id

    def chat(index: int) -> list[Asked]:
        group = index % load.groups
        messages: list[Any] = [{"role": "system", "content": system_prompt(group)}]
        attempts: list[Asked] = []
        for turn in range(load.turns):
            question = f"{_QUESTIONS[turn % len(_QUESTIONS)]} (chat {index})"
            messages.append({"role": "user", "content": question})
            for attempt in range(_ATTEMPTS):
                name = f"chat-{index}-turn-{turn}-attempt-{attempt}"
                text, asked = _ask(client, model, messages, name, load.output_tokens)
                attempts.append(asked)
                on_done(asked)
                if not asked.error:
                    break
                time.sleep(_PAUSE_SECONDS)
            else:
                raise RuntimeError(f"chat {index} was lost {_ATTEMPTS} times: {asked.error}")
            messages.append({"role": "assistant", "content": text})
        return attempts

    with ThreadPoolExecutor(load.at_once) as pool:
        chats = list(pool.map(chat, range(load.groups * load.chats)))
    return [asked for attempts in chats for asked in attempts]


def _ask(
    client: Any, model: str, messages: Sequence[Any], name: str, output_tokens: int
) -> tuple[str, Asked]:
    """One streamed answer. Errors of any kind are results here: servers are killed on purpose."""
    began, pieces, usage, error = time.monotonic(), list[str](), None, ""
    finished, rid = False, ""
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=list(messages),
            max_tokens=output_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            usage, rid = chunk.usage or usage, chunk.id
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                finished = finished or choice.finish_reason is not None
        if not finished:
            error = "the stream ended before the answer did"
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"[:200]
    details = usage.prompt_tokens_details if usage else None
    asked = Asked(
        name=name,
        rid=rid,
        began_seconds=began,
        ended_seconds=time.monotonic(),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        pieces=len(pieces),
        error=error,
    )
    return "".join(pieces), asked
