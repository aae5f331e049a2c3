# SPDX-License-Identifier: Apache-2.0
"""The one table of SGLang functions that this platform replaces, how, and why.

SGLang's HookRegistry installs the hooks and only logs a failure. So the table is checked three
times, and a mismatch stops the server: the symbols and their parameters when the plugin loads
(`register`), that the hooks took effect when the arguments are resolved, and the same again in the
worker that loaded the model (`require_installed`).
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_portable_cpu import ENTRY_POINT, ops


class PatchError(RuntimeError):
    """The patch table does not fit this SGLang, or a patch did not take effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One replaced function."""

    target: str
    """Dotted path, looked up at call time by SGLang."""
    parameters: tuple[str, ...] | None
    """The parameter names it must have; None for a C function, which does not tell."""
    hook: Callable[..., Any]
    wraps: bool
    """True: `hook` gets the original as its first argument. False: it replaces the original."""
    reason: str
    removable_when: str


PATCHES: tuple[Patch, ...] = (
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

_originals: dict[str, Callable[..., Any]] = {}


def register() -> None:
    """Check the table against this SGLang and hand it to HookRegistry, which applies it later."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    found = {patch.target: _find(patch) for patch in PATCHES}
    for patch in PATCHES:
        kind = HookType.AROUND if patch.wraps else HookType.REPLACE
        HookRegistry.register(patch.target, patch.hook, kind)
    _originals.update(found)


def require_installed() -> None:
    """Raise PatchError unless every patch is in effect in this process."""
    for patch in PATCHES:
        original = _originals.get(patch.target)
        if original is None:
            raise PatchError(
                f"sglang-portable-cpu is the platform, but its plugin '{ENTRY_POINT}' did not "
                f"load, so {patch.target} would reach a GPU kernel. Either SGLANG_PLUGINS leaves "
                f"it out (add {ENTRY_POINT}), or it failed: the log line 'Failed to execute "
                f"general plugin: {ENTRY_POINT}' above says why."
            )
        if pkgutil.resolve_name(patch.target) is original:
            raise PatchError(
                f"the replacement of {patch.target} is registered but not in effect. It matters: "
                f"{patch.reason} The log line 'Failed to apply hooks to' above says why."
            )


def _find(patch: Patch) -> Callable[..., Any]:
    try:
        original = pkgutil.resolve_name(patch.target)
    except (ImportError, AttributeError) as error:
        raise PatchError(
            f"this SGLang has no {patch.target} ({error}), which sglang-portable-cpu replaces: "
            f"{patch.reason} Install the SGLang version that this release names in its README."
        ) from error
    if patch.parameters is not None:
        names = tuple(inspect.signature(original).parameters)
        if names != patch.parameters:
            raise PatchError(
                f"{patch.target} takes {', '.join(names)} in this SGLang, and sglang-portable-cpu "
                f"replaces a function of {', '.join(patch.parameters)}. Install the SGLang version "
                "that this release names in its README."
            )
    return original
