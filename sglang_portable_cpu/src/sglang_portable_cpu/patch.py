# SPDX-License-Identifier: Apache-2.0
"""One row of the patch table: what is replaced, by what, why, and until when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class PatchError(RuntimeError):
    """The patch table does not fit this SGLang, or a patch did not take effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One replaced function."""

    target: str
    """Dotted path, looked up at call time by SGLang."""
    parameters: tuple[str, ...] | None
    """The parameter names that the original must have; None for a C function, which does not
    tell."""
    hook: Callable[..., Any]
    wraps: bool
    """True: `hook` gets the original as its first argument. False: it replaces the original."""
    reason: str
    removable_when: str
    stands_for: str | None = None
    """For a global name that the target's module reads but binds on GPUs only: the function it is
    bound to there, whose parameters are checked instead."""
