# SPDX-License-Identifier: Apache-2.0
"""What a server would store of a model, from its configuration and the server's flags."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sglang_jenga.core.configs.dtypes import Dtype, kv_dtype, model_dtype
from sglang_jenga.core.configs.families import BY_ARCHITECTURE, Family
from sglang_jenga.core.configs.fields import Fields
from sglang_jenga.core.errors import ConfigError, require_positive
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.model_kinds import ModelKinds


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """The flags of a server that decide what it stores, by SGLang's names.

    tp: tensor parallel ranks; sizes are those of one of them.
    """

    tp: int = 1
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    mamba_ssm_dtype: str | None = None
    enable_multimodal: bool = False

    def __post_init__(self) -> None:
        require_positive(tp=self.tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """What one rank of a server stores of a model.

    kinds: its layers by kind. specs: the same as the planner and the runtime take them.
    stock_specs: as SGLang's own pools count layers: those that share an earlier layer's K/V have
    their own there. kv: type of K and V. image_tokens: K/V that one picture takes in cross layers,
    0 without them.
    """

    architecture: str
    family: Family
    kinds: ModelKinds
    specs: tuple[KindSpec, ...]
    stock_specs: tuple[KindSpec, ...]
    kv: Dtype
    image_tokens: int


def read_model(config: Mapping[str, Any], flags: ServeFlags | None = None) -> StoredModel:
    """The kinds of the model that ``config`` (a parsed config.json) describes.

    Raises:
        ConfigError: the architecture is not known or not said, or a field is missing, odd or
            contradicts another one; each named, with what to do.
    """
    flags = flags or ServeFlags()
    fields, family = _fields(config, flags)
    computed_in = model_dtype(fields, flags.dtype)
    stored_in = kv_dtype(fields, computed_in, flags.kv_cache_dtype)
    kinds = family.layers(fields, flags.tp)
    seen = family.images == "always" or (family.images == "flag" and flags.enable_multimodal)
    if seen and "vision_config" in config:
        kinds = replace(kinds, embedding=(fields.integer("hidden_size"), computed_in))
    unshared = replace(fields, values={**fields.values, _SHARING: 0})
    apart = family.layers(unshared, flags.tp) if fields.optional(_SHARING) else kinds
    return StoredModel(
        architecture=fields.architecture,
        family=family,
        kinds=kinds,
        specs=kinds.specs(stored_in),
        stock_specs=apart.specs(stored_in),
        kv=stored_in,
        image_tokens=_picture_tokens(config) if kinds.cross else 0,
    )


def architecture_of(config: Mapping[str, Any]) -> str:
    """The one architecture that a configuration names.

    Raises:
        ConfigError: it names none, or several.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named:
        raise ConfigError(
            "the configuration has no 'architectures', so the model is not known: add it, such as "
            '"architectures": ["LlamaForCausalLM"]'
        )
    if len(named) > 1:
        raise ConfigError(
            f"the configuration names several 'architectures' ({', '.join(map(str, named))}): "
            "leave the one that is served"
        )
    return str(named[0])


def _fields(config: Mapping[str, Any], flags: ServeFlags) -> tuple[Fields, Family]:
    architecture = architecture_of(config)
    inner = config.get("text_config")
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(f"{architecture}: 'text_config' is {inner!r}, expected an object")
    family = BY_ARCHITECTURE.get(architecture)
    if family is None:
        raise ConfigError(_unknown(architecture, config if inner is None else inner))
    fields = Fields(
        architecture=architecture,
        values=config if inner is None else inner,
        outer={name: config[name] for name in _SHARED if name in config},
        defaults=family.defaults,
        mamba_ssm_dtype=flags.mamba_ssm_dtype,
    )
    return fields, family


#: How many layers at the end reuse the K/V of earlier ones.
_SHARING = "num_kv_shared_layers"
#: Fields that a model around a text model states for both.
_SHARED = ("dtype", "torch_dtype", "quantization_config")


def _unknown(architecture: str, text: Mapping[str, Any]) -> str:
    if text.get("kv_lora_rank"):
        return (
            f"{architecture} stores latent (MLA) rows ('kv_lora_rank' is set), which are no kind "
            "of the arena: serve it with SGLang's own pools"
        )
    close = difflib.get_close_matches(architecture, BY_ARCHITECTURE, n=3, cutoff=0.6)
    meant = f" Did you mean {' or '.join(close)}?" if close else ""
    return (
        f"'architectures' names {architecture}, which cannot be planned from its configuration."
        f"{meant} Known are {', '.join(sorted(BY_ARCHITECTURE))}. A server reads kinds off the "
        "built model and may serve others too: its boot log prints the same plan."
    )


def _picture_tokens(config: Mapping[str, Any]) -> int:
    """Encoder tokens of one picture: SGLang pads every picture to the most tiles."""
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise ConfigError(
            "the configuration has no 'vision_config', which says how large an image is"
        )
    fields = Fields(
        architecture=architecture_of(config), values=vision, outer={}, defaults=_MLLAMA_VISION
    )
    side = fields.integer("image_size") // fields.integer("patch_size")
    return fields.integer("max_num_tiles") * (side * side + 1)


_MLLAMA_VISION = {"image_size": 448, "patch_size": 14, "max_num_tiles": 4}
