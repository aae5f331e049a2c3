# SPDX-License-Identifier: Apache-2.0
"""What does the map of large pages cost the scheduler when somebody asks for ``/server_info``?

    page_map.py                 measure, write results/page_map.md

The arena of Gemma 3 27B (26 full or 5 window slots in a large page), without its bytes.
``orderly``: up to 2,000 requests of random length run. ``worst``: half of all their slots are then
freed at random, so that hardly two neighbours are alike and run lengths save nothing.
"""

from __future__ import annotations

import platform
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from provenance import commit  # noqa: E402

from sglang_jenga.core.allocator import ArenaAllocator  # noqa: E402
from sglang_jenga.core.errors import Exhausted  # noqa: E402
from sglang_jenga.core.geometry import plan_arena  # noqa: E402
from sglang_jenga.core.kinds import KindSpec, RowSpec  # noqa: E402
from sglang_jenga.core.policies import Full, Window  # noqa: E402
from sglang_jenga.sglang_ext.page_map import large_page_map  # noqa: E402

TABLE = HERE / "results" / "page_map.md"
REPEATS = 31
REQUESTS = 2000
_SLOT_BYTES = ((Full(), 81_920), (Window(window_tokens=1024), 425_984))
_LARGE_PAGE_BYTES = 2_129_920


def filled(large_pages: int) -> ArenaAllocator:
    """An arena in which requests run until there is no room for one more."""
    kinds = [
        KindSpec(
            name=policy.NAME,
            policy=policy,
            rows=(RowSpec(layer_id=index, part="k", row_bytes=slot_bytes),),
        )
        for index, (policy, slot_bytes) in enumerate(_SLOT_BYTES)
    ]
    plan = plan_arena(kinds, arena_bytes=large_pages * _LARGE_PAGE_BYTES)
    arena = ArenaAllocator(plan, num_rows=REQUESTS)
    rng = random.Random(1)
    for row in range(REQUESTS):
        full, window = (1 + rng.randrange(n * large_pages // REQUESTS) for n in (26, 5))
        try:
            arena.extend([row], [[full], [window]])
        except Exhausted:
            break
    return arena


def scatter(arena: ArenaAllocator) -> None:
    """Free half of all slots, at random."""
    rng = np.random.default_rng(1)
    for kind, pages in enumerate(arena.small_pages):
        used = np.flatnonzero(pages.state == 2)
        arena.free(kind, rng.permutation(used)[: len(used) // 2])


def measure(arena: ArenaAllocator) -> tuple[float, int]:
    """Median milliseconds of one map, and the characters of its text."""
    took = []
    for _ in range(REPEATS):
        begun = time.thread_time()
        found = large_page_map(arena)
        took.append(time.thread_time() - begun)
    return 1000 * statistics.median(took), len(found["cells"])


def main() -> None:
    rows = []
    for large_pages in (1_000, 10_000, 100_000):
        arena = filled(large_pages)
        for state in ("orderly", "worst"):
            if state == "worst":
                scatter(arena)
            milliseconds, size = measure(arena)
            rows.append(f"| {large_pages:,} | {state} | {milliseconds:.2f} | {size:,} |")
            print(rows[-1], flush=True)
    head = [
        "<!-- written by page_map.py -->",
        "# Milliseconds per map of large pages, and characters of its text",
        "",
        f"Median of {REPEATS}, CPU time of the thread; {platform.machine()}, "
        f"Python {platform.python_version()}, commit {commit()}.",
        "",
        "| large pages | arena | ms | characters |",
        "|---|---|---|---|",
    ]
    TABLE.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
