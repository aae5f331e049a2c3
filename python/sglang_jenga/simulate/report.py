# SPDX-License-Identifier: Apache-2.0
"""The result of a replay: for people, and as JSON with a schema number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sglang_jenga.cli.terminal import table
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.sizes import count, format_bytes
from sglang_jenga.simulate.engine import Hits, KindBytes
from sglang_jenga.simulate.loop import Totals
from sglang_jenga.simulate.timeline import Timeline

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was replayed on what.

    too_long: requests of the trace left out because no empty arena holds them, or because they are
    longer than a given context. failed: left out by the reader, their request produced nothing.
    """

    model: str
    trace: str
    trace_format: str
    engine: str
    requests: int
    too_long: int
    failed: int
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

    # ---- numbers ---------------------------------------------------------------------------

    @property
    def mean_running(self) -> float:
        return self.totals.running_sum / max(1, self.totals.steps)

    @property
    def events_per_second(self) -> float:
        return self.totals.events / self.totals.seconds if self.totals.seconds else 0.0

    def _mean_share(self, name: str) -> float:
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
            "kinds": [self._kind(index) for index in range(len(self.plan.kinds))],
            "result": {
                **asdict(totals),
                "events": totals.events,
                "events_per_second": round(self.events_per_second),
                "mean_running": round(self.mean_running, 3),
                "waits": sum(self.waits.values()),
                "full_only_tokens": self.hits.full_only_tokens,
                "padding_share": round(self._mean_share("padding"), 6),
                "partial_page_share": round(self._mean_share("partial"), 6),
            },
        }
        if timeline:
            out["timeline"] = [asdict(point) for point in self.timeline.points]
        return out

    def _kind(self, index: int) -> dict[str, Any]:
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

    # ---- text ------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """The report for people."""
        return [*self._title(), "", *table(self._facts(), right=False), "", *table(self._table())]

    def _title(self) -> list[str]:
        setup, plan = self.setup, self.plan
        out = [
            f"{setup.model} on {format_bytes(plan.arena_bytes)}: {plan.num_large_pages:,} large "
            f"pages of {format_bytes(plan.large_page_bytes)}",
            f"{setup.trace}: {count(setup.requests, 'request')} ({setup.trace_format}), "
            f"{setup.prompt_tokens:,} prompt and {setup.output_tokens:,} output tokens",
        ]
        if setup.too_long:
            out.append(f"left out: {count(setup.too_long, 'request')} longer than can be served")
        if setup.failed:
            out.append(f"left out: {count(setup.failed, 'entry')} of the trace without tokens")
        return out

    def _facts(self) -> list[list[str]]:
        totals, setup = self.totals, self.setup
        return [
            ["steps to drain", f"{totals.steps:,}"],
            [
                "running",
                f"mean {self.mean_running:.1f}, peak {totals.peak_running:,} "
                f"(at most {setup.max_running:,})",
            ],
            ["waits", self._waits()],
            [
                "preemptions",
                f"{totals.preemptions:,}"
                + (
                    f", {totals.recomputed_tokens:,} tokens to compute again"
                    if totals.preemptions
                    else ""
                ),
            ],
            ["prefix hits", self._hits()],
            [
                "computed",
                f"{totals.prefill_tokens:,} prompt tokens in {totals.chunks:,} chunks, "
                f"{totals.decode_tokens:,} decoded",
            ],
            [
                "waste",
                f"{100 * self._mean_share('partial'):.2f} % of the arena in partly filled pages, "
                f"{100 * self._mean_share('padding'):.2f} % padding",
            ],
            [
                "replayed in",
                f"{totals.seconds:.1f} s, {self.events_per_second:,.0f} events/s "
                f"({setup.engine} engine)",
            ],
        ]

    def _waits(self) -> str:
        share = 100 * self.totals.waiting_steps / max(1, self.totals.steps)
        text = f"somebody waited in {share:.0f} % of the steps"
        lacking = {kind: number for kind, number in self.waits.items() if number}
        if not lacking:
            return f"{text}, nobody for bytes"
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in lacking.items())
        delayed = sum(self.delayed.values())
        return f"{text}; refusals for want of bytes: {kinds} ({count(delayed, 'request')})"

    def _hits(self) -> str:
        totals = self.totals
        if not self.setup.prefix_cache:
            return "none: no prefix cache in this replay"
        share = 100 * totals.hit_tokens / max(1, totals.hit_prompt_tokens)
        text = f"{totals.hit_tokens:,} of {totals.hit_prompt_tokens:,} tokens ({share:.1f} %)"
        cuts = [f"{kind} cut {tokens:,}" for kind, tokens in self.hits.cut_tokens.items() if tokens]
        full = f"full attention alone had {self.hits.full_only_tokens:,}"
        return "; ".join([text, full, *cuts])

    def _table(self) -> list[list[str]]:
        rows = [["bytes by kind", "slot", "held, mean", "held, peak", "cached, mean", "partial"]]
        for index, kind in enumerate(self.plan.kinds):
            facts = self._kind(index)
            rows.append(
                [
                    f"{kind.spec.name}, {count(kind.spec.num_layers, 'layer')}",
                    format_bytes(kind.slot_bytes),
                    *(
                        format_bytes(facts[name])
                        for name in (
                            "mean_held_bytes",
                            "peak_held_bytes",
                            "mean_cached_bytes",
                            "mean_partial_bytes",
                        )
                    ),
                ]
            )
        return rows


def _held(kind: KindBytes) -> int:
    return kind.held


def _cached(kind: KindBytes) -> int:
    return kind.cached


def _partial(kind: KindBytes) -> int:
    return kind.partial


def _padding(kind: KindBytes) -> int:
    return kind.padding
