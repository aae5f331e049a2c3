# SPDX-License-Identifier: Apache-2.0
"""Samples of a server in a file, one JSON object per line, to look at them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_jenga.cli.samples import Sample, SchedulerSample
from sglang_jenga.core.errors import ConfigError

SCHEMA = 1


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
        ConfigError: a line is not a sample, or there is none; names the line.
        OSError: the file cannot be read.
    """
    url, samples = "", []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            if record["schema"] != SCHEMA:
                raise ConfigError(
                    f"{path}, line {number}: schema {record['schema']}, this version reads {SCHEMA}"
                )
            url = record["url"]
            found = tuple(
                SchedulerSample(state=s["state"], load=s["load"]) for s in record["schedulers"]
            )
            for scheduler in found:
                scheduler.state["jenga"]["kinds"]
            samples.append(Sample(unix_seconds=float(record["unix_seconds"]), schedulers=found))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number} is not a sample of a jenga server: {error!r}"
            ) from error
    if not samples:
        raise ConfigError(f"{path} has no sample: record some with --record")
    return url, samples
