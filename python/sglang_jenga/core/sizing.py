# SPDX-License-Identifier: Apache-2.0
"""From kinds and bytes to an arena: one function that the planner and the server both call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.geometry import plan_arena
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.plan import ArenaPlan
from sglang_jenga.core.policies import TokenPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedArena:
    """An arena and what requests will ask of it.

    longest_request_tokens: prompt and output of the longest request that always fits alone.
    """

    plan: ArenaPlan
    demand: DemandModel
    longest_request_tokens: int


def size_arena(
    specs: Sequence[KindSpec],
    *,
    arena_bytes: int,
    page_tokens: int,
    window: TokenPolicy | None,
    chunk_tokens: int | None,
) -> SizedArena:
    """The arena of a server.

    Args:
        arena_bytes: of the whole buffer, the sink page included.
        page_tokens: SGLang's page size.
        window: policy of the window kind, None: there is none.
        chunk_tokens: ``--chunked-prefill-size``; None or below 1: prompts are not cut.

    Raises:
        ConfigError: too few bytes for a sink and one large page.
    """
    plan = plan_arena(specs, arena_bytes=arena_bytes, page_tokens=page_tokens)
    demand = DemandModel(
        plan=plan,
        window=window,
        chunk_tokens=chunk_tokens if chunk_tokens and chunk_tokens > 0 else None,
    )
    return SizedArena(
        plan=plan, demand=demand, longest_request_tokens=demand.longest_request_tokens
    )
