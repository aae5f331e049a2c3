# SPDX-License-Identifier: Apache-2.0
"""What the scenarios send to a server, and what they keep of its answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests

from server.pictures import data_url

TIMEOUT_SECONDS = 300.0


class Refused(RuntimeError):
    """The server answered with an error; ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message


#: Log probabilities closer than this are a tie: batches of another shape sum in another order,
#: which moves them by a few 1e-5.
TIE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One greedy completion of ``input_ids``: what decides the answer, and nothing else.

    sampling: constraints such as ``regex``. lora: name of the adapter, None: the base model.
    prompt_logprobs: also score every prompt token (no cached prefix can serve such a request).
    pictures: names (:mod:`server.pictures`), one for each image token among the ids.
    """

    input_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lora: str | None = None
    prompt_logprobs: bool = False
    pictures: tuple[int, ...] = ()

    def body(self, **extra: Any) -> dict[str, Any]:
        """The body of ``POST /generate``; ``extra`` says how to serve, not what to answer."""
        sampling = {
            "temperature": 0.0,
            "max_new_tokens": self.max_new_tokens,
            "ignore_eos": True,
            **self.sampling,
            **extra.pop("sampling", {}),
        }
        body: dict[str, Any] = {
            "input_ids": list(self.input_ids),
            "sampling_params": sampling,
            "return_logprob": True,
        }
        if self.prompt_logprobs:
            body["logprob_start_len"] = 0
        if self.lora is not None:
            body["lora_path"] = self.lora
        if self.pictures:
            body["image_data"] = [data_url(name) for name in self.pictures]
        return body | extra

    @property
    def key(self) -> str:
        """Names the request in a file of recorded answers."""
        how = (self.max_new_tokens, dict(self.sampling), self.lora, self.prompt_logprobs)
        how = (*how, self.pictures) if self.pictures else how
        return json.dumps([self.input_ids, *how], sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One greedy turn of ``POST /v1/chat/completions``; ``messages`` are (role, content).

    pictures: names (:mod:`server.pictures`); they come before the text of the first message.
    """

    messages: tuple[tuple[str, str], ...]
    max_new_tokens: int
    pictures: tuple[int, ...] = ()

    def body(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": text} for role, text in self.messages
        ]
        if self.pictures:
            urls = [{"url": data_url(name)} for name in self.pictures]
            messages[0]["content"] = [
                *({"type": "image_url", "image_url": url} for url in urls),
                {"type": "text", "text": messages[0]["content"]},
            ]
        return {
            "model": "default",
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": self.max_new_tokens,
            "logprobs": True,
        }

    @property
    def key(self) -> str:
        what = ["chat", self.messages, self.max_new_tokens]
        what = [*what, self.pictures] if self.pictures else what
        return json.dumps(what, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. ``tokens`` are ids, or token texts from the chat endpoint.

    logprobs: natural logarithm, one per token. prompt_logprobs: one per prompt token after the
        first, where they were asked for.
    ties: (position, id) of tokens that would have been as good as the ones chosen, where two were
        asked for.
    """

    tokens: tuple[int | str, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str
    prompt_logprobs: tuple[float, ...] = ()
    ties: tuple[tuple[int, int], ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    retractions: int = 0

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token for token in self.tokens if isinstance(token, int))


class Client:
    """Blocking HTTP calls to one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    # ---- completions -----------------------------------------------------------------------

    def generate(self, request: Request, **extra: Any) -> Answer:
        """Raises Refused with the server's message."""
        return _answer(self.post("/generate", request.body(**extra)))

    def generate_many(self, request: Request, n: int) -> list[Answer]:
        """``n`` samples of one request (parallel sampling)."""
        body = request.body(sampling={"n": n})
        return [_answer(item) for item in self.post("/generate", body)]

    def stream(self, request: Request, **extra: Any) -> Iterator[Answer]:
        """The answer so far, after every event of a streamed completion."""
        body = request.body(stream=True, **extra)
        for event in self._events("/generate", body):
            if "error" in event:
                raise Refused(event["error"].get("code", 0), event["error"]["message"])
            yield _answer(event)

    def chat(self, chat: Chat) -> Answer:
        reply = self.post("/v1/chat/completions", chat.body())
        choice, usage = reply["choices"][0], reply["usage"]
        tokens = choice["logprobs"]["content"]
        return Answer(
            tokens=tuple(token["token"] for token in tokens),
            logprobs=tuple(token["logprob"] for token in tokens),
            text=choice["message"]["content"],
            finish=choice["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        )

    def map(
        self, ask: Callable[[Any], Any], items: Sequence[Any], *, concurrency: int
    ) -> list[Any]:
        """``ask`` every item, ``concurrency`` at a time; answers in the order of the items."""
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(ask, items))

    # ---- control ---------------------------------------------------------------------------

    def abort(self, rid: str) -> None:
        self.post("/abort_request", {"rid": rid}, parse=False)

    def open_session(self, *, streaming: bool) -> str:
        body = {"capacity_of_str_len": 100_000, "streaming": streaming}
        return str(self.post("/open_session", body))

    def close_session(self, session_id: str) -> None:
        self.post("/close_session", {"session_id": session_id}, parse=False)

    def flush(self, *, wait_seconds: float = 0.0) -> bool:
        """Drop the prefix cache; False: refused, because requests are running."""
        reply = requests.post(
            f"{self.url}/flush_cache", params={"timeout": wait_seconds}, timeout=TIMEOUT_SECONDS
        )
        return reply.status_code == 200

    def internal_state(self) -> dict[str, Any]:
        reply = requests.get(f"{self.url}/server_info", timeout=TIMEOUT_SECONDS)
        reply.raise_for_status()
        state: dict[str, Any] = reply.json()["internal_states"][0]
        return state

    def arena(self) -> dict[str, Any]:
        """The arena's snapshot (jenga servers only)."""
        arena: dict[str, Any] = self.internal_state()["jenga"]
        return arena

    # ---- HTTP ------------------------------------------------------------------------------

    def post(self, path: str, body: Mapping[str, Any], *, parse: bool = True) -> Any:
        reply = requests.post(f"{self.url}{path}", json=body, timeout=TIMEOUT_SECONDS)
        if reply.status_code != 200:
            raise Refused(reply.status_code, reply.text)
        return reply.json() if parse else None

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        with requests.post(
            f"{self.url}{path}", json=body, timeout=TIMEOUT_SECONDS, stream=True
        ) as reply:
            if reply.status_code != 200:
                raise Refused(reply.status_code, reply.text)
            for line in reply.iter_lines():
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    yield json.loads(line[len(b"data: ") :])


def _answer(reply: Mapping[str, Any]) -> Answer:
    meta = reply["meta_info"]
    scored = meta.get("output_token_logprobs") or []
    prompt = meta.get("input_token_logprobs") or []
    best_two = meta.get("output_top_logprobs") or []
    return Answer(
        tokens=tuple(item[1] for item in scored),
        logprobs=tuple(item[0] for item in scored),
        text=reply.get("text", ""),
        finish=(meta.get("finish_reason") or {}).get("type", ""),
        # The first prompt token has no logprob.
        prompt_logprobs=tuple(item[0] for item in prompt if item[0] is not None),
        ties=tuple(
            (position, second[1])
            for position, (first, second) in enumerate(best_two)
            if first[0] - second[0] < TIE
        ),
        prompt_tokens=meta.get("prompt_tokens", 0),
        cached_tokens=meta.get("cached_tokens", 0),
        retractions=meta.get("num_retractions", 0),
    )
