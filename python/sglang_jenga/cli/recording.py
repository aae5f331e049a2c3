# SPDX-License-Identifier: Apache-2.0
"""Samples of a server in a file, one JSON object per line, to look at them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_jenga.cli.bounded_json import MOST_BYTES, MOST_VALUES, NotJson, parsed, values_in
from sglang_jenga.cli.samples import Sample, SchedulerSample
from sglang_jenga.cli.server_shapes import RECORD
from sglang_jenga.cli.shapes import Misshapen, members, whole
from sglang_jenga.core.errors import ConfigError

SCHEMA = 1
#: Of a recording that is kept or read at a time. A page of more opens in no browser.
MOST_RECORDED_BYTES, MOST_RECORDED_VALUES = 64 * 2**20, 2 * MOST_VALUES
_SCHEMA = members({"schema": whole()})


class Room:
    """What is left of the memory for one recording."""

    def __init__(self) -> None:
        self._bytes, self._values = MOST_RECORDED_BYTES, MOST_RECORDED_VALUES

    def take(self, line: bytes) -> bool:
        """Whether this line still fits; it has been taken then."""
        self._bytes -= len(line)
        self._values -= values_in(line)
        return self._bytes >= 0 and self._values >= 0


def as_line(sample: Sample, url: str) -> str:
    """One line of a recording, without the end of the line."""
    schedulers = [{"state": s.state, "load": s.load} for s in sample.schedulers]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "url": url,
        "unix_seconds": sample.unix_seconds,
        "schedulers": schedulers,
    }
    return json.dumps(record, separators=(",", ":"))


def read(path: Path) -> tuple[str, list[Sample]]:
    """The server's address and its samples, in the order of the file.

    Raises:
        ConfigError: a line (named) is not a sample, or there is none, or there are too many.
        OSError: the file cannot be read.
    """
    url, samples = "", []
    for number, text in _lines(path):
        where = f"{path}, line {number}"
        try:
            record = parsed(text)
            _SCHEMA(record, "")
            if record["schema"] != SCHEMA:
                raise ConfigError(
                    f"{where}: schema {record['schema']}, this version reads {SCHEMA}"
                )
            RECORD(record, "")
        except NotJson as error:
            raise ConfigError(f"{where} is not a sample of a jenga server: {error}") from error
        except Misshapen as error:
            raise ConfigError(f"{where} is not a sample of a jenga server: it{error}") from error
        url = record["url"]
        found = tuple(
            SchedulerSample(state=s["state"], load=s.get("load") or {})
            for s in record["schedulers"]
        )
        samples.append(Sample(unix_seconds=float(record["unix_seconds"]), schedulers=found))
    if not samples:
        raise ConfigError(f"{path} has no sample: record some with --record")
    return url, samples


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; no more of them than a page can draw."""
    room = Room()
    with path.open("rb") as file:
        number = 0
        while text := file.readline(MOST_BYTES + 1):
            number += 1
            if not room.take(text):
                raise ConfigError(
                    f"{path} has more than {MOST_RECORDED_BYTES:,} bytes or "
                    f"{MOST_RECORDED_VALUES:,} values in its first {number:,} lines, too many for "
                    "one page: draw a part of its lines"
                )
            if len(text) > MOST_BYTES:
                raise ConfigError(f"{path}, line {number} has more than {MOST_BYTES:,} bytes")
            if text.strip():
                yield number, text
