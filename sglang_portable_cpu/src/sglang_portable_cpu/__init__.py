# SPDX-License-Identifier: Apache-2.0
"""An out-of-tree SGLang platform: the stock wheel serves on a plain CPU.

| module | what it holds |
| --- | --- |
| `platform` | the platform class which SGLang asks about the device |
| `patches` | the table of SGLang functions that need a GPU, and its checks |
| `serving_patches`, `state_patches` | its rows: for any model, and for models with a state |
| `patch` | what a row says |
| `model_patches` | the table of model modules that rely on a GPU kernel's side effect |
| `ops` | the replacements, in torch |
| `conv_ops`, `ssm_ops`, `gdn_ops` | operators of state layers: convolution, Mamba2, delta rule |
| `resolution` | server arguments: what this device needs, and what it must refuse |
| `launch_checks` | what would end a server after its processes were started |
| `plugin` | the entry point that installs the tables |
"""

import os

import torch

ENTRY_POINT = "portable_cpu"
"""Name in both entry point groups: what SGLANG_PLATFORM and SGLANG_PLUGINS refer to."""


def activate() -> str | None:
    """Entry point of group `sglang.srt.platforms`: the platform's class path, or None if unwanted.

    Unwanted means: an accelerator is usable (hide it, for example with CUDA_VISIBLE_DEVICES="", to
    serve on the CPU), or the in-tree CPU engine was asked for with SGLANG_USE_CPU_ENGINE=1.
    """
    if torch.accelerator.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    return "sglang_portable_cpu.platform:PortableCpuPlatform"
