# SPDX-License-Identifier: Apache-2.0
"""Models of ``docs/examples`` as families: a tiny checkpoint whose config.json names the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """``package``: its code, in :data:`FOLDER`. ``family``: whose checkpoint it is, but for
    ``changes`` of config.json."""

    package: str
    family: str
    changes: Mapping[str, object]


EXAMPLES: Mapping[str, Example] = {
    "sink_llama": Example(
        package="sink_window",
        family="llama",
        changes={
            "architectures": ["SinkLlamaForCausalLM"],
            "sink_layers": [0, 1, 3, 4],
            "sink_tokens": 4,
            "window_tokens": 48,
        },
    ),
}


def build_example(name: str, source: Path, checkpoint: Path) -> Path:
    """Make ``checkpoint`` a copy of ``source`` whose config.json names the example ``name``."""
    shutil.copytree(source, checkpoint, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, **EXAMPLES[name].changes}, indent=2) + "\n"
    (checkpoint / "config.json").write_text(text, encoding="utf-8")
    return checkpoint


def environment(name: str) -> dict[str, str]:
    """What a server needs to find the model of ``name``; nothing where it is no example."""
    if name not in EXAMPLES:
        return {}
    package = EXAMPLES[name].package
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "SGLANG_EXTERNAL_MODEL_PACKAGE": package}
