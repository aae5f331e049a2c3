# SPDX-License-Identifier: Apache-2.0
"""Torch replacements for SGLang functions that reach a GPU kernel or driver on a plain CPU.

Each keeps the signature and the in-place behaviour of the function it stands for; `patches` says
which one and why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def softcap_inplace_logits(
    full_logits: torch.Tensor, final_logit_softcapping: float
) -> torch.Tensor:
    """Bend `full_logits` to `cap * tanh(logits / cap)` in place and return them."""
    return full_logits.div_(final_logit_softcapping).tanh_().mul_(final_logit_softcapping)


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """Without a device there is no copy to speed up: the tensor itself."""
    return tensor


def get_device_module(original: Callable[..., Any], device: Any = None) -> Any:
    """torch's module for a device; without one, `torch.cpu` even in a CUDA build of torch."""
    return original("cpu" if device is None else device)


class _Pageable(TorchFunctionMode):
    """Inside it, tensors are built in pageable memory whatever `pin_memory` says.

    Not a replaced `torch.tensor`: `with torch.device(...)` knows the constructors by identity.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kept = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*args, **kept)


def without_pinning(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`original`, with no tensor that it builds in pinned memory."""
    with _Pageable():
        return original(*args, **kwargs)


def get_last_loc(
    req_to_token: torch.Tensor,
    req_pool_indices_tensor: torch.Tensor,
    prefix_lens_tensor: torch.Tensor,
) -> torch.Tensor:
    """The slot of each request's last cached token, -1 where nothing is cached."""
    from sglang.srt.mem_cache.allocation import get_last_loc_torch

    return get_last_loc_torch(req_to_token, req_pool_indices_tensor, prefix_lens_tensor)


def moe_forward(
    original: Callable[..., torch.Tensor],
    layer: torch.nn.Module,
    x: torch.Tensor,
    topk_output: Any,
    moe_runner_config: Any,
) -> torch.Tensor:
    """SGLang's torch experts, with the router weight on their input where the model wants that.

    `x` is `[tokens, hidden]`. One expert per token: more would each need their own scaled input.
    """
    if not moe_runner_config.apply_router_weight_on_input:
        return original(layer, x, topk_output, moe_runner_config)
    weights = topk_output.topk_weights
    if weights.shape[1] != 1:
        raise NotImplementedError(
            f"the router weight goes on the input of {weights.shape[1]} experts per token, but "
            "sglang-portable-cpu computes that for 1 expert per token only."
        )
    return original(
        layer,
        x * weights.to(x.dtype),
        topk_output._replace(topk_weights=torch.ones_like(weights)),
        dataclasses.replace(moe_runner_config, apply_router_weight_on_input=False),
    )
