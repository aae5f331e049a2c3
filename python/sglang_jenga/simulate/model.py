# SPDX-License-Identifier: Apache-2.0
"""A model by name or by its config.json, as the kinds that a server of it would have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sglang_jenga.core.configs.find import find_config
from sglang_jenga.core.configs.read import ServeFlags, read_model
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec
from sglang_jenga.core.model_kinds import CROSS, FULL, STATE, WINDOW
from sglang_jenga.core.policies import Cross, Full, Policy, State, TokenPolicy

_ORDER = (FULL, WINDOW, CROSS, STATE)


def kinds_of(
    text: str, flags: ServeFlags | None = None, *, page_tokens: int = 1
) -> tuple[KindSpec, ...]:
    """The kinds of a model: ``text`` is a config.json, its directory, or a published name.

    Raises:
        ConfigError: there is no such model, or no server would have it, and why.
    """
    found = find_config(text)
    model = read_model(found.config, flags, quant=found.quant)
    if model.family.page_one and page_tokens != 1:
        raise ConfigError(
            f"{model.architecture} is served with --page-size 1 only, not {page_tokens}"
        )
    return as_served(model.specs)


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


def window_of(kinds: Iterable[KindSpec]) -> TokenPolicy | None:
    """The policy of the window kind of a served model; None: it has none."""
    policies = [kind.policy for kind in kinds if kind.name == WINDOW]
    return policies[0] if policies and isinstance(policies[0], TokenPolicy) else None


def _name_of(policy: Policy) -> str:
    if isinstance(policy, TokenPolicy):
        return FULL if isinstance(policy, Full) else WINDOW
    if isinstance(policy, State | Cross):
        return STATE if isinstance(policy, State) else CROSS
    raise ConfigError(f"the simulator does not replay kinds of policy {policy}")
