# SPDX-License-Identifier: Apache-2.0
"""Reading fields of a config.json so that what is missing or odd is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The text model's fields of one configuration.

    values: the text model's own fields. outer: those of the model around it, if there is one.
    defaults: what the architecture means where a checkpoint leaves a field out.
    mamba_ssm_dtype: the server's flag of that name, None: it is not given.
    """

    architecture: str
    values: Mapping[str, Any]
    outer: Mapping[str, Any]
    defaults: Mapping[str, Any]
    mamba_ssm_dtype: str | None = None

    def optional(self, name: str) -> Any:
        """The value, the default where the field is left out; None where neither exists."""
        for source in (self.values, self.outer, self.defaults):
            if source.get(name) is not None:
                return source[name]
        return None

    def stated(self, name: str) -> Any:
        """As :meth:`optional`, except that null in the file means null."""
        return self.values[name] if name in self.values else self.optional(name)

    def integer(self, name: str, *, least: int = 1) -> int:
        """A whole number of at least ``least``.

        Raises:
            ConfigError: the field is missing or is something else.
        """
        value = self.optional(name)
        if value is None:
            raise ConfigError(
                f"{self.architecture}: the configuration has no {name!r}, and this architecture "
                "has no default for it: check that this is the model's own config.json, and add "
                "the field"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"{self.architecture}: {name!r} is {value!r}, expected a whole number of at least "
                f"{least}"
            )
        number: int = value
        return number

    def kinds_of_layers(self, name: str, layers: int, known: Mapping[str, str]) -> list[str]:
        """A list with one entry per layer, each translated by ``known``.

        Raises:
            ConfigError: it is missing, has another length, or an entry that is not known.
        """
        value = self.optional(name)
        if value is None:
            raise ConfigError(
                f"{self.architecture}: the configuration has no {name!r}, so which layers are of "
                "which kind is not known: add it, one entry per layer"
            )
        if not isinstance(value, list | str) or len(value) != layers:
            found = len(value) if isinstance(value, list | str) else repr(value)
            raise ConfigError(
                f"{self.architecture}: {name!r} must have one entry for each of the {layers} "
                f"layers, it has {found}"
            )
        strange = sorted({str(entry) for entry in value} - set(known))
        if strange:
            raise ConfigError(
                f"{self.architecture}: {name!r} has entries {strange}, known are {sorted(known)}"
            )
        return [known[entry] for entry in value]

    def head_dim(self, *, stated: bool = True) -> int:
        """Elements of a K row per head: ``head_dim``, or ``hidden_size`` over the query heads.

        ``stated``: whether the model reads the field at all; some divide whatever it says.
        """
        if stated and self.optional("head_dim") is not None:
            return self.integer("head_dim")
        hidden, heads = self.integer("hidden_size"), self.integer("num_attention_heads")
        if hidden % heads:
            raise ConfigError(
                f"{self.architecture}: hidden_size {hidden} is no multiple of num_attention_heads "
                f"{heads}, and there is no head_dim: add it"
            )
        return hidden // heads

    def kv_heads(self, tp: int, name: str = "num_key_value_heads") -> int:
        """K and V heads on one of ``tp`` ranks: split, or copied below one head per rank.

        Raises:
            ConfigError: the heads do not split evenly, which SGLang does not serve either.
        """
        if self.optional(name) is None and name == "num_key_value_heads":
            name = "num_attention_heads"  # every query head has its own
        heads = self.integer(name)
        if (heads % tp if heads >= tp else tp % heads) != 0:
            raise ConfigError(
                f"{self.architecture}: {name} {heads} does not split over --tp {tp}: use a divisor "
                "or a multiple of it"
            )
        return max(1, heads // tp)
