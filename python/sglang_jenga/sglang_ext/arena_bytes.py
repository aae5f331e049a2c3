# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of the arena come from: the stock server's pools, one by one, and their flags.

The arena takes what SGLang's own pools would take under the same flags. Those are up to three, and
each has flags of its own: ``--max-total-tokens`` limits the tokens and not the states, so a small
number of tokens does not make a small arena. The boot log says it in one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.sizes import format_bytes
from sglang_jenga.sglang_ext.config import ARENA_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Bytes of one pool of the stock server. what: its contents; why: the flag that sized it."""

    what: str
    num_bytes: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaBytes:
    """The size of an arena as a sum."""

    shares: tuple[Share, ...]

    @property
    def total(self) -> int:
        return sum(share.num_bytes for share in self.shares)

    def describe(self) -> str:
        """One line for the boot log."""
        parts = [
            f"{format_bytes(share.num_bytes)} for {share.what} ({share.why})"
            for share in self.shares
            if share.num_bytes
        ]
        return (
            f"arena size: {format_bytes(self.total)}, what SGLang's own pools would take: "
            f"{' + '.join(parts)}. Any kind may use all of it; --jenga-arena-size or {ARENA_SIZE} "
            "sets the sum."
        )


def token_share(num_bytes: int, schedule: Any) -> Share:
    """K/V of text. ``schedule``: SGLang's resolved scheduling arguments."""
    limit = schedule.max_total_tokens
    rest = f"what --mem-fraction-static {schedule.mem_fraction_static:g} leaves"
    why = rest if limit is None else f"--max-total-tokens {limit}, at most {rest}"
    return Share(what="tokens", num_bytes=num_bytes, why=why)


def state_share(num_bytes: int, num_states: int, schedule: Any, asked: int | None) -> Share:
    """Recurrent states, SGLang's padding slot included.

    ``asked``: --max-mamba-cache-size as the user gave it, None: SGLang chose the number.
    """
    why = (
        f"--mamba-full-memory-ratio {schedule.mamba_full_memory_ratio:g} divides what "
        f"--mem-fraction-static {schedule.mem_fraction_static:g} leaves, whatever "
        "--max-total-tokens says; --max-mamba-cache-size sets the number"
        if asked is None
        else f"--max-mamba-cache-size {asked}"
    )
    return Share(what=f"{num_states:,} recurrent states", num_bytes=num_bytes, why=why)


def embedding_share(num_bytes: int) -> Share:
    """Embeddings of images."""
    return Share(
        what="embeddings of images", num_bytes=num_bytes, why="SGLANG_VLM_CACHE_SIZE_MB sets it"
    )
