# SPDX-License-Identifier: Apache-2.0
"""The one table of SGLang functions that this platform replaces, how, and why.

SGLang's HookRegistry installs the hooks and only logs a failure. So the table is checked three
times, and a mismatch stops the server: the symbols and their parameters when the plugin loads
(`register`), that the hooks took effect when the arguments are resolved, and the same again in the
worker that loaded the model (`require_installed`).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from sglang_portable_cpu import ENTRY_POINT
from sglang_portable_cpu.patch import Patch, PatchError
from sglang_portable_cpu.serving_patches import SERVING_PATCHES
from sglang_portable_cpu.state_patches import STATE_PATCHES

__all__ = ["PATCHES", "Patch", "PatchError", "register", "require_installed"]

PATCHES: tuple[Patch, ...] = (*SERVING_PATCHES, *STATE_PATCHES)

_originals: dict[str, Callable[..., Any]] = {}


def register() -> None:
    """Check the table against this SGLang and hand it to HookRegistry, which applies it later."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    found = {patch.target: _find(patch) for patch in PATCHES}
    for patch in PATCHES:
        if patch.stands_for is not None:  # HookRegistry replaces what is bound already
            module_name, _, name = patch.target.rpartition(".")
            setattr(sys.modules[module_name], name, patch.hook)
            continue
        kind = HookType.AROUND if patch.wraps else HookType.REPLACE
        HookRegistry.register(patch.target, patch.hook, kind)
    _originals.update(found)


def require_installed() -> None:
    """Raise PatchError unless every patch is in effect in this process."""
    for patch in PATCHES:
        original = _originals.get(patch.target)
        if original is None:
            raise PatchError(
                f"sglang-portable-cpu is the platform, but its plugin '{ENTRY_POINT}' did not "
                f"load, so {patch.target} would reach a GPU kernel. Either SGLANG_PLUGINS leaves "
                f"it out (add {ENTRY_POINT}), or it failed: the log line 'Failed to execute "
                f"general plugin: {ENTRY_POINT}' above says why."
            )
        if pkgutil.resolve_name(patch.target) is original:
            raise PatchError(
                f"the replacement of {patch.target} is registered but not in effect. It matters: "
                f"{patch.reason} The log line 'Failed to apply hooks to' above says why."
            )


def _find(patch: Patch) -> Callable[..., Any]:
    """The original, checked. Raises PatchError where this SGLang is not the table's."""
    if patch.stands_for is not None:
        _require_unbound(patch)
    path = patch.stands_for or patch.target
    try:
        original = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise PatchError(
            f"this SGLang has no {path} ({error}), which sglang-portable-cpu replaces: "
            f"{patch.reason} Install the SGLang version that this release names in its README."
        ) from error
    if patch.parameters is not None:
        names = tuple(inspect.signature(original).parameters)
        if names != patch.parameters:
            raise PatchError(
                f"{path} takes {', '.join(names)} in this SGLang, and sglang-portable-cpu "
                f"replaces a function of {', '.join(patch.parameters)}. Install the SGLang version "
                "that this release names in its README."
            )
    return original


def _require_unbound(patch: Patch) -> None:
    """The target's module must read the name and leave it unbound, or the row is out of date."""
    module_name, _, name = patch.target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PatchError(
            f"this SGLang has no {module_name} ({error}), where sglang-portable-cpu supplies "
            f"{name}: {patch.reason} Install the SGLang version that this release names in its "
            "README."
        ) from error
    if name not in inspect.getsource(module):
        why = "does not use the name any more"
    elif getattr(module, name, patch.hook) is not patch.hook:
        why = "binds the name itself"
    else:
        return
    raise PatchError(
        f"{module_name} {why}, so sglang-portable-cpu must not supply {name}: {patch.reason} "
        "Install the SGLang version that this release names in its README."
    )
