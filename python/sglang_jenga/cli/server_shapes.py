# SPDX-License-Identifier: Apache-2.0
"""What the commands read of a server's answers, as shapes. Limits are far beyond what is real."""

from __future__ import annotations

import re
from typing import Any

from sglang_jenga.cli.shapes import (
    Misshapen,
    Shape,
    by_name,
    entries,
    maybe,
    members,
    number,
    text,
    whole,
)
from sglang_jenga.core.printable import printable

#: Schedulers of one server, kinds of one arena, cells of one map, characters of one name.
_SCHEDULERS, _KINDS, _CELLS, _NAME = 256, 32, 2**16, 200
#: In seconds since 1970: what a browser can show.
_YEAR_9999 = 253_402_300_799
_COUNTS = by_name(whole(), _KINDS)
_RANK = {"dp_rank": whole(most=2**31)}

#: ``/server_info``, as far as it tells a jenga server from others.
INFO = members(
    {},
    {"internal_states": entries(members({}, {"jenga": members({}, _RANK)}), _SCHEDULERS)},
)
#: ``/generate``.
ANSWER = members({})
_LOAD_NUMBERS = {
    "num_running_reqs": whole(),
    "num_waiting_reqs": whole(),
    "gen_throughput": number(),
}
#: One scheduler's load as a recording has it: perhaps empty.
LOAD = members({}, _LOAD_NUMBERS)
#: ``/v1/loads``.
LOADS = members({"loads": entries(members(_RANK, _LOAD_NUMBERS), _SCHEDULERS)})

_EVICTION = members({"cause": text(_NAME), "starving_kind": text(_NAME)})
REPORT = members(
    {
        "rid": text(2**24),  # an older server sends ids as they are
        "prompt_tokens": whole(),
        "hit_tokens": whole(),
        "full_only_tokens": whole(),
        "tokens_by_kind": _COUNTS,
    },
    {
        "cut_by": text(_NAME),
        "missing_token": whole(),
        "evicted_by": _EVICTION,
        "rest_evicted_by": _EVICTION,
    },
)
_SUMS: dict[str, Shape] = {
    "requests": whole(),
    "prompt_tokens": whole(),
    "hit_tokens": whole(),
    "full_only_tokens": whole(),
    "cut_tokens": _COUNTS,
}
#: What ``explain`` reads of an arena.
EXPLAINED = members({"hits": members({**_SUMS, "reports": by_name(REPORT, 4096)})})

_KIND: dict[str, Shape] = {
    "name": text(_NAME),
    "kind": text(_NAME),
    "span_tokens": maybe(whole()),
    "layers": whole(),
    "slot_bytes": whole(),
    "large_pages": whole(),
    "slots_held": whole(),
    "slots_cached": whole(),
    "slots_reserved": whole(),
    "slots_free": whole(),
}
_KIND_OTHER: dict[str, Shape] = {"slots_sessions": whole()}
_MAP_FIELDS = members(
    {
        "first_large_page": whole(),
        "large_pages": whole(1),
        "large_pages_per_cell": whole(1),
        "small_pages_per_large_page": entries(whole(1), _KINDS),
        "cells": text(2**22),
    }
)
_PART = r"\d{1,9}(?:\.\d{1,18}){3}"
_CELL_RUN = re.compile(rf"(?:([1-9]\d{{0,9}})\*)?(-|{_PART}(?:\+{_PART})*)", re.ASCII)


def _map(value: Any, path: str) -> None:
    """A map that the page can draw: cells in the grammar, as many as there are large pages for."""
    _MAP_FIELDS(value, path)
    wanted = -(-value["large_pages"] // value["large_pages_per_cell"])
    kinds = len(value["small_pages_per_large_page"])
    cells = 0
    for run in value["cells"].split(" "):
        match = _CELL_RUN.fullmatch(run)
        if match is None:
            raise Misshapen(
                f'has "{printable(run, 40)}", which is no run of cells', f"{path}.cells"
            )
        cells += int(match[1] or 1)
        for part in match[2].split("+") if match[2] != "-" else ():
            if int(part.split(".")[0]) >= kinds:
                raise Misshapen(f"has {part}, which is none of {kinds} kinds", f"{path}.cells")
    if cells != wanted or cells > _CELLS:
        raise Misshapen(
            f"has {cells:,} cells, not {wanted:,} (at most {_CELLS:,})", f"{path}.cells"
        )


_ARENA: dict[str, Shape] = {
    "arena_bytes": whole(),
    "large_page_bytes": whole(1),
    "large_pages_total": whole(1),
    "large_pages_free": whole(),
    "kinds": entries(members(_KIND, _KIND_OTHER), _KINDS, least=1),
    "hits": members(_SUMS),
}
_ARENA_OTHER: dict[str, Shape] = {
    **_RANK,
    "max_running_requests": whole(),
    "realised_running_cap": whole(),
    "retractions": whole(),
    "running_requests": whole(),
    "waiting_requests": whole(),
    "waits": _COUNTS,
    "delayed_requests": _COUNTS,
    "evicted_slots": _COUNTS,
    "evicted_tokens": _COUNTS,
    "waste": members({}, {"padding_bytes": whole(), "partial_page_bytes": whole()}),
    "sessions": members({}, {"idle": whole(), "evicted": whole(), "evicted_tokens": whole()}),
}
#: What ``top`` and ``map`` read of an arena.
ARENA = members(_ARENA, {**_ARENA_OTHER, "large_page_map": _map})
#: What ``top`` remembers of a sample: of an arena, a kind, its hits.
KEPT_OF_ARENA, KEPT_OF_KIND = (*_ARENA, *_ARENA_OTHER), (*_KIND, *_KIND_OTHER)
KEPT_OF_HITS = tuple(_SUMS)
_STATE_NUMBERS: dict[str, Shape] = {
    "last_gen_throughput": number(),
    "effective_max_running_requests_per_dp": whole(),
}
#: One scheduler's entry of ``internal_states``.
STATE = members(
    {"jenga": ARENA},
    {**_STATE_NUMBERS, "served_model_name": text(4096), "model_path": text(4096)},
)
#: One line of a recording.
RECORD = members(
    {
        "url": text(4096),
        "unix_seconds": number(_YEAR_9999),
        "schedulers": entries(
            members(
                {"state": members({"jenga": ARENA}, {**_STATE_NUMBERS, "model": text(4096)})},
                {"load": LOAD},
            ),
            _SCHEDULERS,
            least=1,
        ),
    }
)
