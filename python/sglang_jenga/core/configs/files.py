# SPDX-License-Identifier: Apache-2.0
"""Reading JSON files of a checkpoint: bounded in size and depth, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import printable
from sglang_jenga.core.sizes import format_bytes

#: Largest config.json and hf_quant_config.json; published ones stay below 2 MiB.
MOST_CONFIG_BYTES = 16 * 2**20
#: Largest index of weights; that of a trillion parameters in 400,000 tensors has 40 MiB.
MOST_INDEX_BYTES = 64 * 2**20
#: Published configurations nest 6 levels deep.
MOST_LEVELS = 64


def read_object(path: Path, most_bytes: int = MOST_CONFIG_BYTES) -> Mapping[str, Any]:
    """The JSON object in a file of UTF-8, with or without a byte-order mark.

    Raises:
        ConfigError: it cannot be read, is too large, nests too deeply or is no JSON object; the
            file named.
    """
    name = printable(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > most_bytes:
        raise ConfigError(
            f"{name} has more than {format_bytes(most_bytes)}, and is read up to there: name the "
            "model's own file"
        )
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ConfigError(_too_deep(name)) from None
    except ValueError as error:
        raise ConfigError(f"{name} cannot be read as JSON: {printable(str(error))}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is not a JSON object: name the model's own config.json")
    if _is_deeper_than(value, MOST_LEVELS):
        raise ConfigError(_too_deep(name))
    return value


def _too_deep(name: str) -> str:
    return f"{name} nests more than {MOST_LEVELS} levels deep: name the model's own config.json"


def _is_deeper_than(value: object, levels: int) -> bool:
    row: list[object] = [value]
    for _ in range(levels):
        row = [
            inner
            for outer in row
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if isinstance(inner, dict | list)
        ]
        if not row:
            return False
    return True
