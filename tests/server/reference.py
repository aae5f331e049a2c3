# SPDX-License-Identifier: Apache-2.0
"""Answers of the stock server, recorded once per checkpoint and kept in a file.

Greedy answers of SGLang's own pools under no memory pressure are the reference for every jenga
server, whatever its flags: nothing about memory may change an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import sglang_jenga
from server.client import Answer
from server.examples import FOLDER

_ANSWER_FIELDS = ("tokens", "logprobs", "text", "finish", "prompt_logprobs", "ties")


def fingerprint(checkpoint: Path, flags: Iterable[str]) -> str:
    """Hash of what decides stock answers: checkpoint, flags, engine, attention and model code."""
    digest = hashlib.sha256((checkpoint / "tiny.json").read_bytes())
    digest.update(json.dumps([_ANSWER_FIELDS, list(flags), metadata.version("sglang")]).encode())
    package = Path(sglang_jenga.__file__).parent
    places = (package / "attention", package / "models", *FOLDER.iterdir())
    for source in sorted(file for place in places for file in place.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


class Reference:
    """Recorded answers by request key. ``put`` then ``save``; an outdated file is not read."""

    def __init__(self, path: Path, *, fingerprint: str) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._answers: dict[str, dict[str, Any]] = {}
        #: (scenario, hash of the workload) of which every answer is here.
        self.recorded: set[tuple[str, str]] = set()
        if path.exists():
            recorded = json.loads(path.read_text(encoding="utf-8"))
            if recorded["fingerprint"] == fingerprint:
                self._answers = recorded["answers"]
                self.recorded = {(name, workload) for name, workload in recorded["recorded"]}

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer:
        """Raises KeyError for a request that was never recorded."""
        fields = self._answers[key]
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return Answer(**values | {"ties": tuple(tuple(tie) for tie in fields["ties"])})

    def put(self, key: str, answer: Answer) -> None:
        if answer.retractions:
            raise ValueError(f"the reference must run without pressure, {key} was retracted")
        fields = asdict(answer)
        self._answers[key] = {name: fields[name] for name in _ANSWER_FIELDS}

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "fingerprint": self._fingerprint,
            "recorded": sorted(self.recorded),
            "answers": self._answers,
        }
        partial = self._path.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
        partial.replace(self._path)
