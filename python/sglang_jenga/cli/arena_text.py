# SPDX-License-Identifier: Apache-2.0
"""The arena of a live server in words, from the ``jenga`` entry of its ``/server_info``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_jenga.cli.terminal import table
from sglang_jenga.core.sizes import format_bytes


def arena_lines(arena: Mapping[str, Any]) -> list[str]:
    """The arena as a table, from the ``jenga`` entry of ``/server_info``.

    Slots: held (pinned by running requests), cached (kept for a later prompt, evictable), reserved
    (the rest of a running request's open run), free (holes in the kind's large pages). Waste is the
    part of the kind's large pages that holds no slot in use, and the padding of slots in use.
    """
    rows = [["kind", "slot", "large pages", "held", "cached", "reserved", "free", "waste"]]
    for kind in arena["kinds"]:
        span = f"({kind['span_tokens']})" if kind["span_tokens"] else ""
        waste = kind["partial_page_waste_bytes"] + kind["padding_waste_bytes"]
        owned = kind["large_pages"] * arena["large_page_bytes"]
        rows.append(
            [
                f"{kind['kind']}{span}, {kind['layers']} layers",
                format_bytes(kind["slot_bytes"]),
                f"{kind['large_pages']:,}",
                f"{kind['slots_held']:,}",
                f"{kind['slots_cached']:,}",
                f"{kind['slots_reserved']:,}",
                f"{kind['slots_free']:,}",
                f"{100 * waste / owned:.1f} %" if owned else "-",
            ]
        )
    rows.append(["free", "", f"{arena['large_pages_free']:,}", "", "", "", "", ""])
    return table(rows)


def arena_title(arena: Mapping[str, Any]) -> str:
    """What the arena is, in one line."""
    return (
        f"{format_bytes(arena['arena_bytes'])} = {arena['large_pages_total']:,} large pages of "
        f"{format_bytes(arena['large_page_bytes'])} and the sink; a lone request may have "
        f"{arena['longest_request_tokens']:,} tokens"
    )
