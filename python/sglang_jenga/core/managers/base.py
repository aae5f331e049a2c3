# SPDX-License-Identifier: Apache-2.0
"""What models of KV managers are made of: requests, the stores they take from, the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_jenga.core.capacity import RequestShape, at_its_end
from sglang_jenga.core.errors import ConfigError
from sglang_jenga.core.kinds import KindSpec, held_slots, slots_needed
from sglang_jenga.core.plan import MAX_SLOT_IDS
from sglang_jenga.core.policies import State, Vision

Manager = Literal["jenga", "sglang-static", "sglang-unified", "vllm", "all-full", "gcd", "max"]
StockPools = Literal["all-full", "windows", "states"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Requests that are all alike. chunk_tokens: most prompt tokens of a step, None: whole prompts.

    image_tokens: K/V of images in cross layers; elsewhere images are part of the prompt.
    """

    prompt_tokens: int
    output_tokens: int
    image_tokens: int = 0
    chunk_tokens: int | None = 8192

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 0 or self.image_tokens < 0:
            raise ConfigError(
                "a request has at least 1 prompt token and no negative lengths, not "
                f"{self.prompt_tokens} + {self.output_tokens} (images {self.image_tokens})"
            )
        if self.total_tokens + self.image_tokens > MAX_SLOT_IDS:
            raise ConfigError(
                f"a request of {self.prompt_tokens:,} + {self.output_tokens:,} tokens (images "
                f"{self.image_tokens:,}) is longer than any server holds: SGLang numbers at most "
                f"{MAX_SLOT_IDS:,} slots"
            )

    @property
    def total_tokens(self) -> int:
        """Text at the end of a request."""
        return self.prompt_tokens + self.output_tokens

    @property
    def step_tokens(self) -> int:
        """Prompt tokens of the last prefill step."""
        return min(self.prompt_tokens, self.chunk_tokens or self.prompt_tokens)

    def prefill(self) -> RequestShape:
        """A request in its last prefill step."""
        return RequestShape(
            num_tokens=self.prompt_tokens,
            chunk_tokens=self.step_tokens,
            image_tokens=self.image_tokens,
        )

    def end(self, slide_tokens: int = 0) -> RequestShape:
        """A request whose last token is being computed, with as many dead window slots held: that
        token's own slot and the window before it, at the least."""
        return at_its_end(self.total_tokens, max(1, slide_tokens), self.image_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Something that requests take from: bytes, tokens, slots or blocks.

    at_end: what a request at its last token holds. peak: what one of them holds while it is
    prefilled, if that is more.
    """

    capacity: int
    at_end: int
    peak: int = 0

    @property
    def most_requests(self) -> int | None:
        """How many fit; None: they take nothing of it."""
        peak = max(self.peak, self.at_end)
        if peak == 0:
            return None
        if peak > self.capacity:
            return 0
        return 1 + (self.capacity - peak) // self.at_end if self.at_end else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A ratio that a manager needs before it knows the traffic, and the one that suits these
    requests. requests: what the best one holds."""

    flag: str
    default: float
    best: float
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one manager holds.

    needed_bytes, held_bytes: of all requests together, or of one where none fits. note: what a
    reader must know of this row.
    """

    manager: Manager
    requests: int
    needed_bytes: int
    held_bytes: int
    total_bytes: int
    split: Split | None = None
    note: str = ""

    @property
    def waste(self) -> float:
        """1 - needed / held."""
        return 1 - self.needed_bytes / self.held_bytes if self.held_bytes else 0.0

    @property
    def used(self) -> float:
        """Needed bytes over all bytes; 0 where no request fits."""
        return self.needed_bytes / self.total_bytes if self.requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The model, the bytes and the requests that managers are compared on.

    stock: how SGLang's own pools hold the model. stock_specs: the layers they count, empty: the
    same. state_slots: states that they set aside for each running request. side_cache_bytes:
    SGLang's cache of image embeddings, beside its pools.
    """

    specs: tuple[KindSpec, ...]
    stock: StockPools
    total_bytes: int
    page_tokens: int
    lengths: Lengths
    state_slots: int = 0
    stock_specs: tuple[KindSpec, ...] = ()
    side_cache_bytes: int = 0

    @property
    def request_specs(self) -> tuple[KindSpec, ...]:
        """What requests hold: all but embeddings, which are a cache."""
        return tuple(spec for spec in self.specs if not isinstance(spec.policy, Vision))

    @property
    def token_specs(self) -> tuple[KindSpec, ...]:
        """Kinds with K/V."""
        return tuple(s for s in self.request_specs if not isinstance(s.policy, State))

    @property
    def needed_bytes(self) -> int:
        """Bytes that the layers read for one request at its end."""
        end = self.lengths.end()
        return sum(
            spec.payload_bytes
            * slots_needed(
                spec,
                end.num_tokens,
                chunk_tokens=end.chunk_tokens,
                image_tokens=end.image_tokens,
            )
            for spec in self.request_specs
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of one state of all layers, 0: there is none."""
        return sum(s.payload_bytes for s in self.specs if isinstance(s.policy, State))

    @property
    def token_bytes(self) -> int:
        """K/V of one token in every layer."""
        return sum(spec.payload_bytes for spec in self.token_specs)

    @property
    def stock_token_specs(self) -> tuple[KindSpec, ...]:
        """Kinds with K/V, as SGLang's own pools count layers."""
        specs = self.stock_specs or self.specs
        return tuple(s for s in specs if not isinstance(s.policy, State | Vision))

    def in_pages(self, tokens: int) -> int:
        """``tokens`` rounded up to whole pages, in tokens."""
        return -(-tokens // self.page_tokens) * self.page_tokens

    def result(
        self,
        manager: Manager,
        stores: Sequence[Store],
        held_per_request: int,
        *,
        split: Split | None = None,
        note: str = "",
    ) -> Capacity:
        """The result for a manager whose requests take from all of ``stores``."""
        requests = most_requests(stores)
        shown = max(1, requests)
        return Capacity(
            manager=manager,
            requests=requests,
            needed_bytes=shown * self.needed_bytes,
            held_bytes=shown * held_per_request,
            total_bytes=self.total_bytes,
            split=split,
            note=note,
        )


def most_requests(stores: Sequence[Store]) -> int:
    """The most requests for which every store has room."""
    return min(n for n in (store.most_requests for store in stores) if n is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindDemand:
    """Pages of one kind: of a request at its end, and at the most while it is prefilled."""

    spec: KindSpec
    at_end_pages: int
    peak_pages: int


def demands(
    scene: Scene, specs: Sequence[KindSpec], page_tokens: int, *, slide_tokens: int = 0
) -> tuple[KindDemand, ...]:
    """What a request takes of each kind in pages of ``page_tokens`` (single slots for kinds that
    are not paged by tokens)."""
    found = []
    for spec in specs:
        at_end = _pages(spec, scene.lengths.end(slide_tokens), page_tokens)
        prefill = _pages(spec, scene.lengths.prefill(), page_tokens)
        found.append(KindDemand(spec=spec, at_end_pages=at_end, peak_pages=max(at_end, prefill)))
    return tuple(found)


def _pages(spec: KindSpec, shape: RequestShape, page_tokens: int) -> int:
    size = page_tokens if spec.policy.PAGED_BY_TOKENS else 1
    live = held_slots(
        spec,
        shape.num_tokens,
        chunk_tokens=shape.chunk_tokens,
        image_tokens=shape.image_tokens,
    )
    return sum(-(-part.stop // size) - part.start // size for part in live if part)
