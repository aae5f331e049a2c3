# SPDX-License-Identifier: Apache-2.0
"""Everything Jenga attaches to in SGLang, checked before it is relied on.

The table is :mod:`sglang_jenga.sglang_ext.hook_table`.

SGLang logs and swallows a hook that fails to apply, and a server would then run on its own pools.
So every symbol is checked twice: that it exists with the parameters we call (``check_symbols``, at
start, in the launcher), and that its hook is in place (``check_applied``, where it matters).
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.sglang_ext.hook_table import HOOKS as HOOKS
from sglang_jenga.sglang_ext.hook_table import Hook
from sglang_jenga.sglang_ext.native import replaced

SUPPORTED_SGLANG = ("0.5.23",)


def needed() -> tuple[Hook, ...]:
    """The rows of the table that no seam of the running SGLang replaces."""
    native_targets = replaced()
    return tuple(hook for hook in HOOKS if hook.target not in native_targets)


def check_symbols() -> list[str]:
    """Problems with this SGLang, empty when every symbol of the table is as expected."""
    from sglang.version import __version__

    problems = []
    if __version__ not in SUPPORTED_SGLANG:
        problems.append(
            f"sglang {__version__} is installed, sglang-jenga attaches to "
            f"{', '.join(SUPPORTED_SGLANG)}: pip install sglang=={SUPPORTED_SGLANG[-1]}"
        )
    for hook in needed():
        try:
            symbol = pkgutil.resolve_name(hook.target)
        except (ImportError, AttributeError) as error:
            problems.append(f"{hook.target} is missing ({error}); needed to {hook.reason}")
            continue
        if not hook.parameters:
            continue
        found = inspect.signature(inspect.unwrap(symbol)).parameters
        missing = [name for name in hook.parameters if name not in found]
        if hook.target.endswith("from_cli_args") or hook.target.endswith("add_cli_args"):
            missing = [name for name in missing if name != "self"]
        if missing:
            problems.append(
                f"{hook.target} has no parameter {', '.join(missing)} (it has "
                f"{', '.join(found)}); needed to {hook.reason}"
            )
    return problems


def register(functions: dict[str, Callable[..., Any]]) -> None:
    """Register the wrappers, one per ``after``/``around`` row of the table, by target.

    Raises:
        ConfigError: the table and the functions do not match (a programming error).
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    wrapped = {hook.target: hook for hook in needed() if hook.kind != "uses"}
    if set(wrapped) != set(functions):
        raise ConfigError(f"hook table and wrappers differ: {set(wrapped) ^ set(functions)}")
    for target, function in functions.items():
        HookRegistry.register(target, function, HookType(wrapped[target].kind))


def check_applied() -> list[str]:
    """Hooks of the table that SGLang did not put in place in this process."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    return [
        f"{hook.target} is not hooked in this process; needed to {hook.reason}"
        for hook in needed()
        if hook.kind != "uses" and hook.target not in HookRegistry._patched
    ]


def require_intact() -> None:
    """Refuse to go on unless every symbol is as expected and every hook in place.

    Raises:
        ConfigError: with all problems and what to do.
    """
    problems = check_symbols() + check_applied()
    if problems:
        raise ConfigError(
            "--radix-cache-backend jenga cannot attach to this SGLang:\n  "
            + "\n  ".join(problems)
            + "\nInstall the SGLang version that sglang-jenga supports, or drop the flag."
        )
