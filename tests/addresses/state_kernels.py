# SPDX-License-Identifier: Apache-2.0
"""The triton kernels of recurrent layers, called as SGLang calls them, and what they compute.

Each kernel reads and writes the states of a batch in place; its reference does the same in float64
on states of its own. Both return the outputs of the batch, ``[2, ...]``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sglang.kernels.ops.attention.fla.fused_recurrent import (
    fused_recurrent_gated_delta_rule_packed_decode,
)
from sglang.kernels.ops.attention.linear.fused_sigmoid_gating_recurrent import (
    fused_sigmoid_gating_delta_rule_update,
)
from sglang.kernels.ops.attention.linear.lightning_attn import linear_decode_forward_triton
from sglang.kernels.ops.attention.linear.seg_la import SegLaMeta, seg_la_fwd
from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_fn, causal_conv1d_update
from sglang.kernels.ops.mamba.mamba_state_scatter_triton import track_mamba_states_all_layers
from sglang.kernels.ops.mamba.triton_ops.mamba_ssm import selective_state_update

for _function in (
    causal_conv1d_fn,
    causal_conv1d_update,
    fused_recurrent_gated_delta_rule_packed_decode,
    fused_sigmoid_gating_delta_rule_update,
    linear_decode_forward_triton,
    seg_la_fwd,
    selective_state_update,
    track_mamba_states_all_layers,
):
    if not _function.__module__.startswith("sglang."):
        raise RuntimeError(f"{_function} is not SGLang's own: a plugin replaced it")

# SGLang enters the device of a state's tensor; torch's CPU has nothing to enter.
torch.cpu.device = lambda *_: contextlib.nullcontext()

BATCH, HEADS, KEY_HEADS, DIM, WIDTH = 2, 4, 2, 128, 4
CHANNELS = 2 * KEY_HEADS * DIM + HEADS * DIM
CONV_SHAPE, SSM_SHAPE = (CHANNELS, WIDTH - 1), (HEADS, DIM, DIM)
CONV_DTYPE, SSM_DTYPE = torch.float16, torch.float32
#: Tokens of the two prompts of a prefill.
PROMPTS = (5, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """conv: ``[slots, *CONV_SHAPE]``, ssm: ``[slots, *SSM_SHAPE]``; any stride over slots."""

    conv: torch.Tensor
    ssm: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Activations and weights, the same for a kernel and its reference. Half as in a model."""

    x: torch.Tensor  # [BATCH, CHANNELS]
    prompt: torch.Tensor  # [CHANNELS, tokens]
    weight: torch.Tensor  # [CHANNELS, WIDTH]
    value: torch.Tensor  # [BATCH, HEADS, DIM]
    query: torch.Tensor  # [BATCH, KEY_HEADS, DIM]
    key: torch.Tensor
    gate: torch.Tensor  # [BATCH, HEADS]
    beta: torch.Tensor
    decay: torch.Tensor  # [HEADS]
    bias: torch.Tensor


def draw(generator: torch.Generator, *shape: int, dtype: torch.dtype = SSM_DTYPE) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def inputs(seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    return Inputs(
        x=draw(g, BATCH, CHANNELS, dtype=CONV_DTYPE),
        prompt=draw(g, CHANNELS, sum(PROMPTS), dtype=CONV_DTYPE),
        weight=draw(g, CHANNELS, WIDTH, dtype=CONV_DTYPE),
        value=draw(g, BATCH, HEADS, DIM),
        query=draw(g, BATCH, KEY_HEADS, DIM),
        key=draw(g, BATCH, KEY_HEADS, DIM),
        gate=draw(g, BATCH, HEADS),
        beta=draw(g, BATCH, HEADS),
        decay=draw(g, HEADS),
        bias=draw(g, HEADS),
    )


# ---- short convolutions (Mamba, gated delta net) -----------------------------------------------


def conv_update(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    return causal_conv1d_update(
        given.x.clone(), states.conv, given.weight, None, "silu", conv_state_indices=ids
    )


def conv_update_reference(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    window = torch.cat((states.conv[ids], given.x.double()[..., None]), dim=-1)
    states.conv[ids] = window[..., 1:]
    return torch.nn.functional.silu((window * given.weight.double()).sum(-1))


def conv_prefill(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    starts = torch.tensor([0, PROMPTS[0], sum(PROMPTS)], dtype=torch.int32)
    begun = torch.tensor([True, True])
    return causal_conv1d_fn(
        given.prompt.clone(),
        given.weight,
        None,
        states.conv,
        starts,
        list(PROMPTS),
        ids,
        begun,
        "silu",
    )


def conv_prefill_reference(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    out = []
    for slot, prompt in zip(ids.tolist(), given.prompt.double().split(PROMPTS, -1), strict=True):
        line = torch.cat((states.conv[slot], prompt), dim=-1)
        windows = line.unfold(-1, WIDTH, 1)
        out.append(torch.nn.functional.silu((windows * given.weight.double()[:, None]).sum(-1)))
        states.conv[slot] = line[:, -(WIDTH - 1) :]
    return torch.cat(out, dim=-1)


# ---- Mamba-2's state ---------------------------------------------------------------------------


def ssm_update(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    out = torch.zeros(BATCH, HEADS, DIM)
    selective_state_update(
        states.ssm,
        given.value,
        given.gate[..., None].expand(-1, -1, DIM),
        -given.decay.abs()[:, None, None].expand(-1, DIM, DIM),
        given.query[:, :1],
        given.key[:, :1],
        given.bias[:, None].expand(-1, DIM),
        dt_bias=given.bias[:, None].expand(-1, DIM),
        dt_softplus=True,
        state_batch_indices=ids,
        out=out,
    )
    return out


def ssm_update_reference(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    value, bias = given.value.double(), given.bias.double()
    step = torch.nn.functional.softplus(given.gate.double() + bias)[..., None, None]
    old = states.ssm[ids] * torch.exp(-given.decay.double().abs()[:, None, None] * step)
    new = old + step * value[..., None] * given.query.double()[:, :1, None]
    states.ssm[ids] = new
    return (new * given.key.double()[:, :1, None]).sum(-1) + bias[:, None] * value


# ---- gated delta net ---------------------------------------------------------------------------


def delta_decode(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    return fused_sigmoid_gating_delta_rule_update(
        A_log=given.decay,
        a=given.gate,
        dt_bias=given.bias,
        softplus_beta=1.0,
        softplus_threshold=20.0,
        q=given.query[None],
        k=given.key[None],
        v=given.value[None],
        b=given.beta,
        initial_state_source=states.ssm,
        initial_state_indices=ids,
        cu_seqlens=torch.arange(BATCH + 1, dtype=torch.int32),
        use_qk_l2norm_in_kernel=True,
    )[0]


def delta_decode_packed(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    packed = torch.cat([t.flatten(1) for t in (given.query, given.key, given.value)], dim=1)
    out = torch.zeros(BATCH, 1, HEADS, DIM)
    fused_recurrent_gated_delta_rule_packed_decode(
        packed,
        given.gate,
        given.beta,
        given.decay,
        given.bias,
        DIM**-0.5,
        states.ssm,
        out,
        ids,
        use_qk_l2norm_in_kernel=True,
    )
    return out[:, 0]


def delta_decode_reference(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    groups = HEADS // KEY_HEADS
    query, key = (
        torch.nn.functional.normalize(t.double(), dim=-1).repeat_interleave(groups, dim=1)
        for t in (given.query, given.key)
    )
    gate = torch.nn.functional.softplus(given.gate.double() + given.bias.double())
    old = states.ssm[ids] * torch.exp(-given.decay.double().exp() * gate)[..., None, None]
    seen = (old * key[..., None, :]).sum(-1)
    change = (given.value.double() - seen) * given.beta.double().sigmoid()[..., None]
    new = old + change[..., None] * key[..., None, :]
    states.ssm[ids] = new
    return (new * query[..., None, :]).sum(-1) * DIM**-0.5


# ---- linear attention: 32-bit products, refused ------------------------------------------------


def lightning_decode(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    query, key = (t.repeat_interleave(2, dim=1)[:, :, None] for t in (given.query, given.key))
    return linear_decode_forward_triton(
        query.contiguous(),
        key.contiguous(),
        given.value[:, :, None].contiguous(),
        states.ssm,
        given.decay.abs(),
        ids,
        DIM,
    )


def segment_decode(states: States, ids: torch.Tensor, given: Inputs) -> torch.Tensor:
    query, key = (t.repeat_interleave(2, dim=1).contiguous() for t in (given.query, given.key))
    ones = torch.ones(BATCH, dtype=torch.int32)
    meta = SegLaMeta(
        batch_size=BATCH,
        q_offsets=torch.arange(BATCH + 1, dtype=torch.int32),
        s_offsets=ids,
        q_lengths=ones,
        s_scales=ones,
        max_q_length=None,
        mask=None,
    )
    return seg_la_fwd(query, key, given.value, states.ssm, given.decay.abs(), meta)


Kernel = Callable[[States, torch.Tensor, Inputs], torch.Tensor]
#: Kernels that serve an arena, each with what it computes.
SERVED: dict[str, tuple[Kernel, Kernel]] = {
    "conv1d update": (conv_update, conv_update_reference),
    "conv1d prefill": (conv_prefill, conv_prefill_reference),
    "SSM update": (ssm_update, ssm_update_reference),
    "gated delta net decode": (delta_decode, delta_decode_reference),
    "gated delta net packed decode": (delta_decode_packed, delta_decode_reference),
}
#: Kernels that are refused: they multiply slot ids in 32 bits.
REFUSED: dict[str, Kernel] = {"lightning": lightning_decode, "seg_la": segment_decode}


def copy_snapshots(
    conv: torch.Tensor, ssm: torch.Tensor, source: torch.Tensor, target: torch.Tensor
) -> None:
    """The states of ``source`` become those of ``target`` in all layers; tensors are
    ``[layers, slots, ...]``."""
    taken = torch.ones(len(source), dtype=torch.bool)
    track_mamba_states_all_layers(conv, ssm, source, taken, target, len(source))
