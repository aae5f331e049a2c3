# SPDX-License-Identifier: Apache-2.0
"""Rows of the patch table that any model may reach: logits, experts, allocation, LoRA."""

from __future__ import annotations

from sglang_portable_cpu import ops
from sglang_portable_cpu.patch import Patch

SERVING_PATCHES: tuple[Patch, ...] = (
    Patch(
        target="sglang.kernels.ops.activation.softcap.softcap_inplace_logits",
        parameters=("full_logits", "final_logit_softcapping"),
        hook=ops.softcap_inplace_logits,
        wraps=False,
        reason="Gemma-2 caps its final logits in a triton kernel unless SGLANG_USE_CPU_ENGINE=1.",
        removable_when="logits_processor chooses the kernel by the tensor's device.",
    ),
    Patch(
        target="sglang.srt.layers.moe.fused_moe_native.moe_forward_native",
        parameters=("layer", "x", "topk_output", "moe_runner_config"),
        hook=ops.moe_forward,
        wraps=True,
        reason="Llama-4 puts the router weight on the input, which the torch experts refuse.",
        removable_when="moe_forward_native handles apply_router_weight_on_input.",
    ),
    Patch(
        target="sglang.srt.mem_cache.allocation.get_last_loc_triton",
        parameters=("req_to_token", "req_pool_indices_tensor", "prefix_lens_tensor"),
        hook=ops.get_last_loc,
        wraps=False,
        reason="get_last_loc picks triton for every attention backend but torch_native, by name.",
        removable_when="get_last_loc asks the platform whether triton can launch.",
    ),
    Patch(
        target="torch.Tensor.pin_memory",
        parameters=None,
        hook=ops.pin_memory,
        wraps=False,
        reason="SGLang pins in prepare_for_decode; CUDA builds of torch raise without a driver.",
        removable_when="SGLang asks is_pin_memory_available before it pins.",
    ),
    Patch(
        target="sglang.srt.lora.layers.get_lora_layer",
        parameters=("layer", "lora_backend", "experts_shared_outer_loras", "max_lora_rank"),
        hook=ops.without_pinning,
        wraps=True,
        reason="LoRA layers build their output offsets with pin_memory=True.",
        removable_when="the LoRA layers ask is_pin_memory_available, as their memory pool does.",
    ),
    Patch(
        target="sglang.srt.lora.layers.RowParallelLinearWithLoRA.set_lora_info",
        parameters=("self", "A_buffer", "B_buffer"),
        hook=ops.without_pinning,
        wraps=True,
        reason="This LoRA layer alone builds its offsets, pinned, when it gets its buffers.",
        removable_when="the LoRA layers ask is_pin_memory_available, as their memory pool does.",
    ),
    Patch(
        target="sglang.srt.lora.backend.torch_backend.TorchNativeLoRABackend.prepare_lora_batch",
        parameters=(
            "self",
            "forward_batch",
            "weight_indices",
            "lora_ranks",
            "scalings",
            "use_cuda_graph",
            "use_prefill_cuda_graph",
        ),
        hook=ops.without_pinning,
        wraps=True,
        reason="The torch LoRA backend describes every batch in pinned tensors.",
        removable_when="the torch LoRA backend asks is_pin_memory_available.",
    ),
)
