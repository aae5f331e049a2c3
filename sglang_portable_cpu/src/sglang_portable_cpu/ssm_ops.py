# SPDX-License-Identifier: Apache-2.0
"""Mamba2's state space recurrence in torch: prompts in chunks, decode in one step.

One head with input x (`[head_dim]`), step size dt, decay rate A < 0 and the vectors B, C
(`[state]`, shared by the heads of a group) computes

    h <- exp(dt * A) * h + dt * outer(x, B);    y = h @ C + D * x

with a state h of `[head_dim, state]`. Everything is computed in float32. State pools are
`[slots, heads, head_dim, state]` at any slot stride, read and written by slot index only.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    chunk_indices: torch.Tensor | None = None,
    chunk_offsets: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    out: torch.Tensor | None = None,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    return_intermediate_states: bool = False,
    state_dtype: torch.dtype | None = None,
    return_track_states: bool = False,
    track_seq_idx: torch.Tensor | None = None,
    track_end_locs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Run the recurrence over prompts that lie one after the other; `out` gets y.

    `x` is `[1, tokens, heads, head_dim]`, `dt` `[1, tokens, heads]`, `A` `[heads]`, `B` and `C`
    `[1, tokens, groups, state]`, `initial_states` `[requests, heads, head_dim, state]` or None for
    zeros, and request i has the tokens `cu_seqlens[i]` to `cu_seqlens[i + 1]`.

    Returns, as SGLang's Mamba2 layer asks (`return_track_states`):

    * the states at the positions 0, chunk_size, 2 * chunk_size ... of the flattened batch, before
      that token: `[1, chunks, heads, head_dim, state]`. Where a request begins, its initial state;
    * the state of each request after its last token: `[requests, heads, head_dim, state]`;
    * the state of request `track_seq_idx[j]` after the token before `track_end_locs[j]`, stacked as
      `[1, tracked, heads, head_dim, state]`, or None without any.

    Raises NotImplementedError for other return values and for a gate `z`.
    """
    if not return_track_states or cu_seqlens is None or z is not None or out is None:
        raise NotImplementedError(
            "sglang-portable-cpu scans as SGLang's Mamba2 layer asks: with cu_seqlens, out and "
            "return_track_states, and without z."
        )
    tokens, heads, head_dim = x.shape[1:]
    groups, state_size = B.shape[2:]
    step = _step_size(dt[0], dt_bias, dt_softplus).clamp(*dt_limit)
    log_decay = step * A.float()
    inputs = x[0].float() * step[..., None]
    keys, queries = (t[0].float().repeat_interleave(heads // groups, dim=1) for t in (B, C))
    skipped = x[0].float() * (0.0 if D is None else D.float().view(heads, -1))

    bounds = cu_seqlens.tolist()
    grid = range(0, tokens, chunk_size)
    tracked = (
        []
        if track_end_locs is None or track_seq_idx is None
        else list(zip(track_seq_idx.tolist(), track_end_locs.tolist(), strict=True))
    )
    kept: dict[tuple[int, int], torch.Tensor] = {}  # (request, position) -> state there
    zeros = torch.zeros(heads, head_dim, state_size)
    final = zeros.repeat(len(bounds) - 1, 1, 1, 1)
    for request, (start, end) in enumerate(pairwise(bounds)):
        state = zeros if initial_states is None else initial_states[request].float()
        # Chunks end where a state is wanted: on the grid of the flattened batch and where tracked.
        wanted = {start, end} | {at for owner, at in tracked if owner == request}
        wanted |= set(grid[-(-start // chunk_size) : -(-end // chunk_size)])
        for begin, stop in pairwise(sorted(wanted)):
            kept[request, begin] = state
            part = slice(begin, stop)
            y, state = _chunk(state, inputs[part], log_decay[part], keys[part], queries[part])
            out[0, part] = (y + skipped[part]).to(out.dtype)
        kept[request, end] = state
        final[request] = state

    at_grid = zeros.repeat(len(grid), 1, 1, 1)
    for (_, position), state in kept.items():  # later requests win: a boundary begins the next
        if position in grid:
            at_grid[position // chunk_size] = state
    dtype = state_dtype or C.dtype
    at_tracks = torch.stack([kept[key] for key in tracked]).to(dtype)[None] if tracked else None
    return at_grid.to(dtype)[None], final.to(dtype), at_tracks


def _step_size(dt: torch.Tensor, bias: torch.Tensor | None, softplus: bool) -> torch.Tensor:
    step = dt.float() if bias is None else dt.float() + bias.float()
    return functional.softplus(step) if softplus else step


def _chunk(
    state: torch.Tensor,
    inputs: torch.Tensor,
    log_decay: torch.Tensor,
    keys: torch.Tensor,
    queries: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y and the last state of a few tokens, from the state before them.

    `state` `[heads, head_dim, state]`, `inputs` (dt * x) `[tokens, heads, head_dim]`, `log_decay`
    `[tokens, heads]`, `keys` and `queries` (B and C) `[tokens, heads, state]`. Unrolled, token t
    sees token s <= t through the decays of the tokens behind s, and the old state through all of
    its own: causal attention with decay instead of softmax.
    """
    decay_to, between = decay_between(log_decay)
    scores = torch.einsum("thn,shn->hts", queries, keys) * between
    from_state = torch.einsum("thn,hpn->thp", queries, state) * decay_to.T.exp()[..., None]
    y = torch.einsum("hts,shp->thp", scores, inputs) + from_state
    decay_behind = (decay_to[:, -1:] - decay_to).T.exp()
    added = torch.einsum("shp,shn->hpn", inputs * decay_behind[..., None], keys)
    return y, state * decay_to[:, -1].exp()[:, None, None] + added


def decay_between(log_decay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is left, at each token of a chunk, of the state before it and of what each token added.

    `log_decay` is `[tokens, heads]`. Returns the logarithm of the former, `[heads, tokens]`, and
    the latter `[heads, at, of]`, zero for tokens that are still to come.
    """
    decay_to = log_decay.cumsum(0).T
    between = decay_to[:, :, None] - decay_to[:, None, :]
    future = torch.ones(between.shape[1:], dtype=torch.bool).triu(1)
    return decay_to, between.masked_fill(future, float("-inf")).exp()


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: torch.Tensor | None = None,
    pad_slot_id: int = -1,
    out: torch.Tensor | None = None,
    disable_state_update: bool = False,
    intermediate_states_buffer: torch.Tensor | None = None,
    cache_steps: int | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
) -> None:
    """One decode step of every request: `out` gets y, the pool `state` the new states.

    `x`, `dt` and `out` are `[batch, heads, head_dim]`, `B` and `C` `[batch, groups, state]`, `A`
    `[heads, head_dim, state]`, `D` and `dt_bias` `[heads, head_dim]`. Row i has the slot
    `state_batch_indices[i]`; a negative one is padding: y is zero, and no state is written.
    Raises NotImplementedError for a gate `z` and for a draft to verify.
    """
    if z is not None or disable_state_update or x.dim() != 3 or out is None:
        raise NotImplementedError(
            "sglang-portable-cpu updates states by plain decode steps only: no gate, no "
            "speculative decoding."
        )
    batch, heads = x.shape[:2]
    slots = torch.arange(batch) if state_batch_indices is None else state_batch_indices.long()
    live = slots >= 0
    slots = slots[live]
    inputs = x[live].float()
    step = _step_size(dt[live], dt_bias, dt_softplus)
    keys, queries = (t[live].float().repeat_interleave(heads // t.shape[1], dim=1) for t in (B, C))
    new = state[slots].float() * torch.exp(step[..., None] * A.float())
    new += (step * inputs)[..., None] * keys[:, :, None, :]
    y = torch.einsum("bhpn,bhn->bhp", new, queries)
    if D is not None:
        y = y + D.float() * inputs
    out.zero_()
    out[live] = y.to(out.dtype)
    state[slots] = new.to(state.dtype)


def track_mamba_states_if_needed(
    conv_states: torch.Tensor,
    ssm_states: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """Copy the states of the rows in the mask to their snapshot slots, in one layer.

    The pools are `[slots, ...]`; the rest is one entry per request. A negative slot, on either
    side, was freed: nothing is copied.
    """
    track_mamba_states_all_layers(
        conv_states[None],
        ssm_states[None],
        cache_indices,
        mamba_track_mask,
        mamba_track_indices,
        batch_size,
        check_freed_slots,
    )


def track_mamba_states_all_layers(
    conv_states_pool: torch.Tensor,
    ssm_states_pool: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """The same in every layer at once: the pools are `[layers, slots, ...]`."""
    source = cache_indices[:batch_size].long()
    target = mamba_track_indices[:batch_size].long()
    rows = mamba_track_mask[:batch_size].bool() & (source >= 0) & (target >= 0)
    if not rows.any():
        return
    for pool in (conv_states_pool, ssm_states_pool):
        pool[:, target[rows]] = pool[:, source[rows]]
