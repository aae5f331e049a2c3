# SPDX-License-Identifier: Apache-2.0
"""What a server says now, and what follows from it and the samples before: rates and trends.

Counters of the server grow since its start, so a rate needs two samples. Values that a server does
not give (an older plugin) are None, never zero.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from sglang_jenga.cli.server import Server, ServerError
from sglang_jenga.cli.server_shapes import KEPT_OF_ARENA, KEPT_OF_HITS, KEPT_OF_KIND, STATE
from sglang_jenga.core.sizes import count

#: Samples that a trend looks back.
KEPT_SAMPLES = 120
#: The prefix tree's names of kinds whose own names a model chooses.
_STATE, _WINDOW = "mamba", "swa"
_NOT_WINDOWS = ("full", "state", "cross", "vision")
#: Of a scheduler's ``internal_states``, beside the arena: the rest is its configuration.
_KEPT_STATE = (
    "last_gen_throughput",
    "effective_max_running_requests_per_dp",
)
_KEPT_LOAD = ("num_running_reqs", "num_waiting_reqs", "gen_throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSample:
    """One scheduler: of its entry in ``internal_states`` what is shown, and its ``/v1/loads``."""

    state: Mapping[str, Any]
    load: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a server. ``unix_seconds``: when."""

    unix_seconds: float
    schedulers: tuple[SchedulerSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindView:
    """One kind now. Bytes are of small pages, padding included; they fill its large pages.

    session_bytes: held by streaming sessions between their turns.
    cut_tokens: tokens that full attention had cached and this kind cut off hits, since start.
    evicted_slots, waits, delayed_requests: since start. A request that waits because this kind
        starves is refused each time it is looked at (``waits``), and delayed once.
    trend: its share of the arena, oldest first.
    """

    name: str
    description: str
    large_pages: int
    held_bytes: int
    session_bytes: int
    cached_bytes: int
    reserved_bytes: int
    hole_bytes: int
    cut_tokens: int | None
    evicted_slots: int | None
    evicted_slots_per_second: float | None
    waits: int | None
    waits_since_last: int | None
    delayed_requests: int | None
    trend: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerView:
    """One scheduler's arena, requests and hits now. Hit rates are shares of prompt tokens.

    realised_running_cap: requests that held memory when one was last refused, 0: none was.
    idle_sessions: streaming sessions that hold memory between their turns. evicted_sessions: times
        that one gave it up, since start.
    """

    dp_rank: int
    model: str
    arena_bytes: int
    large_page_bytes: int
    large_pages_total: int
    large_pages_free: int
    kinds: tuple[KindView, ...]
    running_requests: int | None
    waiting_requests: int | None
    max_running_requests: int | None
    realised_running_cap: int | None
    retractions: int | None
    idle_sessions: int | None
    evicted_sessions: int | None
    generated_tokens_per_second: float | None
    prompt_tokens: int
    hit_rate: float | None
    hit_rate_since_last: float | None
    full_only_hit_rate: float | None
    padding_bytes: int | None
    partial_page_bytes: int | None
    free_trend: tuple[float, ...]
    running_trend: tuple[float, ...]
    waiting_trend: tuple[float, ...]
    hit_trend: tuple[float, ...]


def collect(server: Server) -> Sample:
    """Two requests: ``/server_info``, and ``/v1/loads`` where it is answered, in one deadline.

    Raises:
        ServerError: the first was not answered, or it is not a jenga server, or not of this shape.
    """
    server.begin()
    states = server.states()
    for state in states:
        rank = state["jenga"].get("dp_rank") or 0
        server.check(STATE, state, "/server_info", f"internal_states[dp_rank={rank}]")
    try:
        loads = server.loads()
    except ServerError:  # another frontend: its numbers are shown as unknown
        loads = {}
    return Sample(
        unix_seconds=round(time.time(), 3),
        schedulers=tuple(
            SchedulerSample(state=_slim(state), load=_load(loads, state)) for state in states
        ),
    )


def _slim(state: Mapping[str, Any]) -> dict[str, Any]:
    arena = dict(state["jenga"])
    arena["hits"] = {name: value for name, value in arena["hits"].items() if name != "reports"}
    name = str(state.get("served_model_name") or state.get("model_path") or "")
    kept = {name: state[name] for name in _KEPT_STATE if name in state}
    return {"model": PurePath(name).name, **kept, "jenga": arena}


def _load(loads: Mapping[int, Mapping[str, Any]], state: Mapping[str, Any]) -> dict[str, Any]:
    load = loads.get(state["jenga"].get("dp_rank") or 0, {})
    return {name: load[name] for name in _KEPT_LOAD if name in load}


class History:
    """The last samples of one server; each new one becomes what there is to show.

    Samples have the shape that :func:`collect` and recordings are checked for.
    """

    def __init__(self) -> None:
        self._kept: dict[int, deque[tuple[float, SchedulerSample]]] = {}

    def add(self, sample: Sample) -> tuple[SchedulerView, ...]:
        """Views of all schedulers. Counters that went back tell of a server that started anew."""
        views, before, self._kept = [], self._kept, {}  # who is gone is forgotten
        for index, scheduler in enumerate(sample.schedulers):
            rank = scheduler.state["jenga"].get("dp_rank")
            rank = index if rank is None else rank
            kept = self._kept[rank] = before.get(rank) or deque(maxlen=KEPT_SAMPLES)
            if kept and _restarted(kept[-1][1], scheduler):
                kept.clear()
            kept.append((sample.unix_seconds, _remembered(scheduler)))
            views.append(_view(rank, list(kept)))
        return tuple(views)


def _remembered(scheduler: SchedulerSample) -> SchedulerSample:
    """What views read of a sample: its map would be kept for minutes, and what we do not know."""
    arena = {
        name: value for name, value in scheduler.state["jenga"].items() if name in KEPT_OF_ARENA
    }
    arena["kinds"] = [
        {name: kind[name] for name in KEPT_OF_KIND if name in kind} for kind in arena["kinds"]
    ]
    arena["hits"] = {name: arena["hits"][name] for name in KEPT_OF_HITS}
    return SchedulerSample(state={**scheduler.state, "jenga": arena}, load=scheduler.load)


def _restarted(old: SchedulerSample, new: SchedulerSample) -> bool:
    before, after = old.state["jenga"], new.state["jenga"]
    return bool(
        after["hits"]["requests"] < before["hits"]["requests"]
        or after["arena_bytes"] != before["arena_bytes"]
        or [kind["name"] for kind in after["kinds"]] != [kind["name"] for kind in before["kinds"]]
    )


def _view(rank: int, kept: list[tuple[float, SchedulerSample]]) -> SchedulerView:
    now_seconds, now = kept[-1]
    then_seconds, then = kept[-2] if len(kept) > 1 else (now_seconds, None)
    arena = now.state["jenga"]
    arenas = [sample.state["jenga"] for _, sample in kept]
    hits = arena["hits"]
    prompt = hits["prompt_tokens"]
    waste = arena.get("waste") or {}
    sessions = arena.get("sessions") or {}
    # With --enable-metrics alone the load has it too.
    throughput = now.state.get("last_gen_throughput") or now.load.get("gen_throughput")
    running = _requests(now, "running_requests", "num_running_reqs")
    return SchedulerView(
        dp_rank=rank,
        model=str(now.state.get("model", "")),
        arena_bytes=arena["arena_bytes"],
        large_page_bytes=arena["large_page_bytes"],
        large_pages_total=arena["large_pages_total"],
        large_pages_free=arena["large_pages_free"],
        kinds=tuple(
            _kind(index, arenas, now_seconds - then_seconds) for index in range(len(arena["kinds"]))
        ),
        running_requests=running,
        waiting_requests=_requests(now, "waiting_requests", "num_waiting_reqs"),
        max_running_requests=arena.get("max_running_requests")
        or now.state.get("effective_max_running_requests_per_dp"),
        realised_running_cap=arena.get("realised_running_cap"),
        retractions=arena.get("retractions"),
        idle_sessions=sessions.get("idle"),
        evicted_sessions=sessions.get("evicted"),
        # SGLang keeps its last figure while nothing runs.
        generated_tokens_per_second=0.0 if running == 0 else throughput,
        prompt_tokens=prompt,
        hit_rate=hits["hit_tokens"] / prompt if prompt else None,
        hit_rate_since_last=_hit_rate_since(arena, then.state["jenga"] if then else None),
        full_only_hit_rate=hits["full_only_tokens"] / prompt if prompt else None,
        padding_bytes=waste.get("padding_bytes"),
        partial_page_bytes=waste.get("partial_page_bytes"),
        free_trend=tuple(a["large_pages_free"] / a["large_pages_total"] for a in arenas),
        running_trend=_known(
            [_requests(s, "running_requests", "num_running_reqs") for _, s in kept]
        ),
        waiting_trend=_known(
            [_requests(s, "waiting_requests", "num_waiting_reqs") for _, s in kept]
        ),
        hit_trend=_known([_hit_rate_since(new, old) for old, new in pairwise(arenas)]),
    )


def _requests(sample: SchedulerSample, ours: str, of_loads: str) -> int | None:
    found = sample.state["jenga"].get(ours)
    found = sample.load.get(of_loads) if found is None else found
    return None if found is None else int(found)


def _known(values: list[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values if value is not None)


def _hit_rate_since(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> float | None:
    """Of the prompts that started between two samples; None where there were none."""
    if then is None:
        return None
    prompt = now["hits"]["prompt_tokens"] - then["hits"]["prompt_tokens"]
    hit = now["hits"]["hit_tokens"] - then["hits"]["hit_tokens"]
    return hit / prompt if prompt > 0 else None


def _kind(index: int, arenas: list[Mapping[str, Any]], seconds: float) -> KindView:
    arena, kind = arenas[-1], arenas[-1]["kinds"][index]
    name, slot_bytes = kind["name"], kind["slot_bytes"]
    evicted = evicted_slots(arena, kind)
    waits = _of_kind(arena, "waits", name)
    per_second = waits_since = None
    if seconds > 0:
        before = evicted_slots(arenas[-2], kind)
        if evicted is not None and before is not None:
            per_second = max(0, evicted - before) / seconds
        waited = _of_kind(arenas[-2], "waits", name)
        if waits is not None and waited is not None:
            waits_since = max(0, waits - waited)
    span = f"({kind['span_tokens']})" if kind["span_tokens"] else ""
    return KindView(
        name=name,
        description=f"{kind['kind']}{span}, {count(kind['layers'], 'layer')}",
        large_pages=kind["large_pages"],
        held_bytes=kind["slots_held"] * slot_bytes,
        session_bytes=kind.get("slots_sessions", 0) * slot_bytes,
        cached_bytes=kind["slots_cached"] * slot_bytes,
        reserved_bytes=kind["slots_reserved"] * slot_bytes,
        hole_bytes=kind["slots_free"] * slot_bytes,
        cut_tokens=arena["hits"]["cut_tokens"].get(name),
        evicted_slots=evicted,
        evicted_slots_per_second=per_second,
        waits=waits,
        waits_since_last=waits_since,
        delayed_requests=_of_kind(arena, "delayed_requests", name),
        trend=tuple(a["kinds"][index]["large_pages"] / a["large_pages_total"] for a in arenas),
    )


def _of_kind(arena: Mapping[str, Any], what: str, name: str) -> int | None:
    """A count by kind. A kind that never waited may not be listed; without a list: unknown."""
    counts = arena.get(what)
    return None if counts is None else int(counts.get(name, 0))


def evicted_slots(arena: Mapping[str, Any], kind: Mapping[str, Any]) -> int | None:
    """Slots of a kind that were evicted since start; older servers use the prefix tree's names."""
    counts = arena.get("evicted_slots") or arena.get("evicted_tokens") or {}
    if kind["kind"] == "state":
        in_tree = _STATE
    else:
        in_tree = _WINDOW if kind["kind"] not in _NOT_WINDOWS else kind["kind"]
    found = counts.get(kind["name"], counts.get(in_tree))
    return None if found is None else int(found)
