# SPDX-License-Identifier: Apache-2.0
"""The one table of Jenga's metrics: name, type, labels, meaning, and how each is read.

Every value is read off the data of :func:`sglang_jenga.sglang_ext.report.counts`, so ``/metrics``
and ``/server_info`` cannot disagree. Equations that hold at any one time, ``sum`` over labels:

    sum over states of bytes{kind}          = large_pages{kind} * large_page_bytes
    sum of large_pages                      = large pages of the arena, the sink aside
    sum of bytes + large_page_bytes         = arena_bytes
    waste_bytes{kind, partial_page}         = bytes{kind, reserved} + bytes{kind, free}
    full_only_tokens - hit_tokens           = sum of cut_tokens over kinds
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "sglang:jenga_"
#: The owner of a large page that no kind owns.
NOBODY = "none"
GAUGE = "gauge"
COUNTER = "counter"

#: Values by the values of the metric's own labels.
Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. ``labels``: its own, beside those that all of SGLang's carry.

    type: ``gauge`` or ``counter`` (only grows, from 0 at start). read: from ``report.counts``.
    """

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str
    read: Callable[[Mapping[str, Any]], Values]


def _single(*path: str) -> Callable[[Mapping[str, Any]], Values]:
    """The number at ``path``; no series where it is None."""

    def read(data: Mapping[str, Any]) -> Values:
        value: Any = data
        for key in path:
            value = value[key]
        return {} if value is None else {(): value}

    return read


def _by_name(*path: str) -> Callable[[Mapping[str, Any]], Values]:
    """The numbers of the mapping at ``path``, by its keys; no series where it is None."""

    def read(data: Mapping[str, Any]) -> Values:
        values: Any = data
        for key in path:
            values = values[key]
        return {(name,): number for name, number in (values or {}).items()}

    return read


def _large_pages(data: Mapping[str, Any]) -> Values:
    owned: Values = {(kind["name"], "owned"): kind["large_pages"] for kind in data["kinds"]}
    return {**owned, (NOBODY, "free"): data["large_pages_free"]}


_STATES = ("held", "sessions", "cached", "reserved", "free")


def _bytes(data: Mapping[str, Any]) -> Values:
    inside: Values = {
        (kind["name"], state): kind[f"slots_{state}"] * kind["slot_bytes"]
        for kind in data["kinds"]
        for state in _STATES
    }
    return {**inside, (NOBODY, "free"): data["large_pages_free"] * data["large_page_bytes"]}


def _waste(data: Mapping[str, Any]) -> Values:
    return {
        (kind["name"], reason): kind[f"{reason}_waste_bytes"]
        for kind in data["kinds"]
        for reason in ("padding", "partial_page")
    }


def _gauge(
    name: str,
    meaning: str,
    read: Callable[[Mapping[str, Any]], Values],
    labels: tuple[str, ...] = (),
) -> Metric:
    return Metric(name=PREFIX + name, type=GAUGE, labels=labels, meaning=meaning, read=read)


def _counter(
    name: str,
    meaning: str,
    read: Callable[[Mapping[str, Any]], Values],
    labels: tuple[str, ...] = (),
) -> Metric:
    name = f"{PREFIX}{name}_total"
    return Metric(name=name, type=COUNTER, labels=labels, meaning=meaning, read=read)


_KIND = ("kind",)

METRICS: tuple[Metric, ...] = (
    _gauge("arena_bytes", "Size of the arena, the sink included.", _single("arena_bytes")),
    _gauge(
        "large_page_bytes",
        "Size of a large page, the unit that kinds exchange.",
        _single("large_page_bytes"),
    ),
    _gauge(
        "large_pages",
        "Large pages by owner: state owned, or free with kind none. Their sum is constant.",
        _large_pages,
        ("kind", "state"),
    ),
    _gauge(
        "bytes",
        "Bytes of a kind's large pages by state: held by running requests, sessions (streaming "
        "sessions between their turns), cached, reserved for the next tokens of a request, free "
        "(holes); kind none is large pages nobody owns.",
        _bytes,
        ("kind", "state"),
    ),
    _gauge(
        "waste_bytes",
        "Bytes that store nothing, by reason: padding of slots in use, partial_page (reserved "
        "and free slots of owned large pages).",
        _waste,
        ("kind", "reason"),
    ),
    _gauge(
        "longest_request_tokens",
        "Longest request, prompt and output, that an empty arena serves.",
        _single("longest_request_tokens"),
    ),
    _gauge(
        "max_running_requests",
        "Most requests that SGLang would run at once, whatever memory allows.",
        _single("max_running_requests"),
    ),
    _gauge(
        "realised_running_cap",
        "Requests that held memory when one was last refused for want of bytes: what memory "
        "allows at this traffic. 0: none was refused since start.",
        _single("realised_running_cap"),
    ),
    _gauge(
        "idle_sessions",
        "Streaming sessions that hold memory between their turns; it gives way when it is needed.",
        _single("sessions", "idle"),
    ),
    _counter(
        "evicted_sessions",
        "Times that an idle streaming session gave its memory up; its next turn is computed anew.",
        _single("sessions", "evicted"),
    ),
    _counter(
        "waits",
        "Times that admission refused a request for want of bytes, by the starving kind.",
        _by_name("waits"),
        _KIND,
    ),
    _counter(
        "delayed_requests",
        "Requests refused at least once before they started, by the kind that starved first.",
        _by_name("delayed_requests"),
        _KIND,
    ),
    _counter(
        "retracted_requests",
        "Running requests put back into the queue, by the starving kind.",
        _by_name("retractions_by_kind"),
        _KIND,
    ),
    _counter(
        "evicted_slots",
        "Cached slots evicted (a token of text, an image's token, or a state), by their kind.",
        _by_name("evicted_slots"),
        _KIND,
    ),
    _counter(
        "started_requests",
        "Requests that looked a prefix up and started; restarts after retraction do not count.",
        _single("hits", "requests"),
    ),
    _counter(
        "prompt_tokens", "Prompt tokens of started requests.", _single("hits", "prompt_tokens")
    ),
    _counter(
        "hit_tokens",
        "Prompt tokens of started requests found in the cache.",
        _single("hits", "hit_tokens"),
    ),
    _counter(
        "full_only_tokens",
        "What hit_tokens would be if full attention were the only kind.",
        _single("hits", "full_only_tokens"),
    ),
    _counter(
        "cut_tokens",
        "Tokens that full attention had and another kind cut off a hit, by that kind. Only where "
        "there is another kind.",
        _by_name("hits", "cut_tokens"),
        _KIND,
    ),
    _counter(
        "embeddings",
        "Embeddings of images by result: encoded anew, or reused from the arena. Only where the "
        "model has a vision kind.",
        _by_name("encoder"),
        ("result",),
    ),
)
