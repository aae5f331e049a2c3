# SPDX-License-Identifier: Apache-2.0
"""A model by name, as kinds in the order and with the names that a server gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sglang_jenga.core.catalog import model_kinds
from sglang_jenga.core.demand import DemandModel
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.model_kinds import CROSS, FULL, STATE, WINDOW
from sglang_jenga.core.policies import Cross, Full, Policy, State, TokenPolicy

_ORDER = (FULL, WINDOW, CROSS, STATE)
#: Bytes of one stored number, by SGLang's ``--kv-cache-dtype``.
KV_ITEMSIZE = {"auto": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}


def kinds_of(text: str, *, kv_itemsize: int = 2) -> tuple[KindSpec, ...]:
    """The kinds of a model: ``text`` names one of the catalogue.

    Raises:
        ConfigError: there is no such model, or the arena cannot hold its kinds.
    """
    return as_served(model_kinds(text, kv_itemsize=kv_itemsize))


def as_served(kinds: Iterable[KindSpec]) -> tuple[KindSpec, ...]:
    """Kinds under a server's names (full, window, cross, state) and in its order.

    Raises:
        ConfigError: two of one name, or none that attends to everything.
    """
    named = [replace(kind, name=_name_of(kind.policy)) for kind in kinds]
    named.sort(key=lambda kind: _ORDER.index(kind.name))
    names = [kind.name for kind in named]
    if len(set(names)) < len(names) or FULL not in names:
        raise ConfigError(
            f"kinds {', '.join(names) or 'none'}: a server has one full kind and at most one of "
            "windows, one of images in cross layers and one of states"
        )
    return tuple(named)


def demand_model(
    kinds: Iterable[KindSpec], *, page_tokens: int, chunk_tokens: int | None
) -> DemandModel:
    """What requests ask of these kinds (of :func:`as_served`)."""
    policies = [kind.policy for kind in kinds if kind.name == WINDOW]
    window = policies[0] if policies and isinstance(policies[0], TokenPolicy) else None
    return DemandModel(page_tokens=page_tokens, window=window, chunk_tokens=chunk_tokens)


def _name_of(policy: Policy) -> str:
    if isinstance(policy, TokenPolicy):
        return FULL if isinstance(policy, Full) else WINDOW
    if isinstance(policy, State | Cross):
        return STATE if isinstance(policy, State) else CROSS
    raise ConfigError(f"the simulator does not replay kinds of policy {policy}")
