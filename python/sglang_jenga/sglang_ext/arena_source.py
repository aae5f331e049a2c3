# SPDX-License-Identifier: Apache-2.0
"""Which flag decided the bytes of an arena, and what to do where they are too few.

One place, for the server that has built its model and for ``sglang-jenga doctor`` before that.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.sizes import format_bytes
from sglang_jenga.core.sizing import SizedArena
from sglang_jenga.sglang_ext.config import ARENA_SIZE

_FLAG = "--jenga-arena-size"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaSource:
    """What the bytes of an arena come from.

    setting: the flag and its value. advice: what to do for a larger arena. wanted_bytes: the
    arena's own size where one was asked for.
    """

    setting: str
    advice: str
    wanted_bytes: int | None = None

    @classmethod
    def of_size(cls, arena_bytes: int) -> ArenaSource:
        """``--jenga-arena-size`` or its variable."""
        return cls(
            setting=f"{_FLAG} ({ARENA_SIZE}) asks for {format_bytes(arena_bytes)}",
            advice=f"Raise {_FLAG} ({ARENA_SIZE})",
            wanted_bytes=arena_bytes,
        )

    @classmethod
    def of_tokens(cls, max_total_tokens: int) -> ArenaSource:
        """The stock server's pools, cut off by ``--max-total-tokens``."""
        return cls(
            setting=f"--max-total-tokens {max_total_tokens}",
            advice=f"Raise --max-total-tokens (value {max_total_tokens}), or give the arena its "
            f"own size with {_FLAG}",
        )

    @classmethod
    def of_share(cls, mem_fraction: float) -> ArenaSource:
        """The stock server's pools, from what weights leave of a share of the memory."""
        return cls(
            setting=f"--mem-fraction-static {mem_fraction}",
            advice=f"Raise --mem-fraction-static (value {mem_fraction})",
        )

    def require_within(self, available_bytes: int, mem_fraction: float, *, of: str = "") -> None:
        """Refuse a size of the arena's own that is more than there is.

        Raises:
            ConfigError: with both numbers.
        """
        if self.wanted_bytes is not None and self.wanted_bytes > available_bytes:
            raise ConfigError(
                f"{self.setting}, but {of}{' ' if of else ''}{format_bytes(available_bytes)} are "
                f"left after the weights under --mem-fraction-static {mem_fraction}: lower the "
                "size or raise the fraction"
            )


def require_one_request(
    sized: SizedArena, *, asked_tokens: int | None, page_tokens: int, source: ArenaSource
) -> None:
    """One request of the greatest length must fit, or the server must not start.

    Args:
        asked_tokens: ``--context-length``, a promise where it is given. None: SGLang accepts
            requests up to what the pool holds, and it must hold four pages.

    Raises:
        ConfigError: with the bytes that such a request needs, and which flag gave too few.
    """
    plan, least = sized.plan, asked_tokens or 4 * page_tokens
    if sized.longest_request_tokens >= least:
        return
    pages = sized.demand.pages_of_longest(least)
    parts = ", ".join(
        f"{kind.spec.name} {need} small pages ({format_bytes(need * kind.small_page_bytes)})"
        for kind, need in zip(plan.kinds, pages, strict=True)
    )
    raise ConfigError(
        f"the arena ({format_bytes(plan.usable_bytes)} usable) cannot hold one request of {least} "
        f"tokens{' (--context-length)' if asked_tokens else ''}: it needs {parts}; the longest "
        f"request that fits has {sized.longest_request_tokens} tokens. {source.advice}"
        f"{', or lower --context-length' if asked_tokens else ''}."
    )
