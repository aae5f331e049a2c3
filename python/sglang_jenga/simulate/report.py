# SPDX-License-Identifier: Apache-2.0
"""The result of a replay, JSON-ready with a schema number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sglang_jenga.core.model_kinds import STATE
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.simulate.engine import Hits, KindBytes
from sglang_jenga.simulate.loop import Totals
from sglang_jenga.simulate.timeline import Timeline
from sglang_jenga.simulate.trace_types import LeftOut

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was replayed on what.

    too_long: requests of the trace left out because no empty arena holds them, or because they are
    longer than a given context. failed: left out by the reader; left_out: why. trace_note: how the
    trace's tokens were counted, where it has text alone.
    """

    model: str
    trace: str
    trace_format: str
    engine: str
    requests: int
    too_long: int
    failed: int
    left_out: tuple[LeftOut, ...]
    trace_note: str
    prompt_tokens: int
    output_tokens: int
    chunk_tokens: int
    max_running: int
    page_tokens: int
    context_tokens: int | None
    image_tokens: int
    prefix_cache: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A replay that ran to its end. waits, delayed: by kind, see the engine's methods."""

    setup: Setup
    plan: ArenaPlan
    totals: Totals
    waits: Mapping[str, int]
    delayed: Mapping[str, int]
    hits: Hits
    timeline: Timeline

    @property
    def mean_running(self) -> float:
        """Requests that ran, over steps."""
        return self.totals.running_sum / max(1, self.totals.steps)

    @property
    def events_per_second(self) -> float:
        """Decisions about requests (:attr:`Totals.events`) per second of the replay."""
        return self.totals.events / self.totals.seconds if self.totals.seconds else 0.0

    @property
    def notes(self) -> list[str]:
        """Where the replay is known to differ from a server."""
        out = [self.setup.trace_note] if self.setup.trace_note else []
        has_states = any(kind.spec.name == STATE for kind in self.plan.kinds)
        if has_states and self.setup.prefix_cache and self.setup.page_tokens > 1:
            out.append(
                "states that a server keeps while decoding with pages of several tokens are not "
                "replayed: it hits more (replay with --page-size 1 for hits)"
            )
        return out

    def mean_share(self, name: str) -> float:
        """A field of :class:`KindBytes`, summed over kinds: its mean share of the arena."""
        return self.timeline.mean(lambda kind: int(getattr(kind, name))) / self.plan.arena_bytes

    def as_dict(self, *, timeline: bool = True) -> dict[str, Any]:
        """JSON-ready. Shares are of the arena's bytes, means over the points of the timeline."""
        totals = self.totals
        out: dict[str, Any] = {
            "schema": SCHEMA,
            **asdict(self.setup),
            "arena_bytes": self.plan.arena_bytes,
            "large_page_bytes": self.plan.large_page_bytes,
            "num_large_pages": self.plan.num_large_pages,
            "notes": self.notes,
            "kinds": [self.kind_facts(index) for index in range(len(self.plan.kinds))],
            "result": {
                **asdict(totals),
                "events": totals.events,
                "events_per_second": round(self.events_per_second),
                "mean_running": round(self.mean_running, 3),
                "waits": sum(self.waits.values()),
                "full_only_tokens": self.hits.full_only_tokens,
                "padding_share": round(self.mean_share("padding"), 6),
                "partial_page_share": round(self.mean_share("partial"), 6),
            },
        }
        if timeline:
            out["timeline"] = [asdict(point) for point in self.timeline.points]
        return out

    def kind_facts(self, index: int) -> dict[str, Any]:
        """One kind, JSON-ready."""
        kind = self.plan.kinds[index]
        name = kind.spec.name
        mean = self.timeline.mean
        return {
            "name": name,
            "kind": str(kind.spec.policy),
            "layers": kind.spec.num_layers,
            "slot_bytes": kind.slot_bytes,
            "slots_per_large_page": kind.slots_per_large_page,
            "mean_held_bytes": round(mean(_held, [index])),
            "peak_held_bytes": self.timeline.peak(_held, index),
            "mean_cached_bytes": round(mean(_cached, [index])),
            "mean_partial_bytes": round(mean(_partial, [index])),
            "mean_padding_bytes": round(mean(_padding, [index])),
            "waits": self.waits.get(name, 0),
            "delayed_requests": self.delayed.get(name, 0),
            "cut_tokens": self.hits.cut_tokens.get(name, 0),
        }


def _held(kind: KindBytes) -> int:
    return kind.held


def _cached(kind: KindBytes) -> int:
    return kind.cached


def _partial(kind: KindBytes) -> int:
    return kind.partial


def _padding(kind: KindBytes) -> int:
    return kind.padding
