# SPDX-License-Identifier: Apache-2.0
"""The plan of an arena: frozen, checked, and the same bytes in the planner and in the runtime.

Invariants, checked when a plan is built or read back (equations over each kind):

    small_page_bytes     = slots_per_small_page * slot_bytes
    large_page_bytes     = small_pages_per_large_page * small_page_bytes      (for EVERY kind)
    arena_bytes          = num_large_pages * large_page_bytes
    byte of a row        = slot_id * slot_bytes + row_offset_bytes(layer_id, part)
    row_offset_bytes     = a multiple of ROW_ALIGN_BYTES
    slot_bytes           = a multiple of SLOT_ALIGN_BYTES and, where a kind has heads of one size,
                           of a head
    0 <= slot_id < num_large_pages * slots_per_large_page <= 2**31

so a slot id is a physical address for its whole life and one strided view per row spans the arena.
"""

import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import lcm
from typing import Any, Literal, Self

from sglang_jenga.core import policies
from sglang_jenga.core.errors import ConfigError, require_positive
from sglang_jenga.core.kinds import KindSpec, RowSpec
from sglang_jenga.core.policies import State
from sglang_jenga.core.sizes import count, format_bytes

SCHEMA = 1
MAX_SLOT_IDS = 2**31  # SGLang keeps slot ids in int32 tables (req_to_token)
#: Where rows start and what slots are multiples of, as in SGLang's own token-major layout: its
#: vectorised kernels read and write 16 bytes at once.
ROW_ALIGN_BYTES, SLOT_ALIGN_BYTES = 16, 32

Geometry = Literal["lcm", "padded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialWaste:
    """Bytes of one kind that ONE request holds in partly filled large pages it shares with nobody.

    expected_bytes averages over request lengths; worst_bytes is the bound.
    """

    expected_bytes: int
    worst_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KindPlan:
    """Where one kind lives in a large page.

    slot_bytes: padded bytes of a slot, the token stride of every view of the kind.
    row_offsets_bytes: start of each row of spec.rows inside the slot, in the same order.
    slots_per_small_page: page_tokens for kinds paged by tokens, else 1.
    padding_bytes_per_slot: slot_bytes minus the payload.
    """

    spec: KindSpec
    slot_bytes: int
    row_offsets_bytes: tuple[int, ...]
    slots_per_small_page: int
    small_pages_per_large_page: int
    padding_bytes_per_slot: int

    def __post_init__(self) -> None:
        name = self.spec.name
        require_positive(
            slot_bytes=self.slot_bytes,
            slots_per_small_page=self.slots_per_small_page,
            small_pages_per_large_page=self.small_pages_per_large_page,
        )
        if len(self.row_offsets_bytes) != len(self.spec.rows):
            raise ConfigError(
                f"kind {name!r}: {len(self.row_offsets_bytes)} row offsets for "
                f"{len(self.spec.rows)} rows: the plan is damaged, make it again"
            )
        end = 0
        for row, offset in zip(self.spec.rows, self.row_offsets_bytes, strict=True):
            if offset < end or offset % row.itemsize_bytes or self.slot_bytes % row.itemsize_bytes:
                raise ConfigError(
                    f"kind {name!r}: layer {row.layer_id} part {row.part!r} starts at byte "
                    f"{offset} of a {self.slot_bytes} B slot, but the previous row ends at {end} "
                    f"and elements take {row.itemsize_bytes} B: the plan is damaged, make it again"
                )
            if offset % ROW_ALIGN_BYTES:
                raise ConfigError(
                    f"kind {name!r}: layer {row.layer_id} part {row.part!r} starts at byte "
                    f"{offset}, and rows start at multiples of {ROW_ALIGN_BYTES} B: kernels read "
                    "that much at once: the plan is damaged, make it again"
                )
            end = offset + row.row_bytes
        if self.slot_bytes % slot_unit_bytes(self.spec):
            raise ConfigError(
                f"kind {name!r}: a slot of {self.slot_bytes} B is no multiple of "
                f"{slot_unit_bytes(self.spec)} B ({SLOT_ALIGN_BYTES} B, elements and heads of "
                f"{self.spec.head_bytes} B): the plan is damaged, make it again"
            )
        padding = self.slot_bytes - self.spec.payload_bytes
        if end > self.slot_bytes or padding != self.padding_bytes_per_slot:
            raise ConfigError(
                f"kind {name!r}: rows end at byte {end} of a {self.slot_bytes} B slot with "
                f"{padding} B of padding, the plan states {self.padding_bytes_per_slot} B: "
                "the plan is damaged, make it again"
            )

    @property
    def slots_per_large_page(self) -> int:
        """Consecutive slots of this kind that one large page holds."""
        return self.slots_per_small_page * self.small_pages_per_large_page

    @property
    def small_page_bytes(self) -> int:
        """Bytes of a small page, padding included."""
        return self.slots_per_small_page * self.slot_bytes

    @property
    def padding_bytes_per_large_page(self) -> int:
        """Bytes of a large page of this kind that never hold data."""
        return self.padding_bytes_per_slot * self.slots_per_large_page

    @property
    def padding_percent(self) -> float:
        """Share of a large page of this kind that holds padding, in percent."""
        return 100 * self.padding_bytes_per_slot / self.slot_bytes

    def row_offset_bytes(self, layer_id: int, part: str) -> int:
        """Byte offset inside a slot of one layer's part. KeyError if the kind has no such row."""
        for row, offset in zip(self.spec.rows, self.row_offsets_bytes, strict=True):
            if row.layer_id == layer_id and row.part == part:
                return offset
        raise KeyError(f"kind {self.spec.name!r} has no row for layer {layer_id} part {part!r}")

    def layer_stride_bytes(self, part: str) -> int:
        """Distance between consecutive layers of a part, 0 for a single layer.

        ConfigError where the distance is not constant, so that no tensor with the layer as its
        first dimension exists. KeyError if the kind has no such part.
        """
        starts = [
            offset
            for row, offset in zip(self.spec.rows, self.row_offsets_bytes, strict=True)
            if row.part == part
        ]
        if not starts:
            raise KeyError(f"kind {self.spec.name!r} has no part {part!r}")
        steps = sorted({b - a for a, b in pairwise(starts)})
        if len(steps) > 1:
            raise ConfigError(
                f"kind {self.spec.name!r} part {part!r}: layers lie {steps[0]} to {steps[-1]} B "
                "apart, one strided tensor needs one distance: order the rows part by part"
            )
        return steps[0] if steps else 0

    def partial_waste(self) -> PartialWaste:
        """What a request that shares no large page of this kind loses in partly filled ones.

        With S = slots_per_large_page and the request's slots consecutive:

            full, cross, vision   worst = S - 1          expected = (S - 1) / 2
            window, chunked       worst = 2 * (S - 1)    expected = S - 1    (both ends are open)
            state                 worst = S - 1          expected = S - 1    (it needs one slot)

        Bytes are slots times slot_bytes. Lower in practice: requests share large pages as soon as
        no free one is left (design: allocation order).
        """
        worst_slots = self.slots_per_large_page - 1
        if self.spec.policy.SLIDES:
            worst_slots *= 2
        halved = not isinstance(self.spec.policy, State)
        return PartialWaste(
            expected_bytes=worst_slots * self.slot_bytes // (2 if halved else 1),
            worst_bytes=worst_slots * self.slot_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaPlan:
    """How one arena is cut.

    page_tokens: SGLang's page size; a small page of a kind paged by tokens has as many slots.
    num_large_pages: includes large page 0, the sink that takes padded writes (slot 0 of every
        kind) and is never handed out.
    kinds: in the order given to the planner; the allocator addresses kinds by this index.
    geometry: ``lcm`` when no slot was padded to make sizes meet, else ``padded``.
    explanation: why this large page, and what came second.
    """

    page_tokens: int
    large_page_bytes: int
    num_large_pages: int
    kinds: tuple[KindPlan, ...]
    geometry: Geometry
    explanation: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(
                f"plan schema {self.schema} is unknown, this version reads schema {SCHEMA}: "
                "make the plan again with this version"
            )
        if self.geometry not in ("lcm", "padded"):
            raise ConfigError(f"geometry must be 'lcm' or 'padded', got {self.geometry!r}")
        require_positive(
            page_tokens=self.page_tokens,
            large_page_bytes=self.large_page_bytes,
            num_large_pages=self.num_large_pages,
        )
        require_distinct(tuple(kind.spec for kind in self.kinds))
        for kind in self.kinds:
            if kind.small_pages_per_large_page * kind.small_page_bytes != self.large_page_bytes:
                raise ConfigError(
                    f"kind {kind.spec.name!r}: {kind.small_pages_per_large_page} small pages of "
                    f"{kind.small_page_bytes} B are not one large page of "
                    f"{self.large_page_bytes} B: the plan is damaged, make it again"
                )
            ids = self.num_large_pages * kind.slots_per_large_page
            if ids > MAX_SLOT_IDS:
                raise ConfigError(
                    f"kind {kind.spec.name!r} would have {ids:,} slot ids, SGLang's int32 tables "
                    f"hold {MAX_SLOT_IDS:,}: keep the arena at or below "
                    f"{format_bytes(MAX_SLOT_IDS * kind.slot_bytes)}"
                )

    @property
    def arena_bytes(self) -> int:
        """Bytes of the buffer, the sink page included."""
        return self.num_large_pages * self.large_page_bytes

    @property
    def usable_large_pages(self) -> int:
        """Large pages that can be handed out: all but the sink."""
        return self.num_large_pages - 1

    @property
    def usable_bytes(self) -> int:
        """Bytes of the usable large pages."""
        return self.usable_large_pages * self.large_page_bytes

    @property
    def padding_bytes_per_large_page(self) -> int:
        """Padding in a large page of the kind that has most of it."""
        return max(kind.padding_bytes_per_large_page for kind in self.kinds)

    @property
    def padding_percent(self) -> float:
        """padding_bytes_per_large_page as a share of the large page, in percent."""
        return 100 * self.padding_bytes_per_large_page / self.large_page_bytes

    def kind(self, name: str) -> KindPlan:
        """The plan of one kind. KeyError if there is none of that name."""
        for kind in self.kinds:
            if kind.spec.name == name:
                return kind
        raise KeyError(f"no kind {name!r} in this plan, only {[k.spec.name for k in self.kinds]}")

    def num_slots(self, name: str) -> int:
        """Size of the kind's slot id space over the whole arena, sink slots included."""
        return self.num_large_pages * self.kind(name).slots_per_large_page

    def describe(self) -> list[str]:
        """One line per kind, one on the arena, one on its waste."""
        lines = []
        for kind in self.kinds:
            usable = self.usable_large_pages * kind.slots_per_large_page
            lines.append(
                f"kind {kind.spec.name}: {kind.spec.policy}, "
                f"{count(kind.spec.num_layers, 'layer')}, slot {format_bytes(kind.slot_bytes)}, "
                f"small page {count(kind.slots_per_small_page, 'slot')}, "
                f"large page {count(kind.slots_per_large_page, 'slot')}, "
                f"at most {count(usable, 'slot')}, padding {kind.padding_percent:.4f} %"
            )
        partial = [kind.partial_waste() for kind in self.kinds]
        lines.append(
            f"arena: {format_bytes(self.arena_bytes)} = {count(self.num_large_pages, 'large page')}"
            f" of {format_bytes(self.large_page_bytes)} ({self.geometry}, one is the sink)"
        )
        lines.append(
            f"waste: padding at most {self.padding_percent:.4f} %, a request that shares no large "
            f"page leaves {format_bytes(sum(p.expected_bytes for p in partial))} expected and "
            f"{format_bytes(sum(p.worst_bytes for p in partial))} worst in partly filled ones"
        )
        return lines

    def to_json(self) -> str:
        """The whole plan as JSON text, stable byte for byte."""
        data = asdict(self)
        for kind, plain in zip(self.kinds, data["kinds"], strict=True):
            plain["spec"]["policy"] = policies.to_dict(kind.spec.policy)
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read back to_json. ConfigError on an unknown schema, a missing field or bad numbers."""
        try:
            data = json.loads(text)
            found = data.get("schema")
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"an arena plan must be a JSON object: {error}") from error
        if found != SCHEMA:
            raise ConfigError(
                f"plan schema {found!r} is unknown, this version reads schema {SCHEMA}: "
                "make the plan again with this version"
            )
        try:
            kinds = tuple(_kind_plan(kind) for kind in data.pop("kinds"))
            return cls(kinds=kinds, **_exact(cls, data, without="kinds"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"damaged arena plan ({type(error).__name__}: {error}): make it again"
            ) from error


def slot_unit_bytes(spec: KindSpec) -> int:
    """What a slot of this kind is a multiple of: alignment, its elements, its heads."""
    return lcm(SLOT_ALIGN_BYTES, spec.head_bytes or 1, *{row.itemsize_bytes for row in spec.rows})


def require_distinct(kinds: tuple[KindSpec, ...]) -> None:
    """Raise ConfigError when there are no kinds or two share a name."""
    names = [kind.name for kind in kinds]
    if not names:
        raise ConfigError("an arena needs at least one kind, got none")
    if len(set(names)) != len(names):
        raise ConfigError(f"kind names must differ, got {names}")


def _exact(cls: type, data: dict[str, Any], *, without: str) -> dict[str, Any]:
    expected = {field.name for field in fields(cls)} - {without}
    if set(data) != expected:
        raise ValueError(f"{cls.__name__} fields {sorted(set(data) ^ expected)} differ")
    return data


def _kind_plan(data: dict[str, Any]) -> KindPlan:
    spec = data.pop("spec")
    rows = tuple(RowSpec(**row) for row in spec.pop("rows"))
    spec["policy"] = policies.from_dict(spec["policy"])
    data["row_offsets_bytes"] = tuple(data["row_offsets_bytes"])
    return KindPlan(
        spec=KindSpec(rows=rows, **_exact(KindSpec, spec, without="rows")),
        **_exact(KindPlan, data, without="spec"),
    )
