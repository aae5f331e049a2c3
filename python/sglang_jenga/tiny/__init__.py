# SPDX-License-Identifier: Apache-2.0
"""Tiny random checkpoints of real architectures, built on the spot without any download.

>>> from sglang_jenga.tiny import build
>>> build("gemma3", "/tmp/tiny-gemma3")  # doctest: +SKIP

They have real configuration classes, real weight names and a real tokenizer, so SGLang and
transformers load them like any other model; they speak nonsense, but a nonsense that depends on
every cached token.
"""

from sglang_jenga.tiny.build import build
from sglang_jenga.tiny.specs import (
    ATTENTION_FAMILIES,
    FAMILIES,
    IMAGE_FAMILIES,
    SPECS,
    STATE_FAMILIES,
    TinySpec,
    find_spec,
)

__all__ = [
    "ATTENTION_FAMILIES",
    "FAMILIES",
    "IMAGE_FAMILIES",
    "SPECS",
    "STATE_FAMILIES",
    "TinySpec",
    "build",
    "find_spec",
]
