# SPDX-License-Identifier: Apache-2.0
"""Sizes and counts as people read and write them."""

from __future__ import annotations

import re

from sglang_jenga.core.errors import ConfigError

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?\s*$", re.IGNORECASE)


def parse_size(text: str, *, name: str) -> int:
    """``24GiB``, ``512M``, ``2g`` or plain bytes -> bytes (K, M, G, T are powers of 1024).

    Raises:
        ConfigError: naming the setting and the value.
    """
    match = _SIZE.match(text)
    if not match:
        raise ConfigError(
            f"{name}={text!r} is not a size: write bytes or a number with a unit, such as 24GiB "
            "or 512M"
        )
    number = float(match.group(1)) * _UNITS[match.group(2).upper()]
    if number < 1:
        raise ConfigError(f"{name}={text!r} is zero: leave it out to take the stock size")
    return int(number)


def format_bytes(num_bytes: float) -> str:
    """Human size: bytes below 1 MiB, MiB below 1 GiB, GiB above."""
    if num_bytes < 2**20:
        return f"{num_bytes:,.0f} B"
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:,.2f} MiB"
    return f"{num_bytes / 2**30:,.2f} GiB"


def count(number: int, noun: str) -> str:
    """``1 slot``, ``2 slots``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
