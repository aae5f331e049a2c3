# SPDX-License-Identifier: Apache-2.0
"""A plan for people, and as JSON (schema 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang_jenga.cli.terminal import indented, table
from sglang_jenga.core.managers import Capacity
from sglang_jenga.core.plan import KindPlan
from sglang_jenga.core.policies import TokenPolicy
from sglang_jenga.core.printable import printable
from sglang_jenga.core.sizes import count, format_bytes

if TYPE_CHECKING:
    from sglang_jenga.cli.plan import Report

SCHEMA = 1
_WASTE = (
    "waste = 1 - needed / held by these requests: padding, page ends, tokens no layer reads any "
    "more, states set aside",
    "used  = needed / all bytes: also what no request can take, as the other side of a split",
)


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values. Fields of the contract first, others may be added."""
    plan = report.sized.plan
    return {
        "schema": SCHEMA,
        "model": report.found.name,
        "architecture": report.model.architecture,
        "kv_cache_dtype": report.model.kv.name,
        "tp": report.flags.tp,
        "page_size": plan.page_tokens,
        "kinds": [_kind(kind) for kind in plan.kinds],
        "large_page_bytes": plan.large_page_bytes,
        "padding_bytes_per_large_page": plan.padding_bytes_per_large_page,
        "arena_bytes": plan.arena_bytes,
        "num_large_pages": plan.num_large_pages,
        "geometry": plan.geometry,
        "explanation": plan.explanation,
        "longest_request_tokens": report.sized.longest_request_tokens,
        "capacity": [_capacity(report, row) for row in report.capacities],
        "command": report.command,
        "budget": report.budget.derived or "given",
        "notes": list(report.notes),
    }


def _kind(kind: KindPlan) -> dict[str, Any]:
    policy, partial = kind.spec.policy, kind.partial_waste()
    values: dict[str, Any] = {
        "name": kind.spec.name,
        "kind": policy.NAME,
        "layers": kind.spec.num_layers,
        "slot_bytes": kind.slot_bytes,
        "slots_per_large_page": kind.slots_per_large_page,
        "padding_bytes_per_slot": kind.padding_bytes_per_slot,
        "partial_waste_expected_bytes": partial.expected_bytes,
        "partial_waste_worst_bytes": partial.worst_bytes,
    }
    if isinstance(policy, TokenPolicy) and policy.span_tokens is not None:
        values["window"] = policy.span_tokens
    return values


def _capacity(report: Report, row: Capacity) -> dict[str, Any]:
    values: dict[str, Any] = {
        "manager": row.manager,
        "prompt_tokens": report.lengths.prompt_tokens,
        "output_tokens": report.lengths.output_tokens,
        "requests": row.requests,
        "waste": round(row.waste, 6),
        "used": round(row.used, 6),
        "tokens": row.requests * report.lengths.total_tokens,
    }
    if report.lengths.image_tokens:
        values["image_tokens"] = report.lengths.image_tokens
    if row.split is not None:
        values["split"] = {
            "flag": row.split.flag,
            "default": row.split.default,
            "best": row.split.best,
            "best_requests": row.split.requests,
        }
    if row.note:
        values["note"] = row.note
    return values


def describe(report: Report) -> str:
    """The report for people."""
    plan, flags = report.sized.plan, report.flags
    lines = [
        f"{printable(report.found.name)}: {report.model.architecture}, K/V in "
        f"{report.model.kv.name}, pages of {count(plan.page_tokens, 'token')}"
        + (f", on each of {flags.tp} GPUs" if flags.tp > 1 else ""),
        f"arena of {format_bytes(plan.arena_bytes)} = {count(plan.num_large_pages, 'large page')} "
        f"of {format_bytes(plan.large_page_bytes)} ({plan.geometry}, one is the sink); the longest "
        f"request has {report.sized.longest_request_tokens:,} tokens",
    ]
    if report.budget.derived:
        lines.append(f"  = {report.budget.derived}")
    lines += ["", *_kinds_table(report), "", *_capacity_table(report), ""]
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"launch: {report.command}")
    return "\n".join(lines)


def _kinds_table(report: Report) -> list[str]:
    rows = [
        ("kind", "reads", "layers", "slot", "slots", "padding", "partial, worst", "expected"),
    ]
    for kind in report.sized.plan.kinds:
        partial = kind.partial_waste()
        rows.append(
            (
                kind.spec.name,
                str(kind.spec.policy),
                f"{kind.spec.num_layers}",
                f"{kind.slot_bytes:,} B",
                f"{kind.slots_per_large_page:,}",
                f"{kind.padding_percent:.4f} %",
                format_bytes(partial.worst_bytes),
                format_bytes(partial.expected_bytes),
            )
        )
    return [
        *table(rows),
        *indented(
            [
                "slots: of a large page; partial: what one request leaves free in large pages it "
                "shares with nobody",
            ]
        ),
    ]


def _capacity_table(report: Report) -> list[str]:
    lengths = report.lengths
    images = f" + {lengths.image_tokens:,} of images" if lengths.image_tokens else ""
    jenga = max(1, report.capacities[0].requests)
    rows = [("manager", "at once", "tokens", "of jenga", "waste", "used")]
    details: list[str] = []
    for row in report.capacities:
        rows.append(
            (
                row.manager,
                f"{row.requests:,}",
                f"{row.requests * lengths.total_tokens:,}",
                f"{row.requests / jenga:.2f} x",
                f"{100 * row.waste:.1f} %",
                f"{100 * row.used:.1f} %",
            )
        )
        details += _details(row, details)
    return [
        f"requests of {lengths.prompt_tokens:,} + {lengths.output_tokens:,} tokens{images}:",
        *indented([*table(rows), *_WASTE, *details]),
    ]


def _details(row: Capacity, said: list[str]) -> list[str]:
    lines = []
    if row.split is not None:
        split = row.split
        lost = 1 - row.requests / split.requests if split.requests else 0.0
        lines.append(
            f"{row.manager}: {split.flag} {split.default:g} is the default; {split.best:g} would "
            f"hold {split.requests:,}, so the default loses {100 * lost:.0f} %"
        )
    if row.note and not any(row.note in line for line in said):
        lines.append(f"{row.manager}: {row.note}")
    return lines
