# SPDX-License-Identifier: Apache-2.0
"""What a server would store of a model, from its configuration and the server's flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sglang_jenga.core.configs.apart import stored_apart
from sglang_jenga.core.configs.dtypes import Dtype, kv_dtype, model_dtype
from sglang_jenga.core.configs.families import BY_ARCHITECTURE, Family, StockPools
from sglang_jenga.core.configs.fields import Fields
from sglang_jenga.core.configs.quantisation import KvQuantisation, kv_quantisation
from sglang_jenga.core.errors import ConfigError, require_positive
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.model_kinds import ModelKinds
from sglang_jenga.core.printable import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """The flags of a server that decide what it stores, by SGLang's names.

    tp: tensor parallel ranks; sizes are those of one of them. mamba_conv_dtype: the variable
    SGLANG_MAMBA_CONV_DTYPE, None: unset.
    """

    tp: int = 1
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    mamba_ssm_dtype: str | None = None
    mamba_conv_dtype: str | None = None
    enable_multimodal: bool = False

    def __post_init__(self) -> None:
        require_positive(tp=self.tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """What one rank of a server stores of a model.

    kinds: its layers by kind. specs: the same as the planner and the runtime take them.
    stock_specs: as SGLang's own pools count layers: those that share an earlier layer's K/V have
    their own there. stock: how SGLang's own pools hold it. kv: type of K and V. image_tokens: K/V
    that one picture takes in cross layers, 0 without them. note: what a user may not expect.
    """

    architecture: str
    family: Family
    kinds: ModelKinds
    specs: tuple[KindSpec, ...]
    stock_specs: tuple[KindSpec, ...]
    stock: StockPools
    kv: Dtype
    image_tokens: int
    note: str = ""


def read_model(
    config: Mapping[str, Any],
    flags: ServeFlags | None = None,
    *,
    quant: Mapping[str, Any] | None = None,
) -> StoredModel:
    """The kinds of the model that ``config`` (a parsed config.json) describes; ``quant``: the
    hf_quant_config.json beside it.

    Raises:
        ConfigError: the architecture is not known or not said, or a field is missing, odd or
            contradicts another one; each named, with what to do.
    """
    flags = flags or ServeFlags()
    fields, family = _fields(config, flags)
    computed_in = family.forced_dtype(config) or model_dtype(fields, flags.dtype)
    quantised = KvQuantisation()
    if flags.kv_cache_dtype == "auto":
        quantised = kv_quantisation(config, quant, seen=family.auto_kv)
    stored_in = kv_dtype(computed_in, flags.kv_cache_dtype, quantised_to=quantised.algorithm)
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
        stock="all-full" if family.stock == "states" and kinds.states is None else family.stock,
        kv=stored_in,
        image_tokens=_picture_tokens(config) if kinds.cross else 0,
        note=quantised.note,
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
            f"the configuration names several 'architectures' {shown(named)}: leave the one that "
            "is served"
        )
    if not isinstance(named[0], str) or not named[0]:
        raise ConfigError(f"'architectures' is {shown(named)}, expected the name of one")
    return named[0]


def _fields(config: Mapping[str, Any], flags: ServeFlags) -> tuple[Fields, Family]:
    architecture = architecture_of(config)
    inner = config.get("text_config")
    if inner is not None and not isinstance(inner, dict):
        raise ConfigError(
            f"{shown(architecture)}: 'text_config' is {shown(inner)}, expected an object"
        )
    family = BY_ARCHITECTURE.get(architecture)
    if family is None:
        raise ConfigError(_unknown(architecture, config if inner is None else inner))
    fields = Fields(
        architecture=architecture,
        values=config if inner is None else inner,
        outer={name: config[name] for name in _SHARED if name in config},
        defaults=family.defaults,
        mamba_ssm_dtype=flags.mamba_ssm_dtype,
        mamba_conv_dtype=flags.mamba_conv_dtype,
    )
    return fields, family


#: How many layers at the end reuse the K/V of earlier ones.
_SHARING = "num_kv_shared_layers"
#: Fields that a model around a text model states for both.
_SHARED = ("dtype", "torch_dtype", "quantization_config")


def _unknown(architecture: str, text: Mapping[str, Any]) -> str:
    if apart := stored_apart(architecture, text):
        return (
            f"{shown(architecture)} stores {apart}, which are no kind of the arena: serve it with "
            "SGLang's own pools"
        )
    same = [known for known in BY_ARCHITECTURE if _letters(known) == _letters(architecture)]
    meant = f" Did you mean {' or '.join(same)}?" if same else ""
    return (
        f"'architectures' names {shown(architecture)}, which cannot be planned from its "
        f"configuration.{meant} Known are {', '.join(sorted(BY_ARCHITECTURE))}. A server reads "
        "kinds off the built model and may serve others too: its boot log prints the same plan."
    )


def _letters(architecture: str) -> list[str]:
    """What is equal for two spellings of one model, and for no two models: a digit or a letter
    more is another model (Gemma 3n is not Gemma 3)."""
    stem = re.split(r"For(?=Causal|Conditional)", architecture)[0]
    return sorted(c for c in stem.lower() if c.isalnum())


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
    return fields.integer("max_num_tiles", most=1024) * (side * side + 1)


_MLLAMA_VISION = {"image_size": 448, "patch_size": 14, "max_num_tiles": 4}
