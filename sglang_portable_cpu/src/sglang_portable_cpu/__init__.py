# SPDX-License-Identifier: Apache-2.0
"""An out-of-tree SGLang platform: the stock wheel serves on a plain CPU.

| module | what it holds |
| --- | --- |
| `platform` | the platform class which SGLang asks about the device |
| `patches` | the table of SGLang functions that need a GPU, their replacements' wiring and checks |
| `ops` | the replacements, in torch |
| `resolution` | server arguments: what this device needs, and what it must refuse |
| `plugin` | the entry point that installs the two above |
"""

import os

import torch

ENTRY_POINT = "portable_cpu"
"""Name in both entry point groups: what SGLANG_PLATFORM and SGLANG_PLUGINS refer to."""


def activate() -> str | None:
    """The platform's class path, or None where this platform is not wanted (group `sglang.srt.platforms`).

    Not wanted: any accelerator is usable (hide it, for example with CUDA_VISIBLE_DEVICES="", to serve
    on the CPU), or the in-tree CPU engine was asked for with SGLANG_USE_CPU_ENGINE=1.
    """
    if torch.accelerator.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return None
    return "sglang_portable_cpu.platform:PortableCpuPlatform"
