# SPDX-License-Identifier: Apache-2.0
"""The table of loaded-model fixes: modules that rely on a GPU kernel's side effect.

Applied from `SRTPlatform.post_load_model`, the seam for changes to an in-tree model in place. A fix
whose model class or attribute is gone raises PatchError, like the function patches of `patches`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sglang_portable_cpu.patches import PatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPatch:
    """A forward hook on one submodule of every instance of a class."""

    class_path: str
    """`module:Class`, compared with the classes of the loaded model; never imported for this."""
    submodule: str
    """Attribute of the instance; None on an instance means that there is nothing to fix."""
    hook: Callable[..., Any]
    reason: str
    removable_when: str


def write_back_rotated(
    module: torch.nn.Module,
    inputs: tuple[Any, ...],
    output: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Copy rotated query and key over the inputs, as the GPU kernel leaves them.

    `inputs` is (positions, query, key), each `[tokens, heads * dim]` after positions.
    """
    _, query, key = inputs
    query.copy_(output[0].view_as(query))
    key.copy_(output[1].view_as(key))


MODEL_PATCHES: tuple[ModelPatch, ...] = (
    ModelPatch(
        class_path="sglang.srt.models.llama4:Llama4Attention",
        submodule="rotary_emb",
        hook=write_back_rotated,
        reason="Llama-4 drops the result of rotary_emb and counts on the kernel to rotate in "
        "place; torch returns new tensors, so without this no key or query is rotated.",
        removable_when="Llama4Attention.forward uses what rotary_emb returns, as it does on NPU.",
    ),
)


def apply(model: torch.nn.Module) -> None:
    """Install the hooks that `model` needs, once per submodule (layers may share one)."""
    hooked: set[tuple[int, str]] = set()
    for module in model.modules():
        path = f"{type(module).__module__}:{type(module).__qualname__}"
        for patch in MODEL_PATCHES:
            if path != patch.class_path:
                continue
            if not hasattr(module, patch.submodule):
                raise PatchError(
                    f"{path} has no {patch.submodule} in this SGLang, and sglang-portable-cpu must "
                    f"adjust it: {patch.reason} Install the SGLang version that this release names."
                )
            target = getattr(module, patch.submodule)
            if target is None or (id(target), path) in hooked:
                continue
            hooked.add((id(target), path))
            target.register_forward_hook(patch.hook)
