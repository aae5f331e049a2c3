# SPDX-License-Identifier: Apache-2.0
"""Entry point of group `sglang.srt.plugins`: installs the patches where this platform is in use."""


def load() -> None:
    """Called by SGLang's plugin loader in every process that runs part of the server."""
    from sglang.srt.platforms import current_platform

    from sglang_portable_cpu.platform import PortableCpuPlatform

    if not isinstance(current_platform, PortableCpuPlatform):
        return
    from sglang_portable_cpu import launch_checks, patches, resolution

    resolution.register()
    launch_checks.register()
    patches.register()
