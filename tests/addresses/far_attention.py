# SPDX-License-Identifier: Apache-2.0
"""Program: SGLang's triton attention in the interpreter, at the far end of a sparse arena."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch

from child import serving, tell
from paged_cases import FULL, KIND_NAMES, WINDOW, Case, Request, Shape, reference
from sparse import FarWorkload
from triton_forward import Answer, TritonForward

#: Elements that lie below every slot of the batch.
BEYOND = (2**31, 2**32, 2**36)
#: bfloat16 answers NaN in the interpreter, wherever it reads.
DTYPE = torch.float16
BATCHES = {
    "decode": (Request(prefix_tokens=40, new_tokens=1), Request(prefix_tokens=70, new_tokens=1)),
    "extend": (Request(prefix_tokens=40, new_tokens=9), Request(prefix_tokens=0, new_tokens=20)),
}
#: One query head for each K/V head, and several: SGLang has a kernel for either.
MULTI_HEAD = Shape(num_layers=21, num_q_heads=2, num_kv_heads=2, head_dim=64)
GROUPED = Shape(num_layers=35, num_q_heads=4, num_kv_heads=2, head_dim=32, window_tokens=31)


def case(batch: str, page_tokens: int, beyond_elements: int) -> Case:
    return Case(
        name=f"{batch}, page {page_tokens}, beyond 2^{beyond_elements.bit_length() - 1}",
        full=MULTI_HEAD,
        window=GROUPED,
        requests=BATCHES[batch],
        page_tokens=page_tokens,
        below_bytes=beyond_elements * DTYPE.itemsize,
    )


def other_bytes_changed(work: FarWorkload, before: torch.Tensor, answer: Answer, kind: int) -> int:
    """How many bytes of the batch's large pages changed that this layer's write does not own."""
    now = work.far_bytes()
    changed = (now != before).nonzero().reshape(-1).numpy() + (
        work.buffer.bytes.numel() - now.numel()
    )
    plan = work.plan.kinds[kind]
    slot, inside = changed // plan.slot_bytes, changed % plan.slot_bytes
    owned = np.isin(slot, answer.new_slots.numpy())
    layer = np.zeros_like(owned)
    for part, values in (("k", answer.k), ("v", answer.v)):
        start = plan.row_offset_bytes(work.layer(kind), part)
        size = values[0].numel() * DTYPE.itemsize
        layer |= (inside >= start) & (inside < start + size)
    return int((~(owned & layer)).sum())


def main() -> None:
    for page_tokens, batch, beyond in product((1, 16), BATCHES, BEYOND):
        work = FarWorkload(case(batch, page_tokens, beyond), device="cpu", dtype=DTYPE)
        forward = TritonForward(work)
        for kind in (FULL, WINDOW):
            before = work.far_bytes().clone()
            answer = forward.run(kind)
            k, v = answer.problem.k[answer.new_slots], answer.problem.v[answer.new_slots]
            first = min(int(slots.min()) for slots in answer.problem.slots)
            right, others = error(answer), other_bytes_changed(work, before, answer, kind)
            wrapped = forward.run(kind, index_dtype=torch.int32)  # writes again
            tell(
                page_tokens=page_tokens,
                batch=batch,
                beyond=beyond,
                kind=KIND_NAMES[kind],
                first_element=first * answer.problem.k.stride(0),
                index_dtypes=sorted({str(dtype) for dtype in answer.index_dtypes.values()}),
                error=right,
                error_of_int32=error(wrapped),
                written=torch.equal(k, answer.k) and torch.equal(v, answer.v),
                other_bytes_changed=others,
            )


def error(answer: Answer) -> float:
    """Largest difference to float64; infinite where the answer is no number."""
    problem = answer.problem
    if problem.is_decode and problem.window_tokens is not None:
        # Decoding, SGLang's backend counts the token itself into the window; in a prefill not.
        problem = replace(problem, window_tokens=problem.window_tokens - 1)
    difference = (answer.out.double() - reference(problem)).abs()
    return float(difference.nan_to_num(nan=float("inf")).max())


if __name__ == "__main__":
    serving(main)
