# SPDX-License-Identifier: Apache-2.0
"""Reading fields of a config.json so that what is missing or odd is named.

Every field that decides what is stored is read here, by type and range. What is beyond the ranges
exists in no model, and would only end in an arena of absurd size, or in a plan that takes hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import shown

#: Layers of a model. The largest published ones have 128.
MOST_LAYERS = 4096
#: Heads, elements of a head or of a hidden state, groups, factors.
MOST_ELEMENTS = 2**20
#: Tokens of a window, a chunk or an image.
MOST_TOKENS = 2**31
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The text model's fields of one configuration.

    values: the text model's own fields. outer: those of the model around it, if there is one.
    defaults: what the architecture means where a checkpoint leaves a field out.
    mamba_ssm_dtype: the server's flag of that name, None: it is not given. mamba_conv_dtype: its
    variable SGLANG_MAMBA_CONV_DTYPE.
    """

    architecture: str
    values: Mapping[str, Any]
    outer: Mapping[str, Any]
    defaults: Mapping[str, Any]
    mamba_ssm_dtype: str | None = None
    mamba_conv_dtype: str | None = None

    def optional(self, name: str) -> Any:
        """The value, the default where the field is left out; None where neither exists."""
        for source in (self.values, self.outer, self.defaults):
            if source.get(name) is not None:
                return source[name]
        return None

    def stated(self, name: str) -> Any:
        """As :meth:`optional`, except that null in the file means null."""
        return self.values[name] if name in self.values else self.optional(name)

    def odd(self, name: str, expected: str) -> ConfigError:
        """The refusal of a field whose value is none of what is expected."""
        return ConfigError(
            f"{self.architecture}: {name!r} is {shown(self.optional(name))}, expected {expected}"
        )

    def integer(self, name: str, *, least: int = 1, most: int = MOST_ELEMENTS) -> int:
        """A whole number from ``least`` to ``most``.

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
        if type(value) is not int or value < least:
            raise self.odd(name, f"a whole number of at least {least}")
        if value > most:
            raise self.odd(name, f"at most {most:,}")
        return value

    def layers(self) -> int:
        """``num_hidden_layers``."""
        return self.integer("num_hidden_layers", most=MOST_LAYERS)

    def tokens(self, name: str, *, least: int = 1) -> int:
        """A number of tokens."""
        return self.integer(name, least=least, most=MOST_TOKENS)

    def flag(self, name: str) -> bool | None:
        """true or false; None where the field is left out."""
        value = self.optional(name)
        if value is not None and type(value) is not bool:
            raise self.odd(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A text; None where the field is left out."""
        value = self.optional(name)
        if value is not None and not isinstance(value, str):
            raise self.odd(name, "a text")
        return value

    def numbers_of_layers(self, name: str, layers: int) -> list[int]:
        """A list of layers by number, each in range.

        Raises:
            ConfigError: the field is missing or something else.
        """
        value = self.optional(name)
        if not isinstance(value, list) or not all(
            type(entry) is int and 0 <= entry < layers for entry in value
        ):
            raise self.odd(name, f"the numbers of some of the {layers} layers")
        return value

    def kinds_of_layers(self, name: str, layers: int, known: Mapping[str, str]) -> list[str]:
        """A list (or a text) with one entry per layer, each translated by ``known``.

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
            found = len(value) if isinstance(value, list | str) else shown(value)
            raise ConfigError(
                f"{self.architecture}: {name!r} must have one entry for each of the {layers} "
                f"layers, it has {found}"
            )
        strange = sorted({shown(e) for e in value if not isinstance(e, str) or e not in known})
        if strange:
            raise ConfigError(
                f"{self.architecture}: {name!r} has entries [{', '.join(strange[:_SHOWN])}"
                f"{', ...' * (len(strange) > _SHOWN)}], known are {sorted(known)}"
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
            ConfigError: query heads do not share them evenly, or one of both does not split
                evenly over the ranks, which SGLang does not serve either.
        """
        if self.optional(name) is None and name == "num_key_value_heads":
            name = "num_attention_heads"  # every query head has its own
        heads, queries = self.integer(name), self.integer("num_attention_heads")
        if queries % heads:
            raise ConfigError(
                f"{self.architecture}: {name} {heads} does not divide num_attention_heads "
                f"{queries}, and each K/V head serves as many query heads: correct one of them"
            )
        if (heads % tp if heads >= tp else tp % heads) != 0:
            raise ConfigError(
                f"{self.architecture}: {name} {heads} does not split over --tp {tp}: use a divisor "
                "or a multiple of it"
            )
        self.split("num_attention_heads", queries, tp)
        return max(1, heads // tp)

    def split(self, what: str, number: int, tp: int) -> int:
        """``number`` of something on one of ``tp`` ranks.

        Raises:
            ConfigError: it does not split evenly.
        """
        if number % tp:
            raise ConfigError(
                f"{self.architecture}: {what} {number} does not split over --tp {tp}: use a divisor"
            )
        return number // tp
