# SPDX-License-Identifier: Apache-2.0
"""What a layer kind is: its bytes, its rows and its dependency on the past.

A kind is a set of layers that need the same tokens of the past and store the same bytes for
each. One slot of a kind holds the rows of ALL its layers side by side (token-major), so one
token stride is right for every layer. Draft-model kinds are kinds named ``draft:...``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from sglang_jenga.core.errors import ConfigError


class Dependency(StrEnum):
    """Which tokens of the past a kind reads (paper: the per-layer-type prefix rules)."""

    FULL = "full"
    WINDOW = "window"
    CHUNKED = "chunked"
    STATE = "state"
    CROSS = "cross"
    VISION = "vision"


_SPANNED = frozenset({Dependency.WINDOW, Dependency.CHUNKED})
_PAGED = frozenset({Dependency.FULL, Dependency.WINDOW, Dependency.CHUNKED, Dependency.CROSS})


def require_positive(**values: int) -> None:
    """Raise ConfigError naming the first value that is not a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{name} must be a positive integer, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpec:
    """One contiguous row inside a slot.

    layer_id: the model's own layer number.
    part: ``k`` / ``v`` for attention, ``conv0``.. / ``temporal`` for states, ``embed`` for vision.
    row_bytes: bytes of the row, a multiple of itemsize_bytes.
    itemsize_bytes: element size of the part. Views count strides in elements, so row starts and
        slot sizes are kept multiples of it.
    """

    layer_id: int
    part: str
    row_bytes: int
    itemsize_bytes: int = 1

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


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSpec:
    """A layer kind before any padding.

    rows: the rows of one slot, in memory order.
    span_tokens: W of a window kind (a hit of n tokens needs slots [n - W, n)), C of a chunked
        kind (slots of the current chunk of C tokens), None for every other dependency.

    Raises ConfigError when a field contradicts another one.
    """

    name: str
    dependency: Dependency
    rows: tuple[RowSpec, ...]
    span_tokens: int | None = None

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
        if self.dependency in _SPANNED:
            if self.span_tokens is None:
                raise ConfigError(
                    f"kind {self.name!r} is {self.dependency}: give span_tokens, "
                    "the window or chunk length"
                )
            require_positive(span_tokens=self.span_tokens)
        elif self.span_tokens is not None:
            raise ConfigError(
                f"kind {self.name!r} is {self.dependency}: span_tokens {self.span_tokens} has no "
                "meaning here, only window and chunked kinds have a span"
            )

    @property
    def payload_bytes(self) -> int:
        """Bytes of one slot that hold data: the sum of its rows, without any padding."""
        return sum(row.row_bytes for row in self.rows)

    @property
    def num_layers(self) -> int:
        """Distinct layers that store rows in this kind."""
        return len({row.layer_id for row in self.rows})

    @property
    def paged_by_tokens(self) -> bool:
        """Whether kernels address the kind by pages of page_tokens consecutive slots.

        False for states and vision embeddings, whose small page is one slot.
        """
        return self.dependency in _PAGED

    @property
    def grows_with_text(self) -> bool:
        """Whether a request takes a slot for each token of text that it computes."""
        return self.dependency is Dependency.FULL or self.slides

    @property
    def slides(self) -> bool:
        """Whether a running request gives up its oldest slots as it grows."""
        return self.dependency in _SPANNED


def attention_kind(
    name: str,
    dependency: Dependency,
    layer_ids: Iterable[int],
    *,
    num_kv_heads: int,
    k_head_dim: int,
    v_head_dim: int,
    itemsize: int,
    span_tokens: int | None = None,
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
        )
        for layer_id in layer_ids
        for part, head_dim in (("k", k_head_dim), ("v", v_head_dim))
    )
    return KindSpec(name=name, dependency=dependency, rows=rows, span_tokens=span_tokens)


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
    return KindSpec(name=name, dependency=Dependency.STATE, rows=rows)


def live_range(
    spec: KindSpec, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
) -> range:
    """Positions whose slots a request must hold once it has num_tokens tokens.

    num_tokens: text tokens of the request, the chunk being prefilled included.
    chunk_tokens: how many of them the current prefill step computes; 0 while decoding.
    image_tokens: tokens of the request's images, read by cross and vision kinds only.

    With n = num_tokens, c = chunk_tokens, h = n - c (what was there before the chunk), the range
    is what a hit of h tokens needs, plus the chunk itself:

        full           [0, n)
        window W       [max(0, h - W), n);          decoding: [max(0, n - W), n)
        chunked C      [floor(h / C) * C, n);       decoding: [floor((n - 1) / C) * C, n)
        state          [0, 1)
        cross, vision  [0, image_tokens)

    While decoding, slots that slid out are freed before the next one is taken, and a chunked kind
    keeps its last chunk even when complete: the token just computed read it. The indices are
    positions in the request, not slot ids. ConfigError on negative or contradictory lengths.
    """
    if not 0 <= chunk_tokens <= num_tokens:
        raise ConfigError(
            f"chunk_tokens {chunk_tokens} must lie in [0, num_tokens {num_tokens}]: "
            "the chunk is part of the request"
        )
    if image_tokens < 0:
        raise ConfigError(f"image_tokens must be >= 0, got {image_tokens}")
    before = num_tokens - chunk_tokens
    span = spec.span_tokens or 0
    match spec.dependency:
        case Dependency.FULL:
            return range(num_tokens)
        case Dependency.WINDOW:
            return range(max(0, before - span), num_tokens)
        case Dependency.CHUNKED:
            last = before if chunk_tokens else max(0, num_tokens - 1)
            return range(last // span * span, num_tokens)
        case Dependency.STATE:
            return range(min(1, num_tokens))
        case Dependency.CROSS | Dependency.VISION:
            return range(image_tokens)


def slots_needed(
    spec: KindSpec, num_tokens: int, *, chunk_tokens: int = 0, image_tokens: int = 0
) -> int:
    """How many slots of a kind a request must hold: the length of its live_range."""
    return len(live_range(spec, num_tokens, chunk_tokens=chunk_tokens, image_tokens=image_tokens))
