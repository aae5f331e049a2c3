# SPDX-License-Identifier: Apache-2.0
"""Sizes and counts as people read and write them."""

from __future__ import annotations

import re

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import shown

_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(
    r"\s*([0-9]{1,30})(?:\.([0-9]{1,30}))?\s*(?:([KMGT])(I?B)?|B)?\s*", re.IGNORECASE
)
#: More than any machine has, and little enough for every sum that is made of it.
_MOST_BYTES = 2**60


def parse_size(text: str, *, name: str) -> int:
    """``24GiB``, ``24GB``, ``512M``, ``2g`` or plain bytes -> bytes.

    GiB and G are 2**30 bytes, GB is 10**9; K, M and T alike.

    Raises:
        ConfigError: naming the setting and the value.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ConfigError(
            f"{name}={shown(text)} is not a size: write bytes or a number with a unit, such as "
            "24GiB or 512M"
        )
    whole, part, unit, suffix = match.groups(default="")
    units = _DECIMAL if suffix.upper() == "B" else _BINARY
    scale = units[unit.upper()] if unit else 1
    num_bytes = int(whole + part) * scale // int(10 ** len(part))
    if num_bytes < 1:
        raise ConfigError(f"{name}={shown(text)} is zero: leave it out to take the stock size")
    if num_bytes > _MOST_BYTES:
        raise ConfigError(
            f"{name}={shown(text)} is more than {_MOST_BYTES >> 40:,} TiB, which no machine has: "
            "check the unit"
        )
    return num_bytes


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
