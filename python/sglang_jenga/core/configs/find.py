# SPDX-License-Identifier: Apache-2.0
"""Which configuration is meant: a config.json, a directory that has one, or a published name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_jenga.core.configs.files import MOST_INDEX_BYTES, read_object
from sglang_jenga.core.configs.published import PUBLISHED
from sglang_jenga.core.configs.quantisation import QUANT_FILE
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import printable, shown

_MOST_WEIGHT_BYTES = 2**56


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundConfig:
    """A configuration and where it came from.

    name: for people. model_path: what a server's ``--model-path`` takes. weights_bytes: of the
    whole checkpoint, None: not known. weights_from: how it is known, or why not. quant: the
    hf_quant_config.json beside it, if there is one. flags: that a server needs to store what the
    configuration says. note: what differs from the published one.
    """

    name: str
    model_path: str
    config: Mapping[str, Any]
    weights_bytes: int | None = None
    weights_from: str = ""
    quant: Mapping[str, Any] | None = None
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
            raise ConfigError(
                f"{printable(text)} is a directory without config.json: name the model's own"
            )
        return _in_directory(path, path / "config.json")
    if path.is_file():
        return _in_directory(path.parent, path)
    if text not in PUBLISHED:
        close = difflib.get_close_matches(text, PUBLISHED, n=3) or sorted(PUBLISHED)
        raise ConfigError(
            f"{shown(text)} is no file, no directory and none of the {len(PUBLISHED)} published "
            f"models that are known by name: try {', '.join(close)}, or download the "
            "model's config.json"
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


def _in_directory(directory: Path, file: Path) -> FoundConfig:
    config = read_object(file)
    weights_bytes, weights_from = _weights_in(directory)
    quant = directory / QUANT_FILE
    return FoundConfig(
        name=directory.resolve().name,
        model_path=str(directory),
        config=config,
        weights_bytes=weights_bytes,
        weights_from=weights_from,
        quant=read_object(quant) if quant.is_file() else None,
    )


def _weights_in(directory: Path) -> tuple[int | None, str]:
    """Bytes of the safetensors in a directory by their index, else by their sizes, and how they
    were found; None, and why, where neither can be told."""
    index = directory / "model.safetensors.index.json"
    problem = ""
    if index.is_file():
        try:
            return _total_size(read_object(index, MOST_INDEX_BYTES)), f"total_size of {index.name}"
        except ConfigError as error:
            problem = f"{error}"
    try:
        sizes = [file.stat().st_size for file in sorted(directory.glob("*.safetensors"))]
    except OSError as error:
        return None, problem or f"{printable(str(error.filename))}: {error.strerror}"
    if not sizes:
        return None, problem or "no safetensors lie beside its config.json"
    found = f"{len(sizes)} safetensors file{'s' * (len(sizes) > 1)}"
    return sum(sizes), f"{found}; {problem}" if problem else found


def _total_size(index: Mapping[str, Any]) -> int:
    """``metadata.total_size`` of an index of weights."""
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if type(total) is not int or not 0 < total < _MOST_WEIGHT_BYTES:
        raise ConfigError(
            f"its model.safetensors.index.json says metadata.total_size {shown(total)}, expected "
            "a number of bytes"
        )
    return total
