# SPDX-License-Identifier: Apache-2.0
"""Small batches for the kernel tests: uneven lengths, both kinds with heads of their own."""

from paged_cases import Case, Request, Shape

DECODE = tuple(Request(prefix_tokens=n, new_tokens=1) for n in (0, 5, 33, 70, 129))
PREFILL = (
    Request(prefix_tokens=70, new_tokens=9),
    Request(prefix_tokens=0, new_tokens=40),
    Request(prefix_tokens=16, new_tokens=1),
    Request(prefix_tokens=35, new_tokens=90),
)
BATCHES = {"decode": DECODE, "prefill": PREFILL}

#: (full kind, window kind). FlashInfer serves heads of 64, 128 and 256.
HEADS = {
    "equal heads": (
        Shape(num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=64),
        Shape(num_layers=3, num_q_heads=4, num_kv_heads=2, head_dim=64, window_tokens=31),
    ),
    "full 1x128, window 2x64": (
        Shape(num_layers=1, num_q_heads=4, num_kv_heads=1, head_dim=128),
        Shape(num_layers=3, num_q_heads=4, num_kv_heads=2, head_dim=64, window_tokens=31),
    ),
    "full 2x256, window 8x64": (
        Shape(num_layers=2, num_q_heads=8, num_kv_heads=2, head_dim=256),
        Shape(num_layers=5, num_q_heads=8, num_kv_heads=8, head_dim=64, window_tokens=47),
    ),
}


def make_case(
    heads: str, batch: str, page_tokens: int, *, logit_cap: float = 0.0, has_sinks: bool = False
) -> Case:
    full, window = HEADS[heads]
    return Case(
        name=f"{heads}, {batch}",
        full=full,
        window=window,
        requests=BATCHES[batch],
        page_tokens=page_tokens,
        logit_cap=logit_cap,
        has_sinks=has_sinks,
    )
