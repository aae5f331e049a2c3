# SPDX-License-Identifier: Apache-2.0
"""A jenga server over HTTP, as far as the commands need it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sglang_jenga.cli.bounded_json import MOST_BYTES, NotJson, parsed
from sglang_jenga.cli.http_json import BadUrl, Deadline, NoAnswer, Origin, Reply, TooLong, ask
from sglang_jenga.cli.server_shapes import ANSWER, INFO, LOADS
from sglang_jenga.cli.shapes import Misshapen, Shape
from sglang_jenga.core.printable import printable

#: Characters of a server's own words in a message.
_MOST_WORDS = 300


class ServerError(Exception):
    """The server cannot be asked, or says no; the message is for the user, and printable."""


class ServerUnreachable(ServerError):
    """Nobody answers there, now."""


class Server:
    """``url``: as ``http://host:port``. ``api_key``: what the server was started with, if so.

    All its answers together may take ``timeout_seconds``, from now or the last :meth:`begin` on.

    Raises:
        ServerError: ``url`` or ``api_key`` cannot be used.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_seconds: float) -> None:
        try:
            self._origin = Origin.parse(url)
        except BadUrl as error:
            shown = printable(url, _MOST_WORDS)
            raise ServerError(
                f"{shown} is not the address of a server: {printable(str(error), _MOST_WORDS)}; "
                "write it as localhost:30000"
            ) from error
        self.url = str(self._origin)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ServerError("--api-key has characters that no HTTP header can hold")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_seconds = timeout_seconds
        self.begin()

    def begin(self) -> None:
        """A new question: the time for its answers runs from now on."""
        self._deadline = Deadline(self._timeout_seconds)

    def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``POST /generate``. The server computes and caches: ask :meth:`states` first."""
        answer: dict[str, Any] = self._ask("/generate", ANSWER, body)
        return answer

    def states(self) -> list[dict[str, Any]]:
        """What each scheduler says of itself in ``/server_info``, by data parallel rank.

        Raises:
            ServerError: it is not a jenga server.
        """
        info = self._ask("/server_info", INFO)
        states = info.get("internal_states") or []
        found = [state for state in states if state.get("jenga") is not None]
        if not found:
            raise ServerError(
                f"{self.url} serves without Jenga: start it with --radix-cache-backend jenga"
            )
        return sorted(found, key=lambda state: int(state["jenga"].get("dp_rank") or 0))

    def arenas(self) -> list[dict[str, Any]]:
        """The ``jenga`` entry of :meth:`states`, one for each scheduler."""
        return [state["jenga"] for state in self.states()]

    def loads(self) -> dict[int, dict[str, Any]]:
        """``/v1/loads`` by data parallel rank; SGLang answers without asking a scheduler."""
        reply = self._ask("/v1/loads?include=core", LOADS)
        return {load["dp_rank"]: load for load in reply["loads"]}

    def _ask(self, path: str, shape: Shape, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            reply = ask(
                self._origin,
                path,
                body=data,
                headers=self._headers,
                deadline=self._deadline,
                most_bytes=MOST_BYTES,
            )
        except NoAnswer as error:
            why = printable(str(error), _MOST_WORDS)
            raise ServerUnreachable(f"{self.url} cannot be reached: {why}") from error
        except TooLong as error:
            raise ServerError(
                f"{self.url}{path} answers more than {MOST_BYTES:,} bytes: that is no jenga server"
            ) from error
        if 300 <= reply.status < 400:
            where = printable(reply.location, _MOST_WORDS) or "nowhere"
            raise ServerError(
                f"{self.url}{path} says {reply.status}, a redirect to {where}, which is not "
                "followed: give the address of the server itself"
            )
        if not 200 <= reply.status < 300:
            said = printable(_message(reply), _MOST_WORDS)
            raise ServerError(f"{self.url}{path} says {reply.status}: {said}")
        try:
            found = parsed(reply.body)
        except NotJson as error:
            raise ServerError(f"{self.url}{path} did not answer JSON: {error}") from error
        self.check(shape, found, path)
        return found

    def check(self, shape: Shape, answer: Any, path: str, inside: str = "") -> None:
        """That what the server answered (``inside`` the answer to ``path``) has this shape.

        Raises:
            ServerError: names what it sent instead.
        """
        try:
            shape(answer, inside)
        except Misshapen as error:
            raise ServerError(
                f"{self.url}{path}{error}: install the same sglang-jenga there and here"
            ) from error


def _message(reply: Reply) -> str:
    text = reply.body.decode(errors="replace").strip()
    try:
        found = parsed(reply.body)
    except NotJson:
        return text or reply.reason
    inner = found.get("error", found) if isinstance(found, dict) else found
    message = inner.get("message") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else text
