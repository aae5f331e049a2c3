# SPDX-License-Identifier: Apache-2.0
"""Rows of the patch table for models with a recurrent state: their operators are triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_portable_cpu import conv_ops, ssm_ops
from sglang_portable_cpu.patch import Patch

_CONV = "sglang.kernels.ops.mamba.causal_conv1d_triton"
_CONV_PREFILL = (
    "x",
    "weight",
    "bias",
    "conv_states",
    "query_start_loc",
    "seq_lens_cpu",
    "cache_indices",
    "has_initial_state",
    "activation",
    "pad_slot_id",
    "validate_data",
    "block_table",
    "kwargs",
)
_CONV_DECODE = (
    "x",
    "conv_state",
    "weight",
    "bias",
    "activation",
    "cache_seqlens",
    "conv_state_indices",
    "num_accept_tokens",
    "intermediate_conv_window",
    "intermediate_state_indices",
    "retrieve_next_token",
    "retrieve_next_sibling",
    "retrieve_parent_token",
    "pad_slot_id",
    "metadata",
    "validate_data",
)
_MIXER = "sglang.srt.layers.attention.mamba.mamba"
_TRACK = "sglang.kernels.ops.mamba.mamba_state_scatter_triton"
_TRACK_TAIL = (
    "cache_indices",
    "mamba_track_mask",
    "mamba_track_indices",
    "batch_size",
    "check_freed_slots",
)
_KERNEL_ONLY = "SGLang has a path without triton for this operator."


def _kernel(
    target: str, parameters: tuple[str, ...], hook: Callable[..., Any], models: str
) -> Patch:
    """A triton launcher, replaced where it is defined and wherever it was imported."""
    return Patch(
        target=target,
        parameters=parameters,
        hook=hook,
        wraps=False,
        reason=f"A triton kernel, on the path of {models}.",
        removable_when=_KERNEL_ONLY,
    )


def _unbound_in_mixer(
    name: str, kernel: str, parameters: tuple[str, ...], hook: Callable[..., Any]
) -> Patch:
    return Patch(
        target=f"{_MIXER}.{name}",
        stands_for=f"{_CONV}.{kernel}",
        parameters=parameters,
        hook=hook,
        wraps=False,
        reason="The Mamba2 layer imports its convolution on CUDA, NPU and XPU only.",
        removable_when="the Mamba2 layer binds a convolution on every device.",
    )


STATE_PATCHES: tuple[Patch, ...] = (
    _kernel(
        f"{_CONV}.causal_conv1d_fn",
        _CONV_PREFILL,
        conv_ops.causal_conv1d_fn,
        "every layer with a convolution state",
    ),
    _kernel(
        f"{_CONV}.causal_conv1d_update",
        _CONV_DECODE,
        conv_ops.causal_conv1d_update,
        "every layer with a convolution state",
    ),
    *(
        _unbound_in_mixer(name, "causal_conv1d_fn", _CONV_PREFILL, conv_ops.causal_conv1d_fn)
        for name in ("causal_conv1d_fn", "causal_conv1d_fn_triton")
    ),
    *(
        _unbound_in_mixer(name, "causal_conv1d_update", _CONV_DECODE, conv_ops.causal_conv1d_update)
        for name in ("causal_conv1d_update", "causal_conv1d_update_triton")
    ),
    _kernel(
        "sglang.kernels.ops.mamba.triton_ops.ssd_combined.mamba_chunk_scan_combined",
        (
            "x",
            "dt",
            "A",
            "B",
            "C",
            "chunk_size",
            "D",
            "z",
            "dt_bias",
            "initial_states",
            "seq_idx",
            "chunk_indices",
            "chunk_offsets",
            "cu_seqlens",
            "dt_softplus",
            "dt_limit",
            "out",
            "return_final_states",
            "return_varlen_states",
            "return_intermediate_states",
            "state_dtype",
            "return_track_states",
            "track_seq_idx",
            "track_end_locs",
        ),
        ssm_ops.mamba_chunk_scan_combined,
        "the Mamba2 layer in prefill",
    ),
    _kernel(
        "sglang.kernels.ops.mamba.triton_ops.ssu_dispatch.selective_state_update",
        (
            "state",
            "x",
            "dt",
            "A",
            "B",
            "C",
            "D",
            "z",
            "dt_bias",
            "dt_softplus",
            "state_batch_indices",
            "pad_slot_id",
            "out",
            "disable_state_update",
            "intermediate_states_buffer",
            "cache_steps",
            "retrieve_parent_token",
            "intermediate_state_indices",
        ),
        ssm_ops.selective_state_update,
        "the Mamba2 layer in decode",
    ),
    _kernel(
        f"{_TRACK}.track_mamba_states_if_needed",
        ("conv_states", "ssm_states", *_TRACK_TAIL),
        ssm_ops.track_mamba_states_if_needed,
        "state snapshots in decode",
    ),
    _kernel(
        f"{_TRACK}.track_mamba_states_all_layers",
        ("conv_states_pool", "ssm_states_pool", *_TRACK_TAIL),
        ssm_ops.track_mamba_states_all_layers,
        "state snapshots in decode",
    ),
)
