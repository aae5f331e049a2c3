# SPDX-License-Identifier: Apache-2.0
"""Conversations in ShareGPT's form: text by text, and no token counts.

Each answer becomes a request, whose prompt is everything said before it. A text's tokens are its
characters over ``characters_per_token``, rounded up, so that the prompt of a turn is exactly the
prompt and the answer of the turn before and what was added. Templates of chats are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sglang_jenga.simulate.trace_files import Objects
from sglang_jenga.simulate.trace_types import Source, TraceRequest

#: Who answers, by the names that such files use; all others ask, or are the system.
_ANSWERERS = frozenset(("gpt", "chatgpt", "assistant", "model", "bot", "bard", "bing"))
_FIELDS = ("conversations", "conversation", "messages")


def has_conversation(entry: Mapping[str, Any]) -> bool:
    """Whether an object is one."""
    return any(name in entry for name in _FIELDS)


def sharegpt(objects: Objects, source: Source) -> Iterator[TraceRequest]:
    """One request for each answer."""
    for conversation, (number, entry) in enumerate(objects):
        said = next((entry[name] for name in _FIELDS if name in entry), None)
        if not isinstance(said, list):
            source.leave_out(number, "no list of conversations")
            continue
        before = answers = 0
        for message in said:
            found = _message(message)
            if found is None:
                source.leave_out(number, "a message without from and value, and what follows it")
                break
            answerer, text = found
            tokens = math.ceil(len(text) / source.characters_per_token)
            if answerer:
                answers += 1
                if before and tokens:
                    yield TraceRequest(
                        prompt_tokens=before, output_tokens=tokens, conversation=conversation
                    )
                else:
                    source.leave_out(
                        number, "an empty answer" if before else "an answer to nothing"
                    )
            before += tokens
        else:
            if not answers:
                source.leave_out(number, "a conversation without an answer")


def _message(message: object) -> tuple[bool, str] | None:
    """Whether somebody answers, and the text; None: neither is there."""
    if not isinstance(message, dict):
        return None
    who = message.get("from", message.get("role"))
    text = message.get("value", message.get("content"))
    if not isinstance(who, str) or not isinstance(text, str):
        return None
    return who.lower() in _ANSWERERS, text
