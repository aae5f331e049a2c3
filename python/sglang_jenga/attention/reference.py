# SPDX-License-Identifier: Apache-2.0
"""Dense attention over gathered keys and values: which key a query sees, and the softmax.

Pure torch, float32, no pages and no requests: `paged` decides what is gathered, this module
says what it means. Semantics follow SGLang's own kernels (triton `extend_attention`, fa3):

| rule | query at position q sees key at position k when |
| --- | --- |
| causal | k <= q |
| window of W tokens, causal | q - W <= k <= q: W + 1 keys, as `sliding_window_size` counts |
| window of W tokens, not causal | abs(q - k) <= W |
| chunk of C tokens (Llama-4 iRoPE) | k <= q and floor(k / C) == floor(q / C) |
| a layer's own policy, causal | k <= q and k in its head or in its tail at q |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sglang_jenga.core.policies import TokenPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """Which keys a query sees, by position. Rules combine: a key must satisfy all of them."""

    window_tokens: int | None = None
    """Largest distance between a query and a key it sees; None means no window."""
    chunk_tokens: int | None = None
    """Length of the blocks that cannot see each other; None means one endless block."""
    policy: TokenPolicy | None = None
    """What the layer states itself, for kinds that SGLang has no word for; None means nothing."""
    causal: bool = True
    """Whether keys after the query are hidden."""

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 0:
            raise ValueError(
                f"window_tokens is {self.window_tokens}, but a window reaches back 0 tokens or "
                "more; pass None for a layer without a window."
            )
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(
                f"chunk_tokens is {self.chunk_tokens}, but a chunk holds at least 1 token; "
                "pass None for a layer without chunks."
            )

    @property
    def head_keys(self) -> int:
        """Keys before this position are seen by every later query."""
        return 0 if self.policy is None else self.policy.head_tokens

    def first_key(self, first_query_position: int) -> int:
        """Lowest key position, the head's aside, that a query at or after this one may see."""
        first = 0 if self.policy is None else self.policy.tail_start(first_query_position)
        if self.window_tokens is not None:
            first = max(first, first_query_position - self.window_tokens)
        if self.chunk_tokens is not None:
            first = max(first, first_query_position // self.chunk_tokens * self.chunk_tokens)
        return first

    def end_key(self, last_query_position: int, num_keys: int) -> int:
        """One past the highest key position that a query up to `last_query_position` sees."""
        end = num_keys
        if self.causal:
            end = min(end, last_query_position + 1)
        elif self.window_tokens is not None:
            end = min(end, last_query_position + self.window_tokens + 1)
        if self.chunk_tokens is not None:
            end = min(end, (last_query_position // self.chunk_tokens + 1) * self.chunk_tokens)
        return end


def visible_keys(
    query_positions: torch.Tensor, key_positions: torch.Tensor, rule: Visibility
) -> torch.Tensor:
    """The mask of `rule`: bool `[..., Q, K]`, True where the query sees the key.

    `query_positions` is int64 `[..., Q]`, `key_positions` int64 `[..., K]`; both count tokens
    from the start of the request.
    """
    query = query_positions.unsqueeze(-1)
    key = key_positions.unsqueeze(-2)
    distance = query - key
    seen = distance >= 0 if rule.causal else torch.ones_like(distance, dtype=torch.bool)
    if rule.window_tokens is not None:
        seen = seen & (distance <= rule.window_tokens)
        if not rule.causal:
            seen = seen & (distance >= -rule.window_tokens)
    if rule.chunk_tokens is not None:
        chunk = rule.chunk_tokens
        seen = seen & (
            torch.div(query, chunk, rounding_mode="floor")
            == torch.div(key, chunk, rounding_mode="floor")
        )
    if rule.policy is not None:
        starts = [
            rule.policy.tail_start(position) for position in query_positions.flatten().tolist()
        ]
        tail = torch.tensor(starts, device=query.device).view_as(query_positions).unsqueeze(-1)
        seen = seen & ((key >= tail) | (key < rule.policy.head_tokens))
    return seen


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor | None,
    *,
    scaling: float,
    logit_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention in float32 over a padded batch.

    Shapes: `query` `[B, Q, H, Dk]`, `key` `[B, K, KH, Dk]`, `value` `[B, K, KH, Dv]`, `seen` bool
    `[B, Q, K]` or None when every query sees every key, `sinks` `[H]`. H must be a multiple of KH:
    query head h reads key head h // (H / KH). Returns float32 `[B, Q, H, Dv]`.

    `logit_cap` > 0 bends the scaled logits to `cap * tanh(logit / cap)` before the mask.
    `sinks` holds one extra logit per head which takes part in the softmax and has no value
    (gpt-oss); it is neither scaled nor capped.

    A query which sees no key yields NaN without sinks: callers must not ask for one.
    """
    batch, num_queries, num_heads, key_dim = query.shape
    num_keys, num_kv_heads = key.shape[1], key.shape[2]
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{num_heads} query heads cannot share {num_kv_heads} key heads evenly: "
            "grouped-query attention needs a multiple."
        )
    group = num_heads // num_kv_heads

    # [B, KH, G * Q, Dk] x [B, KH, Dk, K]: one matmul serves all query heads of a key head,
    # so keys are never repeated.
    grouped = query.float().view(batch, num_queries, num_kv_heads, group, key_dim)
    grouped = grouped.permute(0, 2, 3, 1, 4).reshape(
        batch, num_kv_heads, group * num_queries, key_dim
    )
    logits = torch.matmul(grouped, key.float().permute(0, 2, 3, 1)) * scaling
    if logit_cap > 0.0:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    logits = logits.view(batch, num_kv_heads, group, num_queries, num_keys)
    if seen is not None:
        logits = logits.masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is not None:
        column = sinks.float().view(1, num_kv_heads, group, 1, 1)
        column = column.expand(batch, -1, -1, num_queries, 1)
        weights = torch.cat([logits, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = logits.softmax(dim=-1)
    weights = weights.reshape(batch, num_kv_heads, group * num_queries, num_keys)
    out = torch.matmul(weights, value.float().permute(0, 2, 1, 3))
    out = out.view(batch, num_kv_heads, group, num_queries, value.shape[-1])
    return out.permute(0, 3, 1, 2, 4).reshape(batch, num_queries, num_heads, value.shape[-1])
