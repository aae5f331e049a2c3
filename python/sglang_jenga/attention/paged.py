# SPDX-License-Identifier: Apache-2.0
"""Attention over paged keys: what a batch must gather, and the pass over the gathers.

A forward is a list of `Span`s, one per request: some queries at the end of a row of keys. Decode
is a span of one query, a prefill chunk a span of many. For one `Visibility`, `plan_batches`

1. cuts each span into tiles of queries, so that a window or chunk layer gathers only the keys which
   its tile can reach (and never a slot that has been freed behind the window);
2. groups tiles of similar size and pads each group into one `PaddedBatch`;
3. reads the slots of the keys out of the request's row of `req_to_token`.

The result is the same for every layer of a kind, so it is computed once per forward and kind;
`attend_paged` then runs it on one layer's buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sglang_jenga.attention.reference import Visibility, attend, visible_keys

MAX_TILE_QUERIES = 256
"""Queries per tile at most: bounds the part of a causal tile that is computed only to be masked."""

MAX_BATCH_SCORES = 1 << 21
"""Query-key pairs of one padded batch (8 MiB of logits per head), unless a tile needs more."""

MAX_BATCH_KEYS = 1 << 16
"""Keys gathered by one padded batch, unless a tile needs more."""

SMALLEST_KEY_CLASS = 5
"""Tiles with up to 2**5 keys are padded together: below that a second gather costs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One request's queries and keys in a forward. Positions count tokens of the request."""

    first_column: int
    """Column of `req_to_token` that holds key position 0 (the encoder length for decoder keys)."""
    num_keys: int
    """Keys in the row after this forward's writes."""
    query_start: int
    """Row of the first query in the flat query tensor."""
    num_queries: int
    first_query_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Consecutive queries of one span with the key positions that they may see.

    Those are the first `head_keys`, and from `first_key` on as many as make `num_keys`.
    """

    request: int
    first_column: int
    query_start: int
    num_queries: int
    first_query_position: int
    first_key: int
    num_keys: int
    head_keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """Tiles of similar size, padded to Q queries and K keys.

    Padding repeats the last query and the last key of the tile, so padding never reads a slot that
    the tile does not own; `seen` hides the repeated keys.
    """

    queries: torch.Tensor
    """int64 `[B, Q]`: rows of the flat query tensor."""
    slots: torch.Tensor
    """int64 `[B, K]`: slots of the keys, in the id space of the row (or as translated)."""
    seen: torch.Tensor | None
    """bool `[B, Q, K]`, or None when every query sees every key."""
    answered: torch.Tensor | None
    """int64 `[N]`: which of the B * Q results are real; None when all are."""

    def at_slots(self, slots: torch.Tensor) -> PaddedBatch:
        """The same gathers in another id space; `slots` is int64 `[B, K]` there."""
        return replace(self, slots=slots)


def plan_batches(
    spans: Sequence[Span],
    rule: Visibility,
    *,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
) -> list[PaddedBatch]:
    """The padded gathers that compute `rule` for `spans`.

    `req_to_token` is `[rows, columns]` of slots; `rows` int64 `[len(spans)]` names each span's row.
    Spans without queries or keys are left out: their results are zero.
    """
    groups: dict[tuple[int, int], list[Tile]] = {}
    for request, span in enumerate(spans):
        for tile in _tiles(request, span, rule):
            size = (
                (tile.num_queries - 1).bit_length(),
                max((tile.num_keys - 1).bit_length(), SMALLEST_KEY_CLASS),
            )
            groups.setdefault(size, []).append(tile)
    batches = []
    for (query_class, key_class), tiles in sorted(groups.items()):
        per_batch = max(
            1, min(MAX_BATCH_SCORES >> (query_class + key_class), MAX_BATCH_KEYS >> key_class)
        )
        for start in range(0, len(tiles), per_batch):
            batches.append(_pad(tiles[start : start + per_batch], rule, req_to_token, rows))
    return batches


def attend_paged(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    batches: Sequence[PaddedBatch],
    *,
    scaling: float,
    logit_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of `query` `[T, H, Dk]` over one layer's `keys` `[slots, KH, Dk]` and `values`
    `[slots, KH, Dv]`, which may be strided views. Returns `[T, H, Dv]` in the query's dtype.

    Rows of no span (padding) and rows of a span without keys are zero.
    """
    out = query.new_zeros(query.shape[0], query.shape[1], values.shape[-1])
    for batch in batches:
        result = attend(
            query[batch.queries],
            _gather(keys, batch.slots),
            _gather(values, batch.slots),
            batch.seen,
            scaling=scaling,
            logit_cap=logit_cap,
            sinks=sinks,
        ).flatten(0, 1)
        rows = batch.queries.flatten()
        if batch.answered is not None:
            rows, result = rows[batch.answered], result[batch.answered]
        out.index_copy_(0, rows, result.to(out.dtype))
    return out


def _gather(buffer: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    # index_select is several times faster than indexing, most of all on strided views.
    return buffer.index_select(0, slots.flatten()).view(*slots.shape, *buffer.shape[1:])


def _tiles(request: int, span: Span, rule: Visibility) -> list[Tile]:
    if span.num_queries == 0 or span.num_keys == 0:
        return []
    reach = MAX_TILE_QUERIES
    own = rule.policy.span_tokens if rule.policy is not None else None
    for limit in (rule.window_tokens, rule.chunk_tokens, own):
        # A tile of n queries in a window of W gathers n + W keys: n near W keeps the gather
        # linear in the length of the prompt, and below 16 the per-tile cost wins.
        if limit is not None:
            reach = min(reach, max(limit, 16))
    longest = MAX_BATCH_SCORES // reach
    tiles = []
    done = 0
    while done < span.num_queries:
        position = span.first_query_position + done
        count = min(reach, span.num_queries - done)
        if rule.chunk_tokens is not None:
            # End at a chunk border: the next chunk shares no key with this one.
            count = min(count, rule.chunk_tokens - position % rule.chunk_tokens)
        first_key = rule.first_key(position)
        end_key = rule.end_key(position + count - 1, span.num_keys)
        if end_key - first_key > longest:
            count = min(count, 16)
            end_key = rule.end_key(position + count - 1, span.num_keys)
        head_keys = min(rule.head_keys, first_key)
        tiles.append(
            Tile(
                request=request,
                first_column=span.first_column,
                query_start=span.query_start + done,
                num_queries=count,
                first_query_position=position,
                first_key=first_key,
                num_keys=head_keys + end_key - first_key,
                head_keys=head_keys,
            )
        )
        done += count
    return tiles


def _pad(
    tiles: Sequence[Tile], rule: Visibility, req_to_token: torch.Tensor, rows: torch.Tensor
) -> PaddedBatch:
    device = req_to_token.device
    table = torch.tensor(
        [
            (
                tile.request,
                tile.first_column,
                tile.query_start,
                tile.num_queries,
                tile.first_query_position,
                tile.first_key,
                tile.num_keys,
                tile.head_keys,
            )
            for tile in tiles
        ],
        dtype=torch.int64,
        device=device,
    )
    request, column, query_start, query_count, query_position, first_key, key_count, head_keys = (
        table.t().unsqueeze(-1).unbind()
    )
    max_queries = max(tile.num_queries for tile in tiles)
    max_keys = max(tile.num_keys for tile in tiles)
    queries_ragged = any(tile.num_queries != max_queries for tile in tiles)
    keys_ragged = any(tile.num_keys != max_keys for tile in tiles)

    query_step = torch.arange(max_queries, device=device)
    query_offset = torch.minimum(query_step, query_count - 1)
    key_step = torch.arange(max_keys, device=device)
    key_index = torch.minimum(key_step, key_count - 1)
    key_position = torch.where(key_index < head_keys, key_index, first_key + key_index - head_keys)
    slots = req_to_token[rows[request], column + key_position].long()

    # A lone causal query sees all its keys, because they were cut for it.
    unbounded = rule.window_tokens is None and rule.chunk_tokens is None and rule.policy is None
    sees_all = max_queries == 1 if rule.causal else unbounded
    seen = None
    if not sees_all:
        seen = visible_keys(query_position + query_offset, key_position, rule)
    if keys_ragged:
        real = (key_step < key_count).unsqueeze(-2)
        seen = real if seen is None else seen & real
    answered = None
    if queries_ragged:
        answered = (query_step < query_count).flatten().nonzero().flatten()
    return PaddedBatch(
        queries=query_start + query_offset, slots=slots, seen=seen, answered=answered
    )
