# SPDX-License-Identifier: Apache-2.0
"""Server arguments on this platform: defaults it needs, checks of what its attention gets wrong.

Upstream seams: `SRTPlatform.apply_server_args_defaults` and `register_resolution_hook`. Every rule
acts on device cpu only, and gives way to what the user set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

_SOURCE = "sglang_portable_cpu"
_BACKEND = "torch_native"

DEFAULT_MEMORY_FRACTION = 0.5
"""Of the free memory, for weights and KV: a CPU's memory is also the rest of the machine's."""


def apply_defaults(server_args: Any) -> None:
    """Fill fields that the user left open. `server_args` records what is assigned to it."""
    if server_args.mem_fraction_static is None:
        server_args.mem_fraction_static = DEFAULT_MEMORY_FRACTION
    if server_args.moe_runner_backend == "auto":
        # "triton" names the weight layout that the torch experts read, and no kernel runs. For
        # gpt-oss "auto" would become "triton_kernel", whose weights are transposed.
        server_args.moe_runner_backend = "triton"
    if server_args.lora_backend == "csgmv":
        # SGLang's default runs triton kernels, for requests without an adapter too. Whether the
        # user named it cannot be told, nor does it matter: it cannot run here.
        server_args.lora_backend = _BACKEND


def register() -> None:
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook("handle_model_specific_adjustments")(_admit_exaone)
    # Late on purpose: another plugin may still choose a backend that needs none of this.
    register_resolution_hook("handle_cache_compatibility")(_check_torch_native)
    register_resolution_hook("handle_cache_compatibility")(_match_convolution_states)


def _admit_exaone(server_args: Any, previous: Callable[[Any], None]) -> None:
    """EXAONE's list of backends names GPU backends only; torch_native computes its windows too."""
    from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of, resolving_view

    view = resolving_view(server_args)
    blocked = (
        view.device == "cpu"
        and view.attention_backend in ("intel_amx", _BACKEND)
        and model_config_of(server_args).hf_config.architectures[0].startswith("Exaone")
    )
    if not blocked:
        previous(server_args)
        return
    declare_resolution(server_args, _SOURCE, attention_backend="triton")
    previous(server_args)
    declare_resolution(server_args, _SOURCE, attention_backend=_BACKEND)


def _check_torch_native(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Make stock torch_native right where it can be, and say or refuse where it cannot."""
    from sglang.srt.arg_groups.overrides import (
        attention_backends_of,
        declare_resolution,
        model_config_of,
        resolving_view,
    )

    view = resolving_view(server_args)
    if view.device == "cpu" and _BACKEND in attention_backends_of(view):
        model = model_config_of(server_args)
        name = model.hf_config.architectures[0]
        if model.has_attention_sinks:
            raise ValueError(_refusal(name, "has attention sinks, which it does not take"))
        if model.is_hybrid_swa_compress:
            raise ValueError(
                _refusal(
                    name,
                    "has window layers of another shape than its full layers, whose own pool it "
                    "reads through the wrong indices",
                )
            )
        if model.is_hybrid_swa and not view.disable_hybrid_swa_memory:
            logger.warning(
                "%s: sliding-window layers get full-length KV (--disable-hybrid-swa-memory): the "
                "attention backend %s reads a pool of their own through the wrong indices.",
                name,
                _BACKEND,
            )
            declare_resolution(server_args, _SOURCE, disable_hybrid_swa_memory=True)
        for ignored in _ignored_by_torch_native(model):
            logger.warning("%s: %s ignores %s; outputs will differ.", name, _BACKEND, ignored)
    previous(server_args)


def _match_convolution_states(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Keep convolution states in the model's dtype unless the user named one.

    SGLang keeps them in bfloat16 whatever --dtype says: rounded in float32 models, and not
    assignable from them where a snapshot is taken in prefill (`MambaMixer2.forward`).
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.environ import envs

    previous(server_args)
    if resolving_view(server_args).device != "cpu" or envs.SGLANG_MAMBA_CONV_DTYPE.is_set():
        return
    model = model_config_of(server_args)
    if hasattr(type(model.hf_text_config), "mamba2_cache_params"):
        envs.SGLANG_MAMBA_CONV_DTYPE.set(str(model.dtype).removeprefix("torch."))


def _refusal(model_name: str, why: str) -> str:
    return (
        f"the attention backend {_BACKEND} cannot serve {model_name}: the model {why}. Choose "
        "another --attention-backend; stock SGLang has none for a plain CPU, a plugin may add one."
    )


def _ignored_by_torch_native(model: Any) -> list[str]:
    ignored = []
    cap = getattr(model.hf_text_config, "attn_logit_softcapping", None)
    if cap:
        ignored.append(f"the attention logit soft cap of {cap}")
    chunk_tokens = model.attention_chunk_size
    if chunk_tokens is not None and model.context_len > chunk_tokens:
        ignored.append(
            f"the attention chunks of {chunk_tokens} tokens (--context-length {chunk_tokens} stays "
            "exact)"
        )
    return ignored
