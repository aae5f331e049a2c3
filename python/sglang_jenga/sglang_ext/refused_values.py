# SPDX-License-Identifier: Apache-2.0
"""Numbers no arena can be cut by: part of the table of refusals.

SGLang takes most of them, loads the weights, and then fails in an assertion or an allocator.
"""

from __future__ import annotations

from sglang_jenga.sglang_ext.refusal import Refusal


def _below(least: int, flag: str, reason: str, alternative: str) -> Refusal:
    return Refusal(
        flag=flag,
        field=flag.removeprefix("--").replace("-", "_"),
        values=f"below {least}",
        example=str(least - 1),
        refuses=lambda value: value is not None and value < least,
        reason=reason,
        alternative=alternative,
    )


VALUES: tuple[Refusal, ...] = (
    _below(1, "--page-size", "a page holds at least one token", "use 1 or more"),
    _below(
        1,
        "--max-total-tokens",
        "the arena takes the bytes of the stock pools, and those would hold nothing",
        "raise it, drop it, or give the arena its own size (--jenga-arena-size)",
    ),
    _below(
        1,
        "--max-running-requests",
        "no request could run",
        "use 1 or more, or drop the flag",
    ),
    _below(
        1,
        "--max-mamba-cache-size",
        "the arena takes the bytes of the stock pools, and those would hold no state",
        "drop the flag: the arena gives states what they need",
    ),
    _below(
        1,
        "--context-length",
        "a request has at least one token",
        "give the longest request in tokens, or drop the flag to take the model's",
    ),
    _below(1, "--tp-size", "a model is split over at least one rank", "use 1 or more"),
    _below(1, "--dp-size", "there is at least one replica", "use 1 or more"),
    Refusal(
        flag="--mem-fraction-static",
        field="mem_fraction_static",
        values="not above 0 and up to 1",
        example="2",
        refuses=lambda value: value is not None and not 0 < value <= 1,
        reason="it is the share of the device's memory that weights and arena take",
        alternative="use a share such as 0.85, or drop the flag",
    ),
    Refusal(
        flag="SGLANG_VLM_CACHE_SIZE_MB",
        field="SGLANG_VLM_CACHE_SIZE_MB",
        values="below 0",
        example="-1",
        refuses=lambda value: value < 0,
        reason="the arena takes over the bytes of that cache",
        alternative="use 0 or more, or unset it",
    ),
)
