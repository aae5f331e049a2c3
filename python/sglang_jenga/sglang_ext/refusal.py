# SPDX-License-Identifier: Apache-2.0
"""One row of the table of refusals, whatever it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused feature or value.

    flag: what the user writes, a command line flag or an environment variable.
    field: its name on ServerArgs, or on ``sglang.srt.environ.envs`` for a variable.
    values: the refused values in words. example: one of them, as written on the command line.
    refuses: whether a value of the field is refused.
    explicit_only: SGLang sets the field by itself for some models, where it is harmless; refuse it
        only when the user wrote it.
    """

    flag: str
    field: str
    reason: str
    alternative: str
    values: str = "on"
    example: str = ""
    refuses: Callable[[Any], bool] = bool
    explicit_only: bool = False

    @property
    def is_environment(self) -> bool:
        return not self.flag.startswith("--")

    def value_in(self, config: Any) -> Any:
        """The field's present value. AttributeError when SGLang has no such field."""
        if not self.is_environment:
            return getattr(config, self.field)
        from sglang.srt.environ import envs

        return getattr(envs, self.field).get()
