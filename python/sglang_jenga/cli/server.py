# SPDX-License-Identifier: Apache-2.0
"""A jenga server over HTTP, as far as the commands need it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen


class ServerError(Exception):
    """The server cannot be asked, or says no; the message is for the user."""


class Server:
    """``url``: as ``http://host:port``. ``api_key``: what the server was started with, if so."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_seconds: float) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_seconds = timeout_seconds

    def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``POST /generate``."""
        answer: dict[str, Any] = self._ask("/generate", body)
        return answer

    def arenas(self) -> list[dict[str, Any]]:
        """The ``jenga`` entry of ``/server_info``, one for each data parallel rank, in their order.

        Raises:
            ServerError: it is not a jenga server.
        """
        info = self._ask("/server_info")
        found = [state["jenga"] for state in info.get("internal_states", []) if "jenga" in state]
        if not found:
            raise ServerError(
                f"{self.url} serves without Jenga: start it with --radix-cache-backend jenga"
            )
        return sorted(found, key=lambda arena: int(arena.get("dp_rank", 0)))

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data=data, headers=self._headers)
        try:
            with urlopen(request, timeout=self._timeout_seconds) as reply:
                return json.load(reply)
        except HTTPError as error:
            raise ServerError(f"{self.url}{path} says {error.code}: {_message(error)}") from error
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"{self.url} cannot be reached: {reason}") from error
        except ValueError as error:
            raise ServerError(f"{self.url}{path} did not answer JSON: {error}") from error


def _message(error: HTTPError) -> str:
    text = error.read().decode(errors="replace").strip()
    try:
        reply = json.loads(text)
    except ValueError:
        return text or error.reason
    inner = reply.get("error", reply) if isinstance(reply, dict) else reply
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)
