# SPDX-License-Identifier: Apache-2.0
"""Models of ``docs/examples`` as families: a tiny checkpoint whose config.json names the model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples"
#: Family -> the family whose checkpoint it is, and what its config.json says otherwise.
EXAMPLES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "sink_llama": (
        "llama",
        {
            "architectures": ["SinkLlamaForCausalLM"],
            "sink_layers": [0, 1, 3, 4],
            "sink_tokens": 4,
            "window_tokens": 48,
        },
    ),
}
#: Family -> its Python package, in :data:`FOLDER`.
PACKAGES: Mapping[str, str] = {"sink_llama": "sink_window"}


def build_example(name: str, source: Path, checkpoint: Path) -> Path:
    """Make ``checkpoint`` a copy of ``source`` whose config.json names the example ``name``."""
    shutil.copytree(source, checkpoint, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _, changes = EXAMPLES[name]
    text = json.dumps({**config, **changes}, indent=2) + "\n"
    (checkpoint / "config.json").write_text(text, encoding="utf-8")
    return checkpoint


def environment(name: str) -> dict[str, str]:
    """What a server needs to find the model of ``name``; nothing where it is no example."""
    if name not in PACKAGES:
        return {}
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "SGLANG_EXTERNAL_MODEL_PACKAGE": PACKAGES[name]}
