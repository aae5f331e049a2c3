# SPDX-License-Identifier: Apache-2.0
"""Program: the kernels of recurrent layers, compiled for the GPU of argument 1."""

from __future__ import annotations

import sys

import torch

from child import serving, tell
from compiled import compile_launches_for

ARCHITECTURE = int(sys.argv[1])
LAUNCHES = compile_launches_for(ARCHITECTURE)

# One of the kernels is chosen by the GPU's name.
torch.cuda.get_device_name = lambda *_: "none"
torch.cuda.get_device_capability = lambda *_: (ARCHITECTURE // 10, 0)

from far_states import arena_plan  # noqa: E402
from sparse import SparseArena  # noqa: E402
from state_kernels import (  # noqa: E402
    CONV_DTYPE,
    CONV_SHAPE,
    REFUSED,
    SERVED,
    SSM_DTYPE,
    SSM_SHAPE,
    States,
    copy_snapshots,
    inputs,
)


def main() -> None:
    plan = arena_plan(2**31)
    arena, kind = SparseArena(plan), plan.kind("state")
    conv = arena.layers_view(kind, "conv0", CONV_DTYPE, CONV_SHAPE)
    ssm = arena.layers_view(kind, "temporal", SSM_DTYPE, SSM_SHAPE)
    states = States(conv=conv[-1], ssm=ssm[-1])
    ids = torch.tensor([3, 1], dtype=torch.int32)
    calls = {name: kernel for name, (kernel, _) in SERVED.items()} | REFUSED
    jobs = {name: lambda call=call: call(states, ids, inputs()) for name, call in calls.items()}
    jobs["snapshot copies"] = lambda: copy_snapshots(conv, ssm, ids[:1], ids[1:].long())
    for name, job in jobs.items():
        first = len(LAUNCHES)
        job()
        for launch in LAUNCHES[first:]:
            products = launch.products(arena.bytes)
            if products is not None:
                tell(
                    label=name,
                    kernel=launch.kernel,
                    narrow=products.narrow,
                    wide=len(products.wide),
                    cubin_bytes=len(launch.asm["cubin"]),
                )


if __name__ == "__main__":
    serving(main)
