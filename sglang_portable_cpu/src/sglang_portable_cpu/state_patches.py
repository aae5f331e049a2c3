# SPDX-License-Identifier: Apache-2.0
"""Rows of the patch table for models with a recurrent state: their operators are triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_portable_cpu import conv_ops, gdn_ops, ops, ssm_ops
from sglang_portable_cpu.patch import Patch


def _kernel(target: str, parameters: str, hook: Callable[..., Any], models: str) -> Patch:
    """A triton launcher, replaced where it is defined and wherever it was imported."""
    return Patch(
        target=f"sglang.kernels.ops.{target}",
        parameters=tuple(parameters.split()),
        hook=hook,
        wraps=False,
        reason=f"A triton kernel, on the path of {models}.",
        removable_when="SGLang has a path without triton for this operator.",
    )


def _unbound_in_mixer(name: str, kernel: str, parameters: str, hook: Callable[..., Any]) -> Patch:
    return Patch(
        target=f"sglang.srt.layers.attention.mamba.mamba.{name}",
        stands_for=f"sglang.kernels.ops.{_CONV}.{kernel}",
        parameters=tuple(parameters.split()),
        hook=hook,
        wraps=False,
        reason="The Mamba2 layer imports its convolution on CUDA, NPU and XPU only.",
        removable_when="the Mamba2 layer binds a convolution on every device.",
    )


_CONV = "mamba.causal_conv1d_triton"
_CONV_PREFILL = """
    x weight bias conv_states query_start_loc seq_lens_cpu cache_indices has_initial_state
    activation pad_slot_id validate_data block_table kwargs"""
_CONV_DECODE = """
    x conv_state weight bias activation cache_seqlens conv_state_indices num_accept_tokens
    intermediate_conv_window intermediate_state_indices retrieve_next_token retrieve_next_sibling
    retrieve_parent_token pad_slot_id metadata validate_data"""
_TRACK = "mamba.mamba_state_scatter_triton"
_TRACKED = "cache_indices mamba_track_mask mamba_track_indices batch_size check_freed_slots"
_CONVOLUTION = "every layer with a convolution state"
_SNAPSHOTS = "state snapshots in decode"

_CONVOLUTION_PATCHES = (
    _kernel(f"{_CONV}.causal_conv1d_fn", _CONV_PREFILL, conv_ops.causal_conv1d_fn, _CONVOLUTION),
    _kernel(
        f"{_CONV}.causal_conv1d_update", _CONV_DECODE, conv_ops.causal_conv1d_update, _CONVOLUTION
    ),
    *(
        _unbound_in_mixer(name, "causal_conv1d_fn", _CONV_PREFILL, conv_ops.causal_conv1d_fn)
        for name in ("causal_conv1d_fn", "causal_conv1d_fn_triton")
    ),
    *(
        _unbound_in_mixer(name, "causal_conv1d_update", _CONV_DECODE, conv_ops.causal_conv1d_update)
        for name in ("causal_conv1d_update", "causal_conv1d_update_triton")
    ),
)

_MAMBA2_PATCHES = (
    _kernel(
        "mamba.triton_ops.ssd_combined.mamba_chunk_scan_combined",
        """
        x dt A B C chunk_size D z dt_bias initial_states seq_idx chunk_indices chunk_offsets
        cu_seqlens dt_softplus dt_limit out return_final_states return_varlen_states
        return_intermediate_states state_dtype return_track_states track_seq_idx track_end_locs""",
        ssm_ops.mamba_chunk_scan_combined,
        "the Mamba2 layer in prefill",
    ),
    _kernel(
        "mamba.triton_ops.ssu_dispatch.selective_state_update",
        """
        state x dt A B C D z dt_bias dt_softplus state_batch_indices pad_slot_id out
        disable_state_update intermediate_states_buffer cache_steps retrieve_parent_token
        intermediate_state_indices""",
        ssm_ops.selective_state_update,
        "the Mamba2 layer in decode",
    ),
    _kernel(
        f"{_TRACK}.track_mamba_states_if_needed",
        f"conv_states ssm_states {_TRACKED}",
        ssm_ops.track_mamba_states_if_needed,
        _SNAPSHOTS,
    ),
    _kernel(
        f"{_TRACK}.track_mamba_states_all_layers",
        f"conv_states_pool ssm_states_pool {_TRACKED}",
        ssm_ops.track_mamba_states_all_layers,
        _SNAPSHOTS,
    ),
)

_GATED_DELTA_PATCHES = (
    _kernel(
        "attention.fla.chunk.chunk_gated_delta_rule",
        """
        q k v g beta scale initial_state initial_state_indices cu_seqlens head_first
        use_qk_l2norm_in_kernel inplace_update""",
        gdn_ops.chunk_gated_delta_rule,
        "gated delta nets in prefill",
    ),
    _kernel(
        "attention.fla.fused_recurrent.fused_recurrent_gated_delta_rule_packed_decode",
        """
        mixed_qkv a b A_log dt_bias scale initial_state out ssm_state_indices
        use_qk_l2norm_in_kernel""",
        gdn_ops.fused_recurrent_gated_delta_rule_packed_decode,
        "gated delta nets in decode",
    ),
    _kernel(
        "attention.linear.fused_gdn_gating.fused_gdn_gating",
        "A_log a b dt_bias beta threshold",
        gdn_ops.fused_gdn_gating,
        "gated delta nets in prefill",
    ),
    _kernel(
        "attention.triton_gdn_fused_proj.fused_qkvzba_split_reshape_cat",
        "mixed_qkvz mixed_ba num_heads_qk num_heads_v head_qk head_v",
        gdn_ops.fused_qkvzba_split_reshape_cat,
        "Qwen3-Next",
    ),
    _kernel(
        "attention.fla.fused_norm_gate.rms_norm_gated",
        "x g weight bias activation residual prenorm residual_in_fp32 eps",
        gdn_ops.rms_norm_gated,
        "gated delta nets",
    ),
    _kernel(
        "elementwise.elementwise.fused_gate_sigmoid_mul_add",
        "hidden_states gate_weight shared_output final_hidden_states",
        gdn_ops.fused_gate_sigmoid_mul_add,
        "Qwen models with a gated shared expert",
    ),
    Patch(
        target="torch.get_device_module",
        parameters=("device",),
        hook=ops.get_device_module,
        wraps=True,
        reason="Qwen3-Next builds a norm on the current device of torch.get_device_module(), which "
        "is torch.cuda in a CUDA build and raises without a driver.",
        removable_when="Qwen3GatedDeltaNet asks the platform for its device.",
    ),
)

STATE_PATCHES: tuple[Patch, ...] = (
    *_CONVOLUTION_PATCHES,
    *_MAMBA2_PATCHES,
    *_GATED_DELTA_PATCHES,
)
