# SPDX-License-Identifier: Apache-2.0
"""What a trace is, and what is left out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.printable import printable

#: Tokens of the prompt that one id of a Mooncake trace stands for.
MOONCAKE_BLOCK_TOKENS = 512
#: Characters of a token where a trace has text alone, and no tokenizer is read.
CHARACTERS_PER_TOKEN = 4.0
_NUMBERS_SHOWN = 3

Unit = Literal["line", "entry"]


class TraceError(ConfigError):
    """A trace that cannot be read; names the file and the line (the entry of an array)."""

    def __init__(self, path: Path, number: int, problem: str, unit: Unit = "line") -> None:
        name = printable(str(path))
        where = f"{name}:{number}" if unit == "line" else f"{name}: entry {number}"
        super().__init__(f"{where}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request.

    blocks: ids of its prompt's text, block by block; empty: nobody knows. conversation: the one it
    is a turn of: its prompt begins with the prompt and the answer of the turn before; -1: none.
    """

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    conversation: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What was not replayed, for one reason. first: numbers of the first few lines or entries."""

    reason: str
    count: int
    unit: Unit
    first: tuple[int, ...]

    def __str__(self) -> str:
        numbers = ", ".join(f"{number:,}" for number in self.first)
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count:,}: {self.reason} ({self.unit} {numbers}{more})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival.

    block_tokens: tokens of a block, 0 where requests have none. conversations: requests are turns.
    left_out: what is missing, by reason. note: what a reader must know of the numbers.
    """

    format: str
    requests: tuple[TraceRequest, ...]
    block_tokens: int = 0
    conversations: bool = False
    left_out: tuple[LeftOut, ...] = ()
    note: str = ""

    @property
    def shares_text(self) -> bool:
        """Whether the trace says which prompts begin alike."""
        return self.block_tokens > 0 or self.conversations

    @property
    def failed(self) -> int:
        """How many lines or entries were left out."""
        return sum(left.count for left in self.left_out)

    @property
    def prompt_tokens(self) -> int:
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(request.output_tokens for request in self.requests)


@dataclass(slots=True, kw_only=True)
class Source:
    """Where a reader reads, and what it has left out so far."""

    path: Path
    unit: Unit = "line"
    characters_per_token: float = CHARACTERS_PER_TOKEN
    _counts: dict[str, int] = field(default_factory=dict)
    _first: dict[str, list[int]] = field(default_factory=dict)

    def error(self, number: int, problem: str) -> TraceError:
        """The error for line or entry ``number``."""
        return TraceError(self.path, number, problem, self.unit)

    def leave_out(self, number: int, reason: str) -> None:
        """Line or entry ``number`` is not replayed."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        first = self._first.setdefault(reason, [])
        if len(first) < _NUMBERS_SHOWN and number not in first:
            first.append(number)

    def left_out(self) -> tuple[LeftOut, ...]:
        """By reason, in the order in which they came."""
        return tuple(
            LeftOut(reason=reason, count=count, unit=self.unit, first=tuple(self._first[reason]))
            for reason, count in self._counts.items()
        )
