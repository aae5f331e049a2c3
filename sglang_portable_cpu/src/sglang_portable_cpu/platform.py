# SPDX-License-Identifier: Apache-2.0
"""The platform object: what SGLang asks about a device that is only a CPU."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from sglang_portable_cpu import model_patches, patches, resolution


class PortableCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """No GPU, no AMX, no triton, no compiler: every operation runs in eager torch."""

    _enum = PlatformEnum.OOT

    def get_device(self, device_id: int = 0) -> str:
        # A name, as SRTPlatform declares: --device defaults to it and is parsed as one.
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU

    def support_mamba_cache_extra_buffer(self) -> bool:
        # Snapshots of recurrent states are copies by slot index, which `ssm_ops` makes in torch.
        return True

    def init_backend(self) -> None:
        # SGLang decorates small functions with torch.compile for the GPU's sake. Here a compile
        # needs a C++ compiler, which a plain machine may lack, and outlasts the calls it serves.
        torch.compiler.set_stance("force_eager")

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Runs in the main process, where an error is a clean refusal to start."""
        patches.require_installed()
        resolution.apply_defaults(server_args)

    def post_load_model(self, model: torch.nn.Module) -> None:
        """Runs in the worker before the first forward: there SGLang only logs a failed hook."""
        patches.require_installed()
        model_patches.apply(model)
