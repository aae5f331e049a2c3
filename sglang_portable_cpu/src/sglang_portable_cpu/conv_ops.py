# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution with a state per request, in torch.

The state of a request is its last `width - 1` inputs, kept in a pool `[slots, channels, width - 1]`
whose slots may lie at any stride: it is read and written by slot index only. A negative slot index
is padding: nothing is read, nothing is written, and the output is zero.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

PAD_SLOT_ID = -1


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    conv_states: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: list[int],
    cache_indices: torch.Tensor | None = None,
    has_initial_state: torch.Tensor | None = None,
    activation: str | bool | None = "silu",
    pad_slot_id: int = PAD_SLOT_ID,
    validate_data: bool = False,
    block_table: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Convolve prompts that lie one after the other, and leave each one's new state in its slot.

    `x` is `[channels, tokens]`, `weight` `[channels, width]`; request i has the tokens from
    `query_start_loc[i]` to `query_start_loc[i + 1]` and the slot `cache_indices[i]`, and starts
    from that slot's state where `has_initial_state[i]`, from zeros elsewhere. Returns a new tensor
    of the shape of `x`, zero behind the last request.
    """
    # Token-major like the projections before and after, which SGLang views without a copy.
    out = x.new_zeros(x.shape[1], x.shape[0]).T
    bounds = query_start_loc.tolist()
    slots = list(range(len(bounds) - 1)) if cache_indices is None else cache_indices.tolist()
    resumes = [False] * len(slots) if has_initial_state is None else has_initial_state.tolist()
    for (start, end), slot, resumed in zip(pairwise(bounds), slots, resumes, strict=False):
        if slot < 0 or start == end:
            continue
        state = conv_states[slot]
        before = state if resumed else torch.zeros_like(state)
        window = torch.cat([before.to(x.dtype), x[:, start:end]], dim=-1)
        out[:, start:end] = _convolve(window, weight, bias, activation)
        state.copy_(window[:, -state.shape[-1] :])
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | bool | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,
    num_accept_tokens: torch.Tensor | None = None,
    intermediate_conv_window: torch.Tensor | None = None,
    intermediate_state_indices: torch.Tensor | None = None,
    retrieve_next_token: torch.Tensor | None = None,
    retrieve_next_sibling: torch.Tensor | None = None,
    retrieve_parent_token: torch.Tensor | None = None,
    pad_slot_id: int = PAD_SLOT_ID,
    metadata: Any = None,
    validate_data: bool = False,
) -> torch.Tensor:
    """One decode step of every request: `x` is `[batch, channels]` or `[batch, channels, tokens]`.

    Row i continues from the state in slot `conv_state_indices[i]`, which then holds the new one.
    Returns a new tensor like `x`. Raises NotImplementedError for a ring buffer of states and for a
    draft to verify.
    """
    unsupported = (
        cache_seqlens,
        num_accept_tokens,
        intermediate_conv_window,
        retrieve_next_token,
        retrieve_parent_token,
    )
    if any(argument is not None for argument in unsupported):
        raise NotImplementedError(
            "sglang-portable-cpu convolves plain decode steps only: no ring buffer of states and "
            "no speculative decoding."
        )
    steps = x if x.dim() == 3 else x.unsqueeze(-1)
    slots = _every_slot(conv_state_indices, rows=x.shape[0])
    live = slots >= 0
    slots = slots[live]
    window = torch.cat([conv_state[slots].to(x.dtype), steps[live]], dim=-1)
    out = torch.zeros_like(steps)
    out[live] = _convolve(window, weight, bias, activation).to(out.dtype)
    conv_state[slots] = window[..., -conv_state.shape[-1] :].to(conv_state.dtype)
    return out.view_as(x)


def _every_slot(indices: torch.Tensor | None, *, rows: int) -> torch.Tensor:
    return torch.arange(rows) if indices is None else indices.long()


def _convolve(
    window: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | bool | None,
) -> torch.Tensor:
    """`[..., channels, width - 1 + tokens]` to `[..., channels, tokens]`.

    A sum of shifted products, tap by tap: unlike a library convolution it adds in the same order
    whatever the number of tokens, so a prompt cut into chunks gives the same bits.
    """
    taps = weight.float()
    tokens = window.shape[-1] - taps.shape[-1] + 1
    window = window.float()
    total = sum(taps[:, [j]] * window[..., j : j + tokens] for j in range(taps.shape[-1]))
    if bias is not None:
        total = total + bias.float()[:, None]
    if activation in ("silu", "swish", True):
        total = functional.silu(total)
    elif activation not in (None, False):
        raise NotImplementedError(f"the activation {activation!r} of a convolution is not silu")
    return total
