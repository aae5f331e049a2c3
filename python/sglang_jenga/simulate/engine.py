# SPDX-License-Identifier: Apache-2.0
"""What the loop hands to an engine, and what it asks of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Request:
    """A request in the loop. An engine keeps what it needs about it in ``handle``.

    index: its place in the trace. after: the request that must have finished before, -1: none.
    computed_tokens: of prompt and answer, those whose slots are filled. generated_tokens: of the
    answer; what was generated stays when a request is preempted, its slots do not.
    """

    __slots__ = (
        "after",
        "computed_tokens",
        "generated_tokens",
        "handle",
        "image_tokens",
        "index",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
    )

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        output_tokens: int,
        image_tokens: int = 0,
        after: int = -1,
    ) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.image_tokens = image_tokens
        self.after = after
        self.computed_tokens = 0
        self.generated_tokens = 0
        self.preemptions = 0
        self.handle: Any = None

    @property
    def length(self) -> int:
        """Tokens there are now, of prompt and answer (images aside)."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def decodes(self) -> bool:
        """Whether its next token is all there is to compute."""
        return (
            self.generated_tokens > 0
            and self.computed_tokens == self.prompt_tokens + self.generated_tokens - 1
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KindBytes:
    """Where the bytes of one kind are. All of them and the free large pages make the arena.

    held: slots of running requests. cached: slots that only the prefix cache keeps. partial: what
    else is in the kind's large pages: tails of open runs and holes. padding: of the bytes held and
    cached, those that no layer reads.
    """

    held: int
    cached: int
    partial: int
    padding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Prompt tokens that a prefix cache served, over first starts.

    full_only_tokens: what full attention alone would have. cut_tokens: of those, the ones that
    were no hit because a kind lacked its part, by that kind.
    """

    hit_tokens: int = 0
    full_only_tokens: int = 0
    cut_tokens: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """One server's memory. Calls of a step come in the order of the methods below."""

    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds, in the order of the plan."""

    def longest_request_tokens(self) -> int:
        """The longest request, images and answer included, that is sure to finish."""

    def begin_step(self) -> None:
        """A step begins."""

    def decode(self, requests: Sequence[Request]) -> bool:
        """One more slot for each, or for none: False."""

    def next_chunk(self, request: Request, limit_tokens: int) -> int:
        """Slots for the next part of a prompt under way; how many tokens it has, 0: it waits."""

    def match(self, request: Request) -> int:
        """Tokens of the prompt that the cache has; the request is the next to be admitted."""

    def check(self, request: Request, limit_tokens: int, hit_tokens: int) -> int:
        """May it start? The tokens of its first chunk, 0: it has to wait."""

    def admit(self, request: Request, tokens: int, hit_tokens: int) -> None:
        """It starts, with a chunk of so many tokens."""

    def place_newcomers(self) -> None:
        """Slots for all that were admitted in this step."""

    def decoded(self, requests: Sequence[Request]) -> None:
        """The step gave each of them a token."""

    def prefilled(self, request: Request) -> None:
        """The step computed the last of its prompt, and its first token."""

    def finish(self, request: Request) -> None:
        """Its last token is there."""

    def end_chunk(self, request: Request) -> None:
        """The step computed a part of its prompt and more is to come."""

    def preempt(self, request: Request) -> None:
        """It gives everything back and will start anew."""

    def occupancy(self) -> tuple[KindBytes, ...]:
        """Where the bytes are, by kind."""

    def waits(self) -> Mapping[str, int]:
        """Refusals since the start, by the kind that lacked bytes."""

    def delayed_requests(self) -> Mapping[str, int]:
        """Requests refused at least once before they started, by the kind of the first refusal."""

    def hits(self) -> Hits:
        """What the prefix cache did."""

    def problems(self) -> list[str]:
        """What is wrong once every request has finished: lost slots, damaged lists."""
