# SPDX-License-Identifier: Apache-2.0
"""What a layer kind is: its policy (what it needs of the past) and its rows, so its bytes.

A kind is a set of layers that need the same tokens of the past and store the same bytes for
each. One slot of a kind holds the rows of ALL its layers side by side (token-major), so one
token stride is right for every layer. Draft-model kinds are kinds named ``draft:...``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from sglang_jenga.core.errors import ConfigError, require_positive
from sglang_jenga.core.policies import Policy, State


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """One contiguous row inside a slot.

    layer_id: the model's own layer number.
    part: ``k`` / ``v`` for attention, ``conv0``.. / ``temporal`` for states, ``embed`` for vision.
    row_bytes: bytes of the row, a multiple of itemsize_bytes.
    itemsize_bytes: element size of the part. Views count strides in elements, so row starts and
        slot sizes are kept multiples of it.
    head_bytes: one head of the row. Some attention kernels count strides in heads, so slot sizes
        are kept multiples of it where all rows of a kind agree. 0: the row has no heads.
    """

    layer_id: int
    part: str
    row_bytes: int
    itemsize_bytes: int = 1
    head_bytes: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.layer_id, int) or self.layer_id < 0:
            raise ConfigError(f"layer_id must be a layer number >= 0, got {self.layer_id!r}")
        if not self.part:
            raise ConfigError(f"layer {self.layer_id}: a row needs a part name such as 'k' or 'v'")
        require_positive(row_bytes=self.row_bytes, itemsize_bytes=self.itemsize_bytes)
        if self.row_bytes % self.itemsize_bytes:
            raise ConfigError(
                f"layer {self.layer_id} part {self.part!r}: row_bytes {self.row_bytes} is not a "
                f"multiple of its element size {self.itemsize_bytes} B"
            )
        if self.head_bytes and (
            self.head_bytes % self.itemsize_bytes or self.row_bytes % self.head_bytes
        ):
            raise ConfigError(
                f"layer {self.layer_id} part {self.part!r}: row_bytes {self.row_bytes} is not a "
                f"whole number of heads of {self.head_bytes} B in elements of "
                f"{self.itemsize_bytes} B"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSpec:
    """A layer kind before any padding.

    policy: what it needs of the past.
    rows: the rows of one slot, in memory order.

    Raises ConfigError when a field contradicts another one.
    """

    name: str
    policy: Policy
    rows: tuple[RowSpec, ...]

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a kind needs a name")
        if not self.rows:
            raise ConfigError(f"kind {self.name!r} has no rows: a slot must hold at least one")
        seen: set[tuple[int, str]] = set()
        for row in self.rows:
            key = (row.layer_id, row.part)
            if key in seen:
                raise ConfigError(
                    f"kind {self.name!r} lists layer {row.layer_id} part {row.part!r} twice: "
                    "each layer and part has one row in a slot"
                )
            seen.add(key)

    @property
    def payload_bytes(self) -> int:
        """Bytes of one slot that hold data: the sum of its rows, without any padding."""
        return sum(row.row_bytes for row in self.rows)

    @property
    def head_bytes(self) -> int:
        """Bytes of one head where all rows have the same, else 0 (states, K wider than V)."""
        first, *others = {row.head_bytes for row in self.rows}
        return 0 if others else first

    @property
    def num_layers(self) -> int:
        """Distinct layers that store rows in this kind."""
        return len({row.layer_id for row in self.rows})


def attention_kind(
    name: str,
    policy: Policy,
    layer_ids: Iterable[int],
    *,
    num_kv_heads: int,
    k_head_dim: int,
    v_head_dim: int,
    itemsize: int,
) -> KindSpec:
    """A kind whose slot is one token's K and V rows: K_0 V_0 K_1 V_1 ... in layer order."""
    require_positive(
        num_kv_heads=num_kv_heads, k_head_dim=k_head_dim, v_head_dim=v_head_dim, itemsize=itemsize
    )
    rows = tuple(
        RowSpec(
            layer_id=layer_id,
            part=part,
            row_bytes=num_kv_heads * head_dim * itemsize,
            itemsize_bytes=itemsize,
            head_bytes=head_dim * itemsize,
        )
        for layer_id in layer_ids
        for part, head_dim in (("k", k_head_dim), ("v", v_head_dim))
    )
    return KindSpec(name=name, policy=policy, rows=rows)


def state_kind(
    name: str,
    layer_ids: Iterable[int],
    *,
    conv_shapes: Sequence[Sequence[int]],
    conv_itemsize: int,
    temporal_shape: Sequence[int] | None,
    temporal_itemsize: int,
) -> KindSpec:
    """A kind whose slot is one request's recurrent state in every layer.

    conv_shapes: shape per convolution state of ONE layer (parts conv0, conv1, ...).
    temporal_shape: shape of the recurrent state of one layer, None where there is none.

    Rows are part-major, then layer: all layers of a part lie at one constant stride, so a single
    strided tensor per part exists with the layer as its first dimension, as SGLang's state
    tracking kernels expect.
    """
    layers = tuple(layer_ids)
    parts = [(f"conv{i}", shape, conv_itemsize) for i, shape in enumerate(conv_shapes)]
    if temporal_shape is not None:
        parts.append(("temporal", temporal_shape, temporal_itemsize))
    rows = tuple(
        RowSpec(
            layer_id=layer_id,
            part=part,
            row_bytes=prod(shape) * itemsize,
            itemsize_bytes=itemsize,
        )
        for part, shape, itemsize in parts
        for layer_id in layers
    )
    return KindSpec(name=name, policy=State(), rows=rows)


def held_slots(
    spec: KindSpec, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
) -> tuple[range, ...]:
    """Positions whose slots a request must hold once it has num_tokens tokens, ascending.

    num_tokens: text tokens of the request, the chunk being prefilled included.
    chunk_tokens: how many of them the current prefill step computes; 0 while decoding.
    image_tokens: tokens of the request's images, read by cross and vision kinds only.

    With n = num_tokens, c = chunk_tokens, h = n - c (what was there before the chunk), it is what a
    hit of h tokens needs, plus the chunk itself:

        full           [0, n)
        window W       [max(0, h - W), n)
        chunked C      [floor(h / C) * C, n);       decoding: [floor((n - 1) / C) * C, n)
        state          [0, 1)
        cross, vision  [0, image_tokens)

    The indices are positions in the request, not slot ids (one state, whatever its position).
    ConfigError on negative or contradictory lengths.
    """
    if not 0 <= chunk_tokens <= num_tokens:
        raise ConfigError(
            f"chunk_tokens {chunk_tokens} must lie in [0, num_tokens {num_tokens}]: "
            "the chunk is part of the request"
        )
    if image_tokens < 0:
        raise ConfigError(f"image_tokens must be >= 0, got {image_tokens}")
    return spec.policy.held(num_tokens, chunk_tokens=chunk_tokens, image_tokens=image_tokens)


def slots_needed(
    spec: KindSpec, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
) -> int:
    """How many slots of a kind a request must hold (:func:`held_slots`)."""
    held = held_slots(spec, num_tokens, chunk_tokens=chunk_tokens, image_tokens=image_tokens)
    return sum(map(len, held))
