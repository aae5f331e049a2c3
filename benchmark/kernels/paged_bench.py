# SPDX-License-Identifier: Apache-2.0
"""What the kernel benchmark measures: published models' heads, one row per kernel and kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from paged_calls import calls_for
from paged_cases import (
    FULL,
    KIND_NAMES,
    WINDOW,
    Case,
    Request,
    Shape,
    Workload,
    arena_bytes_needed,
    reference,
)

DTYPE = torch.bfloat16
DECODE = (Request(prefix_tokens=4095, new_tokens=1),) * 32
PREFILL = (Request(prefix_tokens=2048, new_tokens=1024),) * 8
#: Heads of published models (their config.json). The full and the window kind share one arena.
MODELS: dict[str, dict[str, Any]] = {
    "gemma2-9b": {
        "full": Shape(num_layers=21, num_q_heads=16, num_kv_heads=8, head_dim=256),
        "window": Shape(
            num_layers=21, num_q_heads=16, num_kv_heads=8, head_dim=256, window_tokens=4095
        ),
        "logit_cap": 50.0,
    },
    "gemma3-27b": {
        "full": Shape(num_layers=10, num_q_heads=32, num_kv_heads=16, head_dim=128),
        "window": Shape(
            num_layers=52, num_q_heads=32, num_kv_heads=16, head_dim=128, window_tokens=1023
        ),
    },
    "gemma4-31b": {
        "full": Shape(num_layers=10, num_q_heads=32, num_kv_heads=4, head_dim=512),
        "window": Shape(
            num_layers=50, num_q_heads=32, num_kv_heads=16, head_dim=256, window_tokens=1023
        ),
    },
    "gpt-oss-20b": {
        "full": Shape(num_layers=12, num_q_heads=64, num_kv_heads=8, head_dim=64),
        "window": Shape(
            num_layers=12, num_q_heads=64, num_kv_heads=8, head_dim=64, window_tokens=127
        ),
        "has_sinks": True,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement. Times are medians over repetitions, in microseconds."""

    case: str
    kind: str
    kernel: str
    requests: int
    page_tokens: int
    slot_bytes: int
    error_arena: float
    error_contiguous: float
    equal_bits: bool
    arena_us: float
    contiguous_us: float

    @property
    def ratio(self) -> float:
        """Above 1: the arena's views are slower."""
        return self.arena_us / self.contiguous_us


def cases(models: Sequence[str], page_tokens: Sequence[int]) -> list[Case]:
    """Every model, once as a decode and once as a prefill batch, per page size."""
    return [
        Case(name=f"{model} {what}", requests=requests, page_tokens=page, **MODELS[model])
        for model in models
        for what, requests in (("decode", DECODE), ("prefill", PREFILL))
        for page in page_tokens
    ]


def fitting(case: Case, available_bytes: int) -> Case | None:
    """The case with as many of its requests, halved until they fit; None when not one does."""
    requests = case.requests
    # A contiguous copy of one layer and the float64 reference need room as well.
    while requests:
        smaller = replace(case, requests=requests)
        if 2 * arena_bytes_needed(smaller, DTYPE) <= available_bytes:
            return smaller
        requests = requests[: len(requests) // 2]
    return None


def median_us(call: Callable[[], torch.Tensor]) -> float:
    """Median time of one call, L2 cache flushed between calls."""
    from triton.testing import do_bench

    return float(do_bench(call, warmup=50, rep=300, return_mode="median")) * 1000


def measure(
    case: Case,
    device: str,
    timer: Callable[[Callable[[], torch.Tensor]], float],
    gpu: str | None = None,
) -> Iterator[Row]:
    """One row per kind and kernel, as soon as it is measured."""
    workload = Workload(case, device=device, dtype=DTYPE)
    for kind in (FULL, WINDOW):
        problem = workload.problem(kind)
        contiguous = problem.on_contiguous_pools()
        expected = reference(problem)
        for name, prepare in calls_for(problem, gpu).items():
            on_arena, on_pools = prepare(problem), prepare(contiguous)
            ours, theirs = on_arena().clone(), on_pools().clone()
            yield Row(
                case=case.name,
                kind=KIND_NAMES[kind],
                kernel=name,
                requests=len(case.requests),
                page_tokens=case.page_tokens,
                slot_bytes=workload.plan.kinds[kind].slot_bytes,
                error_arena=float((ours - expected).abs().max()),
                error_contiguous=float((theirs - expected).abs().max()),
                equal_bits=torch.equal(ours, theirs),
                arena_us=timer(on_arena),
                contiguous_us=timer(on_pools),
            )


def lines(rows: Iterable[Row]) -> list[str]:
    """The rows as a markdown table."""
    out = [
        "| case | kind | page | kernel | requests | error | equal bits | arena us | pools us "
        "| ratio |",
        "| --- " * 10 + "|",
    ]
    out += [
        f"| {r.case} | {r.kind} | {r.page_tokens} | {r.kernel} | {r.requests} "
        f"| {r.error_arena:.4f} | {'yes' if r.equal_bits else 'NO'} | {r.arena_us:.1f} "
        f"| {r.contiguous_us:.1f} | {r.ratio:.3f} |"
        for r in rows
    ]
    return out
