# SPDX-License-Identifier: Apache-2.0
"""The gated delta rule in torch: prompts in chunks, decode in one step; and the fusions around it.

One value head with query q, key k (both of length 1 after normalisation), value v, log decay g <= 0
and write strength beta in (0, 1) computes

    S <- exp(g) * S;    S <- S + beta * outer(v - S @ k, k);    o = S @ q * scale

with a state S of `[value_dim, key_dim]`: what S recalls for the key is moved towards the value.
Everything is computed in float32. Several value heads share a query and a key head. State pools are
`[slots, value_heads, value_dim, key_dim]` at any slot stride, read and written by slot index only;
a negative slot index is padding.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional

from sglang_portable_cpu.ssm_ops import decay_between

_NORM_EPSILON = 1e-6


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    initial_state_indices: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    head_first: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    inplace_update: bool = True,
) -> tuple[torch.Tensor, None, torch.Tensor]:
    """Run the rule over prompts that lie one after the other.

    `q` and `k` are `[1, tokens, heads, key_dim]`, `v` `[1, tokens, value_heads, value_dim]`, `g`
    and `beta` `[1, tokens, value_heads]`. Request i has the tokens `cu_seqlens[i]` to
    `cu_seqlens[i + 1]` and the slot `initial_state_indices[i]` of the pool `initial_state`, whose
    state it starts from and, unless `inplace_update` is off, leaves its new state in.

    Returns the outputs, shaped like `v`; None; and the states before each chunk of each request, in
    the order of requests: `[1, chunks, value_heads, value_dim, key_dim]`, chunks as long as those
    of SGLang's kernel, counted from the request's first token.

    Raises NotImplementedError without a pool, slot indices or cu_seqlens, and for `head_first`.
    """
    from sglang.kernels.ops.attention.fla.chunk_delta_h import CHUNK_SIZE

    if initial_state is None or initial_state_indices is None or cu_seqlens is None or head_first:
        raise NotImplementedError(
            "sglang-portable-cpu runs the gated delta rule as SGLang's backend asks: with a state "
            "pool, slot indices and cu_seqlens, tokens first."
        )
    share = v.shape[2] // k.shape[2]
    queries, keys = (
        _per_value_head(t[0], share, normalise=use_qk_l2norm_in_kernel) for t in (q, k)
    )
    queries = queries * (k.shape[-1] ** -0.5 if scale is None else scale)
    values, decays, strengths = v[0].float(), g[0].float(), beta[0].float()
    out = torch.zeros_like(v)
    before: list[torch.Tensor] = []
    slots = initial_state_indices.tolist()
    for slot, (start, end) in zip(slots, pairwise(cu_seqlens.tolist()), strict=True):
        pool_state = initial_state[max(slot, 0)]
        state = pool_state.float() if slot >= 0 else torch.zeros_like(pool_state).float()
        for begin in range(start, end, CHUNK_SIZE):
            part = slice(begin, min(begin + CHUNK_SIZE, end))
            before.append(state.clone())
            out[0, part], state = _chunk(
                state, queries[part], keys[part], values[part], decays[part], strengths[part]
            )
        if slot >= 0 and inplace_update:
            pool_state.copy_(state)
    states = torch.stack(before) if before else initial_state.new_zeros(0, *initial_state.shape[1:])
    return out, None, states[None]


def _chunk(
    state: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    log_decay: torch.Tensor,
    strength: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `[tokens, heads, value_dim]` and the last state, from the state before the tokens.

    Unrolled, token t adds outer(u_t, k_t) to the state, where

        u_t = beta_t * (v_t - (decayed old state) @ k_t - sum of decay(s, t) (k_s . k_t) u_s)

    over all s < t: a unit lower triangular system for all u of the chunk at once.
    """
    to_head = (1, 0, 2)  # [tokens, heads, dim] -> [heads, tokens, dim]
    query, key, value = (t.permute(to_head) for t in (queries, keys, values))
    decay_to, between = decay_between(log_decay)
    carried = decay_to.exp()[..., None]
    from_state = state.transpose(-1, -2)  # [heads, key_dim, value_dim]
    weight = strength.T[..., None]
    system = (weight * between * (key @ key.transpose(-1, -2))).tril(-1)
    added = torch.linalg.solve_triangular(
        system, weight * (value - carried * (key @ from_state)), upper=False, unitriangular=True
    )
    out = carried * (query @ from_state) + (between * (query @ key.transpose(-1, -2))) @ added
    decay_behind = (decay_to[:, -1:] - decay_to).exp()[..., None]
    state = carried[:, -1:] * state + (added * decay_behind).transpose(-1, -2) @ key
    return out.permute(to_head), state


def _per_value_head(heads: torch.Tensor, share: int, *, normalise: bool) -> torch.Tensor:
    """`[..., heads, dim]` in float32, each head repeated for the value heads that share it."""
    heads = heads.float()
    if normalise:
        heads = heads * (heads.square().sum(-1, keepdim=True) + _NORM_EPSILON).rsqrt()
    return heads.repeat_interleave(share, dim=-2)


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    scale: float,
    initial_state: torch.Tensor,
    out: torch.Tensor,
    ssm_state_indices: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One decode step of every request: `out` gets the outputs, the pool the new states.

    `mixed_qkv` is `[batch, channels]`: queries, keys and values behind one another. `a` and `b`
    `[batch, value_heads]` gate decay and write strength. `out` is `[batch, 1, value_heads,
    value_dim]`, zero for padding. Returns `out` and the pool.
    """
    batch = mixed_qkv.shape[0]
    value_heads, value_dim, key_dim = initial_state.shape[1:]
    query_size = (mixed_qkv.shape[1] - value_heads * value_dim) // 2
    share = value_heads * key_dim // query_size
    q, k, v = mixed_qkv.split([query_size, query_size, value_heads * value_dim], dim=-1)
    query, key = (
        _per_value_head(t.view(batch, -1, key_dim), share, normalise=use_qk_l2norm_in_kernel)
        for t in (q, k)
    )
    g, beta = fused_gdn_gating(A_log, a, b, dt_bias)
    slots = ssm_state_indices.long()
    live = slots >= 0
    slots = slots[live]
    query, key = query[live] * scale, key[live]
    state = initial_state[slots].float() * g[0, live].exp()[..., None, None]
    recalled = torch.einsum("bhvk,bhk->bhv", state, key)
    written = (v.view(batch, value_heads, value_dim)[live].float() - recalled) * beta[
        0, live, :, None
    ]
    state = state + written[..., None] * key[:, :, None, :]
    out.zero_()
    out[live, 0] = torch.einsum("bhvk,bhk->bhv", state, query).to(out.dtype)
    initial_state[slots] = state.to(initial_state.dtype)
    return out, initial_state


def fused_gdn_gating(
    A_log: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    dt_bias: torch.Tensor,
    beta: float = 1.0,
    threshold: float = 20.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log decay `-exp(A_log) * softplus(a + dt_bias)` and write strength `sigmoid(b)`.

    `a` and `b` are `[tokens, heads]`; both results are `[1, tokens, heads]` in float32.
    """
    step = functional.softplus(a.float() + dt_bias.float(), beta=beta, threshold=threshold)
    return (-A_log.float().exp() * step)[None], b.float().sigmoid()[None]


def fused_qkvzba_split_reshape_cat(
    mixed_qkvz: torch.Tensor,
    mixed_ba: torch.Tensor,
    num_heads_qk: int,
    num_heads_v: int,
    head_qk: int,
    head_v: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort Qwen3-Next's projections, which lie key head by key head, by what they are.

    Returns q, k and v behind one another as `[tokens, channels]`, z as `[tokens, num_heads_v,
    head_v]`, and b and a as `[tokens, num_heads_v]`.
    """
    tokens = mixed_qkvz.shape[0]
    share = num_heads_v // num_heads_qk
    q, k, v, z = mixed_qkvz.view(tokens, num_heads_qk, -1).split(
        [head_qk, head_qk, share * head_v, share * head_v], dim=-1
    )
    b, a = mixed_ba.view(tokens, num_heads_qk, -1).split([share, share], dim=-1)
    mixed_qkv = torch.cat([t.reshape(tokens, -1) for t in (q, k, v)], dim=-1)
    heads = (tokens, num_heads_v)
    return mixed_qkv, z.reshape(*heads, head_v), b.reshape(heads), a.reshape(heads)


def rms_norm_gated(
    x: torch.Tensor,
    g: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation: str = "swish",
    residual: torch.Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Normalise the last dimension of `x` by its root mean square, then gate it with `g`.

    Raises NotImplementedError for a residual, which no layer of SGLang passes.
    """
    if residual is not None or prenorm:
        raise NotImplementedError("sglang-portable-cpu gates a norm without a residual only.")
    normed = x.float() * (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        normed = normed * weight.float()
    if bias is not None:
        normed = normed + bias.float()
    gate = g.float().sigmoid() if activation == "sigmoid" else functional.silu(g.float())
    return (normed * gate).to(x.dtype)


def fused_gate_sigmoid_mul_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add a shared expert's output, gated per token, to that of the routed experts in place.

    `gate_weight` is `[hidden]`, the rest `[tokens, hidden]`.
    """
    gate = (hidden_states.float() @ gate_weight.float()).sigmoid()[:, None]
    final_hidden_states.add_((gate * shared_output.float()).to(final_hidden_states.dtype))
