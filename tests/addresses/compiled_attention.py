# SPDX-License-Identifier: Apache-2.0
"""Program: the launches of SGLang's triton attention backend, compiled for the GPU of argument 1.

Forwards of every way in which the backend reads a pool on NVIDIA: decode with one query head per
K/V head and with several, extend in two stages and, for deterministic answers, in one.
"""

from __future__ import annotations

import sys

import torch

from child import serving, tell
from compiled import compile_launches_for
from paged_cases import FULL, KIND_NAMES, WINDOW, Case, Request, Shape

ARCHITECTURE = int(sys.argv[1])
LAUNCHES = compile_launches_for(ARCHITECTURE)

from sglang.kernels.ops.attention import extend_attention  # noqa: E402

from sparse import FarWorkload  # noqa: E402
from triton_forward import TritonForward  # noqa: E402

MULTI_HEAD = Shape(num_layers=10, num_q_heads=16, num_kv_heads=16, head_dim=128)
GROUPED = Shape(num_layers=20, num_q_heads=16, num_kv_heads=8, head_dim=128, window_tokens=31)
BATCHES = {
    "decode": (Request(prefix_tokens=40, new_tokens=1),),
    "extend": (Request(prefix_tokens=40, new_tokens=9),),
}


def forward(batch: str, page_tokens: int) -> TritonForward:
    case = Case(
        name=batch,
        full=MULTI_HEAD,
        window=GROUPED,
        requests=BATCHES[batch],
        page_tokens=page_tokens,
        below_bytes=2**33,
    )
    return TritonForward(FarWorkload(case, device="cpu", dtype=torch.bfloat16))


def compile_and_tell(
    label: str, made: TritonForward, kind: int, dtype: torch.dtype = torch.int64
) -> None:
    first = len(LAUNCHES)
    made.run(kind, index_dtype=dtype)
    for launch in LAUNCHES[first:]:
        products = launch.products(made.work.buffer.bytes)
        if products is not None:
            tell(
                label=label,
                kind=KIND_NAMES[kind],
                page_tokens=made.work.case.page_tokens,
                kernel=launch.kernel,
                narrow=products.narrow,
                wide=len(products.wide),
                cubin_bytes=len(launch.asm["cubin"]),
            )


def main() -> None:
    # These two are read where a GPU is seen, and there is none.
    extend_attention._is_cuda = True
    extend_attention.CUDA_CAPABILITY = (ARCHITECTURE // 10, 0)
    for batch in BATCHES:
        for page_tokens in (1, 16):
            made = forward(batch, page_tokens)
            for kind in (FULL, WINDOW):
                compile_and_tell(batch, made, kind)
        made = forward(batch, 1)
        compile_and_tell(f"{batch}, int32 ids", made, FULL, torch.int32)
    made.backend.enable_deterministic = True
    for kind in (FULL, WINDOW):
        compile_and_tell("deterministic", made, kind)


if __name__ == "__main__":
    serving(main)
