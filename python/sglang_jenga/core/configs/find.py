# SPDX-License-Identifier: Apache-2.0
"""Which configuration is meant: a config.json, a directory that has one, or a published name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundConfig:
    """A configuration and where it came from.

    name: for people. model_path: what a server's ``--model-path`` takes. weights_bytes: of the
    whole checkpoint, None: not known. weights_from: how it is known. flags: that a server needs to
    store what the configuration says. note: what differs from the published one.
    """

    name: str
    model_path: str
    config: Mapping[str, Any]
    weights_bytes: int | None = None
    weights_from: str = ""
    flags: tuple[str, ...] = ()
    note: str = ""


def find_config(text: str) -> FoundConfig:
    """The configuration that ``text`` means: a path wins over a published name.

    Raises:
        ConfigError: there is no such file or name, or the file is no configuration.
    """
    path = Path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{text} is a directory without config.json: name the model's own")
        bytes_, source = _weights_beside(path)
        return FoundConfig(
            name=path.resolve().name,
            model_path=text,
            config=_read(path / "config.json"),
            weights_bytes=bytes_,
            weights_from=source,
        )
    if path.is_file():
        bytes_, source = _weights_beside(path.parent)
        return FoundConfig(
            name=path.resolve().parent.name,
            model_path=str(path.parent),
            config=_read(path),
            weights_bytes=bytes_,
            weights_from=source,
        )
    if text not in PUBLISHED:
        close = difflib.get_close_matches(text, PUBLISHED, n=3) or sorted(PUBLISHED)
        raise ConfigError(
            f"{text} is no file, no directory and none of the {len(PUBLISHED)} published models "
            f"that are known by name: try {', '.join(close)}, or download the model's config.json"
        )
    model = PUBLISHED[text]
    return FoundConfig(
        name=text,
        model_path=model.repository,
        config=model.config,
        weights_bytes=model.weights_bytes,
        weights_from=f"{model.repository}, {model.weights}",
        flags=model.flags,
        note=model.note,
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a JSON object: name the model's own config.json")
    return config


def _weights_beside(directory: Path) -> tuple[int | None, str]:
    """Bytes of the safetensors in a directory, by their index or their sizes."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        total = _read(index).get("metadata", {}).get("total_size")
        if isinstance(total, int):
            return total, f"total_size of {index.name}"
    sizes = [file.stat().st_size for file in sorted(directory.glob("*.safetensors"))]
    if sizes:
        return sum(sizes), f"{len(sizes)} safetensors file{'s' * (len(sizes) > 1)}"
    return None, ""
