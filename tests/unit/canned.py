# SPDX-License-Identifier: Apache-2.0
"""A jenga server made of canned answers, for commands that read ``/server_info``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


def arena(
    *,
    full: tuple[int, int, int, int] = (12, 6, 3, 3),
    window: tuple[int, int] = (2, 1),
    rank: int = 0,
    cells: str | None = "4*0.1.6.0 2*- 2*1.1.1.0 1.1.0.1 -",
    prompt_tokens: int = 1000,
    hit_tokens: int = 400,
    **more: Any,
) -> dict[str, Any]:
    """Ten large pages of 6 full slots or 1 window slot: 4 full, 3 window, 3 free.

    ``full``: slots held, cached, reserved, free; ``window``: slots held and cached, one reserved.
    """
    kinds = [
        {
            "name": "full",
            "kind": "full",
            "span_tokens": None,
            "layers": 2,
            "slot_bytes": 100,
            "large_pages": sum(full) // 6,
            "slots_held": full[0],
            "slots_cached": full[1],
            "slots_reserved": full[2],
            "slots_free": full[3],
        },
        {
            "name": "window",
            "kind": "window",
            "span_tokens": 63,
            "layers": 12,
            "slot_bytes": 600,
            "large_pages": sum(window),
            "slots_held": window[0],
            "slots_cached": window[1],
            "slots_reserved": 0,
            "slots_free": 0,
        },
    ]
    found = {
        "schema": 3,
        "arena_bytes": 6600,
        "large_page_bytes": 600,
        "large_pages_total": 10,
        "large_pages_free": 10 - sum(kind["large_pages"] for kind in kinds),  # type: ignore[misc]
        "longest_request_tokens": 20,
        "kinds": kinds,
        "hits": {
            "requests": prompt_tokens // 100,
            "prompt_tokens": prompt_tokens,
            "hit_tokens": hit_tokens,
            "full_only_tokens": hit_tokens + 100,
            "cut_tokens": {"window": 100},
            "reports": {"a": {"rid": "a"}},
        },
        "evicted_tokens": {"full": 50, "swa": 20},
        "dp_rank": rank,
    }
    if cells is not None:
        found["large_page_map"] = {
            "first_large_page": 1,
            "large_pages": 10,
            "large_pages_per_cell": 1,
            "small_pages_per_large_page": [6, 1],
            "cells": cells,
        }
    return found | more


class JsonHandler(BaseHTTPRequestHandler):
    """Answers JSON and says nothing of it."""

    def reply(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


class Handler(JsonHandler):
    """Answers from the lists below, which a test changes while the server runs."""

    arenas: list[dict[str, Any]]
    loads: list[dict[str, Any]] | None
    broken: bool
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        if self.broken:
            return self.reply(503, {"error": {"message": "warming up"}})
        if self.path == "/server_info":
            state = {"served_model_name": "models/tiny", "last_gen_throughput": 7.5}
            return self.reply(
                200, {"internal_states": [{**state, "jenga": found} for found in self.arenas]}
            )
        if self.path.startswith("/v1/loads") and self.loads is not None:
            return self.reply(200, {"loads": self.loads})
        return self.reply(404, {"error": {"message": "Not Found"}})


@contextlib.contextmanager
def canned(*arenas: dict[str, Any], port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server on ``port`` (any free one) with one scheduler per arena."""
    Handler.arenas = list(arenas)
    Handler.loads = [
        {
            "dp_rank": rank,
            "num_running_reqs": 3,
            "num_waiting_reqs": 2,
            "max_running_requests": 8,
            "gen_throughput": 12.5,
        }
        for rank in range(len(arenas))
    ]
    Handler.broken = False
    Handler.paths = []
    with serving(Handler, port) as found:
        yield found


@contextlib.contextmanager
def serving(handler: type[JsonHandler], port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server that answers through ``handler``, in a thread."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as found:
        Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield found
        found.shutdown()


def address(server: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{server.server_port}"
