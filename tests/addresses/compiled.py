# SPDX-License-Identifier: Apache-2.0
"""What SGLang launches, compiled for a GPU that is not there.

Triton asks its driver for the target only. With a driver that names one, SGLang's own Python runs
up to every launch with its own arguments; the kernel is compiled and kept, and not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ir_products import Products, products_in_addresses


class _Driver:
    """The driver of an NVIDIA GPU of ``architecture`` (90 for Hopper) without the GPU."""

    launcher_cls = None
    utils = None

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch: the kernel, its arguments by name, and what it was compiled to."""

    kernel: str
    arguments: dict[str, Any]
    asm: dict[str, Any]

    def pointers_into(self, memory: torch.Tensor) -> list[str]:
        """Arguments that are tensors over ``memory``."""
        start = memory.data_ptr()
        end = start + memory.numel() * memory.element_size()
        return [
            name
            for name, value in self.arguments.items()
            if isinstance(value, torch.Tensor) and start <= value.data_ptr() < end
        ]

    def products(self, memory: torch.Tensor) -> Products | None:
        """Products of loaded ids in its addresses of ``memory``; None: it has none there."""
        names = self.pointers_into(memory)
        return products_in_addresses(self.asm["ttir"], names) if names else None


def compile_launches_for(architecture: int) -> list[Launch]:
    """From now on in this process: compile each launch, run none. The list grows with them."""
    launches: list[Launch] = []
    driver.set_active(_Driver(architecture))
    compile_one = JITFunction.run

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        kernel = compile_one(self, *arguments, grid=grid, warmup=True, **named)
        by_name = {**dict(zip(self.arg_names, arguments, strict=False)), **named}
        launches.append(Launch(kernel=self.fn.__name__, arguments=by_name, asm=kernel.asm))
        return kernel

    JITFunction.run = run
    # A kernel that does not run leaves what it should have filled; index tensors must stay ids.
    torch.empty = torch.zeros
    return launches
