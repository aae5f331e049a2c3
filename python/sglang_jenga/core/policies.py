# SPDX-License-Identifier: Apache-2.0
"""Policies: what each kind needs of the past (design section 5). Pure integers.

A policy answers, for one kind: which slots a hit of n tokens needs, so which lengths are hits; what
a running request holds; what it can give back as it grows. Positions count a request's tokens;
``#`` marks what the next token, at position n, reads:

    full             [0, n)                      ################|
    window(W)        [n - W, n)                  ............####|
    chunked(C)       [floor(n / C) * C, n)       ........:#######|
    state            the state after n - 1       ...............#|
    cross            every token of its images   (positions of images, not of text)
    vision           nothing: can be encoded again

A new kind of attention is a subclass of :class:`TokenPolicy`, registered with :func:`register` (see
docs/new-kind.md for one with sinks).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

from sglang_jenga.core.errors import ConfigError, require_positive

#: Attribute by which an attention layer states a policy that its engine has no word for.
KV_POLICY = "kv_policy"


@dataclass(slots=True)
class LiveSlots:
    """Which positions of a prompt still have their slot of a kind: sorted, disjoint ranges.

    Grows from position 0 on, as a walk down the tree finds it.
    """

    num_tokens: int = 0
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def extend(self, tokens: int, *, live: bool) -> None:
        """The next ``tokens`` positions have their slots, or have lost them."""
        begin, self.num_tokens = self.num_tokens, self.num_tokens + tokens
        if not live or not tokens:
            return
        if self.ends and self.ends[-1] == begin:
            self.ends[-1] = self.num_tokens
        else:
            self.starts.append(begin)
            self.ends.append(self.num_tokens)

    def append(self, other: LiveSlots) -> None:
        """The positions that follow, counted from 0 in ``other``."""
        begin = self.num_tokens
        for start, end in zip(other.starts, other.ends, strict=True):
            self.extend(begin + start - self.num_tokens, live=False)
            self.extend(end - start, live=True)
        self.extend(begin + other.num_tokens - self.num_tokens, live=False)

    def cover(self, needed: Sequence[range]) -> bool:
        """Whether every position of ``needed`` has its slot."""
        for part in needed:
            found = bisect_right(self.starts, part.start) - 1
            if part and (found < 0 or self.ends[found] < part.stop):
                return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(ABC):
    """What one kind needs of the past. See the module docstring.

    NAME: its name in plans and reports. GROWS_WITH_TEXT: a request takes a slot for each token of
    text. PAGED_BY_TOKENS: kernels address the kind by pages of page_tokens consecutive slots;
    otherwise its small page is one slot. SLIDES: a running request gives up its oldest slots.
    """

    NAME: ClassVar[str]
    GROWS_WITH_TEXT: ClassVar[bool] = False
    PAGED_BY_TOKENS: ClassVar[bool] = False
    SLIDES: ClassVar[bool] = False

    @property
    def span_tokens(self) -> int | None:
        """Tokens that a tail never exceeds; None: it holds everything, or there is none."""
        return None

    @abstractmethod
    def needed(self, prefix_tokens: int, *, image_tokens: int = 0) -> tuple[range, ...]:
        """Positions whose slots a hit of ``prefix_tokens`` needs, ascending.

        ``image_tokens``: tokens of the request's images, read by cross and vision kinds only.
        """

    def is_hit(self, prefix_tokens: int, live: LiveSlots, *, image_tokens: int = 0) -> bool:
        """Whether a cached prefix of ``prefix_tokens`` is valid for the kind."""
        return live.cover(self.needed(prefix_tokens, image_tokens=image_tokens))

    def held(
        self, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
    ) -> tuple[range, ...]:
        """Positions whose slots a running request of ``num_tokens`` must hold.

        What a hit of the tokens before the current prefill chunk needs, and the chunk itself.
        ``chunk_tokens``: how many of ``num_tokens`` this step computes; 0 while decoding, when
        slots that slid out are given back before the next one is taken.
        """
        return self.needed(num_tokens, image_tokens=image_tokens)

    def __str__(self) -> str:
        values = ", ".join(f"{value:,}" for value in asdict(self).values())
        return f"{self.NAME}({values})" if values else self.NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy(Policy):
    """A kind with a slot for each token of text, of which later tokens read a head and a tail:

        [0, HEAD) and [tail_start(n), n)

    The tail never moves back: tail_start(n) <= tail_start(n + 1).
    """

    GROWS_WITH_TEXT: ClassVar[bool] = True
    PAGED_BY_TOKENS: ClassVar[bool] = True

    @abstractmethod
    def tail_start(self, num_tokens: int) -> int:
        """First position of the tail that the token at position ``num_tokens`` reads."""

    @property
    def head_tokens(self) -> int:
        """First tokens of a request that every later one reads, for good."""
        return 0

    @property
    def most_needed_tokens(self) -> int | None:
        """Tokens that a hit never needs more of; None: all of them."""
        return None if self.span_tokens is None else self.head_tokens + self.span_tokens

    def needed(self, prefix_tokens: int, *, image_tokens: int = 0) -> tuple[range, ...]:
        return self._head_and_tail(self.tail_start(prefix_tokens), prefix_tokens)

    def needed_tokens(self, prefix_tokens: int) -> int:
        """How many slots a hit of ``prefix_tokens`` needs."""
        return sum(map(len, self.needed(prefix_tokens)))

    def held(
        self, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
    ) -> tuple[range, ...]:
        return self._head_and_tail(self.tail_start(num_tokens - chunk_tokens), num_tokens)

    def dead_before(self, num_tokens: int, *, page_tokens: int = 1) -> int:
        """Behind the head, positions below this are dead once a request has ``num_tokens``.

        A whole number of pages. What is kept also serves a prefix cached at the last page boundary,
        so that the hit it makes possible is valid.
        """
        start = self.tail_start(num_tokens // page_tokens * page_tokens)
        return start // page_tokens * page_tokens

    def _head_and_tail(self, start: int, stop: int) -> tuple[range, ...]:
        head = min(self.head_tokens, start)
        return (range(head), range(start, stop)) if head else (range(start, stop),)


_PolicyClass = TypeVar("_PolicyClass", bound=type[Policy])
_REGISTERED: dict[str, type[Policy]] = {}


def register(policy: _PolicyClass) -> _PolicyClass:
    """Make a policy known by its NAME, so that plans that use it can be read back. A decorator.

    Raises:
        ConfigError: another policy has that name.
    """
    known = _REGISTERED.setdefault(policy.NAME, policy)
    if known.__qualname__ != policy.__qualname__:
        raise ConfigError(f"policy {policy.NAME!r} is taken by {known.__qualname__}: rename it")
    return policy


def to_dict(policy: Policy) -> dict[str, Any]:
    """A policy as JSON values: its name and fields."""
    return {"name": policy.NAME, **asdict(policy)}


def from_dict(data: dict[str, Any]) -> Policy:
    """The policy that :func:`to_dict` wrote.

    Raises:
        ConfigError: nobody registered one of that name.
    """
    values = dict(data)
    name = values.pop("name")
    if name not in _REGISTERED:
        raise ConfigError(
            f"policy {name!r} is unknown, known are {', '.join(sorted(_REGISTERED))}: import the "
            "module that registers it"
        )
    return _REGISTERED[name](**values)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Full(TokenPolicy):
    """Every token reads all that came before."""

    NAME: ClassVar[str] = "full"

    def tail_start(self, num_tokens: int) -> int:
        return 0


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Window(TokenPolicy):
    """A token reads the ``window_tokens`` before it."""

    NAME: ClassVar[str] = "window"
    SLIDES: ClassVar[bool] = True
    window_tokens: int

    def __post_init__(self) -> None:
        require_positive(window_tokens=self.window_tokens)

    @property
    def span_tokens(self) -> int:
        return self.window_tokens

    def tail_start(self, num_tokens: int) -> int:
        return max(0, num_tokens - self.window_tokens)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Chunked(TokenPolicy):
    """A token reads its own chunk of ``chunk_tokens``: a hit that ends with one needs nothing."""

    NAME: ClassVar[str] = "chunked"
    SLIDES: ClassVar[bool] = True
    chunk_tokens: int

    def __post_init__(self) -> None:
        require_positive(chunk_tokens=self.chunk_tokens)

    @property
    def span_tokens(self) -> int:
        return self.chunk_tokens

    def tail_start(self, num_tokens: int) -> int:
        return num_tokens // self.chunk_tokens * self.chunk_tokens

    def held(
        self, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
    ) -> tuple[range, ...]:
        # While decoding the last chunk is held even when complete: the token just computed read it.
        last = num_tokens - (chunk_tokens or min(1, num_tokens))
        return (range(self.tail_start(last), num_tokens),)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class State(Policy):
    """A recurrent state, overwritten by every token: the one after the last token is all there is.

    Position n - 1 stands for the state after n tokens.
    """

    NAME: ClassVar[str] = "state"

    def needed(self, prefix_tokens: int, *, image_tokens: int = 0) -> tuple[range, ...]:
        return (range(max(0, prefix_tokens - 1), prefix_tokens),)

    def held(
        self, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
    ) -> tuple[range, ...]:
        return (range(min(1, num_tokens)),)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Cross(Policy):
    """Layers that attend to images alone. Positions are those of images, which come before text.

    An image is read whole by every token, so a hit holds all images of the request or is none.
    """

    NAME: ClassVar[str] = "cross"
    PAGED_BY_TOKENS: ClassVar[bool] = True

    def needed(self, prefix_tokens: int, *, image_tokens: int = 0) -> tuple[range, ...]:
        return (range(image_tokens if prefix_tokens else 0),)

    def is_hit(self, prefix_tokens: int, live: LiveSlots, *, image_tokens: int = 0) -> bool:
        whole = prefix_tokens == 0 or prefix_tokens >= image_tokens
        return whole and live.cover(self.needed(prefix_tokens, image_tokens=image_tokens))


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Vision(Policy):
    """Embeddings of images, which the text layers of a forward take in once: a hit needs none."""

    NAME: ClassVar[str] = "vision"

    def needed(self, prefix_tokens: int, *, image_tokens: int = 0) -> tuple[range, ...]:
        return ()

    def held(
        self, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
    ) -> tuple[range, ...]:
        return (range(image_tokens),)
