# SPDX-License-Identifier: Apache-2.0
"""The report of a replay, for people."""

from __future__ import annotations

from sglang_jenga.cli.terminal import table
from sglang_jenga.core.printable import printable
from sglang_jenga.core.sizes import count, format_bytes
from sglang_jenga.simulate.report import Report


def report_lines(report: Report) -> list[str]:
    """What was replayed, what came of it, and a table of bytes by kind."""
    return [
        *_title(report),
        "",
        *table(_facts(report), right=False),
        "",
        *table(_table(report)),
    ]


def _title(report: Report) -> list[str]:
    setup, plan = report.setup, report.plan
    out = [
        f"{printable(setup.model)} on {format_bytes(plan.arena_bytes)}: "
        f"{plan.num_large_pages:,} large pages of {format_bytes(plan.large_page_bytes)}",
        f"{printable(setup.trace)}: {count(setup.requests, 'request')} ({setup.trace_format}), "
        f"{setup.prompt_tokens:,} prompt and {setup.output_tokens:,} output tokens",
    ]
    if setup.too_long:
        out.append(f"left out: {count(setup.too_long, 'request')} longer than can be served")
    out += [f"left out {left}" for left in setup.left_out]
    return out + [f"note: {note}" for note in report.notes]


def _facts(report: Report) -> list[list[str]]:
    totals, setup = report.totals, report.setup
    again = f", {totals.recomputed_tokens:,} tokens to compute again" if totals.preemptions else ""
    return [
        ["steps to drain", f"{totals.steps:,}"],
        [
            "running",
            f"mean {report.mean_running:.1f}, peak {totals.peak_running:,} "
            f"(at most {setup.max_running:,})",
        ],
        ["waits", _waits(report)],
        ["preemptions", f"{totals.preemptions:,}{again}"],
        ["prefix hits", _hits(report)],
        [
            "computed",
            f"{totals.prefill_tokens:,} prompt tokens in {totals.chunks:,} chunks, "
            f"{totals.decode_tokens:,} decoded",
        ],
        [
            "waste",
            f"{100 * report.mean_share('partial'):.2f} % of the arena in partly filled pages, "
            f"{100 * report.mean_share('padding'):.2f} % padding",
        ],
        [
            "replayed in",
            f"{totals.seconds:.1f} s, {report.events_per_second:,.0f} events/s "
            f"({setup.engine} engine)",
        ],
    ]


def _waits(report: Report) -> str:
    totals = report.totals
    share = 100 * totals.waiting_steps / max(1, totals.steps)
    text = f"somebody waited in {share:.0f} % of the steps"
    lacking = {kind: number for kind, number in report.waits.items() if number}
    if not lacking:
        return f"{text}, nobody for bytes"
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in lacking.items())
    delayed = count(sum(report.delayed.values()), "request")
    return f"{text}; refusals for want of bytes: {kinds} ({delayed})"


def _hits(report: Report) -> str:
    totals, hits = report.totals, report.hits
    if not report.setup.prefix_cache:
        return "none: no prefix cache in this replay"
    share = 100 * totals.hit_tokens / max(1, totals.hit_prompt_tokens)
    text = f"{totals.hit_tokens:,} of {totals.hit_prompt_tokens:,} tokens ({share:.1f} %)"
    full = f"full attention alone had {hits.full_only_tokens:,}"
    cuts = [f"{kind} cut {tokens:,}" for kind, tokens in hits.cut_tokens.items() if tokens]
    return "; ".join([text, full, *cuts])


def _table(report: Report) -> list[list[str]]:
    rows = [["bytes by kind", "slot", "held, mean", "held, peak", "cached, mean", "partial, mean"]]
    names = ("mean_held_bytes", "peak_held_bytes", "mean_cached_bytes", "mean_partial_bytes")
    for index, kind in enumerate(report.plan.kinds):
        facts = report.kind_facts(index)
        rows.append(
            [
                f"{kind.spec.name}, {count(kind.spec.num_layers, 'layer')}",
                format_bytes(kind.slot_bytes),
                *(format_bytes(facts[name]) for name in names),
            ]
        )
    return rows
