# SPDX-License-Identifier: Apache-2.0
"""The oracle: attention one query, one head and one key at a time, in float64.

Written from the rules' definitions and without any code of the package, so that a shared mistake
cannot hide. Slow on purpose; keep the cases small.
"""

from __future__ import annotations

import math

import torch


def sees(
    query_position: int,
    key_position: int,
    *,
    window: int | None,
    chunk: int | None,
    causal: bool,
    head_keys: int = 0,
) -> bool:
    if causal and key_position > query_position:
        return False
    if key_position < head_keys:
        return True
    if window is not None and abs(query_position - key_position) > window:
        return False
    return chunk is None or query_position // chunk == key_position // chunk


def brute_force_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    first_query_position: int,
    scaling: float,
    window: int | None = None,
    chunk: int | None = None,
    causal: bool = True,
    head_keys: int = 0,
    logit_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """One request's attention, float64 `[Q, H, Dv]`.

    `query` is `[Q, H, Dk]`, `keys` `[K, KH, Dk]` and `values` `[K, KH, Dv]`, ordered by position.
    """
    query, keys, values = query.double(), keys.double(), values.double()
    heads_per_key_head = query.shape[1] // keys.shape[1]
    out = torch.zeros(query.shape[0], query.shape[1], values.shape[2], dtype=torch.float64)
    for row in range(query.shape[0]):
        position = first_query_position + row
        seen = [
            k
            for k in range(keys.shape[0])
            if sees(position, k, window=window, chunk=chunk, causal=causal, head_keys=head_keys)
        ]
        for head in range(query.shape[1]):
            key_head = head // heads_per_key_head
            logits = []
            for k in seen:
                logit = float(query[row, head] @ keys[k, key_head]) * scaling
                logits.append(logit_cap * math.tanh(logit / logit_cap) if logit_cap else logit)
            total = sum(math.exp(logit) for logit in logits)
            if sinks is not None:
                total += math.exp(float(sinks[head]))
            for k, logit in zip(seen, logits, strict=True):
                out[row, head] += math.exp(logit) / total * values[k, key_head]
    return out
