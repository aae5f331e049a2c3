# SPDX-License-Identifier: Apache-2.0
"""The policy: a token reads the first tokens of its request and those right before it.

    #####...............########|        sink_tokens = 5, window_tokens = 8

Attention keeps looking at the first tokens ("attention sinks", arXiv:2309.17453), so a model that
forgets the middle keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sglang_jenga.core.policies import TokenPolicy, register


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class SinkWindow(TokenPolicy):
    """Keys [0, sink_tokens) and the ``window_tokens`` before the token itself."""

    NAME: ClassVar[str] = "sink_window"
    SLIDES: ClassVar[bool] = True
    sink_tokens: int
    window_tokens: int

    @property
    def head_tokens(self) -> int:
        return self.sink_tokens

    @property
    def span_tokens(self) -> int:
        return self.window_tokens

    def tail_start(self, num_tokens: int) -> int:
        return max(0, num_tokens - self.window_tokens)
